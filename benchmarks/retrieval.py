"""Retrieval: how often the right record comes first, by meaning, by words, and as stages 7 and 8 search.

Asks for records in six kinds of query: the exact title; without punctuation; with typing errors in half of the words;
half of the words; a sentence of the content; and paraphrases of records of data/trn_sample.json in other words, written
by hand (paraphrases.jsonl). Prints hit@1, hit@3, the mean reciprocal rank among ten, and milliseconds per query; then which
share of each kind, and of questions that have nothing to do with the data, stage 8 answers instead of saying that they
are not in it. The records of data/trn_sample.json are in the index too.

    python benchmarks/retrieval.py --processed outputs/demo/trn_processed.json
"""

from __future__ import annotations

import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

from config import PROJECT_DIR, RagConfig
from pipeline.data.cleaning import normalise_title
from pipeline.rag import calibration, chunking, embedding, indexing, retrieval, vector_store
from pipeline.rag.lexical import LexicalIndex
from pipeline.run.command_line import quiet_libraries
from pipeline.run.run_folder import RunFolder

if TYPE_CHECKING:
    from langchain_huggingface import HuggingFaceEmbeddings

PARAPHRASES = Path(__file__).with_name("paraphrases.jsonl")
UNRELATED = Path(__file__).with_name("unrelated_questions.txt")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
RANKS = 10
RRF_CONSTANT = 60  # Cormack, Clarke and Büttcher 2009

Records = list[tuple[str, str]]
Search = Callable[[str], list[str]]


@dataclass(frozen=True)
class Benchmark:
    """What to measure."""

    processed: Path
    """A trn_processed.json whose records are asked for."""
    records: int | None = None
    """Records drawn at random from it; None takes all."""
    queries: int = 300
    """Of each kind but the paraphrases."""
    folder: Path | None = None
    """Where the index is kept for the next time; None takes a temporary folder."""


def with_typing_errors(title: str, rng: random.Random) -> str:
    """Return a title with one error in each second word of four letters or more."""
    words = title.split()
    long = [position for position, word in enumerate(words) if len(word) >= 4]
    for position in rng.sample(long, (len(long) + 1) // 2):
        word = words[position]
        at = rng.randrange(len(word) - 1)
        words[position] = rng.choice([
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
            word[:at] + word[at + 1 :],
            word[:at] + word[at] + word[at:],
            word[:at] + rng.choice(LETTERS) + word[at + 1 :],
        ])  # fmt: skip
    return " ".join(words)


def half_of(title: str, rng: random.Random) -> str:
    """Return half of the words of a title, in their order."""
    words = title.split()
    return " ".join(words[position] for position in sorted(rng.sample(range(len(words)), (len(words) + 1) // 2)))


def sentences(content: str) -> list[str]:
    """Return the sentences of a content that say something."""
    return [part for part in re.split(r"(?<=[.!?])\s+", content) if 6 <= len(part.split()) <= 40]


def make_queries(records: Records, count: int, rng: random.Random) -> dict[str, list[tuple[str, str]]]:
    """Return (query, title of the record that is meant) pairs by kind; one record alone has the title, or the sentence."""
    occurrences = Counter(normalise_title(title) for title, _ in records)
    said = Counter(sentence for _, content in records for sentence in set(sentences(content)))
    distinct = [(t, c) for t, c in records if occurrences[normalise_title(t)] == 1 and len(t.split()) >= 4]
    asked = rng.sample(distinct, min(count, len(distinct)))
    telling = [(title, [s for s in sentences(content) if said[s] == 1]) for title, content in distinct]
    telling = [(title, own) for title, own in telling if own]
    told = rng.sample(telling, min(count, len(telling)))
    paraphrases = [json.loads(line) for line in PARAPHRASES.read_text(encoding="utf-8").splitlines()]
    return {
        "exact title": [(title, title) for title, _ in asked],
        "no punctuation": [(re.sub(r"[^\w\s]", " ", title), title) for title, _ in asked],
        "typing errors": [(with_typing_errors(title, rng), title) for title, _ in asked],
        "half of the words": [(half_of(title, rng), title) for title, _ in asked],
        "a sentence": [(rng.choice(own), title) for title, own in told],
        "paraphrase": [(paraphrase["query"], paraphrase["title"]) for paraphrase in paraphrases],
    }


def read_processed(path: Path) -> Records:
    """Return (title, content) of each record, whatever its keys are called."""
    return [tuple(record.values())[:2] for record in json.loads(path.read_text(encoding="utf-8"))]


def demo_records() -> Records:
    """Return the records that the paraphrases are about, cleaned."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(PROJECT_DIR / "process_data.py"), "--output-dir", folder]
        subprocess.run(command, check=True, capture_output=True)
        return read_processed(Path(folder) / "demo" / "trn_processed.json")


def build(folder: Path, records: Records, embeddings: HuggingFaceEmbeddings) -> retrieval.Retriever:
    """Index the records, unless the folder holds them."""
    config = RagConfig()
    store = vector_store.open_store(RunFolder(folder), config, embeddings, create=True)
    lexical = LexicalIndex.make(RunFolder(folder))
    indexing.index(store, records, chunking.chunk_size(config, embeddings), config, lambda: embeddings)
    lexical.synchronise(store)
    retriever = retrieval.Retriever(store, lexical)
    calibration.calibrate(retriever)
    return retriever


def searches(retriever: retrieval.Retriever) -> dict[str, Search]:
    """Return the ways to search: each takes a query and returns titles, the best first."""
    store, lexical = retriever.store, retriever.lexical

    def dense(query: str) -> list[tuple[str, str]]:
        return [(piece.id, piece.title) for piece in store.nearest(store.embed(query), retrieval.CANDIDATES)]

    def by_words(query: str) -> list[tuple[str, str]]:
        ids = lexical.search(set(lexical.stems(query)), retrieval.CANDIDATES)
        titles = {piece_id: title for piece_id, title, *_ in store.pieces(ids)} if ids else {}
        return [(piece_id, titles[piece_id]) for piece_id in ids]

    def reciprocal_ranks(query: str) -> list[tuple[str, str]]:
        scores: Counter[tuple[str, str]] = Counter()
        for ranking in (dense(query), by_words(query)):
            for rank, piece in enumerate(ranking, 1):
                scores[piece] += 1 / (RRF_CONSTANT + rank)
        return [piece for piece, _ in scores.most_common()]

    ways = {"meaning": dense, "BM25": by_words, "equal RRF": reciprocal_ranks}
    titles_of = {name: lambda query, way=way: [title for _, title in way(query)][:RANKS] for name, way in ways.items()}
    return titles_of | {"here": lambda query: [hit.title for hit in retriever.search(query, RANKS)]}


def main(work: Benchmark) -> None:
    """Print the table."""
    quiet_libraries()
    rng = random.Random(3407)
    records = read_processed(work.processed)
    if work.records is not None:
        records = rng.sample(records, min(work.records, len(records)))
    queries = make_queries(records, work.queries, rng)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        retriever = build(
            work.folder or Path(temporary), [*records, *demo_records()], embedding.load_embeddings(RagConfig())
        )
        ways = searches(retriever)
        print(f"{len(records):,} records, up to {work.queries} queries of a kind; hit@1 hit@3 MRR ms")
        print(f"{'':<18}" + "".join(f"{name:^28}" for name in ways))
        third: dict[str, list[float]] = {name: [] for name in ways}
        for kind, asked in queries.items():
            row = f"{kind:<18}"
            for name, search in ways.items():
                ranks, started = [], time.perf_counter()
                for query, title in asked:
                    found = search(query)
                    ranks.append(found.index(title) + 1 if title in found else 0)
                milliseconds = 1000 * (time.perf_counter() - started) / len(asked)
                first, three = (statistics.mean(0 < rank <= most for rank in ranks) for most in (1, 3))
                mean_reciprocal = statistics.mean(1 / rank if rank else 0 for rank in ranks)
                row += f"   {first:.3f} {three:.3f} {mean_reciprocal:.3f} {milliseconds:>5.1f}"
                if kind != "paraphrase":
                    third[name].append(three)
            print(row, flush=True)
        means = "   ".join(f"{name} {statistics.mean(values):.3f}" for name, values in third.items())
        print(f"hit@3, mean of the first five kinds: {means}")
        asked_for = {kind: [query for query, _ in asked] for kind, asked in queries.items()}
        asked_for["unrelated"] = UNRELATED.read_text(encoding="utf-8").splitlines()
        for kind, texts in asked_for.items():
            answered = [retrieval.answerable(retriever.search(text, 1), RagConfig()) for text in texts]
            print(f"{kind:<18} {statistics.mean(answered):.0%} answered")


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))

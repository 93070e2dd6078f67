"""Retrieval on sets with judgements: how well stages 7 and 8 search beside other ways to search, and how sure that is.

A set is a folder: records.jsonl or records.jsonl.gz (record, title, content), queries.jsonl (query, text), qrels.tsv (query,
record, gain; no header) and language (such as english). Its records are indexed as stage 6 does. All ways search the same pieces,
and a record ranks as its best piece does:

- dense: the cosine to every piece, without a graph
- BM25: by bm25s, another implementation than the project's (method lucene, k1 = 1.2, b = 0.75), on title and text of a piece, the
  title three times as `here`; Snowball stems of the language; no stop words, with which `convex` is weaker
- RRF: reciprocal rank fusion of these two rankings, k = 60
- convex: the mean of their scores, each min-max-normalised over the records that are among the first 50 of either
- here: pipeline.rag.retrieval.Retriever.search

Prints a table in Markdown. nDCG@10 is trec_eval's ndcg_cut_10: a gain counts as it is, divided by log2(rank + 1). recall@3 is the
share of the relevant records that are among the first three; MRR@10 the mean of 1 / rank of the first relevant one. A record is
relevant if its gain is above 0. Queries without a relevant record are left out; a relevant record that is not in the set is never
found. In brackets are 95 % intervals, by the percentile bootstrap over the queries; the sets are fixed. The last column is the
paired difference to the best of the other ways. That is chosen by the same queries, so chance favours it, not `here`. A time is
the median of a query's, its embedding included. All embeddings are computed in float32, so that a run can be repeated.

"answered" is the share of questions that retrieval.answerable passes: of the set's own queries; of questions that have nothing to do
with any set (--unrelated; the name of a file ends in its language); and of queries of other sets of the same language.

    python benchmarks/retrieval_sets.py sets/cranfield sets/faquad --unrelated unrelated_english.txt unrelated_portuguese.txt
"""

from __future__ import annotations

import gzip
import json
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import bm25s
import numpy
import Stemmer
import tyro
from scipy.stats import bootstrap

from benchmarks.retrieval import RRF_CONSTANT, build
from config import RagConfig
from pipeline.rag import chunking, embedding, retrieval, vector_store
from pipeline.run.command_line import quiet_libraries

MEASURES = ("nDCG@10", "recall@3", "MRR@10")
WAYS = ("dense", "BM25", "RRF", "convex", "here")
RANKS = 10
FIRST = 3
CANDIDATES = 50
TITLE_WEIGHT = 3  # of BM25; with 1, BM25 and convex lose up to 0.02 of nDCG@10
PIECES = 50  # that `here` is asked for: several may be of one record
MOST_FOREIGN = 500  # queries of another set that are put to one, drawn at random
RESAMPLES = 9999
VALUES_AT_A_TIME = 2**22  # that the bootstrap draws
DISCOUNTS = 1 / numpy.log2(numpy.arange(2, RANKS + 2))


@dataclass(frozen=True)
class Benchmark:
    """What to measure."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """The sets."""
    unrelated: tuple[Path, ...] = ()
    """Files with a question in each line; a set is asked those of its language, in which the name ends."""
    indexes: Path | None = None
    """Where the indexes are kept for the next time; None takes a temporary folder."""


@dataclass(frozen=True)
class JudgedSet:
    """Records, queries, and which of the records are relevant."""

    name: str
    language: str
    records: dict[str, tuple[str, str]]
    """Title and content."""
    queries: dict[str, str]
    """Those that have a relevant record."""
    gains: dict[str, dict[str, float]]
    """For each query the gain of each relevant record."""


def read_set(folder: Path) -> JudgedSet:
    """Read a set."""
    queries = {row["query"]: row["text"] for row in _json_lines(folder / "queries.jsonl")}
    gains: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for line in (folder / "qrels.tsv").read_text(encoding="utf-8").splitlines():
        query, record, gain = line.split("\t")
        if float(gain) > 0:
            gains[query][record] = float(gain)
    path = folder / "records.jsonl"
    rows = _json_lines(path if path.exists() else folder / "records.jsonl.gz")
    return JudgedSet(
        folder.resolve().name,
        (folder / "language").read_text(encoding="utf-8").strip(),
        {row["record"]: (row["title"], row["content"]) for row in rows},
        {query: text for query, text in queries.items() if query in gains},
        dict(gains),
    )


def _json_lines(path: Path) -> Iterable[dict[str, str]]:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def measure(ranking: Sequence[str], gains: dict[str, float]) -> list[float]:
    """Return the MEASURES of a ranking of records, the best first.

    Args:
        ranking: each record once.
        gains: of the relevant records, at least one.
    """
    found = numpy.array([gains.get(record, 0.0) for record in ranking[:RANKS]])
    best = sorted(gains.values(), reverse=True)[:RANKS]
    ranks = numpy.flatnonzero(found) + 1
    return [
        float(found @ DISCOUNTS[: len(found)] / (best @ DISCOUNTS[: len(best)])),
        int((ranks <= FIRST).sum()) / len(gains),
        1 / int(ranks[0]) if len(ranks) else 0.0,
    ]


def record_of(piece_id: str) -> str:
    """Return the id of the record that a piece is of."""
    return piece_id.partition("-")[0]


@dataclass(frozen=True)
class RememberingStore(vector_store.VectorStore):
    """A store that embeds each query once, for all ways and all sets."""

    remembered: dict[str, numpy.ndarray]

    def embed(self, query: str) -> numpy.ndarray:
        """Return the embedding of a query."""
        if query not in self.remembered:
            self.remembered[query] = super().embed(query)
        return self.remembered[query]


class Rivals:
    """The other ways to search, on the pieces of a store."""

    def __init__(self, store: vector_store.VectorStore, language: str) -> None:
        """Read the pieces with their embeddings."""
        self._store = store
        texts: dict[str, str] = {}
        vectors: dict[str, numpy.ndarray] = {}
        for page in store.ids():
            for start in range(0, len(page), store.most_added):
                some = page[start : start + store.most_added]
                texts |= {
                    piece_id: "\n".join([title] * TITLE_WEIGHT + [text])
                    for piece_id, title, text, _ in store.pieces(some)
                }
                found = store.collection.get(some, include=["embeddings"])
                vectors |= zip(found["ids"], found["embeddings"], strict=True)
        pieces = sorted(texts)  # those of a record follow each other; equal scores rank by a hash, which no way knows
        self._vectors = numpy.array([vectors[piece_id] for piece_id in pieces], "float32")
        self._records, self._starts = numpy.unique(list(map(record_of, pieces)), return_index=True)
        self._stemmer = Stemmer.Stemmer(language)
        self._bm25 = bm25s.BM25(method="lucene", k1=1.2, b=0.75)
        self._bm25.index(self._words([texts[piece_id] for piece_id in pieces]), show_progress=False)

    def rankings(self, query: str) -> dict[str, list[str]]:
        """Return the first records of each way, the best first."""
        dense = self._of_records(self._vectors @ self._store.embed(query))
        words = self._words([query])[0]
        lexical = self._of_records(self._bm25.get_scores(words)) if words else numpy.zeros_like(dense)
        by_meaning, by_words = _order(dense), _order(lexical)
        by_words = by_words[lexical[by_words] > 0]
        reciprocal = numpy.zeros(len(dense))
        for order in (by_meaning, by_words):
            reciprocal[order] += 1 / (RRF_CONSTANT + numpy.arange(1, len(order) + 1))
        among = numpy.union1d(by_meaning[:CANDIDATES], by_words[:CANDIDATES])
        mean = _normalised(dense[among]) + _normalised(lexical[among])
        orders = {"dense": by_meaning, "BM25": by_words, "RRF": _order(reciprocal), "convex": among[_order(mean)]}
        return {way: self._records[order[:RANKS]].tolist() for way, order in orders.items()}

    def _words(self, texts: list[str]) -> list[list[str]]:
        return bm25s.tokenize(texts, stopwords=None, stemmer=self._stemmer, return_ids=False, show_progress=False)

    def _of_records(self, scores: numpy.ndarray) -> numpy.ndarray:
        """Return the score of each record: that of its best piece."""
        return numpy.maximum.reduceat(scores, self._starts)


def _order(scores: numpy.ndarray) -> numpy.ndarray:
    return numpy.argsort(-scores, kind="stable")


def _normalised(scores: numpy.ndarray) -> numpy.ndarray:
    width = scores.max() - scores.min()
    return (scores - scores.min()) / width if width else numpy.zeros_like(scores)


@dataclass(frozen=True)
class Evaluation:
    """What was measured on a set."""

    judged: JudgedSet
    retriever: retrieval.Retriever
    measures: numpy.ndarray
    """By measure, way and query."""
    milliseconds: float
    """Of a query, `here`; the median."""
    answered: float
    """Share of the queries, from 0 to 1."""


def evaluate(judged: JudgedSet, retriever: retrieval.Retriever, size: chunking.ChunkSize) -> Evaluation:
    """Put the queries of a set to each way.

    Args:
        judged: the set.
        retriever: of its records.
        size: of its pieces.
    """
    config = RagConfig()
    found, milliseconds, answered = {}, [], []
    for query, text in judged.queries.items():
        started = time.perf_counter()
        hits = retriever.search(text, PIECES)
        milliseconds.append(1000 * (time.perf_counter() - started))
        answered.append(retrieval.answerable(hits[: config.k], config))
        found[query] = list(dict.fromkeys(record_of(hit.id) for hit in hits))
    # Afterwards, so that their threads do not slow the searches that are timed.
    rivals = Rivals(retriever.store, judged.language)
    ids = {record: chunking.record_id(*texts, size) for record, texts in judged.records.items()}
    measures = []
    for query, text in judged.queries.items():
        rankings = rivals.rankings(text) | {"here": found[query]}
        gains: defaultdict[str, float] = defaultdict(float)  # records that are equal are one in the index
        for record, gain in judged.gains[query].items():
            key = ids.get(record, record)
            gains[key] = max(gains[key], gain)
        measures.append([measure(rankings[way], dict(gains)) for way in WAYS])
    share = statistics.mean(answered)
    return Evaluation(judged, retriever, numpy.array(measures).T, statistics.median(milliseconds), share)


def answered_foreign(
    evaluation: Evaluation, others: Sequence[JudgedSet], unrelated: Sequence[Path]
) -> dict[str, float]:
    """Return by kind the share of questions that are answered though another set, or none, is about them."""
    language, rng = evaluation.judged.language, random.Random(3407)
    asked = {
        "unrelated": [
            line
            for path in unrelated
            if path.stem.endswith(language)
            for line in path.read_text(encoding="utf-8").splitlines()
            if line.strip()
        ],
        "other sets": [
            text
            for other in others
            if other is not evaluation.judged and other.language == language
            for text in rng.sample(list(other.queries.values()), min(MOST_FOREIGN, len(other.queries)))
        ],
    }
    config, search = RagConfig(), evaluation.retriever.search
    return {
        kind: statistics.mean(retrieval.answerable(search(text, config.k), config) for text in texts)
        for kind, texts in asked.items()
        if texts
    }


def intervals(samples: Sequence[numpy.ndarray]) -> numpy.ndarray:
    """Return the lower and upper ends of the intervals of means over the sets of means over their queries.

    Args:
        samples: of each set an array of shape (columns, queries).

    Returns:
        An array of shape (2, columns).
    """

    def mean(*drawn: numpy.ndarray, axis: int = -1) -> numpy.ndarray:
        return sum(one.mean(axis=axis) for one in drawn) / len(drawn)

    batch = max(1, VALUES_AT_A_TIME // sum(one.size for one in samples))
    found = bootstrap(
        samples, mean, axis=-1, vectorized=True, n_resamples=RESAMPLES, batch=batch, method="percentile", rng=3407
    ).confidence_interval
    return numpy.stack([found.low, found.high])


def row(label: str, number: int, samples: Sequence[numpy.ndarray]) -> str:
    """Return a row of the table: a measure of each way, and the difference to the best rival.

    Args:
        label: the set.
        number: of the measure.
        samples: the measures of one set, or of all, by measure, way and query.
    """
    ways = [one[number] for one in samples]
    rival = int(numpy.mean([one.mean(axis=-1) for one in ways], axis=0)[:-1].argmax())
    columns = [numpy.vstack([one, one[-1] - one[rival]]) for one in ways]
    means = numpy.mean([one.mean(axis=-1) for one in columns], axis=0)
    *cells, difference = (
        f"{mean:{form}} [{low:{form}}, {high:{form}}]"
        for mean, low, high, form in zip(means, *intervals(columns), [".3f"] * len(WAYS) + ["+.3f"], strict=True)
    )
    return f"| {label} | {MEASURES[number]} | {' | '.join(cells)} | {difference} to {WAYS[rival]} |"


def lines(evaluations: Sequence[Evaluation], unrelated: Sequence[Path]) -> Iterable[str]:
    """Yield the lines of the table."""
    yield f"| set | | {' | '.join(WAYS)} | here, to the best other |"
    yield "|---|---|" + "---:|" * (len(WAYS) + 1)
    blank = "| " * (len(WAYS) - 1)
    sets = [one.judged for one in evaluations]
    for one in evaluations:
        label = f"{one.judged.name}: {len(one.judged.queries):,} queries, {len(one.judged.records):,} records"
        for number in range(len(MEASURES)):
            yield row(label if number == 0 else "", number, [one.measures])
        yield f"| | ms {blank}| {one.milliseconds:.0f} | |"
        answered = {"own queries": one.answered} | answered_foreign(one, sets, unrelated)
        for kind, share in answered.items():
            yield f"| | answered: {kind} {blank}| {share:.1%} | |"
    if len(sets) > 1:
        for number in range(len(MEASURES)):
            label = f"mean of {len(sets)} sets" if number == 0 else ""
            yield row(label, number, [one.measures for one in evaluations])


def main(work: Benchmark) -> None:
    """Print the table."""
    quiet_libraries()
    sets = [read_set(folder) for folder in work.folders]
    for one in sets:
        if one.language not in Stemmer.algorithms():
            raise SystemExit(
                f"{one.name}: Snowball has no stems of {one.language!r}, so BM25 would be too weak a rival."
            )
    for path in work.unrelated:
        if not any(path.stem.endswith(one.language) for one in sets):
            raise SystemExit(f"{path}: the name ends in the language of none of the sets.")
    # `auto` times the formats at each start: a busy machine may choose another, and figures change by 0.002.
    embeddings = embedding.load_embeddings(RagConfig(embedding_precision="float32"))
    size, remembered = chunking.chunk_size(RagConfig(), embeddings), {}
    evaluations = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        # All sets first: the gate asks queries of other sets, whose time is to have their embedding in it.
        for one in sets:
            print(f"{one.name} ...", file=sys.stderr, flush=True)
            retriever = build((work.indexes or Path(temporary)) / one.name, list(one.records.values()), embeddings)
            store = RememberingStore(**vars(retriever.store), remembered=remembered)
            evaluations.append(evaluate(one, replace(retriever, store=store), size))
        for line in lines(evaluations, work.unrelated):
            print(line, flush=True)


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))

"""A sentence before the retrieved records (--prompt.context-instruction): which one makes answers follow the right record?

A set is a folder as benchmarks/retrieval_sets.py reads it. Queries are drawn at random. With each, the model gets the record of the
greatest gain and two others, which share most words with the query (BM25) and are not judged relevant, in random order, the same for
all sentences. A record is cut to --record-words, by default about a piece of stage 6. Answers are greedy.

Prints a table in Markdown; in brackets are differences to no sentence over the same queries, with 95 % intervals (percentile
bootstrap); those that do not hold 0 are bold. They are many, and one in twenty is bold by chance.

- supported: share of the answers of whose information the right record holds CITED_COVERAGE or more (pipeline/rag/citations.py)
- support: the mean share of an answer's information that the right record holds
- ROUGE-L: of the answer against the content of the right record, 0 to 100; longer answers have more
- words: of an answer

    python benchmarks/context_instruction.py sets/faquad sets/covid-faq
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy
import tyro

from benchmarks.retrieval_sets import JudgedSet, intervals, read_set
from config import GenerationConfig, ModelConfig, PromptConfig, RagConfig
from pipeline.data.metadata import Metadata
from pipeline.data.words import cut_where_lines_end, words
from pipeline.rag import citations
from pipeline.rag.lexical import LexicalIndex
from pipeline.rag.retrieval import Hit
from pipeline.rag.vector_store import VectorStore
from pipeline.rag.word_match import Match
from pipeline.run.command_line import quiet_libraries
from pipeline.run.run_folder import RunFolder

NONE = "none"
SENTENCES: dict[str, dict[str, str | None]] = {
    NONE: {"english": None, "portuguese": None},
    "context": {"english": "Context:", "portuguese": "Contexto:"},
    "alone": {
        "english": "Answer the question from these texts alone:",
        "portuguese": "Responda à pergunta somente com base nestes textos:",
    },
    "quote": {
        "english": "Answer with the words of the text that is about the question:",
        "portuguese": "Responda com as palavras do texto que trata da pergunta:",
    },
    "do not know": {
        "english": "Use these texts to answer the question. If they do not hold the answer, say that you do not know.",
        "portuguese": "Use estes textos para responder à pergunta. Se eles não contêm a resposta, diga que não sabe.",
    },
}
LABELS = {"english": ("Title", "Text"), "portuguese": ("Título", "Texto")}
MEASURES = {"supported": ".0%", "support": ".0%", "ROUGE-L": ".1f", "words": ".0f"}
OTHERS = 2
PIECES = 100  # the first by words, among which the others are


@dataclass(frozen=True)
class Benchmark:
    """What to measure."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """The sets."""
    model: str = "bundled/SmolLM2-135M-Instruct"
    """Folder, Hugging Face id, or bundled/NAME."""
    format: Literal["alpaca", "chat"] = "chat"
    """How it is asked."""
    queries: int = 60
    """Of each set."""
    new_tokens: int = 48
    """Of an answer, at most."""
    record_words: int = 150
    """Of a record, at most."""


@dataclass(frozen=True)
class Pieces:
    """Records as LexicalIndex.synchronise reads a vector store: each is one piece."""

    records: dict[str, tuple[str, str]]
    most_added: int = 1000

    def ids(self) -> Iterator[list[str]]:
        """Yield the ids of all pieces."""
        yield list(self.records)

    def pieces(self, ids: list[str]) -> Iterator[tuple[str, str, str, Metadata]]:
        """Yield id, title, text and metadata of pieces."""
        return ((record, *self.records[record], {}) for record in ids)


@dataclass(frozen=True)
class Asked:
    """A query with what is at hand."""

    query: str
    hits: list[Hit]
    right: Hit
    """The one of the hits that is judged relevant."""


def shortened(judged: JudgedSet, most_words: int) -> JudgedSet:
    """Return a set with the beginnings of its records."""
    begun = {
        record: (title, "".join(cut_where_lines_end(content)[:most_words]).strip())
        for record, (title, content) in judged.records.items()
    }
    return replace(judged, records=begun)


def index_words(folder: Path, judged: JudgedSet) -> LexicalIndex:
    """Return an index of the words of a set, in a folder."""
    lexical = LexicalIndex.make(RunFolder(folder))
    lexical.synchronise(cast(VectorStore, Pieces(judged.records)))
    return lexical


def draw(judged: JudgedSet, lexical: LexicalIndex, number: int) -> list[Asked]:
    """Return some queries of a set whose relevant record is in it, each with records."""
    rng = random.Random(3407)
    known = [query for query in judged.queries if judged.records.keys() & judged.gains[query].keys()]
    asked = []
    for query in rng.sample(known, min(number, len(known))):
        text, gains = judged.queries[query], judged.gains[query]
        best = max(judged.records.keys() & gains.keys(), key=lambda record: (gains[record], record))
        alike = [record for record in lexical.search(lexical.stems(text), PIECES) if record not in gains]
        chosen = [best, *alike[:OTHERS]]
        hits = [Hit(record, *judged.records[record], 1.0, Match(1.0, 1.0)) for record in chosen]
        asked.append(Asked(text, rng.sample(hits, len(hits)), hits[0]))
    return asked


def measure(answer: str, right: Hit, lexical: LexicalIndex) -> list[float]:
    """Return the MEASURES of an answer."""
    from rouge_score.rouge_scorer import RougeScorer

    from pipeline.evaluation.metrics import UnicodeTokenizer

    support = citations.support(answer, [right], lexical)
    rouge = RougeScorer(["rougeL"], tokenizer=UnicodeTokenizer()).score(right.text, answer)["rougeL"].fmeasure
    return [float(support >= citations.CITED_COVERAGE), support, 100 * rouge, len(words(answer))]


def rows(label: str, samples: Sequence[numpy.ndarray]) -> Iterator[str]:
    """Yield the rows of a table, one for each sentence.

    Args:
        label: the set.
        samples: the measures of one set, or of several, by sentence, measure and query.
    """
    for number, name in enumerate(SENTENCES):
        cells = []
        for place, form in enumerate(MEASURES.values()):
            ours = [sample[number, place] for sample in samples]
            cell = format(float(numpy.mean([values.mean() for values in ours])), form)
            if name != NONE:
                differences = [values - sample[0, place] for values, sample in zip(ours, samples, strict=True)]
                low, high = intervals([values[None] for values in differences])[:, 0]
                told = f"{low:+{form}}, {high:+{form}}"
                cell += f" [**{told}**]" if low > 0 or high < 0 else f" [{told}]"
            cells.append(cell)
        yield f"| {label if number == 0 else ''} | {name} | {' | '.join(cells)} |"


def main(work: Benchmark) -> None:
    """Print the table."""
    from pipeline.models import loading, precision, prompts
    from pipeline.models.answerer import TransformersModel
    from pipeline.rag import context

    quiet_libraries()
    sets = [shortened(read_set(folder), work.record_words) for folder in work.folders]
    for one in sets:
        if one.language not in LABELS:
            raise SystemExit(f"{one.name}: there are no sentences in {one.language!r}, only in {', '.join(LABELS)}.")
    model = ModelConfig(name=work.model)
    base = loading.load_base(model, precision.precision_to_answer(model))
    settings = GenerationConfig(work.new_tokens, temperature=0.0)
    print(f"{base.name}, {work.format}, {work.new_tokens} new tokens at most\n")
    print(f"| set | sentence | {' | '.join(MEASURES)} |\n|---|---|{'---:|' * len(MEASURES)}", flush=True)
    measured = []
    for one in sets:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
            lexical = index_words(Path(temporary), one)
            asked, found = draw(one, lexical, work.queries), []
            title_label, content_label = LABELS[one.language]
            for name, told in SENTENCES.items():
                print(f"{one.name}, {name} ...", file=sys.stderr, flush=True)
                wording = PromptConfig(work.format, "", title_label, content_label, told[one.language])
                answerer = TransformersModel(base, prompts.make_prompt_format(wording, base.tokenizer))
                room = context.room_for_context(answerer, RagConfig().max_context_tokens, work.new_tokens)
                texts = [context.prompt_with_records(answerer, each.query, each.hits, room)[0] for each in asked]
                answers = answerer.generate(texts, settings)
                found.append(
                    [measure(answer.text, each.right, lexical) for answer, each in zip(answers, asked, strict=True)]
                )
            measured.append(numpy.array(found).transpose(0, 2, 1))
        for line in rows(f"{one.name}, {len(asked)} queries", measured[-1:]):
            print(line, flush=True)
    if len(sets) > 1:
        for line in rows(f"mean of {len(sets)} sets", measured):
            print(line)


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))

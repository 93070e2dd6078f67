"""Say which of the records at hand each sentence of an answer comes from, and how much of it comes from none."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pipeline.rag.lexical import LexicalIndex
from pipeline.rag.retrieval import Hit

FEWEST_WORDS = 3  # of a sentence that says something
CITED_COVERAGE = 0.6  # share of a sentence's information that a record must hold to be cited for it
_SENTENCE_END = re.compile(r"((?<=[.!?।॥۔؟\]])\s+|(?<=[。！？])(?![」』”’）])\s*)")
_CITATION = re.compile(r"\s*\[\d+\]")


def sentences(text: str) -> list[str]:
    """Return the sentences of a text."""
    return _SENTENCE_END.split(text)[::2]


def cite(answer: str, hits: Sequence[Hit], lexical: LexicalIndex) -> str:
    """Return an answer with [1] after each sentence that the first record holds, [2] for the second, and so on.

    What a model cites by itself is left out: it may have made it up.
    """
    parts = _SENTENCE_END.split(_CITATION.sub("", answer))
    for position in range(0, len(parts), 2):  # a sentence, the space behind it, and so on
        coverages = [_share_in_records(parts[position], [hit], lexical) for hit in hits]
        best = max(coverages, default=0.0)
        if best >= CITED_COVERAGE and len(lexical.stems(parts[position])) >= FEWEST_WORDS:
            parts[position] += f" [{coverages.index(best) + 1}]"
    return "".join(parts)


def support(answer: str, hits: Sequence[Hit], lexical: LexicalIndex) -> float:
    """Return the share of an answer's information, from 0 to 1, whose words are in the records at hand."""
    return _share_in_records(_CITATION.sub("", answer), hits, lexical)


def _share_in_records(text: str, hits: Sequence[Hit], lexical: LexicalIndex) -> float:
    weights = {stem: lexical.information(stem) for stem in lexical.stems(text)}
    held = lexical.indexed_stems(" ".join(f"{hit.title} {hit.text}" for hit in hits))
    total = sum(weights.values())
    return sum(weight for stem, weight in weights.items() if stem in held) / total if total else 0.0

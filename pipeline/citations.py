"""Say which of the records at hand each sentence of an answer comes from, and how much of it comes from none."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pipeline.lexical import LexicalIndex, words_of
from pipeline.retrieval import Hit, word_match

CITED_COVERAGE = 0.6  # share of a sentence's information that a record must hold to be cited for it
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_CITATION = re.compile(r"\[\d+\]")


def cite(answer: str, hits: Sequence[Hit], lexical: LexicalIndex) -> str:
    """Return an answer with [1] after each sentence that the first record holds, [2] for the second, and so on.

    A sentence in which the model cites by itself stays as it is.
    """
    sentences = []
    for sentence in _SENTENCE_END.split(answer):
        coverages = [_held(sentence, [hit], lexical) for hit in hits]
        best = max(coverages, default=0.0)
        if best >= CITED_COVERAGE and not _CITATION.search(sentence):
            sentence += f" [{coverages.index(best) + 1}]"
        sentences.append(sentence)
    return " ".join(sentences)


def support(answer: str, hits: Sequence[Hit], lexical: LexicalIndex) -> float:
    """Return the share of an answer's information, from 0 to 1, whose words are in the records at hand."""
    return _held(_CITATION.sub("", answer), hits, lexical)


def _held(text: str, hits: Sequence[Hit], lexical: LexicalIndex) -> float:
    words = words_of(text)
    match = word_match({word: [word] for word in words}, words, lexical)
    return match(" ".join(f"{hit.title} {hit.text}" for hit in hits)).coverage

"""Measure on an index itself what tells a question that it answers from one about something else.

Questions of everyday life, in the language of the data, are put to the index, and parts of its own texts, as far from a quotation as
a question is. Nobody's judgements are needed.
"""

from __future__ import annotations

import functools
import json
import random
import statistics
from collections.abc import Sequence
from itertools import chain, repeat
from pathlib import Path

import numpy

from pipeline.rag.levels import Levels
from pipeline.rag.retrieval import Hit, Retriever

UNRELATED = Path(__file__).with_name("unrelated_questions.json")
UNRELATED_BELOW = 0.975  # share of the questions about something else that have less, both in score and in meaning
OWN_ABOVE = 0.95  # share of the data's own questions that have a higher score, whatever the others have
QUESTIONS = 100  # of each kind
WORDS_AROUND, SHARE_KEPT = 24, 1 / 3  # of a piece: a question has some of the words of a passage
HITS = 3


def calibrate(retriever: Retriever) -> Levels:
    """Return the levels of an index that is complete, and note them in its lexical part."""
    store, lexical = retriever.store, retriever.lexical
    unrelated = unrelated_questions(lexical.language)
    vectors = [store.embed_all(of_language) for of_language in unrelated]
    # A model that was not made for a language finds all its texts alike. Most models were made for English too.
    chance = statistics.mean(map(mean_cosine, vectors))
    in_english = mean_cosine(store.embed_all(_all_unrelated()["en"]))
    told_apart, at_best = 1 - chance, 1 - min(chance, in_english)
    cosines = {"chance": chance, "slope": told_apart / at_best / at_best}
    lexical.levels = Levels(**cosines)
    others = list(map(retriever.search_embedded, chain(*unrelated), chain(*vectors), repeat(HITS)))
    asked = own_questions(retriever)
    own = list(map(retriever.search_embedded, asked, store.embed_all(asked), repeat(HITS)))
    score = numpy.quantile(best_scores(others), UNRELATED_BELOW)
    score = min(score, numpy.quantile(best_scores(own), 1 - OWN_ABOVE))
    meaning = numpy.quantile([max(hit.meaning for hit in hits) for hits in others], UNRELATED_BELOW)
    lexical.levels = Levels(**cosines, score=float(score), meaning=float(meaning))
    return lexical.levels


def unrelated_questions(language: str | None) -> list[list[str]]:
    """Return questions that have to do with hardly any data: 100 in a language, or where it has none, some in each of others."""
    questions = _all_unrelated()
    if language in questions:
        return [questions[language]]
    return [of_language[: QUESTIONS // len(questions) + 1] for of_language in questions.values()]


@functools.cache
def _all_unrelated() -> dict[str | None, list[str]]:
    return json.loads(UNRELATED.read_text(encoding="utf-8"))


def own_questions(retriever: Retriever) -> list[str]:
    """Return what could be asked about some pieces: a third of the words of a passage of each."""
    rng = random.Random(3407)
    questions = []
    for _, title, text, _ in retriever.store.pieces(retriever.lexical.some_ids(QUESTIONS)):
        words = f"{title} {text}".split()
        first = rng.randrange(max(1, len(words) - WORDS_AROUND))
        passage = words[first : first + WORDS_AROUND]
        kept = sorted(rng.sample(range(len(passage)), max(1, round(SHARE_KEPT * len(passage)))))
        questions.append(" ".join(passage[place] for place in kept))
    return questions


def mean_cosine(vectors: numpy.ndarray) -> float:
    """Return the mean cosine of every two of some vectors of length 1, of shape (vectors, dimensions)."""
    count = len(vectors)
    return (float((vectors.sum(axis=0) ** 2).sum()) - count) / (count * (count - 1))


def best_scores(found: Sequence[Sequence[Hit]]) -> list[float]:
    """Return the score of the best hit of each search."""
    return [max(hit.score for hit in hits) for hits in found]

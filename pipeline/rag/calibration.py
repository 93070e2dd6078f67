"""Measure on an index itself what tells a question that it answers from one about something else.

Questions of everyday life, in the language of the data, are put to the index, and parts of its own texts, as far from a quotation as
a question is. Nobody's judgements are needed.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, repeat

import numpy

from pipeline.rag.everyday_questions import QUESTIONS, all_questions, questions_in
from pipeline.rag.levels import Levels
from pipeline.rag.retrieval import Hit, Retriever

UNRELATED_BELOW = 0.975  # share of the questions about something else that have less, both in score and in meaning
OWN_ABOVE = 0.95  # share of the data's own questions that have a higher score, whatever the others have
WORDS_AROUND, SHARE_KEPT = 24, 1 / 3  # of a piece: a question has some of the words of a passage
HITS = 3


def calibrate(retriever: Retriever) -> Levels:
    """Return the levels of an index that is complete, and note them in its lexical part."""
    store, lexical = retriever.store, retriever.lexical
    unrelated = questions_in(lexical.language)
    vectors = [store.embed_all(of_language) for of_language in unrelated]
    english = vectors[0] if lexical.language == "en" else store.embed_all(all_questions()["en"])
    lexical.levels = levels = cosine_levels(vectors, english)
    others = list(map(retriever.search_embedded, chain(*unrelated), chain(*vectors), repeat(HITS)))
    asked = own_questions(retriever)
    own = list(map(retriever.search_embedded, asked, store.embed_all(asked), repeat(HITS)))
    score = numpy.quantile(best_scores(others), UNRELATED_BELOW)
    score = min(score, numpy.quantile(best_scores(own), 1 - OWN_ABOVE))
    meaning = numpy.quantile([max(hit.meaning for hit in hits) for hits in others], UNRELATED_BELOW)
    lexical.levels = replace(levels, score=float(score), meaning=float(meaning))
    return lexical.levels


def cosine_levels(vectors: Sequence[numpy.ndarray], english: numpy.ndarray) -> Levels:
    """Return what cosines mean: from questions about different things in the language of the data, or in several languages.

    Args:
        vectors: of length 1; for each language those of its questions, of shape (questions, dimensions).
        english: the same for English.
    """
    # A model that was not made for a language finds all its texts alike. Most models were made for English too.
    chance = statistics.mean(map(mean_cosine, vectors))
    told_apart, at_best = 1 - chance, 1 - min(chance, mean_cosine(english))
    return Levels(chance=chance, slope=told_apart / at_best / at_best)


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

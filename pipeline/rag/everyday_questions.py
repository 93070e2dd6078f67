"""Questions of everyday life, 100 in each of 15 languages, that have to do with hardly anyone's data.

They tell what unrelated texts have in common: how near they are by chance, how well a record fits them, and with which words one asks.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from pathlib import Path

from pipeline.data.words import search_words

QUESTIONS = 100
ASKING = 5  # questions that have a word with which one asks


@functools.cache
def all_questions() -> dict[str, list[str]]:
    """Return the questions in each language, whose code is that of ISO 639-1."""
    return json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


def questions_in(language: str | None) -> list[list[str]]:
    """Return the questions in a language, or if it has none, some in each of the others."""
    questions = all_questions()
    if language in questions:
        return [questions[language]]
    return [of_language[: QUESTIONS // len(questions) + 1] for of_language in questions.values()]


def asking_words(language: str | None) -> set[str]:
    """Return the words with which one asks, whatever about, such as "which is the … for my"; none if it has no questions."""
    questions = all_questions().get(language or "", [])
    counts = Counter(word for question in questions for word in set(search_words(question)))
    return {word for word, count in counts.items() if count >= ASKING}

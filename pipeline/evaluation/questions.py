"""Which titles are asked, and how they are answered."""

from __future__ import annotations

import collections
import random
from collections.abc import Iterator
from dataclasses import dataclass

from config import QuestionsConfig
from pipeline.data.cleaning import normalise_title
from pipeline.data.records import ProcessedData, reservoir_sample
from pipeline.run.run_folder import remake

NOT_IN_DATA = "not in the data"


@dataclass(frozen=True)
class Question:
    """A title that a model is asked about."""

    title: str
    split: str
    """train, validation, test, or 'not in the data'."""
    reference: str
    """The content of the record with this title; empty if there is none."""


def choose_questions(data: ProcessedData, config: QuestionsConfig) -> list[Question]:
    """Return the example titles and titles of the test split drawn at random, the same for every model.

    An example takes the record with exactly its title; if there is none, one that differs in case and punctuation alone.
    """
    examples = dict.fromkeys(map(data.clean, config.examples))
    keys = {normalise_title(title) for title in examples}
    exact: dict[str, Question] = {}
    alike: dict[str, Question] = {}
    held_out_titles: set[str] = set()

    def held_out() -> Iterator[Question]:
        for title, content in data:
            key, split = normalise_title(title), data.split_of(title)
            if key in keys:
                exact.setdefault(title, Question(title, split, content))
                alike.setdefault(key, exact[title])
            elif split == "test" and key not in held_out_titles:
                held_out_titles.add(key)
                yield Question(title, split, content)

    questions = held_out()
    drawn = reservoir_sample(questions, config.held_out, random.Random(config.seed))
    collections.deque(questions, maxlen=0)  # where none is drawn, no record was read yet
    asked = [
        exact.get(title) or alike.get(normalise_title(title)) or Question(title, NOT_IN_DATA, "") for title in examples
    ]
    if not asked and not drawn:
        raise remake(
            data.path,
            "There is no title to ask about: no example is set and no record is in the test split. Give --questions.examples, or "
            "clean the records with a larger --data.test-fraction.",
        )
    return [*dict.fromkeys(asked), *drawn]

"""Which titles are asked, and how they are answered."""

from __future__ import annotations

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
    """Return the example titles and titles of the test split drawn at random, the same for every model."""
    examples = {normalise_title(data.clean(title)): data.clean(title) for title in config.examples}
    found: dict[str, Question] = {}
    held_out_titles: set[str] = set()

    def held_out() -> Iterator[Question]:
        for title, content in data:
            key, split = normalise_title(title), data.split_of(title)
            if key in examples:
                found.setdefault(key, Question(title, split, content))
            elif split == "test" and key not in held_out_titles:
                held_out_titles.add(key)
                yield Question(title, split, content)

    drawn = reservoir_sample(held_out(), config.held_out, random.Random(config.seed))
    asked = [found.get(key, Question(title, NOT_IN_DATA, "")) for key, title in examples.items()]
    if not asked and not drawn:
        raise remake(
            data.path,
            "There is no title to ask about: no example is set and no record is in the test split. Give --questions.examples, or "
            "clean the records with a larger --data.test-fraction.",
        )
    return asked + drawn

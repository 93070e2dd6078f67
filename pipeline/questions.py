"""Which titles are asked, and how they are answered."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from config import QuestionsConfig
from pipeline.artifacts import UserError
from pipeline.cleaning import normalise_title
from pipeline.generation import Answer
from pipeline.prompts import PromptFormat
from pipeline.records import ProcessedData, reservoir_sample

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
        raise UserError(
            "There is no title to ask about: no example is set and no record is in the test split. "
            "Set --questions.examples, or run process_data.py with a larger --data.test-fraction."
        )
    return asked + drawn


def ask(
    questions: Sequence[Question],
    answer_all: Callable[[Callable[[int], object]], list[Answer]],
    prompt_format: PromptFormat,
    explain: Callable[[int, str], dict[str, Any]] = lambda position, answer: {},
) -> list[dict[str, Any]]:
    """Answer every question under one progress bar, print question and answer, and return them for the answers file.

    Args:
        answer_all: takes the function that moves the progress bar, returns an answer for every question.
        explain: returns what else is known of the answer to the question at a position: `cited`, the answer with marks
            of where it comes from, and `sources`, the records that were given to the model.
    """
    with tqdm(total=len(questions), desc="Answering", unit="answer", dynamic_ncols=True) as bar:
        answers = answer_all(bar.update)
    entries = []
    for index, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        print(f"\n{prompt_format.title_label}: {question.title}")
        entry = {**dataclasses.asdict(question), "answer": answer.text}
        entry |= {"tokens": answer.tokens, "ended": answer.ended, "seconds": round(answer.seconds, 4)}
        entry |= explain(index, answer.text)
        print(f"{prompt_format.content_label}: {entry.get('cited', answer.text)}")
        if "sources" in entry:
            named = [f"[{n}] {source['title']} ({source['score']:.2f})" for n, source in enumerate(entry["sources"], 1)]
            print("Sources: " + ("; ".join(named) or "none"))
        entries.append(entry)
    return entries

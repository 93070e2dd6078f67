"""Do the questions, or their answers, also occur in what was trained on?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.data.cleaning import normalise_title


@dataclass(frozen=True)
class Leakage:
    """What of the held-out questions the fine-tuned model has seen."""

    trained_on: int
    """Records of the training."""
    asked: int
    """Questions with a reference that are not of the training split themselves."""
    titles: int
    """How many of them have a title that was trained on."""
    answers: int
    """How many of them have an answer that was trained on, under whatever title."""

    def __str__(self) -> str:
        """Return what a reader of the comparison must know."""
        if not self.titles and not self.answers:
            return (
                f"Leakage: none. Of {self.asked} held-out titles, neither title nor answer is among the "
                f"{self.trained_on:,} training records."
            )
        return (
            f"Leakage: of {self.asked} held-out titles, {self.titles} have a title and {self.answers} an answer that is among "
            f"the {self.trained_on:,} training records, so the fine-tuned model may know those by heart."
        )


def find_leakage(questions: Sequence[dict[str, str]], trained_on: Iterable[tuple[str, str]]) -> Leakage:
    """Look the questions up among the training records.

    Args:
        questions: title, split and reference.
        trained_on: title and answer of each training record.
    """
    held_out = [question for question in questions if question["reference"] and question["split"] != "train"]
    titles = {normalise_title(question["title"]) for question in held_out}
    answers = {normalise_title(question["reference"]) for question in held_out}
    seen_titles: set[str] = set()
    seen_answers: set[str] = set()
    count = 0
    for title, answer in trained_on:
        count += 1
        if (key := normalise_title(title)) in titles:
            seen_titles.add(key)
        if (key := normalise_title(answer)) in answers:
            seen_answers.add(key)
    return Leakage(
        count,
        len(held_out),
        sum(normalise_title(question["title"]) in seen_titles for question in held_out),
        sum(normalise_title(question["reference"]) in seen_answers for question in held_out),
    )

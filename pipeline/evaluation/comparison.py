"""Join the answers of several models by title, measure them, and tell which differences are more than noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from pipeline.evaluation.metrics import METRICS, measure
from pipeline.evaluation.significance import (
    Difference,
    Figure,
    Measures,
    difference,
    figure,
    sign_test,
    significant,
    wilson_interval,
)
from pipeline.run.errors import UserError

Entries = Sequence[dict[str, Any]]
Score = Callable[[Entries], list[float | None]]
Prefer = Callable[[Entries, Entries], list[float | None]]
"""Returns, for two columns, 1 for each question that the first answers better, 0 for the second, 0.5 for a tie."""
PREFERRED = "preferred"


@dataclass(frozen=True)
class Finding:
    """What two models differ in."""

    metric: str
    ours: str
    theirs: str
    difference: Difference
    """The figure of `ours` minus that of `theirs`."""
    certain: bool
    """Whether it is more than noise."""

    @property
    def better(self) -> str | None:
        """Return the name of the model that is better, or None if that cannot be told."""
        if not self.certain:
            return None
        return self.ours if self.difference.value * METRICS[self.metric].better > 0 else self.theirs


@dataclass(frozen=True)
class Preference:
    """How often a judge prefers the answers of one model to those of another."""

    ours: str
    theirs: str
    wins: int
    """Questions that `ours` answers better."""
    ties: int
    losses: int
    low: float
    high: float
    """The interval of the share of the wins."""

    @property
    def answers(self) -> int:
        """Return how many questions were judged."""
        return self.wins + self.ties + self.losses

    def as_finding(self, certain: bool) -> Finding:
        """Return it as a difference: the share of the wins minus that of the losses."""
        value = (self.wins - self.losses) / self.answers
        return Finding(PREFERRED, self.ours, self.theirs, Difference(value, self.answers, self.p), certain)

    @property
    def p(self) -> float:
        """Return how likely as many wins or losses are with even chances; ties say nothing."""
        return float(sign_test(self.wins, self.losses))


@dataclass(frozen=True)
class Comparison:
    """The answers of several models to the same questions, and what they say."""

    models: dict[str, str]
    """For each column, the name of what answered."""
    figures: dict[str, dict[str, Figure | None]]
    """For each metric, the figure of each column; only metrics that a column has."""
    answers: dict[str, int]
    """For each metric, the questions for which any column has the measure."""
    findings: list[Finding]
    preferences: list[Preference]
    questions: list[dict[str, Any]]
    """Title, split, reference, and for each column the entry of its answers file."""

    def as_json(self) -> dict[str, Any]:
        """Return what comparison.json holds."""
        return {
            "models": self.models,
            "figures": {
                metric: {column: asdict(found) if found else None for column, found in row.items()}
                for metric, row in self.figures.items()
            },
            "findings": [{**asdict(finding), "better": finding.better} for finding in self.findings],
            "preferences": [{**asdict(preference), "p": preference.p} for preference in self.preferences],
            "questions": self.questions,
        }


def compare(
    answers: dict[str, dict[str, Any]],
    command_alike: Callable[[str, str], str],
    scores: dict[str, Score],
    prefer: Prefer | None = None,
) -> Comparison:
    """Join and measure.

    Args:
        answers: for each column, what its answers file holds.
        command_alike: returns, for two columns, the command that answers for the first as the second was answered for.
        scores: functions that need another model, by the measure that they give for each of a list of entries.
        prefer: a judge of pairs of answers, if one is asked.

    Raises:
        UserError: the columns do not answer the same questions with the same settings.
    """
    first, *others = answers
    for other in others:
        again = f"Run `{command_alike(other, first)}` again."
        if _titles(answers[other]) != _titles(answers[first]):
            raise UserError(f"{first} and {other} answered different titles. {again}")
        if answers[other]["generation"] != answers[first]["generation"]:
            raise UserError(f"{first} and {other} had different --answers settings. {again}")
    order = [entry["title"] for entry in answers[first]["answers"]]
    measures: dict[str, list[Measures]] = {}
    entries: dict[str, list[dict[str, Any]]] = {}
    for column, file in answers.items():
        by_title = {entry["title"]: entry for entry in file["answers"]}
        entries[column] = [by_title[title] for title in order]
        measures[column] = [measure(entry) for entry in entries[column]]
        for name, score in scores.items():
            for measured, value in zip(measures[column], score(entries[column]), strict=True):
                measured[name] = value
    add_general_texts(answers, measures)
    preferences = find_preferences(entries, prefer) if prefer is not None else []
    figures = {
        name: {column: figure(metric, measures[column]) for column in answers} for name, metric in METRICS.items()
    }
    common = ("title", "split", "reference")
    return Comparison(
        models={column: file["model"] for column, file in answers.items()},
        figures={name: row for name, row in figures.items() if any(row.values())},
        answers={name: count_known(metric.measure, measures) for name, metric in METRICS.items()},
        findings=find_differences(measures, preferences),
        preferences=preferences,
        questions=[
            {key: entries[first][position][key] for key in common}
            | {"answers": {column: _shown(entries[column][position], measures[column][position]) for column in answers}}
            for position in range(len(order))
        ],
    )


def count_known(measure: str, measures: dict[str, list[Measures]]) -> int:
    """Return for how many questions any column has a measure."""
    return sum(any(row.get(measure) is not None for row in rows) for rows in zip(*measures.values(), strict=True))


def add_general_texts(answers: dict[str, dict[str, Any]], measures: dict[str, list[Measures]]) -> None:
    """Add what the fine-tuned model and its base make of general texts, as further rows of their columns."""
    read = answers.get("Fine-tuned", {}).get("general")
    if not read:
        return
    for column, rows in measures.items():
        for text in read:
            row: Measures = {"general_tokens": text["tokens"]}
            if column == "Foundation":
                row["general_loss"] = text["base_loss"]
            if column == "Fine-tuned":
                row |= {"general_loss": text["tuned_loss"], "kl": text["kl"]}
            rows.append(row)


def find_preferences(entries: Mapping[str, Entries], prefer: Prefer) -> list[Preference]:
    """Let a judge compare every two columns, the later with the earlier."""
    found = []
    for theirs, ours in combinations(entries, 2):
        judged = [choice for choice in prefer(entries[ours], entries[theirs]) if choice is not None]
        if judged:
            wins, losses = judged.count(1.0), judged.count(0.0)
            ties = len(judged) - wins - losses
            found.append(Preference(ours, theirs, wins, ties, losses, *wilson_interval(wins, len(judged))))
    return found


def find_differences(measures: dict[str, list[Measures]], preferences: Sequence[Preference] = ()) -> list[Finding]:
    """Compare every two columns, the later with the earlier, in the metrics in which one can be better.

    All are one family of tests, whether or not they differ, and what a judge prefers is of it.
    """
    found = [
        (name, ours, theirs, difference(metric, measures[ours], measures[theirs]))
        for theirs, ours in combinations(measures, 2)
        for name, metric in METRICS.items()
        if metric.compared
    ]
    known = [(name, ours, theirs, diff) for name, ours, theirs, diff in found if diff is not None]
    certain = significant([diff.p for *_, diff in known] + [preference.p for preference in preferences])
    findings = [Finding(*parts, sure) for parts, sure in zip(known, certain, strict=False)]
    return findings + [p.as_finding(sure) for p, sure in zip(preferences, certain[len(known) :], strict=True)]


def _titles(file: dict[str, Any]) -> set[str]:
    return {entry["title"] for entry in file["answers"]}


def _shown(entry: dict[str, Any], measured: Measures) -> dict[str, Any]:
    answer = {key: value for key, value in entry.items() if key not in ("title", "split", "reference")}
    return {**answer, "measures": {name: value for name, value in measured.items() if value is not None}}

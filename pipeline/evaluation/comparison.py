"""Join the answers of several models by title, measure them, and tell which differences are more than noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from pipeline.evaluation.metrics import METRICS, measure
from pipeline.evaluation.significance import Difference, Figure, Measures, difference, figure, significant
from pipeline.run.errors import UserError

Score = Callable[[Sequence[dict[str, Any]]], list[float | None]]


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
class Comparison:
    """The answers of several models to the same questions, and what they say."""

    models: dict[str, str]
    """For each column, the name of what answered."""
    figures: dict[str, dict[str, Figure | None]]
    """For each metric, the figure of each column; only metrics that a column has."""
    findings: list[Finding]
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
            "questions": self.questions,
        }


def compare(answers: dict[str, dict[str, Any]], commands: dict[str, str], scores: dict[str, Score]) -> Comparison:
    """Join and measure.

    Args:
        answers: for each column, what its answers file holds.
        commands: for each column, the command that makes it.
        scores: functions that need another model, by the measure that they give for each of a list of entries.

    Raises:
        UserError: the columns do not answer the same questions with the same settings.
    """
    first, *others = answers
    for other in others:
        again = f"Run `{commands[first]}` and `{commands[other]}` again, alike."
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
    figures = {
        name: {column: figure(metric, measures[column]) for column in answers} for name, metric in METRICS.items()
    }
    common = ("title", "split", "reference")
    return Comparison(
        models={column: file["model"] for column, file in answers.items()},
        figures={name: row for name, row in figures.items() if any(row.values())},
        findings=find_differences(measures),
        questions=[
            {key: entries[first][position][key] for key in common}
            | {"answers": {column: _shown(entries[column][position], measures[column][position]) for column in answers}}
            for position in range(len(order))
        ],
    )


def find_differences(measures: dict[str, list[Measures]]) -> list[Finding]:
    """Compare every two columns, the later with the earlier, in the metrics in which one can be better."""
    found = [
        (name, ours, theirs, difference(metric, measures[ours], measures[theirs]))
        for theirs, ours in combinations(measures, 2)
        for name, metric in METRICS.items()
        if metric.compared
    ]
    known = [(name, ours, theirs, diff) for name, ours, theirs, diff in found if diff is not None]
    certain = significant([diff for *_, diff in known])
    return [Finding(*parts, sure) for parts, sure in zip(known, certain, strict=True)]


def _titles(file: dict[str, Any]) -> set[str]:
    return {entry["title"] for entry in file["answers"]}


def _shown(entry: dict[str, Any], measured: Measures) -> dict[str, Any]:
    answer = {key: value for key, value in entry.items() if key not in ("title", "split", "reference")}
    return {**answer, "measures": {name: value for name, value in measured.items() if value is not None}}

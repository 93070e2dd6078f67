"""How sure a figure is, and whether two models differ: the bootstrap over the questions (Efron 1979, Koehn 2004)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.evaluation.metrics import Metric

if TYPE_CHECKING:
    import numpy

Measures = dict[str, float | None]
CONFIDENCE = 0.95
RESAMPLES = 5000
FEWEST_ANSWERS = 8  # under which an interval would say more than it knows


@dataclass(frozen=True)
class Figure:
    """A figure of one model."""

    value: float
    answers: int
    """How many answers it is of."""
    low: float | None = None
    high: float | None = None
    """The interval that holds it with a probability of CONFIDENCE; None where there are too few answers."""


@dataclass(frozen=True)
class Difference:
    """The figure of one model minus that of another, over the questions that both have it for."""

    value: float
    low: float
    high: float
    p: float
    """Probability of a difference as large where there is none, two-sided."""


def figure(metric: Metric, answers: Sequence[Measures], seed: int = 3407) -> Figure | None:
    """Return the figure of a model's answers with its interval, or None if no answer has the measure."""
    above, below = _columns(metric, answers)
    known = ~_missing(above, below)
    above, below = above[known], below[known]
    if not len(above) or not below.sum():
        return None
    value = float(_quotient(metric, above, below))
    if len(above) < FEWEST_ANSWERS or not metric.interval:
        return Figure(value, len(above))
    interval = _bootstrap((above, below), lambda a, b, axis=-1: _quotient(metric, a, b, axis), seed).confidence_interval
    return Figure(value, len(above), float(interval.low), float(interval.high))


def difference(
    metric: Metric, ours: Sequence[Measures], theirs: Sequence[Measures], seed: int = 3407
) -> Difference | None:
    """Compare the answers of two models to the same questions.

    None where fewer than FEWEST_ANSWERS can be compared, or all are alike.
    """
    columns = [*_columns(metric, ours), *_columns(metric, theirs)]
    known = ~_missing(*columns)
    columns = [column[known] for column in columns]
    if len(columns[0]) < FEWEST_ANSWERS or not columns[1].sum() or not columns[3].sum():
        return None
    if (columns[0] == columns[2]).all() and (columns[1] == columns[3]).all():
        return None

    def subtract(
        a: numpy.ndarray, b: numpy.ndarray, c: numpy.ndarray, d: numpy.ndarray, *, axis: int = -1
    ) -> numpy.ndarray:
        return _quotient(metric, a, b, axis) - _quotient(metric, c, d, axis)

    result = _bootstrap(tuple(columns), subtract, seed)
    drawn = result.bootstrap_distribution
    least = min((drawn <= 0).sum(), (drawn >= 0).sum())
    p = min(1.0, 2 * (float(least) + 1) / (len(drawn) + 1))
    interval = result.confidence_interval
    return Difference(float(subtract(*columns)), float(interval.low), float(interval.high), p)


def significant(differences: Sequence[Difference]) -> list[bool]:
    """Tell which of many differences are more than noise: of those, one in twenty is not (Benjamini & Hochberg 1995)."""
    from scipy.stats import false_discovery_control

    if not differences:
        return []
    return [bool(p <= 1 - CONFIDENCE) for p in false_discovery_control([found.p for found in differences])]


def _columns(metric: Metric, answers: Sequence[Measures]) -> tuple[numpy.ndarray, numpy.ndarray]:
    import numpy

    above = numpy.array([answer.get(metric.measure) for answer in answers], dtype=float)  # None becomes NaN
    if metric.per is None:
        return above, numpy.ones(len(above))
    return above, numpy.array([answer.get(metric.per) for answer in answers], dtype=float)


def _missing(*columns: numpy.ndarray) -> numpy.ndarray:
    import numpy

    return numpy.isnan(numpy.array(columns)).any(axis=0)


def _quotient(metric: Metric, above: numpy.ndarray, below: numpy.ndarray, axis: int = -1) -> numpy.ndarray:
    import numpy

    quotient = above.sum(axis=axis) / below.sum(axis=axis)
    return numpy.exp(quotient) if metric.exponential else quotient


def _bootstrap(columns: tuple[numpy.ndarray, ...], statistic, seed: int):
    from scipy.stats import bootstrap

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that all answers are alike
        return bootstrap(
            columns, statistic, paired=True, vectorized=True, n_resamples=RESAMPLES, method="percentile",
            confidence_level=CONFIDENCE, rng=seed,
        )  # fmt: skip

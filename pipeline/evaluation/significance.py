"""How sure a figure is, and whether two models differ more than chance makes them differ.

Tests: exact McNemar for measures that are 0 or 1, otherwise the paired permutation test (Fisher 1935), which under no difference is as
often wrong as it says at any number of questions. Intervals: Wilson (1927) for shares, the studentized bootstrap (Efron 1981) for means
and quotients, whose measures may be skewed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.evaluation.metrics import Metric

if TYPE_CHECKING:
    import numpy

Measures = dict[str, float | None]
Interval = tuple[float, float]

CONFIDENCE = 0.95
RESAMPLES = 9999
FEWEST_FOR_INTERVAL = (
    20  # answers: with fewer, the interval of the mean of a skewed measure holds it less often than it says
)
FEWEST_VARIED = 8  # of them, answers that differ from the commonest value: an interval of nearly nothing holds nothing
VALUES_AT_A_TIME = 2**22  # that are drawn, to bound the memory


@dataclass(frozen=True)
class Figure:
    """A figure of one model."""

    value: float
    answers: int
    """How many answers it is of."""
    low: float | None = None
    high: float | None = None
    """The interval that holds it with a probability of CONFIDENCE; None where there are too few answers."""

    def text(self, form: str) -> str:
        """Return the figure in a format, with its interval in brackets if it has one."""
        if self.low is None or self.high is None:
            return form.format(self.value)
        return f"{form.format(self.value)} [{form.format(self.low)}, {form.format(self.high)}]"


@dataclass(frozen=True)
class Difference:
    """The figure of one model minus that of another, over the questions that both have it for."""

    value: float
    answers: int
    """How many questions that are."""
    p: float
    """Probability of a difference as large where there is none, two-sided."""


def figure(metric: Metric, answers: Sequence[Measures], seed: int = 3407) -> Figure | None:
    """Return the figure of a model's answers with its interval, or None if no answer has the measure."""
    pairs = _known(_pairs(metric, answers))[0]
    if not pairs.imag.sum():
        return None
    value, number = float(_quotient(metric, pairs)), len(pairs)
    if not metric.interval:
        return Figure(value, number)
    if metric.yes_no:
        return Figure(value, number, *wilson_interval(int(pairs.real.sum()), number))
    return Figure(value, number, *_studentized_interval(metric, pairs, seed))


def difference(
    metric: Metric, ours: Sequence[Measures], theirs: Sequence[Measures], seed: int = 3407
) -> Difference | None:
    """Compare the answers of two models to the same questions; None where fewer than two have the measure in both."""
    a, b = _known(_pairs(metric, ours), _pairs(metric, theirs))
    if len(a) < 2 or not a.imag.sum() or not b.imag.sum():
        return None
    value = float(_quotient(metric, a) - _quotient(metric, b))
    return Difference(value, len(a), float(p_value(metric, a, b, seed)))


def p_value(metric: Metric, ours: numpy.ndarray, theirs: numpy.ndarray, seed: int = 3407) -> numpy.ndarray:
    """Return how likely a difference as large is where models are alike, two-sided.

    Args:
        metric: of which.
        ours: for each question, in the last dimension, the measure and, as the imaginary part, what it is per.
        theirs: the same for the other model.
        seed: of the permutations; where there are no more than RESAMPLES, all of them are taken.
    """
    from scipy.stats import permutation_test

    if metric.yes_no:
        return sign_test((ours.real > theirs.real).sum(axis=-1), (ours.real < theirs.real).sum(axis=-1))

    def subtract(a: numpy.ndarray, b: numpy.ndarray, axis: int = -1) -> numpy.ndarray:
        return _quotient(metric, a, axis) - _quotient(metric, b, axis)

    batch = max(1, VALUES_AT_A_TIME // ours.size)
    return permutation_test(
        (ours, theirs), subtract, permutation_type="samples", vectorized=True, n_resamples=RESAMPLES, batch=batch,
        axis=-1, rng=seed,
    ).pvalue.real  # fmt: skip


def sign_test(wins: numpy.ndarray | int, losses: numpy.ndarray | int) -> numpy.ndarray:
    """Return how likely it is that of so many questions, won with even chances, as few go to one side (exact McNemar)."""
    import numpy
    from scipy.stats import binom

    return numpy.minimum(1.0, 2 * binom.cdf(numpy.minimum(wins, losses), numpy.add(wins, losses), 0.5))


def significant(p_values: Sequence[float]) -> list[bool]:
    """Tell which of many differences are more than noise: of those, one in twenty is not (Benjamini & Hochberg 1995)."""
    from scipy.stats import false_discovery_control

    return [bool(p <= 1 - CONFIDENCE) for p in false_discovery_control(p_values)] if p_values else []


def fewest_to_differ(tests: int) -> int:
    """Return with how many questions a difference alone, among so many tests, can be more than noise."""
    # The least p of n questions is 2 / 2^n, and a single one of so many must be below 5 % of one of them.
    return math.ceil(1 + math.log2(max(tests, 1) / (1 - CONFIDENCE)))


def wilson_interval(successes: int, number: int) -> Interval:
    """Return the interval of a share."""
    from scipy.stats import binomtest

    found = binomtest(successes, number).proportion_ci(CONFIDENCE, method="wilson")
    return float(found.low), float(found.high)


def _studentized_interval(metric: Metric, pairs: numpy.ndarray, seed: int) -> Interval | tuple[None, None]:
    """Return the interval of a mean or quotient; nothing where it would not hold what it says."""
    import numpy
    from scipy.stats import bootstrap

    varied = len(pairs) - numpy.unique(pairs, return_counts=True)[1].max()
    if len(pairs) < FEWEST_FOR_INTERVAL or varied < FEWEST_VARIED:
        return None, None
    quotient, error = _quotient_and_error(pairs)

    def pivot(drawn: numpy.ndarray, axis: int = -1) -> numpy.ndarray:
        drawn_quotient, drawn_error = _quotient_and_error(drawn, axis)
        return (drawn_quotient - quotient) / drawn_error

    with numpy.errstate(divide="ignore", invalid="ignore"):  # where all that were drawn are alike
        found = bootstrap(
            (pairs,), pivot, vectorized=True, n_resamples=RESAMPLES, batch=max(1, VALUES_AT_A_TIME // len(pairs)),
            method="percentile", confidence_level=CONFIDENCE, rng=seed,
        ).confidence_interval  # fmt: skip
    ends = quotient - error * numpy.array([found.high, found.low])
    low, high = numpy.exp(ends) if metric.exponential else ends
    return float(low), float(high)


def _quotient_and_error(pairs: numpy.ndarray, axis: int = -1) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return the quotient of two sums and its standard error, by linearization (Cochran 1977)."""
    import numpy

    above, below = pairs.real, pairs.imag
    quotient = above.sum(axis=axis, keepdims=True) / below.sum(axis=axis, keepdims=True)
    rest = (above - quotient * below) / below.mean(axis=axis, keepdims=True)
    number = pairs.shape[axis]
    return quotient.squeeze(axis), numpy.sqrt((rest**2).sum(axis=axis) / (number * (number - 1)))


def _pairs(metric: Metric, answers: Sequence[Measures]) -> numpy.ndarray:
    """Return the measure of each answer and, as the imaginary part, what it is per, so that drawing keeps them together."""
    import numpy

    above = numpy.array([answer.get(metric.measure) for answer in answers], dtype=float)  # None becomes NaN
    below = [1.0 if metric.per is None else answer.get(metric.per) for answer in answers]
    return above + 1j * numpy.array(below, dtype=float)


def _known(*columns: numpy.ndarray) -> list[numpy.ndarray]:
    """Return the answers that have the measure in every column."""
    import numpy

    known = ~numpy.isnan(columns).any(axis=0)
    return [column[known] for column in columns]


def _quotient(metric: Metric, pairs: numpy.ndarray, axis: int = -1) -> numpy.ndarray:
    import numpy

    quotient = pairs.real.sum(axis=axis) / pairs.imag.sum(axis=axis)
    return numpy.exp(quotient) if metric.exponential else quotient

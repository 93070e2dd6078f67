"""A test is as often wrong as it says, whatever the number of questions, and an interval holds the truth as often as it says."""

from __future__ import annotations

import functools
import random

import numpy
import pytest
from scipy.stats import permutation_test

from pipeline.evaluation import significance
from pipeline.evaluation.metrics import METRICS
from pipeline.evaluation.significance import difference, figure, p_value, sign_test, significant, wilson_interval

MEAN, SHARE, QUOTIENT = METRICS["rouge_l"], METRICS["exact"], METRICS["perplexity"]
REPORTS, MODELS = 2000, 3
ALLOWED = 0.065  # 5 %, and 1.5 of the simulation


def rows(metric, values, per=None):
    below = per if per is not None else [None] * len(values)
    found = [{metric.measure: float(value)} for value in values]
    return [row | ({metric.per: float(b)} if metric.per else {}) for row, b in zip(found, below, strict=True)]


def answers_of(rng, metric, questions, models=MODELS, better=0.0):
    """Answers of models to the same questions, in each of many reports; the last model is better by so many deviations.

    Returns:
        what p_value takes: (reports, models, questions).
    """
    shape = (REPORTS, models, questions)
    difficulty = rng.normal(size=(REPORTS, 1, questions))
    quality = 0.7 * difficulty + 0.7 * rng.normal(size=shape)
    quality[:, -1] += better
    if metric is SHARE:
        return (quality > 0.6).astype(float) + 1j
    if metric is MEAN:
        return 100 / (1 + numpy.exp(1.2 - quality)) + 1j  # skewed, within 0 and 100
    tokens = numpy.broadcast_to(numpy.round(rng.lognormal(3.3, 0.5, (REPORTS, 1, questions))) + 2, shape)
    return tokens * numpy.exp(0.8 - 0.3 * quality) + 1j * tokens


@pytest.fixture
def fewer_resamples(monkeypatch):
    monkeypatch.setattr(significance, "RESAMPLES", 999)


@pytest.mark.parametrize("questions", [8, 12, 20, 64])
def test_where_models_are_alike_one_test_and_one_report_in_twenty_at_most_claim_a_difference(
    questions, fewer_resamples, monkeypatch, capsys
):
    rng = numpy.random.default_rng(questions)
    pairs = [(1, 0), (2, 0), (2, 1)]
    found = []
    for metric in (MEAN, SHARE, QUOTIENT):
        drawn = answers_of(rng, metric, questions)
        of_metric = numpy.array([p_value(metric, drawn[:, ours], drawn[:, theirs]) for ours, theirs in pairs])
        assert (of_metric <= 0.05).mean() <= ALLOWED, metric.label
        found.append(of_metric)
    reports = numpy.concatenate(found).T
    assert reports.shape == (REPORTS, 9)
    claims = numpy.mean([any(significant(list(report))) for report in reports])
    assert claims <= ALLOWED
    monkeypatch.setattr(significance, "RESAMPLES", 4999)  # of 36 comparisons, one must be below .0014
    with capsys.disabled():
        print(f"\n{questions} questions: {claims:.1%} of reports claim a difference where there is none.")
        for tests in (1, 6, 36):
            print(f"  A difference of one deviation, alone among {tests} comparisons, is told: ", end="")
            print(", ".join(f"{m.label} {power(m, questions, tests):.0%}" for m in (MEAN, SHARE)))


@functools.cache
def p_where_one_is_better(metric_name, questions):
    """200 p-values of the difference of a model that is better by one deviation."""
    metric, rng = METRICS[metric_name], numpy.random.default_rng(questions)
    drawn = answers_of(rng, metric, questions, models=2, better=1.0)[:200]
    return p_value(metric, drawn[:, 1], drawn[:, 0])


def power(metric, questions, tests):
    """The share of reports that tell a difference that is alone among so many comparisons."""
    rng = numpy.random.default_rng(tests)
    found = p_where_one_is_better(metric.measure, questions)
    return numpy.mean([significant([p, *rng.random(tests - 1)])[0] for p in found])


def drawn_text_measures(rng, number):
    return rows(MEAN, 100 * rng.beta(2, 5, number)), 100 * 2 / 7


def drawn_measures_with_a_heap_at_the_edge(rng, number):
    values = numpy.where(rng.random(number) < 0.5, 100.0, 100 * rng.beta(2, 2, number))
    return rows(MEAN, values), 75


def drawn_exponential_measures(rng, number):
    return rows(MEAN, rng.exponential(20, number)), 20


def drawn_perplexities(rng, number):
    tokens = numpy.round(rng.lognormal(3.3, 0.4, number)) + 2
    return rows(QUOTIENT, tokens * rng.gamma(6, 2.5 / 6, number), tokens), numpy.exp(2.5)


@pytest.mark.parametrize(
    ("metric", "draw", "questions"),
    [
        (MEAN, drawn_text_measures, 20),
        (MEAN, drawn_text_measures, 64),
        (MEAN, drawn_measures_with_a_heap_at_the_edge, 20),
        (MEAN, drawn_exponential_measures, 20),
        (QUOTIENT, drawn_perplexities, 20),
        (QUOTIENT, drawn_perplexities, 64),
    ],
)
def test_intervals_hold_the_truth_as_often_as_they_say(metric, draw, questions, fewer_resamples):
    rng = numpy.random.default_rng(questions)
    held = []
    for seed in range(REPORTS):
        answers, truth = draw(rng, questions)
        found = figure(metric, answers, seed)
        if found.low is not None:
            held.append(found.low <= truth <= found.high)
    assert len(held) > REPORTS / 4
    assert 0.92 <= numpy.mean(held) <= 0.98  # 93 to 97 %, and two deviations of the simulation


@pytest.mark.parametrize("questions", [8, 12, 20, 64])
def test_intervals_of_shares_hold_the_truth_as_often_as_they_say(questions):
    rng = numpy.random.default_rng(questions)
    truths = rng.random(REPORTS)
    held = []
    for truth in truths:
        found = figure(SHARE, rows(SHARE, rng.random(questions) < truth))
        held.append(found.low <= truth <= found.high)
    assert 0.93 <= numpy.mean(held) <= 0.97


def test_eight_of_eight_is_no_certainty():
    found = figure(SHARE, rows(SHARE, [1] * 8))
    assert (found.value, found.high) == (1, pytest.approx(1)) and found.low == pytest.approx(0.676, abs=0.001)
    assert wilson_interval(0, 8)[1] == pytest.approx(0.324, abs=0.001)


def test_three_of_eight_that_differ_one_way_are_noise():
    found = difference(SHARE, rows(SHARE, [1, 1, 1, 0, 0, 0, 0, 0]), rows(SHARE, [0] * 8))
    assert found.p == pytest.approx(0.25)  # exact McNemar
    assert found.value == pytest.approx(3 / 8) and found.answers == 8
    assert sign_test(5, 0) == pytest.approx(2 / 32) and sign_test(6, 0) == pytest.approx(2 / 64)


def test_p_of_few_questions_by_hand():
    # Of the 16 ways to change places in four pairs, two make a difference as large.
    found = difference(MEAN, rows(MEAN, [2, 3, 4, 5]), rows(MEAN, [1, 1, 1, 1]))
    assert found.p == pytest.approx(2 / 16)
    # Changing places takes what a measure is per along: with (1, 1) and (9, 3), sums of quotients are not quotients of sums.
    ours, theirs = rows(QUOTIENT, [1.0, 9.0], [1, 3]), rows(QUOTIENT, [2.0, 3.0], [1, 3])
    quotients = []
    for swapped in ((), (0,), (1,), (0, 1)):
        sums = numpy.zeros((2, 2))
        for place, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            pair = (b, a) if place in swapped else (a, b)
            sums += [[row["reference_loss"], row["reference_tokens"]] for row in pair]
        quotients.append(numpy.exp(sums[0, 0] / sums[0, 1]) - numpy.exp(sums[1, 0] / sums[1, 1]))
    least = min(numpy.sum(quotients >= quotients[0] - 1e-9), numpy.sum(quotients <= quotients[0] + 1e-9))
    assert difference(QUOTIENT, ours, theirs).p == pytest.approx(min(1, 2 * least / 4))


def test_a_mean_is_compared_as_scipy_compares_it():
    rng = random.Random(5)
    ours, theirs = [rng.gauss(20, 10) for _ in range(12)], [rng.gauss(25, 10) for _ in range(12)]
    expected = permutation_test(
        (ours, theirs), lambda a, b: sum(a) / 12 - sum(b) / 12, permutation_type="samples", n_resamples=5000
    ).pvalue
    assert difference(MEAN, rows(MEAN, ours), rows(MEAN, theirs)).p == pytest.approx(expected)


def test_a_difference_is_of_the_questions_that_both_have():
    ours = rows(QUOTIENT, [2.0] * 4, [1] * 4) + [{}] * 4
    theirs = rows(QUOTIENT, [2.0] * 4 + [3.0] * 4, [1] * 8)
    assert figure(QUOTIENT, ours).value != pytest.approx(figure(QUOTIENT, theirs).value)
    found = difference(QUOTIENT, ours, theirs)
    assert (found.value, found.answers, found.p) == (pytest.approx(0), 4, 1)
    assert difference(QUOTIENT, [{}] * 4, theirs[:4]) is None


def test_what_is_alike_is_a_comparison_too():
    same = rows(MEAN, range(10))
    assert difference(MEAN, same, same).p == 1
    assert significant([0.04]) == [True] and significant([0.04, 1.0]) == [False, False]


def test_of_many_comparisons_some_look_large_by_chance():
    assert significant([0.04] + [0.5] * 9) == [False] * 10
    assert significant([0.001] + [0.5] * 9) == [True] + [False] * 9
    assert significant([]) == []


@pytest.mark.parametrize("tests", [1, 6, 36])
def test_with_how_many_questions_a_difference_alone_can_be_told(tests):
    fewest = significance.fewest_to_differ(tests)
    least = [difference(MEAN, rows(MEAN, range(1, n + 1)), rows(MEAN, [0] * n)).p for n in (fewest - 1, fewest)]
    assert [significant([p] + [1.0] * (tests - 1))[0] for p in least] == [False, True]


def test_no_interval_of_nothing():
    varied = rows(MEAN, range(20))
    assert figure(MEAN, varied[:19]).low is None and figure(MEAN, varied).low is not None
    assert figure(MEAN, rows(MEAN, [7] * 40)).low is None
    assert figure(MEAN, rows(MEAN, [7] * 40 + list(range(7)))).low is None
    assert figure(MEAN, rows(MEAN, [7] * 40 + [1, 2, 3, 4, 5, 6, 8, 9])).low is not None
    times = [{"seconds": float(n)} for n in range(40)]
    assert figure(METRICS["seconds"], times).low is None, "the answers of a batch share their time"


def test_perplexity_is_of_all_tokens_together():
    answers = [{"reference_loss": 1.0, "reference_tokens": 1}, {"reference_loss": 1.0, "reference_tokens": 3}, {}]
    found = figure(QUOTIENT, answers)
    assert found.value == pytest.approx(numpy.exp(0.5)) and found.answers == 2

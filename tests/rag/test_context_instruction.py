"""benchmarks/context_instruction.py: what is at hand, what is measured, and what its table marks."""

from __future__ import annotations

import numpy
import pytest

from benchmarks.context_instruction import (
    LABELS,
    MEASURES,
    NONE,
    SENTENCES,
    draw,
    index_words,
    measure,
    rows,
    shortened,
)
from benchmarks.retrieval_sets import JudgedSet

RECORDS = {
    "0": ("Sencha", "The leaves of sencha are steamed, not roasted, which keeps them green."),
    "1": ("Hojicha", "The leaves of hojicha are roasted over charcoal."),
    "2": ("Matcha", "Matcha is a powder of steamed leaves."),
    "3": ("Otters", "Otters hold hands while they sleep."),
    "4": ("Rivers", "A ferry crosses the river at noon."),
}
QUERIES = {
    "a": "which leaves are steamed and not roasted",
    "b": "what do otters hold",
    "c": "about a record that is gone",
}
GAINS = {"a": {"0": 2.0, "2": 1.0}, "b": {"3": 1.0}, "c": {"9": 1.0}}


@pytest.fixture
def judged():
    return JudgedSet("tea", "english", RECORDS, QUERIES, GAINS)


def test_the_right_record_and_the_most_alike_of_the_others_are_at_hand(judged, tmp_path):
    asked = {each.query: each for each in draw(judged, index_words(tmp_path, judged), 60)}
    assert asked.keys() == {QUERIES["a"], QUERIES["b"]}
    tea = asked[QUERIES["a"]]
    assert tea.right.id == "0" and tea.right in tea.hits
    # The other relevant record is none of them.
    assert {hit.id for hit in tea.hits} == {"0", "1"}
    again = {each.query: each for each in draw(judged, index_words(tmp_path, judged), 60)}
    assert again == asked


def test_an_answer_is_measured_against_the_right_record(judged, tmp_path):
    lexical = index_words(tmp_path, judged)
    right = next(each.right for each in draw(judged, lexical, 60) if each.right.id == "0")
    assert measure(right.text, right, lexical) == [1.0, pytest.approx(1.0), pytest.approx(100.0), 12]
    assert measure("Otters hold hands while they sleep.", right, lexical)[:2] == [0.0, 0.0]
    assert measure("", right, lexical) == [0.0, 0.0, 0.0, 0]


def test_records_are_cut_at_a_word(judged):
    assert shortened(judged, 3).records["3"] == ("Otters", "Otters hold hands")


def test_what_differs_from_no_sentence_by_more_than_noise_is_bold():
    rng = numpy.random.default_rng(7)
    sample = numpy.zeros((len(SENTENCES), len(MEASURES), 200)) + numpy.linspace(0.4, 0.6, 200)
    better, noise = list(SENTENCES).index("alone"), list(SENTENCES).index("quote")
    sample[better] += 0.3
    changes = rng.normal(0, 0.1, 200)
    sample[noise] += changes - changes.mean()
    table = {line.split("|")[2].strip(): line.split("|")[4].strip() for line in rows("set", [sample, sample])}
    assert table[NONE] == "50%" and table["alone"] == "80% [**+30%, +30%**]"
    assert table["quote"].startswith("50% [-") and "**" not in table["quote"]


def test_each_sentence_is_there_in_each_language():
    assert all(told.keys() == LABELS.keys() for told in SENTENCES.values())
    assert [name for name, told in SENTENCES.items() if None in told.values()] == [NONE]

"""Cleaned records are one JSON array, read again in constant memory; splits never move; samples are fair."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from pipeline.data.cleaning import clean
from pipeline.data.records import reservoir_sample, split_of


def test_splits_depend_on_the_normalised_title_alone():
    assert split_of("Mog's Kittens", 0.3, 0.3) == split_of(clean(" mog&#39;s  KITTENS "), 0.3, 0.3)


def test_splits_have_the_asked_shares_and_growing_one_moves_no_record_between_the_others():
    titles = [f"title {n}" for n in range(20_000)]
    shares = Counter(split_of(title, 0.05, 0.1) for title in titles)
    assert shares["test"] / 20_000 == pytest.approx(0.1, abs=0.01)
    assert shares["validation"] / 20_000 == pytest.approx(0.05, abs=0.01)
    assert all(split_of(t, 0.2, 0.1) == "test" for t in titles if split_of(t, 0.05, 0.1) == "test")


def test_reservoir_sample_is_seeded_fair_and_in_order():
    assert reservoir_sample(range(5), 9, random.Random(1)) == list(range(5))
    assert reservoir_sample(range(99), 0, random.Random(1)) == []
    assert reservoir_sample(range(99), 7, random.Random(1)) == reservoir_sample(range(99), 7, random.Random(1))
    rng = random.Random(5)
    drawn = Counter(item for _ in range(4000) for item in reservoir_sample(range(20), 5, rng))
    assert all(880 < drawn[item] < 1120 for item in range(20)), drawn
    sample = reservoir_sample(range(1000), 50, rng)
    assert sample == sorted(set(sample)) and len(sample) == 50

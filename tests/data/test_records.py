"""Cleaned records are one JSON array, read again in constant memory; splits never move; samples are fair."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest

from pipeline.data.cleaning import clean
from pipeline.data.records import ProcessedData, array_writer, reservoir_sample, split_of
from pipeline.run.errors import UserError
from pipeline.run.run_folder import RunFolder


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


def test_a_record_is_read_at_its_place_without_those_before_it(tmp_path):
    written = [(f"título {n}", "größer " * n) for n in range(30)]
    with array_writer(tmp_path / "records.json") as write:
        for title, content in written:
            write(json.dumps({"t": title, "c": content}, ensure_ascii=False).encode())
    data = ProcessedData(RunFolder(tmp_path), tmp_path / "records.json", "t", "c", 0.1, 0.1, "default")
    places, *read = zip(*data.with_places(), strict=True)
    assert list(zip(*read, strict=True)) == list(data) == written
    assert list(data.at(places[::-1])) == written[::-1]
    with pytest.raises(UserError, match=f"byte {places[3] + 1}, is not a record"):
        list(data.at([places[0], places[3] + 1]))

"""Repeated records are found exactly, and distinct ones counted exactly or nearly, in little memory."""

from __future__ import annotations

import random

import pytest

from pipeline.data.duplicates import DistinctCount, SeenHashes


@pytest.mark.slow
@pytest.mark.parametrize("expected", [0, 100_000])
def test_seen_hashes_are_those_of_a_set(expected):
    rng = random.Random(1)
    hashes = [rng.choice((rng.getrandbits(64), rng.randrange(1, 50_000))) for _ in range(100_000)]
    table, known, repeated = SeenHashes(expected), set(), []
    for position, key in enumerate(hashes):
        if key in known:
            repeated.append(position)
        known.add(key)
    assert table.add(hashes[:70_000]) + [70_000 + n for n in table.add(hashes[70_000:])] == repeated
    assert len(table) == len(known)


def test_seen_hashes_take_the_memory_that_was_planned():
    table = SeenHashes(100_000)
    rng = random.Random(2)
    table.add(rng.getrandbits(64) for _ in range(100_000))
    assert len(table) == 100_000
    assert table._places.nbytes / len(table) <= 16


@pytest.mark.parametrize(("total", "different"), [(1000, 10), (10_000, 10_000), (200_000, 50_000), (100_000, 100_000)])
def test_distinct_values_are_counted(total, different):
    rng = random.Random(3)
    keys = [rng.getrandbits(64) for _ in range(different)]
    count = DistinctCount()
    for start in range(0, total, 1000):
        count.add([keys[n % different] for n in range(start, start + 1000)])
    assert count.total == total
    assert count.exact == (different <= 1 << 13)
    assert count.distinct == pytest.approx(different, rel=0.06 if total > different and not count.exact else 0)

"""Find and count what repeats among millions of records, by 64-bit hashes in little memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

MAX_LOAD = 0.8  # share of a hash table's places that may be taken
SPARE_PLACES = 1.4  # places made for each expected hash


class SeenHashes:
    """A set of 64-bit hashes that takes 12 bytes each, where a Python set takes 80.

    Open addressing with linear probing; the hashes are their own addresses. Two different records of 2.25 million get
    the same hash with a probability of 1 in 7 million.
    """

    def __init__(self, expected: int) -> None:
        """Make room for so many hashes; more are taken too, at the cost of moving all of them now and then."""
        self._count = 0
        self._places = _empty_places(max(1024, int(expected * SPARE_PLACES)))

    def __len__(self) -> int:
        """Return the number of different hashes."""
        return self._count

    def add(self, hashes: Iterable[int]) -> list[int]:
        """Add hashes and return the positions of those that were there before."""
        places, size = self._places, len(self._places)
        largest_count = int(size * MAX_LOAD)
        repeated = []
        for position, key in enumerate(hashes):
            key = key or 1  # 0 marks a free place
            place = key % size
            while (found := places[place]) and found != key:
                place = place + 1 if place + 1 < size else 0
            if found:
                repeated.append(position)
                continue
            places[place] = key
            self._count += 1
            if self._count > largest_count:
                self._grow()
                places, size = self._places, len(self._places)
                largest_count = int(size * MAX_LOAD)
        return repeated

    def _grow(self) -> None:
        kept = self._places
        self._places = _empty_places(int(len(kept) * SPARE_PLACES))
        self._count = 0
        self.add(filter(None, kept))


class DistinctCount:
    """Counts different values among many, exactly up to a limit and then from a sample of the hashes.

    Only hashes below a threshold are kept, and the threshold is halved when they become too many: adaptive sampling
    (Flajolet, 1990, after Wegman). With 8,192 hashes the standard error is between 1 and 2 %, and 0 where nothing repeats.
    """

    def __init__(self, most_kept: int = 1 << 13) -> None:
        """Keep at most so many hashes."""
        self.total = 0
        self._most_kept = most_kept
        self._threshold = 1 << 64
        self._kept: Counter[int] = Counter()

    def add(self, hashes: Collection[int]) -> None:
        """Count the 64-bit hashes of some values."""
        self.total += len(hashes)
        threshold = self._threshold
        self._kept.update([key for key in hashes if key < threshold])
        while len(self._kept) > self._most_kept:
            self._threshold >>= 1
            self._kept = Counter({key: count for key, count in self._kept.items() if key < self._threshold})

    @property
    def exact(self) -> bool:
        """Whether all hashes were kept."""
        return self._threshold == 1 << 64

    @property
    def distinct(self) -> int:
        """Number of different values, estimated if not exact."""
        sampled = sum(self._kept.values())
        return round(self.total * len(self._kept) / sampled) if sampled else 0


def _empty_places(size: int) -> memoryview:
    return memoryview(bytearray(8 * size)).cast("Q")

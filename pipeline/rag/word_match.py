"""Say how far the words of a query are in a piece: BM25 over its upper bound, and how many keep their order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

from pipeline.rag.lexical import TITLE_WEIGHT, LexicalIndex

# As in BM25 (Robertson and Zaragoza 2009). A piece has a few hundred words at most: that a word is there says more than how
# often it is, so SATURATION is less than the usual 1.2.
SATURATION, LENGTH_NORMALISATION = 0.4, 0.75


@dataclass(frozen=True)
class Match:
    """How far the words of a query are in a piece."""

    bm25: float
    """BM25 over its upper bound, from 0 to 1: 1 would be a piece that says every word of the query endlessly."""
    order: float
    """Share of the pairs of neighbouring words that are neighbours there too, from 0 to 1; a pair tells as much as its words."""

    @property
    def score(self) -> float:
        """Return the score of the words, from 0 to 1: half for the words themselves, half for their order."""
        return self.bm25 * (1 + self.order) / 2


def matcher(
    meant: dict[str, list[str]], query: Sequence[str], lexical: LexicalIndex
) -> Callable[[list[str], list[str]], Match]:
    """Return a function from the stems of a title and of a text to how far a query's words are in them.

    A word of the query that occurs nowhere is in the bound as well: a piece that lacks it answers less of the question.

    Args:
        meant: for each stem of the query, the stems that count as it.
        query: its stems, in order.
        lexical: knows how much a stem tells.
    """
    often = Counter(query)  # a word that a query repeats weighs more, as in BM25
    information = {stem: max(map(lexical.information, stems)) for stem, stems in meant.items()}
    weights = {stem: often[stem] * tells for stem, tells in information.items()}
    total = sum(weights.values())
    pairs = [
        (set(product(meant[first], meant[second])), information[first] + information[second])
        for first, second in pairwise(query)
    ]
    of_pairs = sum(weight for _, weight in pairs)

    def match(title: list[str], text: list[str]) -> Match:
        length = (TITLE_WEIGHT * len(title) + len(text)) / lexical.average_length
        half = SATURATION * (
            1 - LENGTH_NORMALISATION + LENGTH_NORMALISATION * length
        )  # so often: half of what it can say
        held = 0.0
        for stem, weight in weights.items():
            count = sum(TITLE_WEIGHT * title.count(word) + text.count(word) for word in meant[stem])
            held += weight * count / (count + half)
        neighbours = set(pairwise([*title, *text]))
        in_order = sum(weight for pair, weight in pairs if not neighbours.isdisjoint(pair))
        return Match(held / total if total else 0.0, in_order / of_pairs if of_pairs else 1.0)

    return match

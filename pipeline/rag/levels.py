"""The levels that texts reach which have nothing to do with one another, as measured when an index is made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Levels:
    """What a piece must exceed to have to do with a query."""

    chance: float = 0.0
    """Mean cosine of texts about different things in the language of the data."""
    slope: float = 1.0
    """What a cosine above chance counts: more where a model finds everything alike, less where it was not made for the language."""
    score: float = 0.0
    """What the best hit of nearly all unrelated questions is below."""
    meaning: float = 0.0
    """The same of Hit.meaning alone: a question in other words than the record's has a low score."""

    def meaning_of(self, similarity: float) -> float:
        """Return how near two texts are whose embeddings have some cosine: 0 is as near as by chance, 1 at most."""
        return max(0.0, similarity - self.chance) * self.slope

    def exceeded(self, score: float, meaning: float) -> bool:
        """Tell whether a hit has to do with its query."""
        return score > self.score or meaning > self.meaning

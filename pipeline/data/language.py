"""Tell which language texts are in."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

MOST_TEXTS = 1000
PORTION = 300  # letters; a title alone is too short to tell
NO_LANGUAGE = "zxx"  # what the model says of article numbers, measures and the like


def language_of(texts: Iterable[str]) -> str | None:
    """Return the language that more than half of some texts are in, or None where that is true of none.

    It looks at the beginnings of the first 1,000 texts, and reads short ones together, so that a catalogue of titles is
    told too. What is in no language with a likelihood above a half (numbers, a few short words, two languages in one
    portion) counts against all. It takes 0.1 s, and at first a second to load the model.

    Args:
        texts: of whatever length; no more than the first 1,000 are taken.

    Returns:
        The code of ISO 639-1, such as "en".
    """
    identifier = _identifier()
    letters_in: Counter[str | None] = Counter()
    for portion, letters in _portions(islice(texts, MOST_TEXTS)):
        language, likelihood = identifier.classify(portion)
        letters_in[language if likelihood > 0.5 and language != NO_LANGUAGE else None] += letters
    return next((language for language, letters in letters_in.items() if letters > letters_in.total() / 2), None)


def _portions(texts: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Yield texts, as many together as have PORTION letters, and the number of their letters."""
    portion: list[str] = []
    letters = 0
    for text in texts:
        text = text[:PORTION]
        of_text = sum(map(str.isalpha, text))
        if of_text == 0:
            continue
        # The model was made from texts in usual case.
        portion.append(text.lower() if text.isupper() else text)
        letters += of_text
        if letters >= PORTION:
            yield "\n".join(portion), letters
            portion, letters = [], 0
    if portion:
        yield "\n".join(portion), letters


@functools.cache
def _identifier() -> LanguageIdentifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    # Others than ISO 639-1 has are dialects and pidgins, which take likelihood from the languages that they are near to.
    identifier.set_languages(label for label in identifier.labels if len(label) == 2 or label == NO_LANGUAGE)
    return identifier

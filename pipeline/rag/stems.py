"""Reduce words to their stems, so that "chisels" finds "chisel": the Snowball stemmers (Porter 2001)."""

from __future__ import annotations

from collections.abc import Callable

Stemmer = Callable[[list[str]], list[str]]

ALGORITHMS = {
    "ar": "arabic", "ca": "catalan", "cs": "czech", "da": "danish", "de": "german", "el": "greek", "en": "english",
    "eo": "esperanto", "es": "spanish", "et": "estonian", "eu": "basque", "fa": "persian", "fi": "finnish", "fr": "french",
    "ga": "irish", "hi": "hindi", "hu": "hungarian", "hy": "armenian", "id": "indonesian", "it": "italian",
    "lt": "lithuanian", "nb": "norwegian", "ne": "nepali", "nl": "dutch", "nn": "norwegian", "no": "norwegian",
    "pl": "polish", "pt": "portuguese", "ro": "romanian", "ru": "russian", "sr": "serbian", "sv": "swedish", "ta": "tamil",
    "tr": "turkish", "yi": "yiddish",
}  # fmt: skip


def stemmer(language: str | None) -> Stemmer:
    """Return the function from words to their stems in a language.

    Args:
        language: its code of ISO 639-1; without a stemmer for it, and for None, each word is its own stem.
    """
    if language not in ALGORITHMS:
        return lambda words: words
    import Stemmer as snowball

    return snowball.Stemmer(ALGORITHMS[language]).stemWords

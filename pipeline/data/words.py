"""Divide text of any script into words, for titles, metrics and search alike.

A mark belongs to its letter: without the vowel signs of Hindi, Bengali, Tamil or Thai, different words would be the same.
Scripts that write no blanks (Chinese, Japanese, Thai, Lao, Khmer, Burmese) have a word for each letter.
"""

from __future__ import annotations

import functools
import re
import sys
import unicodedata
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import regex

_FOLDED_ASCII = bytes(ord(chr(code).lower()) if code < 128 and chr(code).isalnum() else 0x20 for code in range(256))
_ALPHANUMERIC = re.compile(r"[^\W_]+")
# Other than Latin, Greek and Cyrillic letters, digits and signs, whose words `re` finds in a third of the time.
_OTHER_SCRIPT = re.compile(
    "[\u00ad\u0300-\u036f\u0483-\u0489\u0530-\u1dff\u200b-\u200f\u202a-\u202e\u2060-\u206f\u20d0-\u20ff\u2c00-\U0010ffff]"
)
_ACCENTS = re.compile("[\u0300-\u036f]+")

# Unicode's normal forms sort the marks on a letter in a time that grows with the square of their number.
_MANY_MARKS = 512
_MARKS_OF_A_LETTER = 30  # as many as Unicode's Stream-Safe Text Format has (UAX #15)
_GRAPHEME_JOINER = "\u034f"  # ends a run of marks and is itself invisible


def words(text: str) -> list[str]:
    """Return the words of a text, without case, signs and invisible characters; full-width letters and ligatures as usual."""
    if text.isascii():
        return _ascii_words(text)
    text = _one_form(text)
    return _patterns().word.findall(text) if _OTHER_SCRIPT.search(text) else _ALPHANUMERIC.findall(text)


def search_words(text: str) -> list[str]:
    """Return what a text looks for in a search: words without diacritics; of scripts without blanks, pairs of letters.

    Diacritics are those of Latin, Greek and Cyrillic, and the vowel points of Arabic and Hebrew, which few people write. The
    pairs, each two letters in a row, are those of Lucene's CJKBigramFilter. A letter that stands alone is a word.
    """
    return _with_pairs(text)[0]


def indexed_words(text: str) -> list[str]:
    """Return what finds a text in a search: its search_words, and then each letter of scripts without blanks."""
    found, letters = _with_pairs(text)
    return found + letters


def is_spaceless(word: str) -> bool:
    """Tell whether a word is of a script without blanks."""
    return _OTHER_SCRIPT.search(word) is not None and _patterns().letter.match(word) is not None


def cut(text: str) -> list[str]:
    """Cut a text at the ends of its words; the pieces joined are the text."""
    return [piece for piece in _patterns().between.split(text) if piece]


def cut_where_lines_end(text: str) -> list[str]:
    """Cut a text where a line may end: before a blank, and after a letter of a script without blanks."""
    return _patterns().line.findall(text)


def normal_form(form: Literal["NFC", "NFD"], text: str) -> str:
    """Return a normal form of text; where a letter has hundreds of marks (combining characters), every 30th ends a run."""
    if len(text) > _MANY_MARKS and any(map(unicodedata.combining, text[::_MANY_MARKS])):
        text = _run_of_marks().sub(rf"\g<0>{_GRAPHEME_JOINER}", text)
    return unicodedata.normalize(form, text)


def _ascii_words(text: str) -> list[str]:
    # In bytes, which takes half of the time.
    return text.encode().translate(_FOLDED_ASCII).decode().split()


def _one_form(text: str) -> str:
    if not unicodedata.is_normalized("NFKC", text):
        # Of letters and digits alone: m² is not m2, and ™ is no part of the word before it.
        text = _patterns().variant.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)
    text = text.casefold()
    return normal_form("NFC", _patterns().invisible.sub("", text)) if _OTHER_SCRIPT.search(text) else text


def _without_diacritics(text: str) -> str:
    # й is a letter of its own, by which endings differ.
    text = _ACCENTS.sub("", normal_form("NFD", text).replace("и\u0306", "й"))
    return normal_form("NFC", _patterns().diacritic.sub("", text)) if _OTHER_SCRIPT.search(text) else text


def _with_pairs(text: str) -> tuple[list[str], list[str]]:
    """Return the words of a search and the letters of which pairs were made."""
    if text.isascii():
        return _ascii_words(text), []
    text = _without_diacritics(_one_form(text))
    if not _OTHER_SCRIPT.search(text):
        return _ALPHANUMERIC.findall(text), []
    found: list[str] = []
    letters: list[str] = []
    for spaceless, word in _patterns().run.findall(text):
        run = _patterns().letter.findall(spaceless)
        if len(run) > 1:
            found += map("".join, pairwise(run))
            letters += run
        else:
            found.append(spaceless or word)
    return found, letters


class _Patterns(NamedTuple):
    letter: regex.Pattern[str]
    """One of a script without blanks, with its marks."""
    word: regex.Pattern[str]
    run: regex.Pattern[str]
    """Letters of scripts without blanks in a row, or a word of another script."""
    between: regex.Pattern[str]
    line: regex.Pattern[str]
    variant: regex.Pattern[str]
    """Letters and digits that Unicode has for the sake of other encodings: full and half width, ligatures, joined Arabic."""
    invisible: regex.Pattern[str]
    diacritic: regex.Pattern[str]


@functools.cache
def _patterns() -> _Patterns:
    import regex

    # Line breaking class SA: South-East Asian scripts whose words only a dictionary finds (UAX #14).
    spaceless = r"[[\p{Han}\p{Hiragana}\p{Katakana}\u30fc\p{Line_Break=SA}]&&[\p{L}\p{Nl}]]"
    letter = rf"{spaceless}[\p{{M}}\p{{Default_Ignorable_Code_Point}}]*+"
    word = rf"[[\p{{L}}\p{{N}}]--{spaceless}][[\p{{L}}\p{{N}}\p{{M}}\p{{Default_Ignorable_Code_Point}}]--{spaceless}]*+"
    patterns = (
        letter,
        f"{letter}|{word}",
        f"((?:{letter})+)|({word})",
        f"({letter}|{word})",
        rf"\ *(?:{letter}\p{{P}}*|[[^\ ]--{spaceless}]+)|\ +",
        r"[[\p{L}\p{Nd}]&&\p{NFKC_Quick_Check=No}]",
        r"\p{Default_Ignorable_Code_Point}+",
        # Marks of no script are accents, but for the voiced marks of kana. The last is the tatweel, which stretches a word.
        r"[[\p{Mn}&&[\p{Zinh}\p{Greek}\p{Cyrillic}\p{Arabic}\p{Hebrew}\p{Syriac}]]--[\u3099\u309a]]+|\u0640",
    )
    return _Patterns(*(regex.compile(pattern, regex.V1) for pattern in patterns))


@functools.cache
def _run_of_marks() -> re.Pattern[str]:
    mark = "[" + "".join(chr(code) for code in range(sys.maxunicode + 1) if unicodedata.combining(chr(code))) + "]"
    return re.compile(f"{mark}{{{_MARKS_OF_A_LETTER}}}(?={mark})")

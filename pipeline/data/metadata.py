"""Fields that records have beside title and content: what is kept of their values, and what conditions compare."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable
from decimal import Decimal

from pipeline.data.cleaning import clean, list_items

Value = str | int | float | bool | list[str]
Metadata = dict[str, Value]

LONGEST_TEXT = 200  # characters; the store repeats the metadata in each piece of a record
MOST_ITEMS = 32  # of a list
_EXACT_INTEGER = 2**53
# "20", "$1,299.99" and, with a comma as the decimal sign, "R$ 1.299,90"; "007" and what has more digits than a number
# holds are names.
_WITH_POINT = re.compile(r"(?:[A-Z]{0,3}[$€£¥] ?)?(-?(?:0|[1-9]\d{0,14}|[1-9]\d{0,2}(?:,\d{3}){1,4})(?:\.\d+)?)")
_WITH_COMMA = re.compile(r"(?:[A-Z]{0,3}[$€£¥] ?)?(-?(?:0|[1-9]\d{0,14}|[1-9]\d{0,2}(?:\.\d{3}){1,4}),\d{1,2})")


def clean_value(value: object) -> Value | None:
    """Return what is kept of a value of a raw record: a clean text, a number, a boolean or a list of texts.

    That is what Chroma holds. None is returned for everything else, such as null, an empty text or an object.
    """
    if isinstance(value, str):
        items = list_items(value)
        if items is None:
            return _text(value) or None
        value = items
    if isinstance(value, (list, tuple)):
        texts = dict.fromkeys(map(_text, _flat(value)))
        return [text for text in texts if text][:MOST_ITEMS] or None
    if isinstance(value, bool) or (isinstance(value, int) and abs(value) <= _EXACT_INTEGER):
        return value
    if isinstance(value, (int, float, Decimal)):
        with contextlib.suppress(OverflowError, ValueError):
            return number if math.isfinite(number := float(value)) else None
    return None


def comparable_values(value: Value) -> list[float | str]:
    """Return what conditions compare: a number for what is one or reads as one, otherwise a text; of a list each item."""
    return list(map(_term, value if isinstance(value, list) else [value]))


def comparable_value(text: str) -> float | str:
    """Return the number that a text reads as, a currency sign and separators left out, or the text, clean."""
    text = _text(text)
    if found := _WITH_POINT.fullmatch(text):
        return float(found[1].replace(",", ""))
    if found := _WITH_COMMA.fullmatch(text):
        return float(found[1].replace(".", "").replace(",", "."))
    return text


def value_text(value: Value) -> str:
    """Return a value as a person reads it."""
    return ", ".join(value) if isinstance(value, list) else _text(value)


def _term(value: str | int | float | bool) -> float | str:
    return (
        float(value)
        if isinstance(value, (int, float)) and not isinstance(value, bool)
        else comparable_value(_text(value))
    )


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return clean(str(value))[:LONGEST_TEXT].rstrip() if isinstance(value, (str, int, float, Decimal)) else ""


def _flat(items: Iterable[object]) -> Iterable[object]:
    # Categories are often lists of paths: [["Clothing", "Girls"]].
    for item in items:
        yield from item if isinstance(item, (list, tuple)) else [item]

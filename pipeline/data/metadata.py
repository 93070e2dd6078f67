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
# "007" and what has more digits than a number holds are names.
_WHOLE = r"0|[1-9]\d{0,14}"
_WITH_POINT = re.compile(rf"-?(?:{_WHOLE}|[1-9]\d{{0,2}}(?:,\d{{3}}){{1,4}})(?:\.\d+)?")  # 20, 1,299.99
_WITH_COMMA = re.compile(rf"-?(?:{_WHOLE}|[1-9]\d{{0,2}}(?:\.\d{{3}}){{1,4}}),\d{{1,2}}")  # 12,9 and 1.299,90
_NO_DIGITS = re.compile(r"\D")
# A price has a currency before or after it, a symbol or a name: the codes that are traded most, and usual abbreviations.
_CURRENCY = (
    r"(?:[A-Z]{0,3}[$€£¥฿₠-⃀]|USD|EUR|JPY|GBP|CNY|AUD|CAD|CHF|HKD|SGD|SEK|KRW|NOK|NZD|INR|MXN|TWD|ZAR|BRL|DKK|PLN|THB|ILS|IDR|"
    r"CZK|AED|TRY|HUF|CLP|SAR|PHP|MYR|COP|RUB|RON|PEN|ARS|UAH|VND|EGP|NGN|KES|PKR|BGN|[Ee]uros?|[Kk]r\.?|zł|Kč|Ft|[Ll]ei|"
    r"S?Fr\.|Rs\.?|Rp\.?|RM|руб\.?|р\.|грн\.?|лв\.?|S/\.?)"
)
# Three digits after a sign are thousands, since a price has two decimals; one sign more is the decimal sign. In India
# thousands are in twos (1,29,999). Some write a dash for no decimals (49,- and 49:-).
_PRICE = re.compile(
    rf"(?P<before>-?{_CURRENCY} ?)?"
    rf"(?P<whole>-?(?:[1-9]\d{{0,2}}(?P<sign>[., '’])\d{{3}}(?:(?P=sign)\d{{3}}){{0,3}}|[1-9]\d?(?:,\d\d){{1,4}},\d{{3}}|{_WHOLE}))"
    rf"(?:(?!(?P=sign))[.,](?P<decimals>\d+)|(?P<dash>[.,:][-–—]))?(?P<after> ?{_CURRENCY})?"
)


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
    """Return the number that a text reads as, separators and the currency of a price left out, or the text, clean."""
    text = _text(text)
    number = number_of(text)
    return text if number is None else number


def number_of(text: str) -> float | None:
    """Return the number or price that a clean text is, or None."""
    if _WITH_POINT.fullmatch(text):
        return float(text.replace(",", ""))
    if _WITH_COMMA.fullmatch(text):
        return float(text.replace(".", "").replace(",", "."))
    price = _PRICE.fullmatch(text)
    if price is None or not (price["before"] or price["after"] or price["dash"]):
        return None
    amount = float(_NO_DIGITS.sub("", price["whole"]) + "." + (price["decimals"] or "0"))
    return -amount if text.startswith("-") or "-" in price["whole"] else amount


def is_number(value: Value) -> bool:
    """Tell whether conditions compare a value that is kept as a number; a list, as soon as one of its items is one."""
    if isinstance(value, list):
        return any(map(is_number, value))
    return number_of(value) is not None if isinstance(value, str) else not isinstance(value, bool)


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

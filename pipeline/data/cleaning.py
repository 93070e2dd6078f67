"""Clean text, and say why a record is rejected."""

from __future__ import annotations

import ast
import contextlib
import functools
import html
import html.entities
import re
from collections.abc import Callable

from pipeline.data.words import normal_form, words

_ENTITY = re.compile(r"&(?:#\d{1,7};?|#[xX][0-9a-fA-F]{1,6};?|[A-Za-z][A-Za-z0-9]{1,31};)")
# Code as Markdown has it: between rows of three backticks or more, or in a line between one or two. A backtick after a
# letter is an apostrophe or the end of something. The lengths bound the search for an end that is not there.
_CODE = re.compile(
    r"(?<!`)(?P<fence>`{3,9})(?!`).{0,20000}?(?P=fence)(?!`)"
    r"|(?<![\w`])(?:`(?![\s`])[^\n`]{0,200}(?<!\s)`|``(?![\s`])(?:[^\n`]|`(?!`)){0,200}(?<!\s)``)(?![\w`])",
    re.DOTALL,
)
_CODE_PLACE = re.compile("\ufdd0(\\d+)\ufdd1")  # where code was; Unicode has promised that these are no characters
_NO_CHARACTERS = str.maketrans("", "", "\ufdd0\ufdd1")
# What is removed with all that it holds: where it begins and where it ends.
_REMOVED = {
    "comment": (r"!--", re.compile(r"-->")),
    "script": (r"script\b[^>]*>", re.compile(r"</script\s*>", re.IGNORECASE)),
    "style": (r"style\b[^>]*>", re.compile(r"</style\s*>", re.IGNORECASE)),
}
_INLINE = "a|abbr|b|big|cite|code|em|font|i|ins|mark|q|s|small|span|strike|strong|sub|sup|tt|u"
_BLOCK = (
    "article|blockquote|body|br|caption|center|dd|div|dl|dt|figure|footer|h[1-6]|head|header|hr|html|iframe|img|input|"
    "li|link|meta|ol|p|pre|section|table|tbody|td|tfoot|th|thead|tr|ul|video"
)
_ATTRIBUTES = r"""(?:\s+[\w:-]+(?:\s*=\s*(?:"[^"]*"|'[^']*'|[^\s"'<>]+)))*\s*/?"""
_INLINE_TAG = re.compile(rf"</?(?:{_INLINE}){_ATTRIBUTES}>", re.IGNORECASE)
_BLOCK_TAG = re.compile(rf"</?(?:{_BLOCK}){_ATTRIBUTES}>", re.IGNORECASE)
_INVISIBLE = re.compile(r"[\u0000-\u0008\u000e-\u001f\u007f-\u0084\u0086-\u009f\u00ad\u200b\u2060\ufeff\ud800-\udfff]")
_ASCII_WHITE_SPACE_TO_BLANK = bytes(0x20 if chr(code) in "\t\n\v\f\r" else code for code in range(256))
_ASCII_INVISIBLE = bytes(code for code in range(128) if _INVISIBLE.match(chr(code)))
_LIST_SEPARATOR = re.compile(r"""(?<=['"]),\s*(?=['"])""")
_LEGACY_REMOVED = re.compile(r"[^\w\s]")

_LONGEST_DECODE = 3  # "&amp;amp;#8217;" needs three rounds; nothing real needs a fourth
_LONGEST_LITERAL = 1 << 18  # characters; Python's parser takes some 260 bytes of memory for each


def clean(text: str) -> str:
    """Return text without entities, markup, invisible characters and superfluous white space, its meaning kept.

    Code in backticks stays as it is.
    """
    text = text.strip()
    if text.startswith("["):
        text = join_list(text)
    return _around_code(text, _clean) if "`" in text else _clean(text)


def clean_light(text: str) -> str:
    """Return text without entities and markup, its line breaks, spaces and code in backticks kept."""
    text = text.strip()
    if text.startswith("["):
        text = join_list(text)
    return _around_code(text, _clean_light) if "`" in text else _clean_light(text)


def clean_verbatim(text: str) -> str:
    """Return text as it is, without white space around it."""
    return text.strip()


def clean_legacy(text: str) -> str:
    """Return only letters, digits and spaces, as the original did: '2-8 years' becomes '28 years'."""
    return _LEGACY_REMOVED.sub("", text).strip()


CLEANERS = {"default": clean, "light": clean_light, "verbatim": clean_verbatim, "legacy": clean_legacy}


def normalise_title(title: str) -> str:
    """Return the form of a cleaned title under which it is the same title: case and punctuation left out."""
    return " ".join(words(title)) or title.strip()


def join_list(text: str) -> str:
    """Join the items of a Python list that was written as a string; return other text unchanged."""
    items = list_items(text)
    return text if items is None else " ".join(item.strip() for item in items if item.strip())


def list_items(text: str) -> list[str] | None:
    """Return the items of a Python list of strings that was written as a string, or None for other text.

    Real dumps hold lists whose quotes are not escaped (`['it's long', 'x']`), which Python itself cannot read.
    """
    stripped = text.strip()
    if not (stripped.startswith(("['", '["')) and stripped.endswith(("']", '"]'))):
        return None
    if len(stripped) <= _LONGEST_LITERAL:
        with contextlib.suppress(ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            items = ast.literal_eval(stripped)
            return items if all(isinstance(item, str) for item in items) else None
    return [item.strip()[1:-1].replace("\\n", "\n") for item in _LIST_SEPARATOR.split(stripped[1:-1])]


def rejection(title: str, content: str, min_content_chars: int) -> str | None:
    """Return why a cleaned record is rejected, or None if it is kept."""
    if not title:
        return "empty title"
    if not content:
        return "empty content"
    if len(content) < min_content_chars:
        return "too short"
    return None


def _around_code(text: str, clean_rest: Callable[[str], str]) -> str:
    """Clean what is not code in backticks, as one text: markup may begin before code and end after it."""
    code: list[str] = []

    def keep(found: re.Match[str]) -> str:
        code.append(_INVISIBLE.sub("", found[0]))
        return f"\ufdd0{len(code) - 1}\ufdd1"

    rest = _CODE.sub(keep, text.translate(_NO_CHARACTERS))
    return _CODE_PLACE.sub(lambda place: code[int(place[1])], clean_rest(rest))


def _clean(text: str) -> str:
    text = _clean_light(text)
    if text.isascii():
        # In bytes, which takes a third of the time.
        text = text.encode().translate(_ASCII_WHITE_SPACE_TO_BLANK, _ASCII_INVISIBLE).decode()
    else:
        text = normal_form("NFC", text)
        if not text.isprintable():
            text = " ".join(text.split())
        if not text.isprintable():
            text = _INVISIBLE.sub("", text)
    # Blanks are the only white space left.
    while (shorter := text.replace("  ", " ")) != text:
        text = shorter
    return text.strip(" ")


def _clean_light(text: str) -> str:
    if "&" in text:
        for _ in range(_LONGEST_DECODE):
            encoded, text = text, _ENTITY.sub(_decode, text)
            if text == encoded:
                break
    if "<" in text:
        text = _without_comments_and_code(text)
        text = _BLOCK_TAG.sub(" ", text)
        text = _INLINE_TAG.sub("", text)
    return text.strip()


def _without_comments_and_code(text: str) -> str:
    # A search for an end that is not there goes to the end of the text: it is made once, not for each beginning.
    kept, place, kinds, last = [], 0, dict(_REMOVED), text.rfind(">") + 1
    while kinds and (begin := _beginning(tuple(kinds)).search(text, place, last)):
        kind = begin.lastgroup
        assert kind is not None  # each alternative is a group with the name of a kind
        if end := kinds[kind][1].search(text, begin.end()):
            kept.append(text[place : begin.start()])
            place = end.end()
        else:
            del kinds[kind]
    return " ".join([*kept, text[place:]])


@functools.cache
def _beginning(kinds: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("<(?:" + "|".join(f"(?P<{kind}>{_REMOVED[kind][0]})" for kind in kinds) + ")", re.IGNORECASE)


def _decode(match: re.Match[str]) -> str:
    return _decoded(match[0])


@functools.lru_cache(maxsize=1024)
def _decoded(entity: str) -> str:
    if entity[1] == "#":
        return html.unescape(entity if entity.endswith(";") else entity + ";")
    # Not unescape, which reads &param; as &para and the rest.
    return html.entities.html5.get(entity[1:], entity)

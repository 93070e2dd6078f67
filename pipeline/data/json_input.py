"""JSON Lines and JSON arrays: their rows, in bounded memory."""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

from pipeline.data.rows import MAX_LINE_BYTES, Rows, Unreadable, excerpt, is_utf8
from pipeline.run.errors import UserError

READ_AT_A_TIME = 1 << 18  # bytes of an array
DEEPEST = 100  # lists and objects in one another; far more, and Python cannot hand them to another process
_LONGEST_TOKEN = 16  # characters of JSON that have no end of their own, such as a number's, or mean one thing, such as "\ud83d\ude00"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_BLANKS = re.compile(r"[ \t\r\n]*")


def json_rows(file: io.BufferedReader) -> Rows:
    """Yield the objects of JSON Lines, as far as they can be read."""
    while line := file.readline(MAX_LINE_BYTES):
        with contextlib.suppress(ValueError, RecursionError):
            yield json.loads(line)


def json_array_rows(path: Path, file: io.BufferedReader) -> Rows:
    """Yield the objects of a JSON array, of any size."""
    array = _ArrayText(path, file)
    array.skip("[")
    while array.begins_value():
        value, text = array.value()
        number = array.number
        if not isinstance(value, dict):
            yield Unreadable(number, f"{type(value).__name__} instead of an object", excerpt(text))
        elif text.count("[") + text.count("{") > DEEPEST and _nested_deeper(value, DEEPEST):
            yield Unreadable(number, "nested too deeply", excerpt(text))
        elif not is_utf8(text) or (_SURROGATE.search(text) and not is_utf8(json.dumps(value, ensure_ascii=False))):
            yield Unreadable(number, "invalid UTF-8", excerpt(text))
        else:
            yield value


class _ArrayText:
    """The text of a JSON array, read as far as the next value needs."""

    def __init__(self, path: Path, file: io.BufferedReader) -> None:
        self._path, self._file = path, file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self._json = json.JSONDecoder(parse_constant=self._refuse_constant)
        self._text, self._place, self._ended = "", 0, False
        self.number = 0
        """Values so far."""

    def begins_value(self) -> bool:
        """Go to the next value of the array; tell whether there is one, or the array and the file end here."""
        sign = self._next_sign()
        if sign != "]":
            if self.number:
                self.skip(",")
            return True
        self.skip("]")
        if self._next_sign():
            raise self._broken("more text follows its end")
        return False

    def value(self) -> tuple[Any, str]:
        """Return the value that begins here, and its text."""
        self._next_sign()
        while True:
            near_end = len(self._text) - _LONGEST_TOKEN  # what ends after it may go on in what is not read yet
            try:
                value, end = self._json.raw_decode(self._text, self._place)
            except json.JSONDecodeError as error:
                if self._ended or (error.pos < near_end and not error.msg.startswith("Unterminated string")):
                    raise self._broken(error) from error
            except (ValueError, RecursionError) as error:
                raise self._broken(error) from error
            else:
                if self._ended or end < near_end:
                    break
            left = len(self._text) - self._place
            if left > MAX_LINE_BYTES:
                raise self._broken(f"the next is longer than {MAX_LINE_BYTES >> 20} MiB")
            self._read(max(left, READ_AT_A_TIME))
        text, self._place = self._text[self._place : end], end
        self.number += 1
        return value, text

    def skip(self, sign: str) -> None:
        """Go past a sign that must come next."""
        if self._next_sign() != sign:
            raise self._broken(f"{sign!r} is missing")
        self._place += 1

    def _next_sign(self) -> str:
        while True:
            blanks = _BLANKS.match(self._text, self._place)
            assert blanks is not None  # no blank at all matches, too
            self._place = blanks.end()
            if self._place < len(self._text) or self._ended:
                return self._text[self._place : self._place + 1]
            self._read(READ_AT_A_TIME)

    def _read(self, size: int) -> None:
        read = self._file.read(size)
        self._ended = not read
        self._text = self._text[self._place :] + self._decoder.decode(read, final=self._ended)
        self._place = 0

    def _refuse_constant(self, name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    def _broken(self, reason: object) -> UserError:
        if isinstance(reason, RecursionError):
            reason = "the next is nested too deeply"
        text = reason.msg if isinstance(reason, json.JSONDecodeError) else str(reason)
        return UserError(
            f"{self._path} is a JSON array that breaks off after record {self.number} ({text}). Repair it."
        )


def _nested_deeper(value: object, depth: int) -> bool:
    level: list[Any] = [value]
    for _ in range(depth):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return False
    return True

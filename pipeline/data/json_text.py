"""A place in a JSON text of any size, from which values are read, or passed over, one at a time."""

from __future__ import annotations

import codecs
import copy
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.data.rows import MAX_LINE_BYTES, Unreadable, excerpt, is_utf8
from pipeline.run.errors import UserError

READ_AT_A_TIME = 1 << 18  # bytes
DEEPEST = 100  # lists and objects in one another; far more, and Python cannot hand them to another process
_LONGEST_TOKEN = 16  # characters of JSON that have no end of their own, such as a number's, or mean one thing, such as "\ud83d\ude00"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_BLANKS = re.compile(r"[ \t\r\n]*")
_NO_BRACKETS = re.compile(r"""(?:[^"\[\]{}]++|"(?:[^"\\]++|\\.)*+")*+""", re.DOTALL)


def no_number(_: str) -> None:
    """Read NaN and Infinity, as pandas and Python write them, as null."""


class JsonText:
    """A place in a JSON text, of which as much is in memory as the next value needs."""

    def __init__(self, path: Path, file: io.BufferedReader) -> None:
        self.path, self._file = path, file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self._json = json.JSONDecoder(parse_constant=no_number)
        self._text, self._place, self._read_to, self._ended = "", 0, file.tell(), False
        self.rows = 0
        """Rows so far."""

    def fork(self) -> JsonText:
        """Return another that is at the same place and goes its own way."""
        other = copy.copy(self)
        other._decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        other._decoder.setstate(self._decoder.getstate())
        return other

    def items(self) -> Iterator[None]:
        """Go from value to value of the array that begins here, and past its end; each is to be read or passed over."""
        self.skip("[")
        while self.next_sign() != "]":
            yield
            self._skip_comma("]")
        self.skip("]")

    def members(self) -> Iterator[str]:
        """Yield each key of the object that begins here, at its value, and go past its end."""
        self.skip("{")
        while self.next_sign() != "}":
            key, _ = self.value()
            self.skip(":")
            if not isinstance(key, str):
                raise self.broken("a key is no text")
            self.next_sign()
            yield key
            self._skip_comma("}")
        self.skip("}")

    def row(self) -> dict[str, Any] | Unreadable:
        """Return the value that begins here as a row."""
        return self.as_row(*self.value())

    def as_row(self, value: object, text: str) -> dict[str, Any] | Unreadable:
        """Count a row and return its value, if it is an object that can be used, or why not."""
        self.rows += 1
        if not isinstance(value, dict):
            return Unreadable(self.rows, f"{type(value).__name__} instead of an object", excerpt(text))
        if text.count("[") + text.count("{") > DEEPEST and _nested_deeper(value, DEEPEST):
            return Unreadable(self.rows, "nested too deeply", excerpt(text))
        if not is_utf8(text) or (_SURROGATE.search(text) and not is_utf8(json.dumps(value, ensure_ascii=False))):
            return Unreadable(self.rows, "invalid UTF-8", excerpt(text))
        return value

    def value(self) -> tuple[Any, str]:
        """Return the value that begins here, and its text."""
        self.next_sign()
        while True:
            near_end = len(self._text) - _LONGEST_TOKEN  # what ends after it may go on in what is not read yet
            try:
                value, end = self._json.raw_decode(self._text, self._place)
            except json.JSONDecodeError as error:
                if self._ended or (error.pos < near_end and not error.msg.startswith("Unterminated string")):
                    raise self.broken(error) from error
            except (ValueError, RecursionError) as error:
                raise self.broken(error) from error
            else:
                if self._ended or end < near_end:
                    break
            left = len(self._text) - self._place
            if left > MAX_LINE_BYTES:
                raise self.broken(f"the next is longer than {MAX_LINE_BYTES >> 20} MiB")
            self._read(max(left, READ_AT_A_TIME))
        text, self._place = self._text[self._place : end], end
        return value, text

    def pass_over(self) -> None:
        """Go past the value that begins here, of any size, without a look at more of it than where it ends."""
        if self.next_sign() not in ("[", "{"):
            self.value()
            return
        depth = 0
        while True:
            passed = _NO_BRACKETS.match(self._text, self._place)
            assert passed is not None  # nothing matches, too
            self._place = passed.end()
            sign = self._text[self._place : self._place + 1]
            if sign in ("[", "{", "]", "}"):
                self._place += 1
                depth += 1 if sign in ("[", "{") else -1
                if not depth:
                    return
            elif self._ended:
                raise self.broken("it is cut off")
            elif len(self._text) - self._place > MAX_LINE_BYTES:
                raise self.broken(f"the next is longer than {MAX_LINE_BYTES >> 20} MiB")
            else:
                self._read(max(len(self._text) - self._place, READ_AT_A_TIME))

    def skip(self, sign: str) -> None:
        """Go past a sign that must come next."""
        if self.next_sign() != sign:
            raise self.broken(f"{sign!r} is missing")
        self._place += 1

    def next_sign(self) -> str:
        """Go past blanks and return what comes next, or nothing at the end."""
        while True:
            sign = self._text[self._place : self._place + 1]
            if sign and sign not in " \t\r\n":
                return sign
            blanks = _BLANKS.match(self._text, self._place)
            assert blanks is not None  # no blank at all matches, too
            self._place = blanks.end()
            if self._place == len(self._text):
                if self._ended:
                    return ""
                self._read(READ_AT_A_TIME)

    def broken(self, reason: object) -> UserError:
        """Return the error of a text that cannot be read on."""
        if isinstance(reason, RecursionError):
            reason = "the next is nested too deeply"
        text = reason.msg if isinstance(reason, json.JSONDecodeError) else str(reason)
        return UserError(f"{self.path} is JSON that breaks off after record {self.rows} ({text}). Repair it.")

    def _skip_comma(self, end: str) -> None:
        # Where a comma comes before the end, too, nothing is lost.
        if self.next_sign() != end:
            self.skip(",")

    def _read(self, size: int) -> None:
        if self._file.tell() != self._read_to:  # another read the file meanwhile
            self._file.seek(self._read_to)
        read = self._file.read(size)
        self._read_to += len(read)
        self._ended = not read
        self._text = self._text[self._place :] + self._decoder.decode(read, final=self._ended)
        self._place = 0


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

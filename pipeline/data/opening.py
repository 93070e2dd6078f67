"""How an input is opened: what its first bytes tell, whatever its name says, and its text as UTF-8."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.run.errors import UserError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BUFFER_BYTES = 3 << 17
EXAMINED_BYTES = 16 << 20  # until the first byte that is not ASCII; most files have it in their first lines
EXAMINED_AT_A_TIME = 1 << 20
UTF8 = "utf-8"
_MARKS = {
    codecs.BOM_UTF8: UTF8,
    codecs.BOM_UTF32_LE: "utf-32",  # begins with the mark of UTF-16, and so comes before it
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_GZIP = b"\x1f\x8b"
_ZIP = b"PK\x03\x04"
_COMPRESSED = {b"BZh": ("bzip2", "bunzip2"), b"\xfd7zXZ\0": ("xz", "unxz"), b"\x28\xb5\x2f\xfd": ("zstd", "unzstd")}
_OLD_OFFICE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_AS_CSV = "open it in its program, save the sheet as CSV UTF-8 (File, Save As)"
# What programs write in that know no Unicode. The first one is by far the most common: it is taken unless another is less odd.
_LEGACY = (
    "cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "mac_roman", "cp850", "koi8_r", "gb18030", "cp932", "euc_jp", "big5", "cp949",
)  # fmt: skip
_ENOUGH_BYTES = 1 << 16  # of lines that are not ASCII, to tell their encoding
_SURROGATES = re.compile("[\udc80-\udcff]")


def _as_surrogates(error: UnicodeError) -> tuple[str, int]:
    """Keep what is damaged in any encoding as what becomes a byte that is not UTF-8, so that its row is told."""
    assert isinstance(error, UnicodeDecodeError)
    return "\udcff", error.end


codecs.register_error("pipeline.damaged", _as_surrogates)


def first_bytes(path: Path) -> bytes:
    """Return what tells the kind of a file."""
    with path.open("rb") as file:
        return file.read(16)


def refuse_other_programs(path: Path) -> None:
    """Raise a UserError if a file, whatever its ending, is a workbook, an archive, or compressed with what is not read."""
    beginning = first_bytes(path)
    if beginning.startswith((_OLD_OFFICE, _ZIP)):
        kind = _kind_of_office_file(path) if beginning.startswith(_ZIP) else "an Excel file"
        if kind is None:
            raise UserError(f"{path} is a ZIP archive, as workbooks are: unpack it, or {_AS_CSV}, and name that file.")
        raise UserError(f"{path} is {kind}: {_AS_CSV}, and name that file.")
    for mark, (name, program) in _COMPRESSED.items():
        if beginning.startswith(mark):
            raise UserError(f"{path} is compressed with {name}. Decompress it first ({program}).")


def _kind_of_office_file(path: Path) -> str | None:
    with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if any(name.startswith("xl/") for name in names):
            return "an Excel file"
        if "content.xml" in names:
            return "an OpenDocument file"
    return None


def open_text(path: Path, encoding: str = UTF8) -> tuple[io.BufferedReader, io.BufferedReader]:
    """Open a file; return it as it is stored, and its decompressed text as UTF-8, which is the same where it is stored so.

    Bytes that the encoding does not know become bytes that are not UTF-8.
    """
    stored = path.open("rb")
    file = stored
    if stored.peek(len(_GZIP)).startswith(_GZIP):
        file = io.BufferedReader(gzip.GzipFile(fileobj=stored), BUFFER_BYTES)
    if encoding != UTF8:
        file = io.BufferedReader(_AsUtf8(file, encoding), BUFFER_BYTES)
    return stored, file


def canonical_encoding(name: str) -> str:
    """Return the name of an encoding, UTF8 for that with a byte order mark and for ASCII too."""
    canonical = codecs.lookup(name).name
    return UTF8 if canonical in ("utf-8", "utf-8-sig", "ascii") else canonical


def label_of(encoding: str) -> str:
    """Return how an encoding is told, which --data.encoding takes too."""
    return encoding.upper() if encoding.startswith("utf") else encoding


def recognise_encoding(path: Path, may_be_legacy: bool) -> str:
    """Return the encoding of a text, by its byte order mark or its first bytes that are not ASCII; UTF8 where they do not tell.

    Args:
        path: a file, plain or gzip.
        may_be_legacy: whether an encoding without Unicode is looked for; in JSON, which is UTF-8, such bytes are damage.
    """
    stored, file = open_text(path)
    with stored:
        beginning = file.peek(4)
        for mark, encoding in _MARKS.items():
            if beginning.startswith(mark):
                return encoding
        decoder = codecs.getincrementaldecoder(UTF8)("surrogateescape")
        examined = 0
        while examined < EXAMINED_BYTES and (piece := file.read(EXAMINED_AT_A_TIME)):
            if not examined and (wide := _utf16_without_mark(piece)):
                return wide
            examined += len(piece)
            text = decoder.decode(piece)
            if not text.isascii():
                damaged = len(_SURROGATES.findall(text))
                proper = sum(not sign.isascii() for sign in text) - damaged if damaged else 1
                return UTF8 if not may_be_legacy or damaged <= proper else _legacy_encoding(piece) or UTF8
    return UTF8


def _utf16_without_mark(beginning: bytes) -> str | None:
    """Return which UTF-16 has such zeros: those of its ASCII signs are all on one side."""
    if b"\0" not in beginning:
        return None
    pairs, even, odd = len(beginning) // 2, beginning[::2].count(0), beginning[1::2].count(0)
    if max(even, odd) < max(pairs // 10, 2) or min(even, odd) > max(even, odd) // 10:
        return None
    return "utf-16-le" if odd > even else "utf-16-be"


def _legacy_encoding(piece: bytes) -> str | None:
    """Return the encoding without Unicode that makes the most sense of a text, None if none does."""
    from charset_normalizer import from_bytes

    lines = b"\n".join(line for line in piece.split(b"\n") if not line.isascii())[:_ENOUGH_BYTES]
    matches = from_bytes(lines, cp_isolation=list(_LEGACY))
    if not matches:
        return None
    # What two encodings read as the same is told of one of them.
    order = {name: (match.chaos, -match.coherence) for match in matches for name in match.could_be_from_charset}
    best = min(order, key=lambda name: (order[name], _LEGACY.index(name)))
    name = _LEGACY[0] if order.get(_LEGACY[0], (1,))[0] == order[best][0] else best
    return name.replace("cp125", "windows-125")


class _AsUtf8(io.RawIOBase):
    """Text of another encoding as UTF-8."""

    def __init__(self, file: io.BufferedReader, encoding: str) -> None:
        self._file, self._decoder = file, codecs.getincrementaldecoder(encoding)("pipeline.damaged")
        self._encoded, self._given, self._ended = b"", 0, False

    def readable(self) -> bool:
        """Return that it can be read."""
        return True

    def seekable(self) -> bool:
        """Return that another place can be gone to."""
        return True

    def seek(self, place: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to a place from the beginning, reading the file again if that is before this one."""
        if whence != io.SEEK_SET:
            raise io.UnsupportedOperation("only a place from the beginning is known")
        if place < self._given:
            self._file.seek(0)
            self._decoder.reset()
            self._encoded, self._given, self._ended = b"", 0, False
        while self._given < place and self.read(min(place - self._given, EXAMINED_AT_A_TIME)):
            pass
        return self._given

    def tell(self) -> int:
        """Return how many bytes were read."""
        return self._given

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill a buffer as far as text is at hand; return the number of bytes, 0 at the end."""
        while not self._encoded and not self._ended:
            read = self._file.read1(EXAMINED_AT_A_TIME)
            self._ended = not read
            self._encoded = self._decoder.decode(read, final=self._ended).encode(UTF8, "surrogateescape")
        view = memoryview(buffer)
        given = self._encoded[: len(view)]
        self._encoded = self._encoded[len(given) :]
        view[: len(given)] = given
        self._given += len(given)
        return len(given)

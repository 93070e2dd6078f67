"""Files of a run: written under a temporary name and renamed, checked before they are read."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pipeline.run.errors import UserError
from pipeline.run.run_folder import remake

# Of safetensors and the converter, of torch, of SQLite: their errors are no OSError.
FULL_DISK = ("No space left on device", "file write failed", "database or disk is full")
SETTLED_AFTER = 1_000_000_000  # nanoseconds after which a change gives a file another time of modification
_hashes: dict[tuple[Any, ...], str] = {}


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, for a file or a folder; on success it is renamed, otherwise removed."""
    with temporary_path(path) as temporary:
        yield temporary
        if path.is_dir():  # a folder cannot be renamed onto another, and removing one takes many steps
            path.replace(_temporary_paths(path, os.getpid())[1])
        temporary.replace(path)


@contextlib.contextmanager
def temporary_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, for a file or a folder that is removed when the block ends.

    What a killed process has left there is removed by the next block.
    """
    import psutil

    path.parent.mkdir(parents=True, exist_ok=True)
    own = re.compile(rf"\.{re.escape(path.name)}\.(?:old\.)?(\d{{1,9}})\.tmp")
    for owner in {int(left[1]) for beside in path.parent.iterdir() if (left := own.fullmatch(beside.name))}:
        if owner == os.getpid() or not psutil.pid_exists(owner):  # it was killed
            _settle(path, owner)
    try:
        with told_if_full(path.parent):
            yield _temporary_paths(path, os.getpid())[0]
    finally:
        _settle(path, os.getpid())


def _temporary_paths(path: Path, owner: int) -> tuple[Path, Path]:
    """Return where a process writes what is to be at `path`, and where it puts the folder that is there, meanwhile."""
    return path.with_name(f".{path.name}.{owner}.tmp"), path.with_name(f".{path.name}.old.{owner}.tmp")


def _settle(path: Path, owner: int) -> None:
    """Remove what a process has left beside `path`; the old folder is put back if no new one has taken its place."""
    temporary, replaced = _temporary_paths(path, owner)
    # Without the new folder beside it, the old one was replaced, and may be half removed.
    if temporary.exists() and replaced.exists() and not path.exists():
        replaced.replace(path)
    _remove(temporary)
    _remove(replaced)


@contextlib.contextmanager
def told_if_full(folder: Path) -> Iterator[None]:
    """Turn the errors of a full disk into a UserError that names `folder`, in which the block writes."""
    try:
        yield
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not full and not any(words in str(error) for words in FULL_DISK):
            raise
        raise UserError(f"There is no space left in {folder}: {_free_space(folder)}.") from error


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that gets its name only when the block ends without an error."""
    # A file name that is not in the locale's encoding is written with the escapes of JSON, which read it back.
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "errors": "backslashreplace", "newline": "\n"}
    with atomic_path(path) as temporary, temporary.open(mode, **text) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def require_space(folder: Path, needed: float, what: str) -> None:
    """Raise a UserError unless `needed` bytes are free where `folder` lies.

    Args:
        what: to be written there, for the message.
    """
    if shutil.disk_usage(folder).free < needed:
        raise UserError(f"{what} in {folder} needs {needed / 2**30:.1f} GiB: {_free_space(folder)}.")


def _free_space(folder: Path) -> str:
    return f"{shutil.disk_usage(folder).free / 2**30:.1f} GiB are free there; make room or give another --output-dir"


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> Path:
    """Write JSON that a person can read."""
    with atomic_write(path) as file:
        json.dump(value, file, ensure_ascii=False, indent=2, default=str)
        file.write("\n")
    return path


def read_json(path: Path) -> Any:
    """Read JSON; a damaged file, or a folder in its place, is a UserError that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError, IsADirectoryError) as error:
        raise remake(path, f"{path} is damaged ({error}).") from error


def file_hash(path: Path) -> str:
    """Return a hash of a file, or of the names and contents of the files in a folder, that tells whether it changed.

    Of a folder, hidden files and Markdown are left out: what a file manager adds, and the card of a model. A file is not
    read again while its path, size, inode and time of modification are the same.

    XXH3 of 128 bits, in hexadecimal: twelve times as fast as SHA-256, which counts where files have gigabytes.
    """
    found = [path]
    if path.is_dir():
        counted = (p for p in path.rglob("*") if not p.name.startswith(".") and p.suffix != ".md")
        found = sorted(p for p in counted if p.is_file())
    states = [(file, file.stat()) for file in found]
    known_by = (path, *((file, state.st_size, state.st_ino, state.st_mtime_ns) for file, state in states))
    if known_by in _hashes:
        return _hashes[known_by]
    digest = _hash_of_files(path, found)
    # A file that was written a moment ago may be written once more within one tick of the clock of the file system.
    if all(time.time_ns() - state.st_mtime_ns > SETTLED_AFTER for _, state in states):
        _hashes[known_by] = digest
    return digest


def _hash_of_files(folder: Path, found: list[Path]) -> str:
    import xxhash

    digest = xxhash.xxh3_128()
    for file in found:
        digest.update(file.relative_to(folder).as_posix().encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()

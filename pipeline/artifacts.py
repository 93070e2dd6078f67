"""Files of a run: written under a temporary name and renamed, checked before they are read."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import psutil

# Of safetensors and the converter, of torch, of SQLite: their errors are no OSError.
FULL_DISK = ("No space left on device", "file write failed", "database or disk is full")


class UserError(Exception):
    """A problem that the user can mend. Its text is one sentence or two, and names the remedy."""


class StageNeeded(UserError):
    """What a stage makes is missing or out of date."""

    def __init__(self, problem: str, stage: str, run_dir: Path, again: bool = False) -> None:
        """Say what the problem is, and which command mends it.

        Args:
            problem: one sentence.
            stage: name of the script without .py.
            run_dir: OUTPUT_DIR/PRESET.
            again: the stage has been run, but must be run again.
        """
        self.stage, self.again = stage, again
        super().__init__(f"{problem} Run `{command(stage, run_dir)}` {'again' if again else 'first'}.")


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, for a file or a folder; on success it is renamed, otherwise removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    replaced = path.with_name(f".{path.name}.old.{os.getpid()}.tmp")
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        # What a program that was killed left behind.
        owner = int(left.suffixes[-2].removeprefix("."))
        if owner == os.getpid() or not psutil.pid_exists(owner):
            _remove(left)
    try:
        with told_if_full(path.parent):
            yield temporary
            if path.is_dir():  # a folder cannot be renamed onto another, and removing one takes many steps
                path.replace(replaced)
            temporary.replace(path)
    finally:
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
    text = {} if "b" in mode else {"encoding": "utf-8", "errors": "backslashreplace", "newline": "\n"}
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
        raise UserError(f"{path} is damaged ({error}). Delete it and run the stage that makes it again.") from error


def command(stage: str, run_dir: Path) -> str:
    """Return the command that runs a stage on the outputs in run_dir, which is OUTPUT_DIR/PRESET."""
    parts = ["python", f"{stage}.py"]
    if run_dir.name != "demo":
        parts += ["--preset", run_dir.name]
    if run_dir.parent != Path("outputs"):
        parts += ["--output-dir", str(run_dir.parent)]
    return shell_line(parts)


def shell_line(parts: Iterable[str]) -> str:
    """Return a command line that can be pasted into a shell.

    Double quotes, where they do, are read by every shell of every system; within them, shells read some characters.
    """
    return " ".join(map(_quoted, parts))


def _quoted(part: str) -> str:
    if re.search(r'["$`!]', part) or (os.name != "nt" and "\\" in part):
        return subprocess.list2cmdline([part]) if os.name == "nt" else shlex.quote(part)
    return part if re.fullmatch(r"[\w.,:=/\\+-]+", part) else f'"{part}"'


def require(path: Path, stage: str) -> Path:
    """Return `path`, a file or folder in the folder of a run, or name the stage and the command that make it."""
    if not path.exists():
        raise StageNeeded(f"{path} does not exist yet: {stage}.py makes it.", stage, path.parent)
    return path


def file_hash(path: Path) -> str:
    """Return a hash of a file, or of the names and contents of the files in a folder, that tells whether it changed.

    Of a folder, hidden files and Markdown are left out: what a file manager adds, and the card of a model.

    XXH3 of 128 bits, in hexadecimal: twelve times as fast as SHA-256, which counts where files have gigabytes.
    """
    import xxhash

    digest = xxhash.xxh3_128()
    files = [path]
    if path.is_dir():
        counted = (p for p in path.rglob("*") if not p.name.startswith(".") and p.suffix != ".md")
        files = sorted(p for p in counted if p.is_file())
    for file in files:
        digest.update(file.relative_to(path).as_posix().encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()

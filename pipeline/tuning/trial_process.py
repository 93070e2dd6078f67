"""A training in a process of its own, followed through its log: it may end at any moment, and leaves no memory behind."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from pipeline.run.errors import UserError
from pipeline.run.run_folder import PROCESSED, RunFolder
from pipeline.training.log import read_log

POLL_SECONDS = 0.5


class TrainingFailed(UserError):
    """A training ended with an error of its own."""


def link_records(source: RunFolder, target: RunFolder) -> None:
    """Put the cleaned records of a run into the folder of another, and what stage 1 notes of them.

    Args:
        source: the run of stage 1.
        target: the run of the training. What is there is removed.
    """
    shutil.rmtree(target.path, ignore_errors=True)
    for path in (source / PROCESSED, source.manifest_path("process_data")):
        link = target.path / path.relative_to(source.path)
        link.parent.mkdir(parents=True, exist_ok=True)
        try:
            link.hardlink_to(path)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, link)


@contextlib.contextmanager
def running(command: list[str], output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Yield the process of a command, which ends with the block at the latest.

    Args:
        command: program and arguments.
        output: file that takes all that the process prints.
    """
    with output.open("wb") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        if process.poll() is None:
            kill(psutil.Process(process.pid))
        process.wait()


def evaluations(process: subprocess.Popen[bytes], log: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a training log that have a validation loss, as they are written, until the process ends."""
    seen = 0
    while True:
        ended = process.poll() is not None  # asked first, so that its last lines are read
        lines = [line for line in read_log(log) if "validation_loss" in line]
        yield from lines[seen:]
        seen = len(lines)
        if ended:
            return
        time.sleep(POLL_SECONDS)


def require_success(process: subprocess.Popen[bytes], output: Path) -> None:
    """Raise TrainingFailed, with the last line of the output, for a process that ended otherwise than with status 0."""
    if process.returncode < 0:
        raise TrainingFailed(f"The training was killed by signal {-process.returncode}; perhaps memory ran out.")
    if process.returncode > 0:
        lines = re.split(r"[\r\n]+", output.read_text(encoding="utf-8", errors="replace").strip())
        raise TrainingFailed(f"{lines[-1]} (All that it printed is in {output}.)")


def kill_left(folder: Path) -> None:
    """Kill the trainings that a killed program left running, by their outputs in `folder`."""
    folder = folder.resolve()
    for process in psutil.process_iter(["cmdline"]):
        arguments = [Path(argument) for argument in process.info["cmdline"] or []]
        is_training = any(path.name == "fine_tuning.py" for path in arguments)
        if is_training and any(folder in path.resolve().parents for path in arguments):
            kill(process)


def kill(process: psutil.Process) -> None:
    """Kill a process and those that it started, and wait until it is gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for each in (*process.children(recursive=True), process):
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
    psutil.wait_procs([process], timeout=10)

"""The processes that `accelerate launch` started, one a device; without it there is one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def _state() -> Any:
    from accelerate import PartialState

    from pipeline.language_model import best_device

    return PartialState(cpu=best_device() == "cpu")


def device_count() -> int:
    """Return how many devices train together."""
    return _state().num_processes


def least_free_memory() -> float:
    """Return the free bytes of the device that has the least, so that all processes make the same plan."""
    from accelerate.utils import gather_object

    from pipeline.memory import free_memory

    state = _state()
    share = state.num_processes if state.device.type == "cpu" else 1
    return min(gather_object([free_memory() / share]))


def is_main() -> bool:
    """Tell whether this process is the one that writes files."""
    return _state().is_main_process


def wait_for_all() -> None:
    """Wait until all processes are here."""
    _state().wait_for_everyone()


@contextlib.contextmanager
def one_speaks() -> Iterator[None]:
    """Let only the main process print to standard output."""
    if is_main():
        yield
        return
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        yield

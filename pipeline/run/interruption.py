"""Ctrl-C: one sentence while a stage still imports, and none of it for the processes that a stage starts."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType


def end_in_one_sentence(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Be sys.excepthook: end with exit status 130 where nothing else has caught Ctrl-C."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
        return
    print(f"\n{Path(sys.argv[0]).name}: interrupted; run it again to go on.", file=sys.stderr)
    raise SystemExit(130)


@contextlib.contextmanager
def delay_interrupts() -> Iterator[None]:
    """Hold Ctrl-C back until the block ends; the processes that it starts never get it, not while they import either."""
    if not hasattr(signal, "pthread_sigmask") or threading.current_thread() is not threading.main_thread():
        yield  # on Windows, or where no handler can be set
        return
    from multiprocessing import resource_tracker

    came: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    resource_tracker.ensure_running()  # which unblocks it, when it starts with the first process
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # processes inherit it; another thread may be told
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
        if came:
            signal.raise_signal(signal.SIGINT)

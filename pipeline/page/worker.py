"""A thread that does one thing after another, for several people who wait for it."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncIterator, Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
_END = object()


@dataclass(frozen=True)
class Ahead:
    """How many streams are served before this one."""

    count: int


class Worker:
    """One thread. What it is given is done in turn."""

    def __init__(self) -> None:
        """Start the thread, which ends with the program."""
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._line: list[Stream[Any]] = []
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while True:
            self._jobs.get()()

    def submit(self, function: Callable[[], Result]) -> Future[Result]:
        """Call a function in the thread and return its future."""
        future: Future[Result] = Future()

        def job() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        self._jobs.put(job)
        return future

    def stream(self, make: Callable[[], Generator[Item, None, None]]) -> Stream[Item]:
        """Make an iterator in the thread and return a stream of its items; to be called in an event loop."""
        stream = Stream(make)
        self._line.append(stream)
        self._tell_positions()

        def job() -> None:
            stream.run()
            self._line.remove(stream)
            self._tell_positions()

        self._jobs.put(job)
        return stream

    def _tell_positions(self) -> None:
        for position, stream in enumerate([stream for stream in self._line if not stream.stopped]):
            stream.send(Ahead(position))


class Stream(Generic[Item]):
    """The items of an iterator that runs in another thread, and Ahead whenever the line before it changes."""

    def __init__(self, make: Callable[[], Generator[Item, None, None]]) -> None:
        """Remember how the iterator is made, and the event loop that reads its items."""
        self._make = make
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[Any] = asyncio.Queue()
        self._stopped = threading.Event()

    @property
    def stopped(self) -> bool:
        """Tell whether somebody has stopped it."""
        return self._stopped.is_set()

    def stop(self) -> None:
        """End the stream at once; the iterator is closed after the item that it is at."""
        self._stopped.set()
        self._items.put_nowait(_END)

    def send(self, item: Any) -> None:
        """Put an item into the stream, from any thread."""
        with contextlib.suppress(RuntimeError):  # the event loop has ended with the server
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)

    def run(self) -> None:
        """Use the iterator up, in the thread that calls this."""
        try:
            if not self.stopped:
                with contextlib.closing(self._make()) as items:
                    for item in items:
                        self.send(item)
                        if self.stopped:
                            break
            self.send(_END)
        except BaseException as error:
            self.send(error)

    async def __aiter__(self) -> AsyncIterator[Item | Ahead]:
        """Yield the items; what is raised in the thread is raised here."""
        while not self.stopped and (item := await self._items.get()) is not _END:
            if isinstance(item, BaseException):
                raise item
            yield item

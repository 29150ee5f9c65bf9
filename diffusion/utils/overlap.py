"""Work that goes on at the same time: what is read ahead, and what is written behind.

Decoding and encoding of videos leave Python's lock alone, and so do copies and kernels: threads are
enough. Order is kept, and what waits between two threads is bounded, so that memory is too.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Stopped(BaseException):
    """The other side of a channel is gone; no error that a loop may deal with."""


class Channel(Generic[T]):
    """At most `depth` items on their way from one thread to another, in order."""

    def __init__(self, depth: int):
        self.depth = depth
        self._items: deque[T] = deque()
        self._ended = self._stopped = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def put(self, item: T) -> None:
        """Waits while `depth` items wait."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or len(self._items) < self.depth)
            if self._stopped:
                raise Stopped
            self._items.append(item)
            self._changed.notify_all()

    def wait_for_room(self) -> None:
        """Until `put` would not wait."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or len(self._items) < self.depth)

    def end(self, error: BaseException | None = None) -> None:
        """No more will come; what is there is still taken, and then the error is raised."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def stop(self) -> None:
        """What is there is dropped, and both sides are woken: they get `Stopped`."""
        with self._changed:
            self._stopped = True
            self._items.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        """Waits until there is one."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._ended or self._stopped)
            if self._stopped:
                raise Stopped
            if not self._items:
                raise self._error or StopIteration
            item = self._items.popleft()
            self._changed.notify_all()
            return item


class Behind(Generic[T]):
    """Where a thread takes from what it writes: `write(item)`, and `write.end()` after the last.

    Returns at once, unless `depth` items wait already.
    """

    def __init__(self, depth: int, waiting: Callable[[], AbstractContextManager[None]]):
        self.channel, self._waiting = Channel[T](depth), waiting

    def __call__(self, item: T) -> None:
        with self._waiting():
            self.channel.put(item)

    def end(self) -> None:
        """What is written may be completed now; at the latest, the end of the block says so."""
        self.channel.end()


class Overlap:
    """The threads beside the one that computes; they end with the block.

        with Overlap() as overlap:
            write = overlap.behind(save_all)  # a function of an iterator
            for video in overlap.ahead(read_all()):
                write(compute(video))

    The end of the block waits until all is written. An error of what is read comes where its item
    would. After an exception in the block, or where something is written, what waits is dropped,
    the threads end, and that exception leaves the block: an iterator that is given to a thread then
    raises, so that a `with` around its loop cleans up.

    waiting: a context for the time in which the computing thread waits for another one.
    """

    def __init__(self, waiting: Callable[[], AbstractContextManager[None]] = nullcontext):
        self._waiting = waiting
        self._threads: list[threading.Thread] = []
        self._ahead: list[Channel[Any]] = []
        self._behind: list[Channel[Any]] = []
        self._errors: list[BaseException] = []

    def ahead(self, items: Iterable[T], depth: int = 1) -> Iterator[T]:
        """The items; a thread makes the next `depth` of them meanwhile."""
        channel = Channel[T](depth)

        def make() -> None:
            try:
                for item in items:
                    channel.put(item)
                    del item  # or it would live until the next one is there
                    channel.wait_for_room()  # before making what could not be put
                channel.end()
            except Exception as error:
                channel.end(error)

        self._ahead.append(channel)
        self._start(make)
        return self._waited_for(channel)

    def behind(self, consume: Callable[[Iterator[T]], object], depth: int = 8) -> Behind[T]:
        """What is called with an item hands it to `consume`, which runs in a thread."""
        behind = Behind[T](depth, self._waiting)
        self._behind.append(behind.channel)
        self._start(lambda: consume(behind.channel))
        return behind

    def __enter__(self) -> "Overlap":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            for channel in self._ahead:
                channel.stop()
            for channel in self._behind:
                if kind is None:
                    channel.end()
                else:
                    channel.stop()
            with self._waiting():
                for thread in self._threads:
                    thread.join()
        except BaseException:  # Ctrl-C while what is written is waited for
            self._stop()
            raise
        if self._errors and (kind is None or issubclass(kind, Stopped)):
            raise self._errors[0] from None

    def _waited_for(self, channel: Channel[T]) -> Iterator[T]:
        while True:
            with self._waiting():
                try:
                    item = next(channel)
                except StopIteration:
                    return
            yield item
            del item

    def _start(self, work: Callable[[], object]) -> None:
        def run() -> None:
            try:
                work()
            except Stopped:
                pass
            except BaseException as error:
                self._errors.append(error)
                self._stop()

        thread = threading.Thread(target=run)
        self._threads.append(thread)
        thread.start()

    def _stop(self) -> None:
        for channel in (*self._ahead, *self._behind):
            channel.stop()

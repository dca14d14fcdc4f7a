"""How Python reads packets: batches of a source one after the other, with a wait between them that can be stopped.

A source is an object that packets come from: the AF_XDP sockets of some queues, an AF_PACKET socket, or a ring buffer.
A reader waits in poll() (:func:`batches`) or in an event loop (:func:`batches_async`).  Both end when :class:`Stop` is
set, which any thread may do.
"""

from __future__ import annotations

import math
import os
import select
import time
from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from typing import Protocol, TypeVar

__all__ = ["Ends", "Source", "Stop", "batches", "batches_async", "epoll_of", "slices"]

#: Longest poll().  A device that goes away wakes no reader, so a reader checks this often whether it is still there.
MOST_MS = 200


class Ends(Protocol):
    """The part of a batch that a reader needs."""

    def end(self) -> None: ...

    def __len__(self) -> int: ...


B_co = TypeVar("B_co", bound=Ends, covariant=True)
B = TypeVar("B", bound=Ends)


class Source(Protocol[B_co]):
    """An object that packets come from.  One thread at a time may use it."""

    @property
    def fds(self) -> Sequence[int]:
        """Descriptors; one of them is readable when packets are there."""

    @property
    def poll_ms(self) -> int:
        """Longest wait in milliseconds before :meth:`wait` must be called again."""

    def hold(self) -> int:
        """Note that the calling thread reads from now on, and return its number.  ThreadError while another thread
        does."""

    def release(self, reader: int) -> None:
        """Note that thread ``reader`` reads no more."""

    def receive(self, limit: int) -> B_co | None:
        """The next batch of at most ``limit`` packets, or None; the batch before it has been ended."""

    def wait(self, stop_fd: int, timeout_ms: int) -> bool:
        """Whether packets come within ``timeout_ms``; False sooner when ``stop_fd`` becomes readable.  With 0 it
        prepares a wait in an event loop: it makes the program wake the reader, and wakes a driver that has requested a
        wake-up.  OSError(ENODEV) when the device is gone."""


class Stop:
    """A flag that ends readers, wherever they wait: an eventfd, which stays readable once it is set."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._set = False

    def __bool__(self) -> bool:
        return self._set

    def set(self) -> None:
        """End all readers, also those that begin later.  Any thread may call it; idempotent."""
        if not self._set and self.fd >= 0:
            self._set = True
            os.eventfd_write(self.fd, 1)

    def close(self) -> None:
        """Close the descriptor; idempotent."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def batches(source: Source[B], timeout: float | None, limit: int, stop: Stop | None = None) -> Generator[B, None, None]:
    """Batches of ``source`` until ``timeout`` seconds (None: never) pass without a packet, or ``stop`` is set.  A batch
    ends when the next one is requested."""
    reader = 0
    try:
        while not stop:
            reader = source.hold()
            batch = source.receive(limit)
            if batch is not None:
                try:
                    yield batch
                finally:
                    batch.end()
            elif not _wait(source, timeout, stop):
                return
    finally:
        source.release(reader)


def _wait(source: Source[B], timeout: float | None, stop: Stop | None) -> bool:
    for left in slices(timeout):
        if source.wait(stop.fd if stop is not None else -1, min(left, source.poll_ms)):
            return True
        if stop:
            return False
    return False


async def batches_async(source: Source[B], timeout: float | None, limit: int, stop: Stop) -> AsyncGenerator[B, None]:
    """As :func:`batches`, in an event loop, whose other tasks run after every batch."""
    import asyncio

    epoll = epoll_of([*source.fds, stop.fd])
    reader = 0
    try:
        while not stop:
            reader = source.hold()
            batch = source.receive(limit)
            if batch is not None:
                try:
                    yield batch
                finally:
                    batch.end()
                await asyncio.sleep(0)
                continue
            if not await _wait_async(source, timeout, stop, epoll):
                return
    finally:
        source.release(reader)
        epoll.close()


async def _wait_async(source: Source[B], timeout: float | None, stop: Stop, epoll: select.epoll) -> bool:
    import asyncio

    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    for left in slices(timeout):
        if stop or source.wait(-1, 0):
            return not stop
        loop.add_reader(epoll, ready.set)
        try:
            await asyncio.wait_for(ready.wait(), min(left, source.poll_ms) / 1000)
        except TimeoutError:
            pass
        finally:  # while the reader works on packets, the event loop must not wake up for them
            loop.remove_reader(epoll)
        ready.clear()
    return False


def epoll_of(fds: Sequence[int]) -> select.epoll:
    """One descriptor that is readable while one of ``fds`` is."""
    epoll = select.epoll()
    for fd in fds:
        epoll.register(fd, select.EPOLLIN)
    return epoll


def slices(timeout: float | None, most_ms: int = MOST_MS) -> Iterator[int]:
    """The milliseconds of each poll() of a wait of ``timeout`` seconds (None: for ever); at least one.  A wait is
    divided because a device that goes away wakes no reader."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        left = most_ms if deadline is None else math.ceil(min(most_ms, 1000 * (deadline - time.monotonic())))
        yield max(0, left)
        if deadline is not None and time.monotonic() >= deadline:
            return

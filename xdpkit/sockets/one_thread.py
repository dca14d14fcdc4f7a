"""The check that only one thread at a time uses a socket, because its rings have no locks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..language.errors import ThreadError

__all__ = ["OneThread"]


class OneThread:
    """A mark of the thread that uses a socket.  A thread holds it during a call of the C core (``with one_thread:``),
    and a thread that reads batches holds it from its first batch to its last (:meth:`hold`, :meth:`release`).  In any
    other thread these calls raise :class:`ThreadError`."""

    __slots__ = ("_call", "_reader", "name")

    def __init__(self, name: str):
        self.name: str = name
        self._call = threading.Lock()
        self._reader = 0

    def hold(self) -> int:
        """Note that the calling thread reads batches from now on, and return its number.  ThreadError where another
        thread does."""
        me = threading.get_ident()
        if self._reader != me:
            with self:
                self._reader = me
        return me

    def release(self, reader: int) -> None:
        """Note that thread ``reader`` reads no more batches."""
        if self._reader == reader:
            self._reader = 0

    def __enter__(self) -> None:
        if not self._call.acquire(blocking=False):
            raise self._error("another thread is in a call")
        if self._reader and self._reader != threading.get_ident():
            self._call.release()
            raise self._error(f"thread {self._reader} reads batches")

    def __exit__(self, *_: object) -> None:
        self._call.release()

    @contextmanager
    def after_others(self) -> Iterator[None]:
        """Wait for the call that another thread is in, then run the block.  It is for calls that any thread may make:
        to return frames, and to close.  It waits for at most a second, because a signal handler that closes the socket
        may have interrupted that call."""
        held = self._call.acquire(timeout=1)
        try:
            yield
        finally:
            if held:
                self._call.release()

    def _error(self, what: str) -> ThreadError:
        return ThreadError(
            f"{self.name}: {what} of this socket, which one thread at a time may use: read, send and complete in that "
            "thread, or give each queue a thread of its own (batches(queue=N))"
        )

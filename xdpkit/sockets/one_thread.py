"""Rings have no locks: what holds each socket to one thread at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..language.errors import ThreadError

__all__ = ["OneThread"]


class OneThread:
    """Held by the thread that is in a call of the core (``with one_thread:``), and by the thread that reads batches,
    from its first batch until it ends (:meth:`hold`, :meth:`release`).  Any other thread gets :class:`ThreadError`."""

    __slots__ = ("_call", "_reader", "name")

    def __init__(self, name: str):
        self.name: str = name
        self._call = threading.Lock()
        self._reader = 0

    def hold(self) -> int:
        """The calling thread reads batches from now on; its number.  ThreadError where another one does."""
        me = threading.get_ident()
        if self._reader != me:
            with self:
                self._reader = me
        return me

    def release(self, reader: int) -> None:
        """Thread ``reader`` reads no more batches."""
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
        """After the call that another thread is in, for what any thread may do: give frames back, close.  It waits for
        a second at most: where a signal handler closes the socket, the call that it interrupted cannot end."""
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

"""A look at a device whenever the kernel says that it has changed, for what cannot wait until somebody asks."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Collection

from ..device.changes import Changes

__all__ = ["Watcher"]


class Watcher:
    """Calls ``look``, in a thread of its own, until it is closed: after each notice about the devices of these
    ``indexes`` in the network namespace of the thread that makes this, and every ``seconds`` (None: then alone)."""

    def __init__(self, indexes: Collection[int], look: Callable[[], object], seconds: float | None = None):
        self._look, self._timeout_ms = look, None if seconds is None else int(1000 * seconds)
        self._changes = Changes(indexes)
        self._end = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="xdpkit-watcher", daemon=True)
        try:
            self._thread.start()
        except BaseException:  # no memory for a thread
            self._let_go()
            raise

    def _run(self) -> None:
        poll = select.poll()
        for fd in (self._end, *self._changes.fds):
            poll.register(fd, select.POLLIN)
        while True:
            ready = poll.poll(self._timeout_ms)
            if any(fd == self._end for fd, _ in ready):
                return
            if self._changes.take() or not ready:
                self._look()

    def close(self) -> None:
        """Stop; idempotent."""
        if self._end >= 0:
            os.eventfd_write(self._end, 1)
            self._thread.join()
            self._let_go()

    def _let_go(self) -> None:
        os.close(self._end)
        self._end = -1
        self._changes.close()

"""Signals as a running command takes them: to stop, and to read its pipeline again."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Signals", "signals"]


class Signals:
    """SIGINT, SIGTERM and SIGHUP ask to stop, SIGUSR1 to reload, SIGUSR2 confirms (``confirmed``).

    This is no threading.Event: a thread that waits for one holds its lock for a moment.  A signal handler that runs in
    this moment, in the same thread, would wait for that lock for ever."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.stopped = False
        self.confirmed = False
        self._reload = False

    def stop(self, *_: object) -> None:
        """The handler of signals that end the command."""
        self.stopped = True
        os.eventfd_write(self._fd, 1)

    def reload(self, *_: object) -> None:
        """The handler of SIGUSR1."""
        self._reload = True
        os.eventfd_write(self._fd, 1)

    def confirm(self, *_: object) -> None:
        """The handler of SIGUSR2."""
        self.confirmed = True
        os.eventfd_write(self._fd, 1)

    def wait(self, timeout: float) -> bool:
        """True once a signal to stop came; False after ``timeout`` seconds, or when something else did."""
        if not self.stopped and select.select([self._fd], [], [], timeout)[0]:
            os.eventfd_read(self._fd)
        return self.stopped

    def reload_wanted(self) -> bool:
        """SIGUSR1 came since the last call."""
        wanted, self._reload = self._reload, False
        return wanted

    def close(self) -> None:
        """Close the descriptor; the handlers are gone."""
        os.close(self._fd)


@contextmanager
def signals(*, hangup_reloads: bool = False) -> Iterator[Signals]:
    """Take the signals for as long as the block runs; with ``hangup_reloads``, as services want it, SIGHUP asks to
    reload."""
    found = Signals()
    handlers = dict.fromkeys((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), found.stop) | {
        signal.SIGUSR1: found.reload,
        signal.SIGUSR2: found.confirm,
    }
    if hangup_reloads:
        handlers[signal.SIGHUP] = found.reload
    previous = {
        number: signal.signal(number, handler)
        for number, handler in handlers.items()
        if number != signal.SIGHUP
        or hangup_reloads
        or signal.getsignal(number) != signal.SIG_IGN  # nohup has it ignored
    }
    try:
        yield found
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        found.close()

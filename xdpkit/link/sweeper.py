"""A thread that sweeps sets.  Members with a time-out keep their room after it, until the set is swept.  The thread
does that every second, as long as a link has a set to which packets add members."""

from __future__ import annotations

import threading
from collections.abc import Callable

__all__ = ["Sweeper"]

#: Seconds between two sweeps.
PERIOD = 1.0


class Sweeper:
    """Calls ``sweep`` every PERIOD seconds until it is closed."""

    def __init__(self, sweep: Callable[[], object]):
        self._sweep, self._ended = sweep, threading.Event()
        self._thread = threading.Thread(target=self._run, name="xdpkit-sweeper", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(PERIOD):
            self._sweep()

    def close(self) -> None:
        """Stop; idempotent."""
        self._ended.set()
        self._thread.join()

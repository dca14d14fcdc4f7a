"""Members that packets add to a set end by themselves, but keep their room until somebody sweeps: a thread does, every
second, for as long as a link has such a set."""

from __future__ import annotations

import threading
from collections.abc import Callable

__all__ = ["Sweeper"]

#: Seconds between two looks.
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

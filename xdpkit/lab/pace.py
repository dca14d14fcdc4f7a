"""When to send: the absolute schedule of a paced sender."""

from __future__ import annotations

import threading
import time

__all__ = ["Pace"]


class Pace:
    """A schedule of chunks: `chunk` packets, what is due within `every` seconds but at most `most`, then a wait.

    It counts from the first packet, so lateness does not add up: who comes late catches up, but by two chunks (or
    `burst` packets) at most, beyond which the schedule moves and the rate is missed.  `rate_pps` None: no schedule,
    chunks of `most`.
    """

    def __init__(self, rate_pps: float | None, most: int, burst: int | None = None, every: float = 100e-6) -> None:
        if rate_pps is not None and not rate_pps > 0:
            raise ValueError(f"a rate is above 0 packets per second, not {rate_pps}")
        self.chunk = max(1, min(most, int(rate_pps * every))) if rate_pps else most
        self._period = 1 / rate_pps if rate_pps else 0.0
        self._lateness = (2 * self.chunk if burst is None else burst) * self._period
        self._due = time.monotonic()

    def wait(self, stop: threading.Event) -> None:
        """Until the next chunk is due, or `stop` is set."""
        late = time.monotonic() - self._due
        if late < 0:
            stop.wait(-late)
        self._due += max(0.0, late - self._lateness)

    def sent(self, packets: int) -> None:
        """The chunk that was due had that many packets."""
        self._due += packets * self._period

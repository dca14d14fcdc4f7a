"""Events: the packets that rules log, each with its first bytes, its time, and the name of the rule."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

from ..language.limits import Log
from ..sockets.attached import Attached
from ..sockets.copies import CopiesSocket
from ..sockets.reader import batches

__all__ = ["Event", "Events", "handled"]


@dataclass(frozen=True, slots=True)
class Event:
    """A packet that a rule logged: ``time_ns`` (CLOCK_REALTIME), the ``rule``'s name, the packet's first bytes (96 at
    most), and how many it had on the wire."""

    time_ns: int
    rule: str
    data: bytes
    wire_bytes: int


class Events:
    """The reader of a link's events; a link has one at a time.  It receives what is logged until it is closed.  It is a
    context manager."""

    def __init__(self, attached: Attached):
        """ValueError if no rule logs."""
        pipeline = attached.program.pipeline
        if Log not in pipeline.steps:
            raise ValueError(f"{attached.device.name}: no rule of {pipeline.name!r} logs packets")
        self._attached = attached
        self._reader = CopiesSocket(attached.device.name, attached.program, "events", attached.options)

    def read(self, timeout: float | None = None) -> Iterator[Event]:
        """Events until ``timeout`` seconds (None: for ever) pass without one."""
        for batch in batches(self._reader, timeout, 64):
            names = [rule.name for rule in self._attached.program.pipeline.outcomes]
            for i, frame in enumerate(batch.frames):
                rule = int(batch.rules[i])
                name = names[rule] if rule < len(names) else f"rule {rule} of before"
                yield Event(int(batch.timestamps[i]), name, bytes(frame), int(batch.wire_lengths[i]))

    def close(self) -> None:
        """Stop the rules from logging; idempotent."""
        self._reader.close()

    def __enter__(self) -> Events:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def handled(attached: Attached, handle: Callable[[Event], None]) -> Iterator[None]:
    """Call ``handle`` with each event, in a thread of its own, while the block runs.  ValueError if no rule logs."""
    ended = threading.Event()
    with Events(attached) as events:

        def run() -> None:
            while not ended.is_set():
                for event in events.read(timeout=0.2):
                    handle(event)

        thread = threading.Thread(target=run, name="xdpkit-events", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

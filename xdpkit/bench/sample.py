"""What one run of one path gave (pure)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Row", "Sample", "rows"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One run.  Packets: ``sent`` by the sender; ``lost_ring`` of them at the ring of the receiving device, before any
    hook; ``lost_kernel`` between there and user space (socket buffer, RX ring full, FILL empty); ``received``.

    ``load``: "saturated", "fixed" (an offered rate that all paths can take) or "probe" (fixed, with delays and system
    calls counted, which costs, so it gives no other figures).  ``machine_s``: seconds of CPU of the whole machine
    beyond what it used idle; ``own_s``: those of the processes of this run.  ``calls``: system calls of the receiving
    process, of the sending one where that is what is measured.  ``delays_us``: 50th, 99th and 99.9th percentile from
    send to receive, or of the round trip.  ``sender_bound``: nothing was lost, so the sending CPU was the limit."""

    direction: str
    path: str
    size: int
    load: str
    attachment: str = ""
    knobs: str = ""
    seconds: float
    sent: int
    lost_ring: int = 0
    lost_kernel: int = 0
    received: int
    machine_s: float = 0.0
    own_s: float = 0.0
    calls: int | None = None
    delays_us: tuple[float, float, float] | None = None

    @property
    def rate(self) -> float:
        """Packets per second received."""
        return self.received / self.seconds

    @property
    def lost(self) -> int:
        """Packets lost at a known place."""
        return self.lost_ring + self.lost_kernel

    @property
    def unaccounted(self) -> int:
        """Packets of which nobody tells what became of them."""
        return self.sent - self.lost - self.received

    @property
    def machine_ns(self) -> float:
        """ns of CPU of the whole machine per packet received."""
        return self.machine_s * 1e9 / max(1, self.received)

    @property
    def own_ns(self) -> float:
        """The same of the run's processes."""
        return self.own_s * 1e9 / max(1, self.received)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Medians of a path at a size; what was not measured is None.  ``rate``: (median, least, most) packets per second
    saturated; ``machine_ns``, ``own_ns`` per packet and ``fixed_loss`` (a share) at the offered ``fixed_pps``."""

    direction: str
    path: str
    size: int
    attachment: str
    knobs: str
    rate: tuple[float, float, float] | None = None
    offered: float | None = None
    ring_loss: float | None = None
    kernel_loss: float | None = None
    unaccounted: float | None = None
    sender_bound: bool = False
    fixed_pps: float | None = None
    fixed_loss: float | None = None
    machine_ns: float | None = None
    own_ns: float | None = None
    calls_per_packet: float | None = None
    delays_us: tuple[float, float, float] | None = None


def rows(samples: Sequence[Sample]) -> list[Row]:
    """A row for each (direction, path, size), in the order in which they came first."""
    keys = dict.fromkeys((s.direction, s.path, s.size) for s in samples)
    return [_row([s for s in samples if (s.direction, s.path, s.size) == key]) for key in keys]


def _row(mine: list[Sample]) -> Row:
    full = [s for s in mine if s.load == "saturated"]
    fixed = [s for s in mine if s.load == "fixed"]
    probes = [s for s in mine if s.load == "probe"]
    more: dict[str, object] = {}
    if full:
        rates, sent = [s.rate for s in full], max(1, sum(s.sent for s in full))
        more |= {
            "rate": (statistics.median(rates), min(rates), max(rates)),
            "offered": statistics.median(s.sent / s.seconds for s in full),
            "ring_loss": sum(s.lost_ring for s in full) / sent,
            "kernel_loss": sum(s.lost_kernel for s in full) / sent,
            "unaccounted": sum(s.unaccounted for s in full) / sent,
            "sender_bound": sum(s.sent - s.received for s in full) / sent < 0.001,
        }
    costs = fixed or ([s for s in full if s.direction == "send"])
    if costs:
        more |= {"machine_ns": statistics.median(s.machine_ns for s in costs)}
        more |= {"own_ns": statistics.median(s.own_ns for s in costs)}
    if fixed:
        more |= {"fixed_pps": statistics.median(s.sent / s.seconds for s in fixed)}
        more |= {"fixed_loss": statistics.median((s.sent - s.received) / max(1, s.sent) for s in fixed)}
    counted = [s for s in probes or full if s.calls is not None]
    if counted:
        more |= {"calls_per_packet": statistics.median((s.calls or 0) / max(1, s.received) for s in counted)}
    delays = [s.delays_us for s in probes if s.delays_us]
    if delays:
        more |= {"delays_us": tuple(statistics.median(column) for column in zip(*delays, strict=True))}
    first = mine[0]
    attachment = next((s.attachment for s in mine if s.attachment), "")
    return Row(
        direction=first.direction, path=first.path, size=first.size, attachment=attachment, knobs=first.knobs, **more,  # type: ignore[arg-type]
    )  # fmt: skip

"""The connections of one link: their tables, the program that sees packets go the other way, and the sweeping."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

from ..device.netdev import Device
from ..kernel.core import check, lib
from ..kernel.flowmaps import FlowMaps
from ..language.tracking import Tracking
from .flows import FlowCounts, Flows, count_flows, forget, learn_sockets, learn_until, read_flows, sweep
from .other_way import OtherWay

__all__ = ["Tracker"]

#: Seconds of learning, at most.
MAX_LEARN = 86_400.0
#: A sweep may take this part of the time.
SHARE = 0.02


class Tracker:
    """What a link has beside its program where its pipeline tracks.  The tables belong to the link's ruleset."""

    def __init__(self, maps: FlowMaps, other_way: OtherWay | None):
        self.maps: FlowMaps = maps
        self.other_way: OtherWay | None = other_way
        self._flows, self._next_sweep = 0, 0.0
        self._place: Path | None = None

    @classmethod
    def start(cls, maps: FlowMaps, device: Device, mode: str, learn: float, *, is_bridge: bool = False) -> Tracker:
        """Before the rules act: see the packets that go the other way, and learn the connections that there are.  A
        bridge sees both ways by itself, and knows no sockets.  ``learn``: seconds.  OSError, NotSupported."""
        if not 0 <= learn <= MAX_LEARN:
            raise ValueError(f"learn: seconds, from 0 to {MAX_LEARN}, not {learn!r}")
        if is_bridge:
            learn_until(maps, learn)
            return cls(maps, None)
        with ExitStack() as stack:
            other_way = OtherWay.attach(maps, device, egress=mode != "tc_egress")
            stack.callback(other_way.close)
            learn_sockets(maps, device.index)
            learn_until(maps, learn)
            stack.pop_all()
            return cls(maps, other_way)

    @classmethod
    def opened(cls, maps: FlowMaps, pins: Path) -> Tracker:
        """That of a pinned link."""
        place = pins / "other_way"
        if not place.exists():
            return cls(maps, None)
        tracker = cls(maps, OtherWay(check(lib.xk_map_open(str(place).encode()), str(place)), None))
        tracker._place = place
        return tracker

    def pin(self, pins: Path) -> None:
        """Let the other program stay where the link does."""
        if self.other_way is None:
            return
        self._place = pins / "other_way"
        check(lib.xk_map_pin(self.other_way.fd, str(self._place).encode()), str(self._place))

    def follow(self, maps: FlowMaps, spec: Tracking) -> None:
        """Another ruleset runs, with these tables."""
        if self.other_way is not None and (maps is not self.maps or spec.timeouts != maps.spec.timeouts):
            maps.spec = spec
            self.other_way.update(maps)
        self.maps, maps.spec = maps, spec

    def flows(self) -> Flows:
        """The connections of now."""
        return read_flows(self.maps)

    def forget(self, flows: Flows) -> int:
        """Forget some of them; how many were still there."""
        return forget(self.maps, flows)

    def learn(self, seconds: float) -> None:
        """Learn from the packets of the next seconds."""
        if not 0 <= seconds <= MAX_LEARN:
            raise ValueError(f"learn: seconds, from 0 to {MAX_LEARN}, not {seconds!r}")
        learn_until(self.maps, seconds)

    def sweep(self) -> None:
        """Take away flows whose time is over, as often as that takes SHARE of the time."""
        start = time.monotonic()
        if start < self._next_sweep:
            return
        self._flows = sweep(self.maps)
        now = time.monotonic()
        self._next_sweep = now + (now - start) / SHARE

    def counts(self) -> FlowCounts:
        """The tables in numbers."""
        return count_flows(self.maps, self._flows)

    def close(self, *, stays: bool = False) -> None:
        """Let go of the other program; it stays on the device where it is pinned and ``stays``.  Idempotent."""
        if self._place is not None and not stays:
            self._place.unlink(missing_ok=True)
        if self.other_way is not None:
            self.other_way.close()

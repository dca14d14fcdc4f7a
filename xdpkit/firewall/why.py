"""Why a firewall in force does what it does to a packet: explained by the reference, with what the kernel remembers at
this moment: the members of the sets, what is left of the limits, the flows.  Nothing is changed by asking."""

from __future__ import annotations

import os
import random
import sys
import time
from collections import OrderedDict
from collections.abc import Hashable
from contextlib import ExitStack
from dataclasses import replace

import numpy as np

from ..compiler.names import limit_symbol
from ..kernel.bpfmap import Map
from ..kernel.flowmaps import FLOW, FLOW_BYTES, LEARN_UNTIL, FlowMaps
from ..language.counted import Draw
from ..language.limits import Sample
from ..language.sets import Entry
from ..link.link import Link
from ..meaning.explain import Explanation, explain_packet
from ..meaning.flows import Flows
from ..meaning.state import Members, State
from ..meaning.tcp import Flow, Side, Stage
from ..meaning.walk import walk
from ..sets.live import LiveSet

__all__ = ["why"]

#: Flags and scales of a flow; bpf/track.bpf.c.
_HIGH, _ANSWERED, _ASSURED = 1, 2, 4
_FIN, _EARLY, _NO_SCALE = (8, 16), 32, 0xFF


def why(link: Link, frame: bytes, *, rx_queue: int = 0) -> Explanation:
    """Why the pipeline on ``link`` would do what it does to ``frame`` (from the destination MAC address on), if it came
    now.  Raises OSError where the kernel's maps cannot be read."""
    pipe = link.pipeline
    with ExitStack() as stack:
        members: dict[str, Members] = {name: _LiveMembers(live) for name, live in link.sets.items()}
        buckets = _LiveBuckets(link, stack)
        state = State(pipe, time.monotonic_ns(), random.getrandbits(32), members, buckets)
        if pipe.tracking is not None:
            state.flows = _live_flows(link, stack)
        packet = walk(frame, rx_queue=rx_queue, now_ns=time.time_ns(), devices=_names(link))
        explanation = explain_packet(pipe, packet, state)
    notes = []
    if pipe.metadata:
        notes.append(f"what is not in the packet's bytes is taken for absent: {', '.join(pipe.metadata)}")
    tested = (node for tried in explanation.tried for node in tried.rule.nodes())
    if any(isinstance(node, (Sample, Draw)) for node in tested):
        notes.append("rules that were tried depend on chance: the next such packet may fare differently")
    return replace(explanation, notes=tuple(notes))


def _names(link: Link) -> list[str]:
    """The names of the link's device in conditions, on a bridge its side among them."""
    return [name for name, index in link._device_indexes().items() if index == link.device.index]


class _LiveMembers(Members):
    """The members of a set in the kernel, looked up when they are asked for."""

    __slots__ = ("live",)

    def __init__(self, live: LiveSet):
        super().__init__(live.spec)
        self.live = live

    def put(self, entry: Entry, now_ns: int = 0) -> None:
        """What is declared is in the kernel, or no longer a member."""

    def find(self, key: bytes, now_ns: int) -> int | None:
        found = self.entry(key, now_ns)
        return None if found is None else found.action

    def entry(self, key: bytes, now_ns: int) -> Entry | None:
        return self.live.match(key) or super().entry(key, now_ns)

    def add(self, key: bytes, timeout: float, now_ns: int) -> bool:
        """The explained packet adds its key for the rules behind, and not in the kernel."""
        return self.live.match(key) is not None or super().add(key, timeout, now_ns)


class _LiveBuckets(dict[tuple[str, bytes], int]):
    """The buckets of limits and quotas: those in the kernel, and over them what the explained packet took."""

    def __init__(self, link: Link, stack: ExitStack):
        super().__init__()
        self._maps: dict[str, Map] = {}
        for number, limit in enumerate(link.pipeline.limits):
            name = limit_symbol(number)
            if link.program.has_map(name):
                self._maps[limit.bucket] = stack.enter_context(Map(os.dup(link.program.map_fd(name))))

    def get(self, key: tuple[str, bytes], default: int = 0) -> int:  # type: ignore[override]
        if key in self:
            return self[key]
        bucket, data = key
        value = self._maps[bucket].get(data) if bucket in self._maps else None
        return default if value is None else int.from_bytes(value, sys.byteorder)


def _live_flows(link: Link, stack: ExitStack) -> Flows:
    spec = link.pipeline.tracking
    assert spec is not None
    names = ("flows", "half_open", "fragments", "flow_notes")
    maps = FlowMaps.opened(spec, {name: link.program.map_fd(name) for name in names})
    stack.callback(maps.close)
    flows = Flows(spec)
    flows.flows, flows.half_open = _LiveTable(maps.flows), _LiveTable(maps.half_open)  # type: ignore[assignment]
    flows.fragments = _LiveFragments(maps.fragments)
    flows.learn_until_ns = maps.note(LEARN_UNTIL)
    return flows


class _LiveTable(dict[Hashable, Flow]):
    """One of the kernel's tables of flows, by the reference's keys; what the explained packet does to it stays here."""

    def __init__(self, table: Map):
        super().__init__()
        self._table = table

    def get(self, key: Hashable, default: Flow | None = None) -> Flow | None:  # type: ignore[override]
        if key in self:
            return self[key]
        wanted, swapped = _flow_key(key)
        value = self._table.get(wanted) if wanted else None
        return default if value is None else _flow(value, swapped)

    def move_to_end(self, key: Hashable) -> None:
        """As OrderedDict does; the order says nothing here."""

    def __delitem__(self, key: Hashable) -> None:
        self.pop(key, None)


class _LiveFragments(OrderedDict[Hashable, int]):
    """The kernel's table of first fragments: until when those behind them are let go."""

    def __init__(self, table: Map):
        super().__init__()
        self._table = table

    def get(self, key: Hashable, default: int = 0) -> int:  # type: ignore[override]
        wanted, _ = _flow_key(key)
        value = self._table.get(wanted) if wanted else None
        return default if value is None else int.from_bytes(value, sys.byteorder)


def _flow_key(key: object) -> tuple[bytes, bool]:
    """``struct flow_key`` for a key of the reference (meaning/facts.py), and whether its endpoints are the other way
    round there: the kernel compares addresses and ports word by word, as its processor reads them."""
    if not isinstance(key, tuple):
        return b"", False
    swapped = False
    if key[0] == "fragment":
        _, _, tags, low, high, ident, proto = key
        ports = ident.to_bytes(4, sys.byteorder)
    elif key[0] == "query":
        _, _, tags, proto, asker, target, kind, ident = key
        low, high = sorted((asker, target), key=lambda address: _order(address, 0))
        asks_first = _order(asker, 0) <= _order(target, 0)
        ports = ident.to_bytes(2) + (kind << 1 | asks_first).to_bytes(2, sys.byteorder)
    else:
        _, tags, proto, first, second = key
        swapped = _order(*first) > _order(*second)
        (low, low_port), (high, high_port) = (second, first) if swapped else (first, second)
        ports = low_port.to_bytes(2) + high_port.to_bytes(2)
    numbers = proto | sum(tag << at for tag, at in zip(tags, (8, 20), strict=False))
    return _mapped(low) + _mapped(high) + ports + numbers.to_bytes(4, sys.byteorder), swapped


def _mapped(address: bytes) -> bytes:
    return address if len(address) == 16 else bytes(10) + b"\xff\xff" + address


def _order(address: bytes, port: int) -> tuple[int, ...]:
    words = [address] if len(address) == 4 else [address[:8], address[8:]]
    return tuple(int.from_bytes(word, sys.byteorder) for word in (*words, port.to_bytes(2)))


def _flow(value: bytes, swapped: bool) -> Flow:
    """A flow from ``struct flow``."""
    raw = np.frombuffer(value[:FLOW_BYTES], np.dtype(FLOW))[0]
    flags = int(raw["flags"])
    ours, theirs = (
        Side(
            int(side["end"]), int(side["max_end"]), int(side["max_window"]),
            -1 if scale == _NO_SCALE else int(scale), bool(flags & fin), bool(flags & early),
        )
        for side, scale, fin, early in zip(raw["side"], raw["scale"], _FIN, (0, _EARLY), strict=True)
    )  # fmt: skip
    return Flow(
        Stage(int(raw["stage"])), bool(flags & _HIGH) != swapped, int(raw["expires_ns"]), int(raw["created"]),
        (ours, theirs), bool(flags & _ANSWERED), bool(flags & _ASSURED),
    )  # fmt: skip

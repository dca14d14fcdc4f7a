"""What a pipeline that tracks knows of connections, in plain Python; ``bpf/track.bpf.c`` must come to the same.

A packet meets the table of flows twice.  :meth:`Flows.judge` looks its flow up before the rules are tried, says what
the packet is to it (new, established, related, invalid) and changes nothing.  :meth:`Flows.commit` notes the packet
when the rules let it go.

A flow is known by protocol, VLAN tags and its two endpoints (address and port), whichever sends.  One that has been
seen in one direction only is *half open*: those are in a table of their own, whose least recently used entry gives way.
When the other side answers (for TCP: when the handshake is complete) it moves to the table of flows, from which only
time removes it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from ..language.actions import DROP
from ..language.tracking import ESTABLISHED, INVALID, NEW, ORIGINAL, RELATED, REPLY, UNTRACKED, Tracking
from .facts import ACK, RST, SYN, UDP, Facts, Kind, facts
from .tcp import Do, Flow, Stage, apply, begin, completes, step
from .walk import Packet

__all__ = ["Flows", "Judged"]

#: Fragments of one packet, and how long the first is remembered (RFC 791: 15 seconds, Linux: 30).
FRAGMENTS, FRAGMENT_SECONDS = 4096, 30.0
SECOND_NS = 1_000_000_000
#: The end of a flow's life is written again when a 64th of it has passed: so it may be forgotten by that much earlier.
EXPIRES_SHIFT = 6


@dataclass(slots=True)
class Judged:
    """What a packet is: ``state`` (NEW, ...), ``direction`` (0, ORIGINAL, REPLY), and what commit will do."""

    facts: Facts
    state: int
    direction: int = 0
    do: Do = Do.KEEP
    flow: Flow | None = None
    half: bool = False

    @property
    def member(self) -> int:
        """As ``struct packet`` has it."""
        return self.state | self.direction << 4


class Flows:
    """The tables of one pipeline."""

    def __init__(self, spec: Tracking):
        self.spec = spec
        self.flows: dict[Hashable, Flow] = {}
        self.half_open: OrderedDict[Hashable, Flow] = OrderedDict()
        self.fragments: OrderedDict[Hashable, int] = OrderedDict()
        #: Until when packets in the middle of unknown flows are taken for established ones.
        self.learn_until_ns = 0
        self.refused = 0

    def judge(self, packet: Packet, now_ns: int) -> Judged:
        """What ``packet`` is to the flows that are known now."""
        seen = facts(packet)
        match seen.kind:
            case Kind.NONE:
                return Judged(seen, UNTRACKED)
            case Kind.BAD:
                return Judged(seen, INVALID)
            case Kind.LATER:
                lives = self.fragments.get(seen.fragment, 0) > now_ns
                return Judged(seen, ESTABLISHED if lives else INVALID)
            case Kind.ERROR:
                found = seen.key is not None and self._find(seen.key, now_ns)[0] is not None
                return Judged(seen, RELATED if found else INVALID)
        flow, half = self._find(seen.key, now_ns)
        if flow is None:
            return self._unknown(seen, now_ns)
        way = _way(seen, flow)
        if seen.kind is Kind.TCP:
            state, do = step(seen, flow, way)
        else:
            state, do = (ESTABLISHED if way or flow.answered else NEW), Do.UPDATE
        return Judged(seen, state, REPLY if way else ORIGINAL, do, flow, half)

    def _find(self, key: Hashable, now_ns: int) -> tuple[Flow | None, bool]:
        for table, half in ((self.flows, False), (self.half_open, True)):
            flow = table.get(key)
            if flow is not None and flow.expires_ns > now_ns:
                return flow, half
        return None, False

    def _unknown(self, seen: Facts, now_ns: int) -> Judged:
        """A packet of no flow that is known."""
        learning = now_ns < self.learn_until_ns
        state = NEW
        if seen.kind is Kind.ANSWER:
            state = INVALID
        elif seen.kind is Kind.TCP and seen.flags & (SYN | ACK) != SYN:
            middle = (learning or self.spec.loose) and not seen.flags & RST
            state = INVALID if not middle else ESTABLISHED if learning else NEW
        elif seen.kind is Kind.PLAIN and learning:
            state = ESTABLISHED
        return Judged(seen, state, ORIGINAL if state != INVALID else 0, Do.OPEN if state != INVALID else Do.KEEP)

    def commit(self, judged: Judged, packet: Packet, now_ns: int) -> bool:
        """The packet goes: note it.  False where there is no room for its flow, and it is to be dropped."""
        seen = judged.facts
        if judged.state in (UNTRACKED, RELATED, INVALID) or seen.kind is Kind.LATER:
            return True
        size = packet.members["len"]
        if judged.do is Do.OPEN:
            self._open(seen, size, now_ns, learned=judged.state == ESTABLISHED)
        elif judged.flow is not None and not self._update(judged, judged.flow, size, now_ns):
            return False
        if seen.fragment is not None:
            self.fragments[seen.fragment] = now_ns + _ns(FRAGMENT_SECONDS)
            self.fragments.move_to_end(seen.fragment)
            if len(self.fragments) > FRAGMENTS:
                self.fragments.popitem(last=False)
        return True

    def _open(self, seen: Facts, size: int, now_ns: int, *, learned: bool) -> None:
        flow = Flow(Stage.PLAIN, seen.high, 0, now_ns // SECOND_NS, answered=learned)
        if seen.kind is Kind.TCP:
            begin(flow, seen)
        flow.packets[0], flow.bytes[0] = 1, size
        self._expires(flow, seen, now_ns)
        self.flows.pop(seen.key, None)  # of another time
        self.half_open[seen.key] = flow
        self.half_open.move_to_end(seen.key)
        if len(self.half_open) > self.spec.half_open:
            self.half_open.popitem(last=False)

    def _update(self, judged: Judged, flow: Flow, size: int, now_ns: int) -> bool:
        seen, way = judged.facts, _way(judged.facts, flow)
        moves = judged.half and completes(seen, flow, way, judged.do)
        if moves and seen.key not in self.flows and len(self.flows) >= self.spec.capacity:
            self.refused += 1
            if self.spec.full == DROP:
                return False
            moves = False
        flow.packets[way] += 1
        flow.bytes[way] += size
        apply(judged.do, flow, seen, way)
        if judged.do is not Do.KEEP:
            self._expires(flow, seen, now_ns)
        if moves:
            del self.half_open[seen.key]
            self.flows[seen.key] = flow
        return True

    def _expires(self, flow: Flow, seen: Facts, now_ns: int) -> None:
        times = self.spec.timeouts
        match flow.stage:
            case Stage.SYN_SENT:
                seconds = times.tcp_syn_sent
            case Stage.SYN_RECV:
                seconds = times.tcp_syn_recv
            case Stage.ESTABLISHED:
                seconds = times.tcp_established if flow.answered else times.tcp_syn_sent
            case Stage.CLOSING:
                seconds = times.tcp_closing
            case Stage.TIME_WAIT:
                seconds = times.tcp_time_wait
            case Stage.CLOSED:
                seconds = times.tcp_closed
            case Stage.PLAIN if seen.kind in (Kind.QUERY, Kind.ANSWER):
                seconds = times.icmp
            case Stage.PLAIN if seen.proto == UDP:
                seconds = times.udp_stream if flow.assured else times.udp
            case _:
                seconds = times.other
        expires = now_ns + _ns(seconds)
        if flow.stage is Stage.CLOSED and 0 < flow.expires_ns < expires:
            return  # what still comes does not keep it
        if not 0 <= expires - flow.expires_ns <= _ns(seconds) >> EXPIRES_SHIFT:
            flow.expires_ns = expires

    def sweep(self, now_ns: int) -> int:
        """Forget the flows whose time is over; how many."""
        gone = 0
        for table in (self.flows, self.half_open):
            for key in [key for key, flow in table.items() if flow.expires_ns <= now_ns]:
                del table[key]
                gone += 1
        return gone


def _ns(seconds: float) -> int:
    """As the kernel has it: whole milliseconds."""
    return round(seconds * 1000) * 1_000_000


def _way(seen: Facts, flow: Flow) -> int:
    """0 for the direction of the packet that opened the flow, 1 for the other."""
    if seen.kind in (Kind.QUERY, Kind.ANSWER):
        return int(seen.kind is Kind.ANSWER)
    return int(seen.high != flow.high)

"""What a packet is to its TCP connection, for the reference evaluator.

The window check is that of Guido van Rooij, "Real Stateful TCP Packet Filtering in IP Filter" (2000), with window
scaling (RFC 7323); sequence numbers are compared as RFC 9293 section 3.4 has it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from ..language.tracking import ESTABLISHED, INVALID, NEW
from .facts import ACK, FIN, MAX_SCALE, RST, SYN, Facts, Kind

__all__ = ["Do", "Flow", "Side", "Stage", "apply", "begin", "completes", "step"]

#: An ACK may be so many bytes behind, where the window is no larger (RFC 793 knew no larger one).
ACK_WINDOW = 66_000


class Stage(IntEnum):
    """How far a flow is."""

    SYN_SENT = 1
    SYN_RECV = 2
    ESTABLISHED = 3
    CLOSING = 4  # one side has sent a FIN
    TIME_WAIT = 5  # both have
    CLOSED = 6  # a RST
    PLAIN = 7  # not TCP


class Do(IntEnum):
    """What commit does."""

    KEEP = 0
    OPEN = 1  # a flow begins, perhaps in place of one that has ended
    RESTART = 2  # the SYN again
    CROSS = 3  # SYNs have crossed
    UPDATE = 4
    CLOSE = 5


@dataclass(slots=True)
class Side:
    """One direction of a TCP connection: ``end``, one more than the last sequence number it has sent; ``max_end``, as
    far as the other side lets it send; ``max_window``, the largest that it has advertised (0: nothing seen of it).
    Before the answer to a SYN, ``end`` of the other side is the least that it may acknowledge."""

    end: int = 0
    max_end: int = 0
    max_window: int = 0
    scale: int = 0
    fin: bool = False
    early: bool = False  # data before the handshake is complete (RFC 7413)


@dataclass(slots=True)
class Flow:
    """One flow.  ``high``: the second endpoint of the key opened it."""

    stage: Stage
    high: bool
    expires_ns: int
    created: int
    sides: tuple[Side, Side] = field(default_factory=lambda: (Side(), Side()))
    answered: bool = False
    assured: bool = False
    packets: list[int] = field(default_factory=lambda: [0, 0])
    bytes: list[int] = field(default_factory=lambda: [0, 0])


def _after(a: int, b: int) -> bool:
    """``a`` is behind ``b`` in the circle of sequence numbers."""
    return 0 < (a - b & 0xFFFFFFFF) < 1 << 31


def _before(a: int, b: int) -> bool:
    return _after(b, a)


def step(seen: Facts, flow: Flow, way: int) -> tuple[int, Do]:
    """What a packet is to its TCP connection, and what it does to it."""
    flags, stage, mine, theirs = seen.flags, flow.stage, flow.sides[way], flow.sides[1 - way]
    if flags & (SYN | ACK) == SYN:
        if stage in (Stage.TIME_WAIT, Stage.CLOSED):
            return NEW, Do.OPEN
        if stage is Stage.SYN_SENT:
            return (ESTABLISHED, Do.CROSS) if way else (NEW, Do.RESTART)
        return ESTABLISHED, Do.KEEP  # a peer that has restarted: the answer is a challenge ACK (RFC 5961 section 4)
    if stage is Stage.SYN_SENT:
        return _answer(seen, way, mine, theirs)
    if stage is Stage.CLOSED and not flow.answered:
        return (ESTABLISHED if flags & RST else INVALID), Do.KEEP
    if not _in_window(seen, mine, theirs):
        return INVALID, Do.KEEP
    if flags & RST:
        return ESTABLISHED, Do.CLOSE
    completes = stage is Stage.SYN_RECV and not way and not flags & SYN
    if completes and seen.ack != theirs.end and not theirs.early:
        return INVALID, Do.KEEP
    return ESTABLISHED, Do.UPDATE


def _answer(seen: Facts, way: int, mine: Side, theirs: Side) -> tuple[int, Do]:
    """After a SYN alone: its answer, or a RST of either side."""
    if not way:
        if seen.flags & RST:
            return NEW, Do.CLOSE if seen.seq == mine.end else Do.KEEP
        return INVALID, Do.KEEP
    acknowledges = bool(seen.flags & ACK) and not _before(seen.ack, mine.end) and not _after(seen.ack, theirs.end)
    if seen.flags & RST:
        return (ESTABLISHED, Do.CLOSE) if acknowledges else (INVALID, Do.KEEP)
    if seen.flags & SYN:
        return (ESTABLISHED, Do.UPDATE) if acknowledges else (INVALID, Do.KEEP)
    if seen.flags & FIN or seen.end != seen.seq:
        return INVALID, Do.KEEP
    return ESTABLISHED, Do.KEEP  # a challenge ACK: the peer knows an older connection


def _in_window(seen: Facts, mine: Side, theirs: Side) -> bool:
    if not mine.max_window:
        return True
    if _after(seen.seq, mine.max_end):
        return False
    if not theirs.max_window:
        return True
    if _before(seen.end, mine.end - theirs.max_window):
        return False
    if not seen.flags & ACK:
        return True
    oldest = theirs.end - max(mine.max_window, ACK_WINDOW)
    return not _after(seen.ack, theirs.end) and not _before(seen.ack, oldest)


def completes(seen: Facts, flow: Flow, way: int, do: Do) -> bool:
    """With this packet a half-open flow has been seen in both directions."""
    if seen.kind is not Kind.TCP:
        return way == 1 or flow.answered
    if do is not Do.UPDATE:
        return False
    if flow.stage is Stage.SYN_RECV:
        return not way and not seen.flags & SYN
    return flow.stage is not Stage.SYN_SENT and (way == 1 or flow.answered)


def begin(flow: Flow, seen: Facts) -> None:
    """A SYN, or a packet in the middle of a connection."""
    mine, theirs = flow.sides
    mine.end, mine.max_end, mine.fin, mine.early = seen.end, seen.end, False, False
    if seen.flags & (SYN | ACK) == SYN:
        flow.stage = Stage.SYN_SENT
        mine.max_window, mine.scale = max(seen.window, 1), -1 if seen.scale is None else seen.scale
        theirs.end = seen.seq + 1 & 0xFFFFFFFF
        return
    flow.stage = Stage.ESTABLISHED
    mine.scale = theirs.scale = MAX_SCALE
    mine.max_window = 0
    _moved(seen, mine, theirs)
    _finished(flow, seen, mine)


def apply(do: Do, flow: Flow, seen: Facts, way: int) -> None:
    """What a packet does to its flow."""
    mine, theirs = flow.sides[way], flow.sides[1 - way]
    if seen.kind is not Kind.TCP:
        flow.assured = flow.assured or (flow.answered and not way)
        flow.answered = flow.answered or bool(way)
        return
    match do:
        case Do.RESTART:
            begin(flow, seen)
        case Do.CROSS:
            flow.stage = Stage.SYN_RECV
            _synchronise(seen, mine, theirs)
        case Do.UPDATE if flow.stage is Stage.SYN_SENT:
            flow.stage = Stage.SYN_RECV
            _synchronise(seen, mine, theirs)
            _moved(seen, mine, theirs)
        case Do.UPDATE:
            _moved(seen, mine, theirs)
            if flow.stage is Stage.SYN_RECV:
                if way and not seen.flags & SYN and seen.end != seen.seq:
                    mine.early = True
                if not way and not seen.flags & SYN:
                    flow.stage, flow.answered = Stage.ESTABLISHED, True
            elif way:
                flow.answered = True
            _finished(flow, seen, mine)
        case Do.CLOSE:
            # a receiver takes a RST only if it is the very next (RFC 5961 section 3.2); of another one it may not
            if seen.seq == mine.end or flow.stage < Stage.ESTABLISHED:
                flow.stage = Stage.CLOSED
            elif flow.stage is Stage.ESTABLISHED:
                flow.stage = Stage.CLOSING  # until the next packet


def _finished(flow: Flow, seen: Facts, mine: Side) -> None:
    if seen.flags & FIN:
        mine.fin = True
    if flow.stage in (Stage.ESTABLISHED, Stage.CLOSING):
        fins = sum(side.fin for side in flow.sides)
        flow.stage = (Stage.ESTABLISHED, Stage.CLOSING, Stage.TIME_WAIT)[fins]


def _synchronise(seen: Facts, mine: Side, theirs: Side) -> None:
    """The SYN of the side that answers.  Windows are scaled only if both say so (RFC 7323 section 2.2)."""
    mine.end, mine.max_window = seen.end, max(seen.window, 1)
    mine.max_end = seen.end + theirs.max_window & 0xFFFFFFFF
    if seen.scale is None or theirs.scale < 0:
        mine.scale = theirs.scale = 0
    else:
        mine.scale = seen.scale


def _moved(seen: Facts, mine: Side, theirs: Side) -> None:
    """Ends and windows after a packet that is in the window."""
    window = seen.window << (0 if seen.flags & SYN else mine.scale)
    if not mine.max_window:
        mine.end, mine.max_window = seen.end, max(window, 1)
        mine.max_end = seen.end + max(theirs.max_window, mine.max_window) & 0xFFFFFFFF
        if seen.flags & ACK and (not theirs.max_window or _after(seen.ack, theirs.end)):
            theirs.end = seen.ack
            if not theirs.max_window:
                theirs.max_end = seen.ack
    else:
        mine.max_window = max(mine.max_window, window)
        if _after(seen.end, mine.end):
            mine.end = seen.end
    edge = seen.ack + max(window, 1) & 0xFFFFFFFF
    if seen.flags & ACK and _after(edge, theirs.max_end):
        theirs.max_end = edge

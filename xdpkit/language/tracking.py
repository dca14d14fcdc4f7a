"""Connections: what a pipeline declares of them (``pipe.track()``), and conditions on them (``ct.new``).

Each packet of a pipeline that tracks is looked up in a table of flows before the rules are tried, and is one of:

* ``ct.new``: no flow knows it and it may open one, or the other side has not answered yet;
* ``ct.established``: it belongs to a flow that has been seen in both directions;
* ``ct.related``: an ICMP error about a packet of a known flow;
* ``ct.invalid``: it claims to belong to a flow that is not there, lies outside the flow's window, or is cut short.

None of them is true of packets that are not tracked: ARP and all else that is not IP, neighbour discovery, router and
group messages.  A flow is noted, and its state changes, only when the rules let the packet go.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from .actions import DROP, PASS, Action
from .errors import PipelineError, Where
from .expr import Expr, Test, here
from .fields import CT, FieldSpec

__all__ = ["MAX_FLOWS", "Conditions", "Timeouts", "Tracking", "ct", "is_about_flows", "tracking"]

#: Entries of one table at most: 16 million flows are about 2 GB.
MAX_FLOWS = 1 << 24
#: Seconds at most: the kernel gets milliseconds in 32 bits.
MAX_SECONDS = 4_000_000.0
UNTRACKED, NEW, ESTABLISHED, RELATED, INVALID = range(5)
ORIGINAL, REPLY = 1, 2
_STATE, _DIRECTION = CT


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds without a packet after which a flow is forgotten.

    TCP: ``tcp_syn_sent`` from the first SYN on, and for a flow that was picked up in the middle and has not been
    answered; ``tcp_syn_recv`` from the SYN-ACK on; ``tcp_established``; ``tcp_closing`` when one side has sent a FIN;
    ``tcp_time_wait`` when both have; ``tcp_closed`` after a RST.  UDP and protocols without a state of their own:
    ``udp`` and ``other`` until the sender of the first packet speaks again after an answer, then ``udp_stream`` and
    ``other``; ``icmp`` for echo requests and other queries.  The figures are those of Linux's own tracking."""

    tcp_syn_sent: float = 120.0
    tcp_syn_recv: float = 60.0
    tcp_established: float = 432_000.0
    tcp_closing: float = 120.0
    tcp_time_wait: float = 120.0
    tcp_closed: float = 10.0
    udp: float = 30.0
    udp_stream: float = 120.0
    icmp: float = 30.0
    other: float = 600.0

    def __post_init__(self) -> None:
        for name in TIMEOUTS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0.001 <= value <= MAX_SECONDS:
                raise PipelineError(
                    f"timeout {name}: seconds, from 0.001 to {MAX_SECONDS:,.0f}, are wanted, not {value!r}", here()
                )
            object.__setattr__(self, name, float(value))


TIMEOUTS = tuple(f.name for f in fields(Timeouts))


@dataclass(frozen=True, slots=True)
class Tracking:
    """What ``pipe.track()`` declares: sizes of the two tables, the verdict of a packet that finds no room (``full``),
    whether flows are picked up in the middle (``loose``), whether packets and bytes of each flow are counted, and the
    time-outs.  Made by :meth:`xdpkit.Pipeline.track`."""

    capacity: int
    half_open: int
    full: Action
    loose: bool
    count: bool
    timeouts: Timeouts
    where: Where

    def __str__(self) -> str:
        words = [f"capacity={self.capacity}", f"half_open={self.half_open}", f"full={self.full}"]
        words += ["loose=True"] * self.loose + ["count=True"] * self.count
        words += [str(self.timeouts)] * (self.timeouts != Timeouts())
        return f"track({', '.join(words)})"


def tracking(
    capacity: object, half_open: object, full: object, loose: object, count: object, timeouts: object
) -> Tracking:
    """A checked declaration.  Raises PipelineError."""
    for name, value in (("capacity", capacity), ("half_open", half_open)):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_FLOWS:
            raise PipelineError(f"track: {name} is a number of flows, 1 to {MAX_FLOWS:,}, not {value!r}", here())
    if full not in (DROP, PASS):
        raise PipelineError(f"track: full is DROP or PASS, not {full}", here())
    for name, value in (("loose", loose), ("count", count)):
        if not isinstance(value, bool):
            raise PipelineError(f"track: {name} is True or False, not {value!r}", here())
    if isinstance(timeouts, Mapping):
        unknown = sorted(set(map(str, timeouts)) - set(TIMEOUTS))
        if unknown:
            raise PipelineError(f"track: no timeout {unknown[0]!r}; there are {', '.join(TIMEOUTS)}", here())
        timeouts = Timeouts(**timeouts)
    if timeouts is None:
        timeouts = Timeouts()
    if not isinstance(timeouts, Timeouts):
        raise PipelineError(f"track: timeouts is a Timeouts or a dict of seconds by name, not {timeouts!r}", here())
    assert isinstance(capacity, int)
    assert isinstance(half_open, int)
    assert isinstance(full, Action)
    return Tracking(capacity, half_open, full, bool(loose), bool(count), timeouts, here())


class Conditions:
    """What is known of the flow of a packet, as conditions: ``ct.new``, ``ct.established``, ``ct.related``,
    ``ct.invalid``, and its direction, ``ct.original`` and ``ct.reply``."""

    __slots__ = ()

    @property
    def new(self) -> Expr:
        """The packet may open a flow, or its flow has not been answered yet."""
        return _test(_STATE, NEW, "new")

    @property
    def established(self) -> Expr:
        """The packet belongs to a flow that has been seen in both directions; an answer is the first to be so."""
        return _test(_STATE, ESTABLISHED, "established")

    @property
    def related(self) -> Expr:
        """The packet is an ICMP error about a packet of a known flow."""
        return _test(_STATE, RELATED, "related")

    @property
    def invalid(self) -> Expr:
        """The packet belongs to no flow and can open none, is outside its flow's window, or is cut short."""
        return _test(_STATE, INVALID, "invalid")

    @property
    def original(self) -> Expr:
        """The packet goes the way of the one that opened its flow."""
        return _test(_DIRECTION, ORIGINAL, "original")

    @property
    def reply(self) -> Expr:
        """The packet goes the other way."""
        return _test(_DIRECTION, REPLY, "reply")

    def __repr__(self) -> str:
        return "<ct: new, established, related, invalid, original, reply>"


def _test(spec: FieldSpec, value: int, name: str) -> Expr:
    return Test(spec, ((value, value),), f"ct.{name}", where=here())


def is_about_flows(expr: Expr) -> bool:
    """The condition is one of :class:`Conditions`."""
    return isinstance(expr, Test) and expr.spec in CT


ct: Conditions = Conditions()
"""The state of the packet's connection: ``ct.new``, ``ct.established``, ``ct.related``, ``ct.invalid``; its direction:
``ct.original``, ``ct.reply``.  The pipeline must track: see :meth:`Pipeline.track`."""

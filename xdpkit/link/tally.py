"""Counts that outlive programs.  When a link runs a new ruleset, rules of the same name go on counting, and packets
that the old ruleset took stay in the sums."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields

from ..kernel.loaded import RuleCount
from ..language.actions import Across, Verdict
from ..language.rule import Rule

__all__ = ["Forwarding", "RuleTotal", "Tally", "Totals"]


@dataclass(frozen=True, slots=True)
class RuleTotal:
    """The counts under a rule's name.  ``no_socket``: verdicts that fell back.  ``failed``: steps that were not
    done."""

    packets: int = 0
    bytes: int = 0
    no_socket: int = 0
    failed: int = 0

    def __add__(self, other: RuleTotal) -> RuleTotal:
        return RuleTotal(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True, slots=True)
class Totals:
    """Packets (and bytes) that programs saw; sent towards sockets, and those that found none; sent towards other
    devices, and those that found none; rejected with an answer, and those that were only dropped."""

    seen: int = 0
    seen_bytes: int = 0
    redirected: int = 0
    no_socket: int = 0
    forwarded: int = 0
    no_device: int = 0
    rejected: int = 0
    unanswered: int = 0

    def __add__(self, other: Totals) -> Totals:
        return Totals(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True, slots=True)
class Forwarding:
    """What became of the packets that were sent towards other devices, in packets.  ``sent``: the other device's driver
    took them.  It dropped the rest of a bulk for want of room (``no_room``), or took none of it (``refused``: its peer
    is down or has no NAPI).  The kernel dropped packets before the driver saw them because the device was ``down``,
    its MTU too small (``too_long``), or its driver takes no such packets (``unsupported``); ``other_error``: anything
    else.  ``counts_sent`` is false in generic mode, where the kernel reports only what it drops before the driver."""

    sent: int = 0
    no_room: int = 0
    refused: int = 0
    down: int = 0
    too_long: int = 0
    unsupported: int = 0
    other_error: int = 0
    counts_sent: bool = False

    def __add__(self, other: Forwarding) -> Forwarding:
        counts = [f.name for f in fields(self) if f.name != "counts_sent"]
        sums = {name: getattr(self, name) + getattr(other, name) for name in counts}
        return Forwarding(**sums, counts_sent=self.counts_sent or other.counts_sent)

    @property
    def dropped(self) -> int:
        """Packets that were not sent."""
        return self.no_room + self.refused + self.down + self.too_long + self.unsupported + self.other_error


def totals(counts: Iterable[RuleCount]) -> Totals:
    """The sums over the rules of one program; a packet is counted by the one rule that took it."""
    found = Totals()
    for c in counts:
        verdict, sent, fallback = c.rule.action.verdict, c.packets - c.no_socket, c.rule.action.fallback
        found += Totals(
            seen=0 if c.rule.goes_on else c.packets,
            seen_bytes=0 if c.rule.goes_on else c.bytes,
            redirected=sent if verdict is Verdict.REDIRECT else 0,
            no_socket=c.no_socket if verdict is Verdict.REDIRECT else 0,
            forwarded=sent if verdict is Verdict.FORWARD else c.no_socket if isinstance(fallback, Across) else 0,
            no_device=c.no_socket if verdict is Verdict.FORWARD else 0,
            rejected=sent if verdict is Verdict.REJECT else 0,
            unanswered=c.no_socket if verdict is Verdict.REJECT else 0,
        )
    return found


class Tally:
    """The counts of earlier programs of a link."""

    def __init__(self) -> None:
        self.totals: Totals = Totals()
        self.completed: int = 0
        self.rules: dict[str, RuleTotal] = {}

    def keep(self, counts: Iterable[RuleCount], completed: int) -> None:
        """Add the final counts of a program that runs no more: of its rules, and of checksums that it completed."""
        self.completed += completed
        counts = tuple(counts)
        self.totals += totals(counts)
        for c in counts:
            self.rules[c.rule.name] = self.of(c.rule) + _own(c)

    def of(self, rule: Rule) -> RuleTotal:
        """The counts under the rule's name before the running program."""
        return self.rules.get(rule.name, RuleTotal())

    def with_(self, count: RuleCount) -> RuleTotal:
        """``count`` of the running program plus the counts before it."""
        return self.of(count.rule) + _own(count)


def _own(c: RuleCount) -> RuleTotal:
    return RuleTotal(c.packets, c.bytes, c.no_socket, c.failed)

"""The live screen of a firewall: rates of every rule, verdicts, how full sets are, and where packets were lost.

What is shown is worked out here (:class:`Rates`); ``xdpkit.cli.top`` puts it on the screen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..link.ledger import Ledger
from ..link.link import Link

__all__ = ["ORDERS", "RuleRate", "Screen", "Watch"]

#: How rules may be sorted.
ORDERS = ("declared", "rate", "packets")


@dataclass(frozen=True, slots=True)
class RuleRate:
    """A rule: what it took in all, in packets, and per second since the look before; ``share``: of the packets that
    were seen since then, 0 to 1."""

    name: str
    action: str
    packets: int
    packets_per_second: float
    bits_per_second: float
    share: float

    @property
    def idle(self) -> bool:
        """It has taken no packet at all."""
        return not self.packets


@dataclass(frozen=True, slots=True)
class Screen:
    """One look at a firewall.  ``fill``: (set, entries, capacity).  ``losses``: (stage, packets) of what was lost."""

    title: str
    seen_per_second: float
    bits_per_second: float
    rules: tuple[RuleRate, ...]
    verdicts: tuple[tuple[str, float], ...]
    fill: tuple[tuple[str, int, int], ...]
    losses: tuple[tuple[str, int], ...]
    notes: tuple[str, ...]
    problems: tuple[str, ...]


class Watch:
    """Looks at a firewall again and again."""

    def __init__(self, open_again: Callable[[], Link]):
        """``open_again`` opens the pinned link: also when its rules were exchanged by another process."""
        self._open = open_again
        self._link = open_again()
        self._before: Ledger | None = None

    def look(self, order: str = "declared") -> Screen:
        """What is there now, with rates since the last look; ``order``: one of ORDERS.  OSError where the firewall is
        gone."""
        if self._link.lost is not None:
            self._link.close()
            self._link = self._open()
        ledger = self._link.ledger()
        before, self._before = self._before, ledger
        seconds = ledger.seconds - before.seconds if before is not None else ledger.seconds
        earlier = {rule.name: rule for rule in before.rules} if before is not None else {}
        seen = ledger.seen - (before.seen if before is not None else 0)

        def per_second(now: int, then: int) -> float:
            return max(0, now - then) / seconds if seconds > 0 else 0.0

        rules, verdicts = [], dict[str, float]()
        for rule in ledger.rules:
            then = earlier.get(rule.name)
            packets, size = (then.packets, then.bytes) if then is not None else (0, 0)
            rate = per_second(rule.packets, packets)
            share = (rule.packets - packets) / seen if seen > 0 else 0.0
            bits = 8 * per_second(rule.bytes, size)
            rules.append(RuleRate(rule.name, rule.action, rule.packets, rate, bits, share))
            if not rule.goes_on:
                verdicts[rule.verdict] = verdicts.get(rule.verdict, 0.0) + rate
        if order != "declared":
            rules.sort(key=lambda r: -(r.packets_per_second if order == "rate" else r.packets))
        losses = (
            ("FILL empty", ledger.fill_empty), ("RX ring full", ledger.rx_ring_full),
            ("longer than a frame", ledger.too_long), ("forwarding", ledger.dropped_there),
            ("device dropped", ledger.device_dropped), ("device missed", ledger.device_missed),
        )  # fmt: skip
        return Screen(
            title=f"{ledger.pipeline} on {ledger.device}: {ledger.attachment}",
            seen_per_second=per_second(ledger.seen, before.seen if before is not None else 0),
            bits_per_second=8 * per_second(ledger.seen_bytes, before.seen_bytes if before is not None else 0),
            rules=tuple(rules),
            verdicts=tuple(verdicts.items()),
            fill=tuple((live.name, live.used, live.capacity) for live in self._link.sets.values()),
            losses=tuple((stage, n) for stage, n in losses if n),
            notes=ledger.notes,
            problems=ledger.problems(),
        )

    def close(self) -> None:
        """Close the link; the rules stay in force.  Idempotent."""
        self._link.close()

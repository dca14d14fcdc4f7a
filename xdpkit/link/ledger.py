"""The ledger: where every packet went, from the hook to the sink.

Every packet that the program saw is counted under exactly one rule, which took it, and also under each rule that did
its steps on the packet and let it go on.  A packet with a REDIRECT verdict falls back (no socket), is lost at a named
stage (FILL empty, RX ring full, longer than a frame), waits in the RX ring, or is delivered.  Delivered packets were
written or refused by the sink, or were read.  Forwarded packets were sent by the other device, or dropped for a named
reason.  :meth:`Ledger.problems` checks these sums to the packet."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from ..kernel.attachment import Attachment
from .tally import Forwarding, Totals

if TYPE_CHECKING:
    from .flows import FlowCounts

__all__ = ["Ledger", "LedgerRule", "ShadowLedger"]

#: CPUs that a row names.
MOST_CPUS = 4


@dataclass(frozen=True, slots=True)
class LedgerRule:
    """One rule's line: packets and bytes it took, or that passed it if it ``goes_on``; ``no_socket`` of them were
    REDIRECT or FORWARD verdicts that fell back; ``failed``: steps that could not be done (a set was full).  ``chain``:
    the chain that the rule is in, "" for the pipeline's own."""

    name: str
    action: str
    verdict: str
    packets: int
    bytes: int
    no_socket: int
    failed: int = 0
    goes_on: bool = False
    chain: str = ""


@dataclass(frozen=True, slots=True)
class ShadowLedger:
    """A shadow: rules that see every packet and act on none.  ``pipeline``: its name.  ``rules``: what they took since
    the shadow was loaded.  ``differences``: packets to which the shadow would have given another verdict, as (verdict,
    verdict of the shadow, packets), most packets first."""

    pipeline: str
    rules: tuple[LedgerRule, ...]
    differences: tuple[tuple[str, str, int], ...]

    @property
    def differing(self) -> int:
        """Packets to which the shadow would have given another verdict."""
        return sum(n for _, _, n in self.differences)

    def joined(self, other: ShadowLedger) -> ShadowLedger:
        """The sums over two links with the same shadow."""
        pairs = Counter({(got, would): n for got, would, n in self.differences})
        pairs.update({(got, would): n for got, would, n in other.differences})
        differences = tuple((got, would, n) for (got, would), n in pairs.most_common())
        return ShadowLedger(self.pipeline, _sums(self.rules, other.rules), differences)

    def rows(self) -> list[tuple[str, int, str]]:
        """As :meth:`Ledger.rows`."""
        rows = [("shadow", sum(r.packets for r in self.rules if not r.goes_on), f"{self.pipeline}: tried, not acting")]
        rows += [(f"  {r.name}", r.packets, ("goes on: " if r.goes_on else "") + r.action) for r in self.rules]
        rows += [("  other verdict", self.differing, "" if self.differing else "none differs")]
        return rows + [(f"    {verdict} -> {would}", n, "") for verdict, would, n in self.differences]


@dataclass(frozen=True, slots=True)
class Ledger:
    """Counts in packets since the pipeline was attached, ``seconds`` ago; rulesets that were replaced meanwhile are in
    the sums, and rules count on under their names.

    ``totals``: what was seen, redirected and forwarded in all.  ``forwarding``: what became of the forwarded ones.
    ``updates``: rulesets replaced.  ``completed``: TCP and UDP checksums that were completed because their sender had
    left them to its device; these packets are in the other counts too.  Delivered packets are ``written`` or
    ``refused`` by the ``sink``, or were ``read`` in batches.  ``mirrored`` copies were made for user space, and
    ``mirror_full`` not, for want of room; ``mirror_full_on`` and ``ring_full_on`` say on which CPUs: number of the CPU
    to packets (those of ``mirror_full``; at TC those of ``rx_ring_full``).  ``device_dropped`` and ``device_missed``
    are what the device says it dropped in that time, before the hook, so no packet of theirs is in the sums (struct
    rtnl_link_stats64).  Dropped (``rx_dropped``): received by the host, and then not wanted or not processed.  Missed
    (``rx_missed_errors``): the device had no buffer to put it in, because the host was too slow to give it some.
    Drivers differ in what they count, and in whether the one is in the other.  ``earlier``: packets that were
    redirected before this process opened the pinned link; what became of them, the processes before it knew.
    ``shadow``: the counts of the shadow, if there is one.  ``notes``: what happened to the device meanwhile, a line
    each (:attr:`xdpkit.Link.notes`).  ``final`` means that nothing was under way when it was taken."""

    pipeline: str
    device: str
    attachment: Attachment
    seconds: float
    rules: tuple[LedgerRule, ...]
    totals: Totals
    updates: int
    completed: int
    mirrored: int
    mirror_full: int
    forwarding: Forwarding
    fill_empty: int
    rx_ring_full: int
    too_long: int
    waiting: int
    delivered: int
    written: int
    refused: int
    sink: str
    read: int
    device_dropped: int
    device_missed: int
    final: bool
    earlier: int = 0
    shadow: ShadowLedger | None = None
    flows: FlowCounts | None = None
    notes: tuple[str, ...] = ()
    mirror_full_on: dict[int, int] = field(default_factory=dict)
    ring_full_on: dict[int, int] = field(default_factory=dict)

    def joined(self, other: Ledger) -> Ledger:
        """The sums over two links with the same rules, the sides of a bridge."""
        sums: dict[str, object] = {"device": f"{self.device} and {other.device}"}
        for name in (each.name for each in fields(self)):
            mine, theirs = getattr(self, name), getattr(other, name)
            if name in ("seconds", "updates"):
                sums[name] = max(mine, theirs)
            elif isinstance(mine, bool):
                sums[name] = mine and theirs
            elif isinstance(mine, int | Totals | Forwarding):
                sums[name] = mine + theirs
            elif isinstance(mine, dict):
                sums[name] = {key: mine.get(key, 0) + theirs.get(key, 0) for key in (*mine, *theirs)}
        sums["rules"] = _sums(self.rules, other.rules)
        if self.shadow is not None and other.shadow is not None:
            sums["shadow"] = self.shadow.joined(other.shadow)
        if self.sink == "none":
            sums["sink"] = other.sink
        sums["notes"] = tuple(dict.fromkeys((*self.notes, *other.notes)))
        return replace(self, **sums)  # type: ignore[arg-type]

    @property
    def seen(self) -> int:
        """Packets the program ran on."""
        return self.totals.seen

    @property
    def seen_bytes(self) -> int:
        """Their bytes."""
        return self.totals.seen_bytes

    @property
    def no_socket(self) -> int:
        """REDIRECT verdicts that fell back because no socket was there."""
        return self.totals.no_socket

    @property
    def redirected(self) -> int:
        """Packets sent towards a socket."""
        return self.totals.redirected

    @property
    def forwarded(self) -> int:
        """Packets sent towards another device."""
        return self.totals.forwarded

    @property
    def sent_on(self) -> int:
        """Forwarded packets that the other devices took; 0 where that is not counted."""
        return self.forwarding.sent

    @property
    def dropped_there(self) -> int:
        """Forwarded packets that were dropped on the way to the other devices or by them."""
        return self.forwarding.dropped

    @property
    def unreported(self) -> int:
        """Forwarded packets of which the kernel reported neither that they were sent nor that they were dropped.  On a
        busy machine its tracepoint can miss some, which the driver's own counters have as sent.  In generic mode these
        are all but the dropped ones.  While packets move, what is under way is among them."""
        return max(0, self.forwarded - self.forwarding.sent - self.forwarding.dropped)

    @property
    def gone_rules(self) -> int:
        """Packets that were taken by rules which an update has removed."""
        return self.seen - sum(r.packets for r in self.rules if not r.goes_on)

    @property
    def lost(self) -> int:
        """Packets lost on the way to user space."""
        return self.fill_empty + self.rx_ring_full + self.too_long

    @property
    def in_flight(self) -> int:
        """Redirected and not (yet) anywhere else: 0 when nothing is under way."""
        return self.redirected - self.earlier - self.lost - self.waiting - self.delivered

    def problems(self) -> tuple[str, ...]:
        """The sums that do not hold, as text.  A live ledger is read while packets move, so some sums are checked only
        in a final one."""
        found = []
        if self.in_flight < 0 or (self.final and self.in_flight):
            found.append(f"{self.redirected} redirected, but lost + waiting + delivered is off by {-self.in_flight}")
        f = self.forwarding
        if self.final and f.sent + f.dropped > self.forwarded:
            found.append(f"{self.forwarded} forwarded, but {f.sent} sent + {f.dropped} dropped")
        if self.final and self.sink != "none" and self.delivered != self.written + self.refused + self.read:
            sink = f"{self.written} {self.sink} + {self.refused} refused + {self.read} read in batches"
            found.append(f"{self.delivered} delivered, but {sink}")
        return tuple(found)

    def rows(self) -> list[tuple[str, int, str]]:
        """The rows to print, as (stage, packets, remark), in the order in which a packet passes the stages."""
        rows = [("seen", self.seen, f"{self.seen_bytes:,} bytes")]
        for r in self.rules:
            failed = f"; {r.failed} not done: full" if r.failed else ""
            rows += [(f"  {r.name}", r.packets, ("goes on: " if r.goes_on else "") + r.action + failed)]
        if self.gone_rules:
            rows += [("  rules of before", self.gone_rules, f"replaced since; {self.updates} updates")]
        if self.mirrored or self.mirror_full:
            rows += [
                ("mirrored", self.mirrored, "copies; the packets went on"),
                (
                    "  ring full",
                    self.mirror_full,
                    _lost(self.mirror_full, f"{_slow(self.mirror_full_on)}; copies only"),
                ),
            ]
        if self.totals.rejected or self.totals.unanswered:
            rows += [
                ("rejected", self.totals.rejected, "dropped; the sender was told"),
                ("  suppressed", self.totals.unanswered, "dropped without an answer: too fast, or not to be answered"),
            ]
        if self.forwarded or self.totals.no_device:
            rows += [("forwarded", self.forwarded, "")]
            if self.totals.no_device:
                rows += [("  no device", self.totals.no_device, "fell back as declared; not among the forwarded")]
            rows += self._forwarding_rows() if self.attachment.mode in ("native", "generic") else []
        if any(r.verdict == "REDIRECT" for r in self.rules) or self.redirected:
            rows += [("redirected", self.redirected, "")]
            longer = (
                "merged (GRO), not yet cut (TSO), or larger chunk_size"
                if self.attachment.mode == "generic"
                else "larger chunk_size"
            )
            if self.no_socket:
                rows += [("  no socket", self.no_socket, "fell back as declared; not among the redirected")]
            if self.earlier:
                rows += [("  to earlier processes", self.earlier, "before this one opened the pinned link")]
            rows += [
                ("  FILL empty", self.fill_empty, _lost(self.fill_empty, "slow, or frames are held: larger ring_size")),
                ("  RX ring full", self.rx_ring_full, _lost(self.rx_ring_full, _slow(self.ring_full_on))),
                ("  longer than a frame", self.too_long, _lost(self.too_long, longer)),
            ]
            if self.waiting or not self.final:
                rows += [("  waiting in RX ring", self.waiting, "")]
            if self.in_flight:
                rows += [("  in flight", self.in_flight, "")]
            rows += [("  delivered", self.delivered, "")]
            if self.sink != "none":
                rows += [(f"    {self.sink}", self.written, "")]
                rows += [("    read in batches", self.read, "")] * bool(self.read)
                why = "by the decision" if self.sink == "inspected" else "beyond the limit, or a failed write"
                rows += [("    refused by the sink", self.refused, why)] * bool(self.refused)
        rows += [
            ("checksums completed", self.completed, "left to the device by their sender; in the sums above")
        ] * bool(self.completed)
        before = [
            ("device dropped", self.device_dropped, "before the program; not in the sums"),
            ("device missed", self.device_missed, "before the program, for want of a buffer; not in the sums"),
        ]
        rows += [row for row in before if row[1]]
        rows += self.flows.rows() if self.flows is not None else []
        return rows + (self.shadow.rows() if self.shadow is not None else [])

    def _forwarding_rows(self) -> list[tuple[str, int, str]]:
        f = self.forwarding
        losses = [
            ("device down", f.down, "the other device is down"),
            ("longer than its MTU", f.too_long, "the other device's MTU is too small"),
            ("not supported there", f.unsupported, "the other device takes no packets from XDP (xdpkit doctor DEV)"),
            ("refused there", f.refused, "the other device's driver took none: its peer is down, or has no NAPI"),
            ("no room there", f.no_room, "the other device's transmit ring was full"),
            ("other errors", f.other_error, "the kernel did not forward them"),
        ]
        rows = [(f"  {stage}", n, _lost(n, advice)) for stage, n, advice in losses if n]
        if not f.counts_sent:
            return [*rows, ("  handed over", self.unreported, "the kernel does not report what the other device sent")]
        if self.unreported and self.final:
            rows += [("  not reported", self.unreported, "the kernel reported neither that it sent nor dropped them")]
        return [*rows, ("  sent", f.sent, "")]

    def as_dict(self) -> dict[str, object]:
        """Everything, ready for JSON: each value once, with the counts that follow from others (``lost``,
        ``in_flight``, ``unreported``, the forwarded ones that were ``dropped``), and None for what there is not."""
        out: dict[str, Any] = {}
        for name, value in asdict(self).items():
            out |= value if name == "totals" else {name: value}
        del out["attachment"]["device"]  # it is the device of the ledger
        out["forwarding"]["dropped"] = self.forwarding.dropped
        out["sink"] = None if self.sink == "none" else self.sink
        for rule in (*out["rules"], *(out["shadow"] or {"rules": ()})["rules"]):
            rule["chain"] = rule["chain"] or None
        derived = {name: getattr(self, name) for name in ("unreported", "lost", "in_flight")}
        return out | derived | {"problems": list(self.problems())}

    def json(self) -> str:
        """:meth:`as_dict` as one line of JSON."""
        return json.dumps(self.as_dict())

    def __str__(self) -> str:
        rows = self.rows()
        wide = max(len(stage) for stage, _, _ in rows)
        digits = max(len(str(n)) for _, n, _ in rows)
        head = f"{self.pipeline} on {self.device}: {self.attachment}"
        lines = [f"{stage:<{wide}}  {n:>{digits}}  {remark}".rstrip() for stage, n, remark in rows]
        lines += [f"NOTE: {note}" for note in self.notes]
        return "\n".join([head, *lines, *(f"DOES NOT SUM: {p}" for p in self.problems())])


def _slow(lost_on: dict[int, int]) -> str:
    """Why rings were full, and on which CPUs, most first."""
    most = sorted(lost_on.items(), key=lambda item: (-item[1], item[0]))
    named = [f"{n} on CPU {cpu}" for cpu, n in most[:MOST_CPUS]]
    others = [f"{sum(n for _, n in most[MOST_CPUS:])} on others"] if len(most) > MOST_CPUS else []
    return "user space was too slow" + (f" ({', '.join(named + others)})" if named else "")


def _sums(mine: tuple[LedgerRule, ...], theirs: tuple[LedgerRule, ...]) -> tuple[LedgerRule, ...]:
    counts = ("packets", "bytes", "no_socket", "failed")
    return tuple(
        replace(a, **{name: getattr(a, name) + getattr(b, name) for name in counts})
        for a, b in zip(mine, theirs, strict=True)
    )


def _lost(n: int, advice: str) -> str:
    return f"LOST: {advice}" if n else ""

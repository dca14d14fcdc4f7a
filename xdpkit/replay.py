"""Run captures through a pipeline, offline: verdicts per rule, and where two rulesets differ.

Two engines judge a packet: the kernel (the compiled program, by BPF_PROG_TEST_RUN; needs root) and the reference
evaluator (plain Python; no privilege).  They agree on every packet.  The kernel's test run takes whole packets of 14 to
3,520 bytes; the kernel engine leaves others, and those that the capture cut short, to the reference and says how many.
Captures carry no metadata: for both engines it is absent.  ``dev.name`` is the name of the interface in a pcapng file,
which may also say of each packet that it left the host (``outbound`` in a tcpdump string).  No other capture says so:
there ``dev.name`` matches nothing, and all packets are inbound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import MappingProxyType

from .compiler.built import Built
from .files.reader import CapturedPacket
from .kernel.flowmaps import FlowMaps
from .kernel.program import Program
from .language.devices import OUTBOUND, SIDES
from .language.errors import PipelineError
from .language.rule import Rule
from .link.ruleset import Ruleset, folder_of, lasting
from .meaning import evaluate as reference
from .sets.live import declared

__all__ = ["ENGINES", "Difference", "Judge", "Replay", "replay"]

ENGINES = ("kernel", "reference")
#: What BPF_PROG_TEST_RUN takes for XDP: an Ethernet header at least, one page less headroom and tailroom at most.
TEST_RUN_BYTES = range(14, 3521)
EXAMPLES = 3
SECOND_NS = 1_000_000_000


class Judge:
    """Finds the rule that takes a packet; what rules remember starts with what is declared, and their clock is that of
    the capture.  Context manager."""

    def __init__(self, built: Built, engine: str, sides: Mapping[str, str] = MappingProxyType({})):
        """``sides``: the interface of the capture that is on each side of a bridge, by the names of
        :data:`xdpkit.language.devices.SIDES`; PipelineError where rules ask for a side and it is not said."""
        self.outcomes = built.pipeline.outcomes
        self.pipeline = built.pipeline
        self.by_reference = 0  # packets that the kernel engine left to the reference
        self._stack = ExitStack()
        self._program: Program | None = None
        self._state = reference.State(self.pipeline)
        self._passed: dict[str, tuple[int, int]] = {}
        self._tables: FlowMaps | None = None
        self._next_sweep = 0
        wanted = [name for name in self.pipeline.devices if name in SIDES]
        if wanted and not set(wanted) <= sides.keys():
            said = "rules ask for dev.inside or dev.outside: say which interface of the capture that is"
            raise PipelineError(f"{said} (replay --inside NAME --outside NAME)", self.pipeline.where)
        self._sides = {name: tuple(side for side in sides if sides[side] == name) for name in sides.values()}
        if engine == "kernel":
            ruleset = self._stack.enter_context(Ruleset(built, "xdp", explain=True))
            self._program = ruleset.program if isinstance(ruleset.program, Program) else None
            self._tables = ruleset.tables
        else:
            self._state.load({s.name: lasting(declared(s, folder_of(built))).entries() for s in self.pipeline.sets})

    def __call__(self, packet: CapturedPacket) -> Rule:
        """The rule that takes ``packet``, the default among them."""
        now_ns, random = (
            packet.time_ns,
            packet.number * 2_654_435_761 & 0xFFFFFFFF,
        )  # as good as any, and the same again
        devices = (packet.interface, *self._sides.get(packet.interface, ()), *(OUTBOUND,) * packet.outbound)
        if self.pipeline.tracking is not None and now_ns >= self._next_sweep:
            self._next_sweep = now_ns + SECOND_NS
            self._sweep(now_ns)
        if self._program is not None:
            if len(packet.data) in TEST_RUN_BYTES and packet.wire_bytes == len(packet.data):
                return self._program.judge(packet.data, now_ns=now_ns, random=random, devices=devices)[0]
            if self.pipeline.remembers:
                said = f"packet {packet.number} is not for the kernel's test run (cut, or of no length it takes)"
                raise OSError(0, f"{said}, and rules remember what they saw: use --engine reference", packet.file)
            self.by_reference += 1
        self._state.now_ns, self._state.random = now_ns, random
        outcome = reference.run(self.pipeline, packet.data, self._state, wire_bytes=packet.wire_bytes, devices=devices)
        for rule in outcome.passed:
            packets, size = self._passed.get(rule.name, (0, 0))
            self._passed[rule.name] = packets + 1, size + packet.wire_bytes
        return outcome.rule

    def _sweep(self, now_ns: int) -> None:
        """Forget connections whose time is over, by the clock of the capture, as a link does by its own."""
        if self._tables is not None:
            from .link.flows import sweep

            sweep(self._tables, now_ns + SECOND_NS)
        elif self._state.flows is not None:
            self._state.flows.sweep(now_ns)

    def passed(self) -> dict[str, tuple[int, int]]:
        """Packets and bytes that passed the rules which go on, by name."""
        found = {rule.name: self._passed.get(rule.name, (0, 0)) for rule in self.outcomes if rule.goes_on}
        if self._program is not None:
            for c in self._program.counts():
                if c.rule.goes_on:
                    packets, size = found[c.rule.name]
                    found[c.rule.name] = packets + c.packets, size + c.bytes
        return found

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


@dataclass(slots=True)
class Difference:
    """Packets that two rulesets treat differently in one way: ``rule`` and verdict here, ``other`` there."""

    rule: Rule
    other: Rule
    packets: int = 0
    examples: list[CapturedPacket] = field(default_factory=list)

    @property
    def changes_verdict(self) -> bool:
        """The packets fare differently; else only another rule takes them."""
        return self.rule.action != self.other.action


@dataclass(slots=True)
class Replay:
    """What became of the packets: counts by rule name in rule order, and the differences, most packets first."""

    rules: tuple[Rule, ...]
    packets: dict[str, int]
    bytes: dict[str, int]
    differences: list[Difference]
    by_reference: int = 0
    written: int = 0
    error: OSError | None = None

    @property
    def total(self) -> int:
        """Packets in all."""
        return sum(self.packets[rule.name] for rule in self.rules if not rule.goes_on)

    @property
    def total_bytes(self) -> int:
        """Their bytes."""
        return sum(self.bytes[rule.name] for rule in self.rules if not rule.goes_on)

    def as_dict(self) -> dict[str, object]:
        """Ready for JSON."""
        return {
            "packets": self.total,
            "rules": [
                {
                    "name": r.name,
                    "action": r.then,
                    "goes_on": r.goes_on,
                    "packets": self.packets[r.name],
                    "bytes": self.bytes[r.name],
                }
                for r in self.rules
            ],
            "judged_by_reference": self.by_reference,
            "written": self.written,
            "differences": [
                {
                    "packets": d.packets,
                    "rule": d.rule.name,
                    "action": str(d.rule.action),
                    "other_rule": d.other.name,
                    "other_action": str(d.other.action),
                    "changes_verdict": d.changes_verdict,
                    "examples": [{"file": e.file, "number": e.number, "hex": e.data.hex()} for e in d.examples],
                }
                for d in self.differences
            ],
        }


def replay(
    packets: Iterable[CapturedPacket],
    built: Built,
    *,
    against: Built | None = None,
    engine: str = "reference",
    take: Callable[[CapturedPacket, Rule], bool] = lambda *_: False,
    sides: Mapping[str, str] = MappingProxyType({}),
) -> Replay:
    """Judge ``packets``; ``take`` sees each with its rule and says whether it kept it (counted as written).
    ``sides``: as for :class:`Judge`.

    An OSError that ``packets`` raises in the middle ends it: what was found until then is returned with the ``error``.
    """
    outcomes = built.pipeline.outcomes
    out = Replay(outcomes, {r.name: 0 for r in outcomes}, {r.name: 0 for r in outcomes}, [])
    found: dict[tuple[str, str], Difference] = {}
    with ExitStack() as stack:
        judge = stack.enter_context(Judge(built, engine, sides))
        other_judge = stack.enter_context(Judge(against, engine, sides)) if against else None
        try:
            for packet in packets:
                rule = judge(packet)
                out.packets[rule.name] += 1
                out.bytes[rule.name] += packet.wire_bytes
                out.written += take(packet, rule)
                if other_judge:
                    _compare(found, packet, rule, other_judge(packet))
        except OSError as error:
            out.error = error
        finally:
            for name, (passing, size) in judge.passed().items():
                out.packets[name], out.bytes[name] = passing, size
            out.by_reference = judge.by_reference
            out.differences = sorted(found.values(), key=lambda d: (not d.changes_verdict, -d.packets))
    return out


def _compare(found: dict[tuple[str, str], Difference], packet: CapturedPacket, rule: Rule, other: Rule) -> None:
    if rule.action == other.action and rule.name == other.name:
        return
    difference = found.setdefault((rule.name, other.name), Difference(rule, other))
    difference.packets += 1
    if len(difference.examples) < EXAMPLES:
        difference.examples.append(packet)

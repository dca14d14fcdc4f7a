"""Why a pipeline does to a packet what it does: the rules that the packet comes to, and what each of them asked.

The reference evaluator judges the packet, and every condition that it asks is noted with its answer and with what was
found: the value of the field, the member of the set, what is left of the limit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from ..language.actions import Verdict
from ..language.counted import Quota
from ..language.errors import Where
from ..language.expr import And, EitherFamily, Expr, Not, Or, Test
from ..language.fields import CT, FieldSpec
from ..language.limits import COST_SHIFT, TIME_SHIFT, Limit
from ..language.metadata import Metadata
from ..language.pipeline import Pipeline
from ..language.rule import Rule
from ..language.sets import Entry, Member, written
from .describe import describe
from .evaluate import Outcome, holds, judge
from .state import Members, State, key_of
from .walk import NO_METADATA, Packet, walk

__all__ = ["Explanation", "Term", "Tried", "explain", "explain_packet"]

_STATES = ("not tracked", "new", "established", "related", "invalid")


@dataclass(frozen=True, slots=True)
class Term:
    """A condition that was asked: its ``text``, whether it ``holds``, the line that wrote it, and what was ``found``: a
    value, a member, what is left; empty where there is nothing to say."""

    text: str
    holds: bool
    where: Where
    found: str = ""

    def __str__(self) -> str:
        return f"{self.text}{'' if self.holds else ': no'}" + (f" ({self.found})" if self.found else "")


@dataclass(frozen=True, slots=True)
class Tried:
    """A rule that the packet came to, whether its condition ``held``, and the terms of it that were asked, in order."""

    rule: Rule
    held: bool
    terms: tuple[Term, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """What becomes of a packet, and why.  ``packet``: in a few words.  ``tried``: each rule that it came to, in order,
    a rule of a chain as often as the packet came there.  ``rule``: the one that took it, the default among them;
    ``passed``: those that held and let it go on, or led it into or out of chains."""

    packet: str
    tried: tuple[Tried, ...]
    rule: Rule
    passed: tuple[Rule, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def verdict(self) -> Verdict:
        """What becomes of the packet."""
        return self.rule.action.verdict

    def lines(self, *, everything: bool = False) -> list[str]:
        """For people: the packet, its verdict, and a line for each rule that held, or with ``everything`` for each that
        was tried."""
        name = "the default" if not any(t.rule is self.rule for t in self.tried) else f"rule {self.rule.name!r}"
        out = [self.packet, f"{self.rule.action} by {name} ({self.rule.where})"]
        skipped = 0
        for tried in self.tried:
            if not tried.held and not everything:
                skipped += 1
                continue
            out += [f"  {_rules(skipped)} did not match"] * bool(skipped)
            skipped = 0
            then = tried.rule.then if tried.held else "not matched"
            terms = "; ".join(map(str, tried.terms)) or "any packet"
            out.append(f"  {tried.rule.name}: {terms} -> {then}   {tried.rule.where}")
        out += [f"  {_rules(skipped)} did not match"] * bool(skipped)
        return out + list(self.notes)

    def as_dict(self) -> dict[str, object]:
        """Everything, ready for JSON."""
        return {
            "packet": self.packet,
            "verdict": self.verdict.name,
            "action": str(self.rule.action),
            **_rule(self.rule),
            "tried": [
                {
                    **_rule(t.rule),
                    "held": t.held,
                    "then": t.rule.then,
                    "terms": [
                        {"text": m.text, "holds": m.holds, "found": m.found, "file": m.where.file, "line": m.where.line}
                        for m in t.terms
                    ],
                }
                for t in self.tried
            ],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        return "\n".join(self.lines())


def _rules(count: int) -> str:
    return "1 rule" if count == 1 else f"{count} rules"


def _rule(rule: Rule) -> dict[str, object]:
    return {"rule": rule.name, "chain": rule.chain, "file": rule.where.file, "line": rule.where.line}


def explain(
    pipeline: Pipeline,
    frame: bytes,
    *,
    now_ns: int = 0,
    rx_queue: int = 0,
    wire_bytes: int | None = None,
    metadata: Metadata = NO_METADATA,
    devices: Collection[str] = (),
) -> Explanation:
    """Why ``pipeline`` does what it does to ``frame`` (from the destination MAC address on), with the members that are
    declared, limits that nothing has used and no flow known.  ``now_ns``: the clock, nanoseconds since 1970 in UTC.
    ``metadata``: what is known of the frame besides its bytes; ``devices``: the names of the device where it is judged.
    """
    state = State(pipeline, now_ns=now_ns)
    packet = walk(frame, rx_queue=rx_queue, wire_bytes=wire_bytes, metadata=metadata, now_ns=now_ns, devices=devices)
    return explain_packet(pipeline, packet, state)


def explain_packet(pipeline: Pipeline, packet: Packet, state: State, notes: tuple[str, ...] = ()) -> Explanation:
    """The same for a packet whose headers are found, with what ``state`` remembers."""
    tried: list[Tried] = []

    def ask(rule: Rule, packet: Packet, state: State) -> bool:
        terms: list[Term] = []
        held = _ask(rule.expr, packet, state, terms)
        tried.append(Tried(rule, held, tuple(terms)))
        return held

    outcome: Outcome = judge(pipeline, packet, state, ask)
    said = f"{describe(packet.frame, packet.members['len'])}, {packet.members['len']} bytes"
    return Explanation(said, tuple(tried), outcome.rule, tuple(outcome.passed), notes)


def _ask(expr: Expr, packet: Packet, state: State, terms: list[Term]) -> bool:
    """As ``holds``, and note the terms that were asked."""
    match expr:
        case EitherFamily() | Not(term=EitherFamily()):
            return _note(expr, packet, state, terms)
        case Not(term=And() | Or() | Not()):
            return not _ask(expr.term, packet, state, terms)
        case And():
            return all(_ask(term, packet, state, terms) for term in expr.terms)
        case Or():
            return any(_ask(term, packet, state, terms) for term in expr.terms)
    return _note(expr, packet, state, terms)


def _note(expr: Expr, packet: Packet, state: State, terms: list[Term]) -> bool:
    found = [text for node in expr.nodes() if (text := _found(node, packet, state))]
    if any(isinstance(node, EitherFamily) for node in expr.nodes()):
        found = [text for text in found if not text.startswith("no ")] or found[:1]
    result = holds(expr, packet, state)
    terms.append(Term(str(expr), result, expr.where, "; ".join(dict.fromkeys(found))))
    return result


def _found(expr: Expr, packet: Packet, state: State) -> str:
    """What a condition finds, before it is asked: a limit takes a token."""
    match expr:
        case Test():
            return _value(expr, packet)
        case Member():
            key = key_of(packet, expr.fields, expr.set.key_bytes)
            return (
                _absent(expr.fields, packet) if key is None else _member(state.sets[expr.set.name], key, state.now_ns)
            )
        case Limit():
            key = key_of(packet, expr.per, expr.key_bytes)
            return _absent(expr.per, packet) if key is None else _left(expr, state, key)
        case Quota():
            key = key_of(packet, expr.per, expr.key_bytes)
            return "" if key is None else f"{state.buckets.get((expr.bucket, key), 0):,} of {expr.most:,} bytes used"
    return ""


def _absent(fields: Iterable[FieldSpec], packet: Packet) -> str:
    """Which of the fields of a key the packet lacks; nothing is said of an address of the other family."""
    missing = next((spec for spec in fields if packet.value(spec) is None), None)
    if missing is None or missing.mapped:
        return ""
    return f"no {missing.header if missing.header not in packet.present else missing.name}"


def _value(expr: Test, packet: Packet) -> str:
    spec = expr.spec
    value = packet.value(spec)
    if value is None:
        absent = spec.header is not None and spec.header not in packet.present
        return f"no {spec.header}" if absent else f"no {spec.name}"
    if spec in CT:
        return f"it is {_STATES[value]}" if spec is CT[0] and value < len(_STATES) else ""
    return f"{spec.name} is {written(spec, value)}"


def _member(members: Members, key: bytes, now_ns: int) -> str:
    entry = members.entry(key, now_ns)
    if entry is None:
        return f"{members.spec.text(Entry(key, members.spec.key_bits))} is no member"
    action = f": {members.spec.actions[entry.action]}" if members.spec.actions else ""
    left = f", for {entry.timeout:.0f} s more" if entry.timeout else ""
    return f"member {members.spec.text(entry)}{action}{left}"


def _left(limit: Limit, state: State, key: bytes) -> str:
    now = state.now_ns << TIME_SHIFT
    used = max(state.buckets.get((limit.bucket, key), 0) - now, 0)
    left = max(0, limit.tolerance - used) << COST_SHIFT
    unit = "bytes" if limit.in_bytes else "packets"
    return f"{left // limit.unit_cost:,} of {limit.burst:,} {unit} left"

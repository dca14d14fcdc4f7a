"""The meaning of a pipeline, in plain Python: every engine must agree with :func:`run` on every frame.

:func:`walk` (``walk.py``) reads the headers of a frame, :func:`holds` says if a condition is true of them, :func:`run`
finds the rules that the frame passes and the one that takes it.  What rules remember, and the clock and randomness they
depend on, are a :class:`State`.  This is the specification, written to be read and not to be fast.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import singledispatch

from ..language.actions import Mark, Mirror, Reject, Step
from ..language.chains import RETURN, Goto, Jump, Return
from ..language.classic import Classic, interpret
from ..language.counted import Draw, Quota, Turn
from ..language.devices import OnDevice
from ..language.errors import Where
from ..language.expr import Always, And, Expr, Intervals, Not, Or, Present, Test
from ..language.limits import Limit, Log, Sample
from ..language.metadata import Metadata
from ..language.pipeline import Pipeline
from ..language.rule import Rule
from ..language.sets import Add, Member
from .reject import reply
from .state import State, key_of
from .walk import NO_METADATA, Packet, walk

__all__ = ["Metadata", "Outcome", "Packet", "State", "evaluate", "holds", "judge", "run", "walk"]


#: What every chain ends with, and no counter knows.
END = Rule("end", Always(where=Where("", 0)), RETURN, Where("", 0))


@dataclass(slots=True)
class Outcome:
    """What became of a frame.  ``rule``: the rule that took it; the rule's action holds the verdict.  ``passed``: the
    rules whose condition held and that let the frame go on, in its chain or into or out of one.  ``mark``: the mark
    that it has.  ``mirrored``: the rule that mirrored it, and how many bytes.  ``logged``: the rules that logged it.
    ``failed``: the rules with a step that could not be done, because a set was full.  ``reply``: what a REJECT answers,
    None where it does not."""

    rule: Rule
    passed: list[Rule] = field(default_factory=list)
    mark: int = 0
    mirrored: tuple[Rule, int] | None = None
    logged: list[Rule] = field(default_factory=list)
    failed: list[Rule] = field(default_factory=list)
    reply: bytes | None = None


@singledispatch
def holds(expr: Expr, packet: Packet, state: State) -> bool:
    """Is ``expr`` true of ``packet``?  Terms are tried from left to right, and no further than needed.  The order
    matters, because a limit takes a token and a sample draws a random number."""
    raise TypeError(f"no meaning for {type(expr).__name__}")


@holds.register
def _(expr: Always, packet: Packet, state: State) -> bool:
    return True


@holds.register
def _(expr: Present, packet: Packet, state: State) -> bool:
    return expr.header in packet.present


@holds.register
def _(expr: Test, packet: Packet, state: State) -> bool:
    value = packet.value(expr.spec)
    if value is not None and expr.mask is not None:
        value &= expr.mask
    return value is not None and within(value, expr.intervals)


@holds.register
def _(expr: Member, packet: Packet, state: State) -> bool:
    key = key_of(packet, expr.fields, expr.set.key_bytes)
    found = None if key is None else state.sets[expr.set.name].find(key, state.now_ns)
    return found is not None and (expr.action is None or found == expr.action)


@holds.register
def _(expr: Limit, packet: Packet, state: State) -> bool:
    key = key_of(packet, expr.per, expr.key_bytes)
    return key is not None and state.take(expr, key, packet.members["len"])


@holds.register
def _(expr: Quota, packet: Packet, state: State) -> bool:
    key, size = key_of(packet, expr.per, expr.key_bytes), packet.members["len"]
    return key is not None and state.count(expr, key, size) + size <= expr.most


@holds.register
def _(expr: Turn, packet: Packet, state: State) -> bool:
    key = key_of(packet, expr.per, expr.key_bytes)
    return key is not None and within(state.count(expr, key, 1) % expr.mod, expr.intervals)


@holds.register
def _(expr: Draw, packet: Packet, state: State) -> bool:
    return within(state.drawn(expr.mod), expr.intervals)


@holds.register
def _(expr: Sample, packet: Packet, state: State) -> bool:
    return state.sample(expr.threshold)


@holds.register
def _(expr: Not, packet: Packet, state: State) -> bool:
    return not holds(expr.term, packet, state)


@holds.register
def _(expr: And, packet: Packet, state: State) -> bool:
    return all(holds(term, packet, state) for term in expr.terms)


@holds.register
def _(expr: Or, packet: Packet, state: State) -> bool:
    return any(holds(term, packet, state) for term in expr.terms)


@holds.register
def _(expr: OnDevice, packet: Packet, state: State) -> bool:
    return any(name in packet.devices for name in expr.names)


@holds.register
def _(expr: Classic, packet: Packet, state: State) -> bool:
    ancillary = expr.ancillary(packet.devices)
    return interpret(expr.instructions, packet.frame, wire_len=packet.members["len"], ancillary=ancillary) != 0


def within(value: int, intervals: Intervals) -> bool:
    """``value`` lies in one of ``intervals``."""
    return any(low <= value <= high for low, high in intervals)


def run(
    pipeline: Pipeline,
    frame: bytes,
    state: State,
    *,
    rx_queue: int = 0,
    wire_bytes: int | None = None,
    metadata: Metadata = NO_METADATA,
    devices: Collection[str] = (),
) -> Outcome:
    """Run ``pipeline`` on ``frame``.  It reads and changes ``state``.  ``metadata``: what is known of the frame besides
    its bytes; by default nothing.  ``devices``: the names of the device where it is judged."""
    packet = walk(
        frame, rx_queue=rx_queue, wire_bytes=wire_bytes, metadata=metadata, now_ns=state.now_ns, devices=devices
    )
    return judge(pipeline, packet, state)


Ask = Callable[[Rule, Packet, State], bool]


def ask(rule: Rule, packet: Packet, state: State) -> bool:
    """Does the condition of ``rule`` hold?"""
    return holds(rule.expr, packet, state)


def judge(pipeline: Pipeline, packet: Packet, state: State, ask: Ask = ask) -> Outcome:
    """Run ``pipeline`` on a packet whose headers are found.  ``ask`` says whether the condition of a rule holds; it is
    called for each rule that the packet comes to, in order."""
    judged = None if state.flows is None else state.flows.judge(packet, state.now_ns)
    if judged is not None:
        packet.members["ct"] = judged.member
    outcome = Outcome(pipeline.outcomes[-1])
    _try_rules(pipeline, packet, state, outcome, ask)
    if state.flows is not None and judged is not None and not outcome.rule.action.drops:
        room = state.flows.commit(judged, packet, state.now_ns)
        if not room and pipeline.full_outcome is not None:
            outcome.rule = pipeline.outcomes[pipeline.full_outcome]
    if isinstance(outcome.rule.action, Reject):
        answer = reply(packet, outcome.rule.action)
        outcome.reply = answer if answer is not None and state.take(pipeline.rejects, b"", 0) else None
    return outcome


def _try_rules(pipeline: Pipeline, packet: Packet, state: State, outcome: Outcome, ask: Ask) -> None:
    """The rules that ``packet`` passes, whose steps it meets, and the one that takes it, if it is not the default."""
    rules = iter(pipeline.rules_of())
    left: list[Iterator[Rule]] = []  # of each chain that the packet jumped from, the rules behind the jump
    while True:
        rule = next((rule for rule in rules if ask(rule, packet, state)), END)
        for step in rule.steps:
            _do(step, rule, packet, state, outcome)
        if not rule.goes_on:
            outcome.rule = rule
            return
        if rule is not END:
            outcome.passed.append(rule)
        match rule.action:
            case Goto():
                rules = iter(pipeline.rules_of(rule.action.chain.name))
            case Jump():
                left.append(rules)
                rules = iter(pipeline.rules_of(rule.action.chain.name))
            case Return():
                if not left:
                    return
                rules = left.pop()


def _do(step: Step, rule: Rule, packet: Packet, state: State, outcome: Outcome) -> None:
    match step:
        case Mark():
            outcome.mark = step.value
        case Mirror():
            wanted = step.bytes or packet.members["len"]
            first, most = outcome.mirrored or (rule, 0)
            outcome.mirrored = (first, max(most, wanted))
        case Log():
            if holds(step.limit, packet, state):
                outcome.logged.append(rule)
        case Add():
            key = key_of(packet, step.fields, step.set.key_bytes)
            if key is not None and not state.sets[step.set.name].add(key, step.timeout, state.now_ns):
                outcome.failed.append(rule)


def evaluate(
    pipeline: Pipeline,
    frame: bytes,
    *,
    state: State | None = None,
    rx_queue: int = 0,
    wire_bytes: int | None = None,
    metadata: Metadata = NO_METADATA,
    devices: Collection[str] = (),
) -> Rule:
    """The rule that takes ``frame``: the first with a verdict whose condition holds, else the default.  Its
    ``action.verdict`` is the verdict.  Without a ``state`` the frame meets a fresh one."""
    state = state or State(pipeline)
    return run(
        pipeline, frame, state, rx_queue=rx_queue, wire_bytes=wire_bytes, metadata=metadata, devices=devices
    ).rule

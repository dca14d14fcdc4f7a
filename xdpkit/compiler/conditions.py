"""Conditions in IR: each becomes branches, so that tests short-circuit and each keeps the Python line that wrote it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import cached_property, partial, singledispatchmethod
from itertools import product

from llvmlite import ir

from ..language.classic import MAX_TURNS, Classic, has_loops
from ..language.counted import Draw, Quota, Turn
from ..language.devices import OnDevice
from ..language.expr import Always, And, Expr, Not, Or, Present, Test
from ..language.limits import Limit, Sample
from ..language.sets import Member
from .classify import Classify
from .lower_classic import Program
from .memory import Memory
from .plan import required
from .read import Reader, in_intervals
from .turns import Turns

__all__ = ["Conditions"]

I32, I64 = ir.IntType(32), ir.IntType(64)


class Conditions:
    """Writes the conditions of rules into ``classify``."""

    def __init__(self, classify: Classify, reader: Reader, memory: Memory):
        self.classify, self.reader, self.memory = classify, reader, memory
        #: The number of each device that a condition names.
        self.devices = {name: number for number, name in enumerate(classify.pipeline.devices)}

    @cached_property
    def turns(self) -> Turns:
        """The function that holds the loops of the pipeline; made with the first of them."""
        return Turns(self.classify)

    @singledispatchmethod
    def lower(self, expr: Expr, builder: ir.IRBuilder, yes: ir.Block, no: ir.Block) -> None:
        """Branch to ``yes`` if ``expr`` holds, else to ``no``."""
        raise TypeError(f"no lowering for {type(expr).__name__}")

    @lower.register
    def _(self, expr: Always, builder: ir.IRBuilder, yes: ir.Block, no: ir.Block) -> None:
        builder.debug_metadata = self.classify.debug.location(expr.where)
        builder.branch(yes)

    @lower.register
    def _(self, expr: Present, builder: ir.IRBuilder, yes: ir.Block, no: ir.Block) -> None:
        builder.debug_metadata = self.classify.debug.location(expr.where)
        if expr.header in self.classify.present:
            builder.branch(yes)
        else:
            builder.cbranch(self.reader.present(builder, {expr.header}), yes, no)

    @lower.register
    def _(self, expr: Test, builder: ir.IRBuilder, yes: ir.Block, no: ir.Block) -> None:
        builder.debug_metadata = self.classify.debug.location(expr.where)
        if expr.spec.header is not None and expr.spec.header not in self.classify.present:
            there = self.classify.block("there")
            builder.cbranch(self.reader.present(builder, {expr.spec.header}), there, no)
            builder.position_at_end(there)
        value = self.reader.field(builder, expr.spec, no)
        if expr.mask is not None:
            value = builder.and_(value, value.type(expr.mask))
        if self.classify.plan.hides_values:
            value = unknown(builder, value)
        builder.cbranch(in_intervals(builder, value, expr.intervals), yes, no)

    @lower.register
    def _(self, expr: Not, builder: ir.IRBuilder, yes: ir.Block, no: ir.Block) -> None:
        self.lower(expr.term, builder, no, yes)

    @lower.register
    def _(self, expr: And, builder: ir.IRBuilder, yes: ir.Block, no: ir.Block) -> None:
        *first, last = expr.terms
        with ExitStack() as stack:
            for term in first:
                more = self.classify.block("and")
                self.lower(term, builder, more, no)
                builder.position_at_end(more)
                stack.enter_context(self.classify.knowing(required(term)))
            self.lower(last, builder, yes, no)

    @lower.register
    def _(self, expr: Or, builder: ir.IRBuilder, yes: ir.Block, no: ir.Block) -> None:
        *first, last = expr.terms
        for term in first:
            more = self.classify.block("or")
            self.lower(term, builder, yes, more)
            builder.position_at_end(more)
        self.lower(last, builder, yes, no)

    @lower.register
    def _(self, expr: Member, builder: ir.IRBuilder, yes: ir.Block, no: ir.Block) -> None:
        builder.debug_metadata = self.classify.debug.location(expr.where)
        found = self.memory.find(builder, expr, no)
        if expr.action is None:
            builder.cbranch(builder.icmp_unsigned("!=", found, I32(0)), yes, no)
        else:
            builder.cbranch(builder.icmp_unsigned("==", found, I32(1 + expr.action)), yes, no)

    @lower.register
    def _(self, expr: Limit, builder: ir.IRBuilder, yes: ir.Block, no: ir.Block) -> None:
        builder.debug_metadata = self.classify.debug.location(expr.where)
        builder.cbranch(self.memory.take(builder, expr, no), yes, no)

    @lower.register
    def _(self, expr: Quota, builder: ir.IRBuilder, yes: ir.Block, no: ir.Block) -> None:
        builder.debug_metadata = self.classify.debug.location(expr.where)
        length = builder.zext(self.reader.member("len"), I64)
        total = builder.add(self.memory.count(builder, expr, length, no), length)
        builder.cbranch(builder.icmp_unsigned("<=", total, I64(expr.most)), yes, no)

    @lower.register
    def _(self, expr: Turn, builder: ir.IRBuilder, yes: ir.Block, no: ir.Block) -> None:
        builder.debug_metadata = self.classify.debug.location(expr.where)
        number = builder.urem(self.memory.count(builder, expr, I64(1), no), I64(expr.mod))
        builder.cbranch(in_intervals(builder, number, expr.intervals), yes, no)

    @lower.register
    def _(self, expr: Draw, builder: ir.IRBuilder, yes: ir.Block, no: ir.Block) -> None:
        builder.debug_metadata = self.classify.debug.location(expr.where)
        builder.cbranch(in_intervals(builder, self.memory.drawn(builder, expr.mod), expr.intervals), yes, no)

    @lower.register
    def _(self, expr: Sample, builder: ir.IRBuilder, yes: ir.Block, no: ir.Block) -> None:
        builder.debug_metadata = self.classify.debug.location(expr.where)
        builder.cbranch(self.memory.sampled(builder, expr), yes, no)

    @lower.register
    def _(self, expr: OnDevice, builder: ir.IRBuilder, yes: ir.Block, no: ir.Block) -> None:
        builder.debug_metadata = self.classify.debug.location(expr.where)
        found: ir.Value = ir.IntType(1)(0)
        for name in expr.names:
            found = builder.or_(found, self.on_device(builder, name))
        builder.cbranch(found, yes, no)

    def on_device(self, builder: ir.IRBuilder, name: str) -> ir.Value:
        """Whether conditions know the packet's device by that name."""
        packet, *_ = self.classify.function.args
        found = builder.call(self.classify.external("on_device"), [packet, I32(self.devices[name])])
        return builder.icmp_unsigned("!=", found, I32(0))

    def ancillary(self, expr: Classic, builder: ir.IRBuilder, offset: int) -> ir.Value:
        """What the load from ``offset``, beyond every packet, finds in a program of classic BPF."""
        value: ir.Value = I32(0)
        for devices in expr.device_choices:
            number = expr.ancillary(devices)[offset]
            if number:
                value = builder.select(self.on_device(builder, *devices), I32(number), value)
        return value

    @lower.register
    def _(self, expr: Classic, builder: ir.IRBuilder, yes: ir.Block, no: ir.Block) -> None:
        builder.debug_metadata = self.classify.debug.location(expr.where)
        packet, source, _ = self.classify.function.args
        ancillary = {at: partial(self.ancillary, expr, offset=at) for at in expr.ancillary(())}
        if has_loops(expr.instructions):
            start = self.loop_start(expr, ancillary, builder)
            matched = builder.call(self.classify.external("loop"), [source, packet, start, I32(MAX_TURNS)])
            builder.cbranch(builder.icmp_unsigned("!=", matched, I32(0)), yes, no)
            return
        length = self.reader.member("len")
        program = Program(self.classify, self.classify.registers, source, length, yes, no, ancillary=ancillary)
        program.lower(expr.instructions, builder)

    def loop_start(
        self, expr: Classic, ancillary: Mapping[int, Callable[[ir.IRBuilder], ir.Value]], builder: ir.IRBuilder
    ) -> ir.Value:
        """Where the turns of a program start.  turn() does not know the device, so there is a program for each answer
        that it can give."""
        values = [sorted({expr.ancillary(devices)[at] for devices in ((), *expr.device_choices)}) for at in ancillary]
        found = [make(builder) for make in ancillary.values()]
        start: ir.Value = I32(0)
        for numbers in product(*values):
            number = I32(self.turns.add(expr, dict(zip(ancillary, numbers, strict=True))))
            same: ir.Value = ir.IntType(1)(1)
            for value, wanted in zip(found, numbers, strict=True):
                same = builder.and_(same, builder.icmp_unsigned("==", value, I32(wanted)))
            start = builder.select(same, number, start) if ancillary else number
        return start


def unknown(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """The same value, hidden from LLVM and from the verifier: both forget what earlier tests have shown about it.

    LLVM and the verifier carry the result of each test of a field into all tests behind it.  That makes a few rules
    fast.  With many rules the time for it grows with the square of their number, and the verifier's budget of a million
    steps ends near 550 rules.  The assembly statement hides the value from LLVM.  The XOR in front of it makes a value
    that the verifier does not connect with the field, so a branch on it says nothing about the field.
    """
    if value.type.width > 64:
        high = unknown(builder, builder.trunc(builder.lshr(value, value.type(64)), I64))
        low = unknown(builder, builder.trunc(value, I64))
        wide = builder.shl(builder.zext(high, value.type), value.type(64))
        return builder.or_(wide, builder.zext(low, value.type))
    hide = ir.InlineAsm(ir.FunctionType(I64, [I64]), "", "=r,0")
    hidden = builder.call(hide, [builder.xor(builder.zext(value, I64), I64(1))], attrs=("nounwind", "readnone"))
    return builder.trunc(builder.xor(hidden, I64(1)), value.type)

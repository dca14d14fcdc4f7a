"""The function ``classify()`` while it is written: its module, its blocks, and how a rule ends in it.

The passes (read.py, conditions.py, memory.py, lower_tables.py, turns.py) write into a :class:`Classify`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

from ..language.actions import Action, Forward, Redirect, Reject, Shadow
from ..language.rule import Rule
from .debuginfo import DebugInfo
from .plan import Plan

__all__ = ["Classify", "Registers"]

I8, I32, I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
VOID, POINTER = ir.VoidType(), I8.as_pointer()
#: Offsets in ``struct steps`` (bpf/act.h).
MARK, MARKED, MIRROR, MIRROR_RULE, SHADOW = 0, 4, 8, 12, 16
#: Functions of the data plane that generated code calls (bpf/load.h): result, then arguments.
EXTERNAL = {
    **{f"{kind}{bits}": (I64, POINTER, I64) for kind in ("load", "fixed", "checked") for bits in (8, 16, 32)},
    "loop": (I32, POINTER, POINTER, I32, I32),
    "descend": (I32, POINTER, I32, I32, POINTER, I32, I32),
    "random_bits": (I32,),
    "on_device": (I32, POINTER, I32),
    "count_passed": (VOID, POINTER, I32),
    "count_failed": (VOID, I32),
    "log_packet": (VOID, POINTER, POINTER, I32),
    "end_shadow": (VOID, POINTER, POINTER, POINTER),
    "header": (I32, POINTER, I32, I32, POINTER, POINTER.as_pointer()),
    "bytes": (I32, POINTER, I32, I32, I32, POINTER, POINTER.as_pointer()),
}


class Registers:
    """The registers of classic BPF as stack slots of one function, made in its first block; ``body`` is the next."""

    def __init__(self, function: ir.Function):
        self.function = function
        self.first = function.append_basic_block("registers")
        self.body = function.append_basic_block("body")
        ir.IRBuilder(self.first).branch(self.body)
        self.slots: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self.slots:
            builder = ir.IRBuilder(self.first)
            builder.position_at_start(self.first)
            self.slots[name] = builder.alloca(I32, name=name)
        return self.slots[name]


class Classify:
    """``classify()`` for the rules of ``plan``, and the module it is in."""

    def __init__(self, plan: Plan):
        self.plan, self.pipeline = plan, plan.pipeline
        self.module = ir.Module(name=self.pipeline.name)
        self.debug = DebugInfo(self.module, self.pipeline.where)
        self.function = ir.Function(self.module, ir.FunctionType(I32, [POINTER, POINTER, POINTER]), "classify")
        self.function.attributes.add("alwaysinline")
        self.function.set_metadata("dbg", self.debug.subprogram)
        self.registers = Registers(self.function)
        #: The headers that are certainly present where the code that is written now runs.
        self.present: frozenset[str] = frozenset()
        self.targets = {
            kind: {name: n for n, name in enumerate(self.pipeline.targets(kind))} for kind in (Forward, Redirect)
        }
        #: The block in front of all rules of a section, and the values that are computed there once for all of them.
        self.first = self.registers.first
        self.values: dict[str, ir.Value] = {}
        #: The block that follows once a rule of the shadow has taken the packet; None while the live rules are written.
        self.after_shadow = self.block("tried") if plan.shadow else None
        #: The default of the section, with its number.
        self.default = plan.sections[0].default

    def start_acting(self, builder: ir.IRBuilder) -> None:
        """Begin with the live rules, behind those of the shadow.  No value that was computed for the shadow is used
        again (bpf/shadow.h says why)."""
        assert self.after_shadow is not None
        start = self.after_shadow
        self.after_shadow, self.first, self.default = None, start, self.plan.acting.default
        self.values.clear()
        builder.position_at_end(start)
        builder.debug_metadata = self.debug.location(self.pipeline.where)
        packet, source, steps = self.function.args
        builder.call(self.external("end_shadow"), [source, packet, steps])
        acting = self.block("acting")
        builder.branch(acting)
        builder.position_at_end(acting)

    def once(self, key: str, make: Callable[[ir.IRBuilder], ir.Value]) -> ir.Value:
        """A value that is the same for all rules of a section, computed in the section's first block.  LLVM would find
        equal values by itself, but the time for that grows faster than the number of rules."""
        if key not in self.values:
            builder = ir.IRBuilder(self.first)
            builder.position_before(self.first.terminator)
            builder.debug_metadata = self.debug.location(self.pipeline.where)
            self.values[key] = make(builder)
        return self.values[key]

    @contextmanager
    def knowing(self, headers: frozenset[str]) -> Iterator[None]:
        """Context manager: code that is written inside runs only where ``headers`` are present."""
        before = self.present
        self.present |= headers
        yield
        self.present = before

    def room_for(self, kind: ir.Type, name: str) -> ir.Value:
        """A variable on the stack."""
        builder = ir.IRBuilder(self.registers.first)
        builder.position_at_start(self.registers.first)
        return builder.alloca(kind, name=name)

    def block(self, name: str) -> ir.Block:
        """A new basic block at the end of the function.  Its name has a number, because llvmlite is slow where names
        are equal."""
        return self.function.append_basic_block(f"{name}.{len(self.function.blocks)}")

    def external(self, name: str) -> ir.Function:
        """A function of the data plane, declared on first use."""
        if name not in self.module.globals:
            result, *arguments = EXTERNAL[name]
            ir.Function(self.module, ir.FunctionType(result, arguments), name)
        return self.module.globals[name]

    def constant(self, name: str, value: ir.Constant) -> None:
        """A function that returns ``value``."""
        function = ir.Function(self.module, ir.FunctionType(value.type, []), name)
        function.attributes.add("alwaysinline")
        ir.IRBuilder(function.append_basic_block()).ret(value)

    def empty(self, name: str, *arguments: ir.Type, result: ir.Type = VOID) -> None:
        """A function of the data plane that does nothing here, and returns 0."""
        function = ir.Function(self.module, ir.FunctionType(result, arguments), name)
        function.attributes.add("alwaysinline")
        builder = ir.IRBuilder(function.append_basic_block())
        if result is VOID:
            builder.ret_void()
        else:
            builder.ret(ir.Constant(result, None if result.is_pointer else 0))

    def require(self, builder: ir.IRBuilder, holds: ir.Value) -> None:
        """Let the first block of a section go on only where ``holds`` is true.  It always is, but the verifier does not
        know that; in the other case the default takes the packet.  ``builder`` is at the end of the first block."""
        more, never = self.block("more"), self.block("never")
        start = self.first.terminator
        builder.remove(start)
        builder.position_at_end(self.first)
        builder.cbranch(holds, more, never)
        self.first = more
        builder.position_at_end(more)
        builder.branch(start.operands[0])
        builder.position_at_end(never)
        self.finish(builder, I32(self.outcome(*self.default)))

    def finish(self, builder: ir.IRBuilder, outcome: ir.Value) -> None:
        """Write what happens where a rule takes the packet: a live rule returns its outcome; a rule of the shadow
        counts the packet, which then goes on to the live rules."""
        if self.after_shadow is None:
            builder.ret(outcome)
            return
        builder.call(self.external("count_passed"), [self.function.args[0], builder.lshr(outcome, I32(16))])
        self.store(builder, SHADOW, builder.and_(outcome, I32(7)))
        builder.branch(self.after_shadow)

    def outcome(self, index: int, rule: Rule) -> int:
        """What classify() returns for ``rule``, number ``index``: see bpf/act.h."""
        action: Action = (
            rule.action.would if isinstance(rule.action, Shadow) and self.after_shadow is not None else rule.action
        )
        target = 0
        if isinstance(action, Forward):
            target = self.targets[Forward].get(action.device, 0)
        elif isinstance(action, Redirect):
            target = self.targets[Redirect].get(action.group, 0)
        elif isinstance(action, Reject):
            target = action.packed
        return index << 16 | target << 6 | action.fallback.verdict << 3 | action.verdict

    def place(self, builder: ir.IRBuilder, offset: int) -> ir.Value:
        """The address of a member of ``struct steps``."""
        at = builder.gep(self.function.args[2], [I64(offset)], source_etype=I8)
        return builder.bitcast(at, I32.as_pointer())

    def store(self, builder: ir.IRBuilder, offset: int, value: ir.Value) -> None:
        """Store into a member of ``struct steps``."""
        builder.store(value, self.place(builder, offset))

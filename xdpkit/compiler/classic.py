"""Lowering classic BPF (``xdpkit/classic.py``) to LLVM IR: one basic block per jump target, A, X and M[] as stack slots
that LLVM turns into registers.

A program that jumps backwards becomes a part of the generated function ``turn()``, which ``loop()`` (bpf/loop.h) runs
through bpf_loop(): one turn goes on until the program ends or jumps backwards; then the registers that the program uses
are kept in ``words``, with the number of the jump's target, and the next turn starts there.  The verifier looks at one
turn only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llvmlite import ir

from ..classic import (
    ABS,
    ADD,
    AND,
    DIV,
    IND,
    JA,
    JEQ,
    JGE,
    JGT,
    JMP,
    JSET,
    LD,
    LDX,
    LSH,
    MAX_TURNS,
    MEM,
    MOD,
    MSH,
    MUL,
    NEG,
    OR,
    RET_A,
    RSH,
    ST,
    STX,
    SUB,
    TXA,
    XOR,
    Classic,
    Instruction,
    has_loops,
)  # fmt: skip

if TYPE_CHECKING:
    from .lower import Lowering

I1, I8, I32, I64 = ir.IntType(1), ir.IntType(8), ir.IntType(32), ir.IntType(64)
ACCUMULATOR, INDEX, SCRATCH = "A", "X", "M{}"
#: words[]: the state, A, X, M[0..15] (LOOP_WORDS in bpf/load.h).
WORDS = {ACCUMULATOR: 1, INDEX: 2, **{SCRATCH.format(i): 3 + i for i in range(16)}}

_ALU: dict[int, Callable[[ir.IRBuilder, Any, Any], Any]] = {
    ADD: ir.IRBuilder.add,
    SUB: ir.IRBuilder.sub,
    MUL: ir.IRBuilder.mul,
    OR: ir.IRBuilder.or_,
    AND: ir.IRBuilder.and_,
    XOR: ir.IRBuilder.xor,
    DIV: ir.IRBuilder.udiv,
    MOD: ir.IRBuilder.urem,
}
_COMPARE = {JEQ: "==", JGT: ">", JGE: ">="}


def lower_classic(lowering: Lowering, expr: Classic, builder: ir.IRBuilder, yes: ir.Block, no: ir.Block) -> None:
    """Branch to ``yes`` if the program returns anything but 0, else to ``no``."""
    builder.debug_metadata = lowering.debug.location(expr.where)
    packet, source = lowering.function.args
    if has_loops(expr.instructions):
        start = lowering.turns.add(expr)
        matched = builder.call(lowering.external("loop"), [source, packet, I32(start), I32(MAX_TURNS)])
        builder.cbranch(builder.icmp_unsigned("!=", matched, I32(0)), yes, no)
        return
    program = Program(lowering, lowering.registers, source, lowering.member("len"), yes, no)
    program.lower(expr.instructions, builder)


class Registers:
    """The registers of the machine as stack slots of one function, made in its first block; ``body`` is the next."""

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


@dataclass
class Program:
    """One classic program on its way to IR: reads ``source``, ends in ``yes`` or ``no``.  ``again(builder, target)``
    ends a block that jumps backwards."""

    lowering: Lowering
    registers: Registers
    source: Any
    length: Any
    yes: ir.Block
    no: ir.Block
    again: Callable[[ir.IRBuilder, int], None] | None = None
    blocks: dict[int, ir.Block] = field(default_factory=dict)
    found: dict[int, int] = field(default_factory=dict)

    def lower(self, instructions: tuple[Instruction, ...], builder: ir.IRBuilder) -> None:
        """The whole program, from where ``builder`` stands."""
        reached = reachable(instructions)
        self.found = bytes_found(instructions, sorted(reached))
        function = self.registers.function
        self.blocks = {at: function.append_basic_block(f"bpf.{at}") for at in sorted(leaders(instructions) & reached)}
        for name in sorted(used(instructions[at] for at in reached)):
            builder.store(I32(0), self.registers[name])
        builder.branch(self.blocks[0])
        for at in sorted(reached):
            if at in self.blocks:
                if not builder.block.is_terminated:
                    builder.branch(self.blocks[at])
                builder.position_at_end(self.blocks[at])
            self.instruction(at, instructions[at], builder)

    def instruction(self, at: int, ins: Instruction, builder: ir.IRBuilder) -> None:
        """One instruction; ends the block if it jumps or returns."""
        match ins.operation:
            case 0 | 1:  # LD, LDX
                self.set(builder, INDEX if ins.operation == LDX else ACCUMULATOR, self.loaded(at, ins, builder))
            case 2 | 3:  # ST, STX
                value = self.get(builder, INDEX if ins.operation == STX else ACCUMULATOR)
                self.set(builder, SCRATCH.format(ins.k), value)
            case 4:  # ALU
                self.set(builder, ACCUMULATOR, self.computed(ins, builder))
            case 5:  # JMP
                self.jump(at, ins, builder)
            case 6:  # RET
                value = self.get(builder, ACCUMULATOR) if ins.code & 0x18 == RET_A else I32(ins.k)
                builder.cbranch(builder.icmp_unsigned("!=", value, I32(0)), self.yes, self.no)
            case 7:  # MISC
                source, target = (INDEX, ACCUMULATOR) if ins.what == TXA else (ACCUMULATOR, INDEX)
                self.set(builder, target, self.get(builder, source))

    def get(self, builder: ir.IRBuilder, name: str) -> Any:
        """A register's value."""
        return builder.load(self.registers[name])

    def set(self, builder: ir.IRBuilder, name: str, value: Any) -> None:
        """Set a register."""
        builder.store(value, self.registers[name])

    def loaded(self, at: int, ins: Instruction, builder: ir.IRBuilder) -> Any:
        """What LD and LDX load."""
        match ins.mode:
            case 0x00:  # IMM
                return I32(ins.k)
            case 0x20:  # ABS
                return self.packet(at, ins, I64(ins.k), builder)
            case 0x40:  # IND: X and k are added in 64 bits, where they cannot wrap round
                offset = builder.add(builder.zext(self.get(builder, INDEX), I64), I64(ins.k))
                return self.packet(at, ins, offset, builder)
            case 0x60:  # MEM
                return self.get(builder, SCRATCH.format(ins.k))
            case 0x80:  # LEN
                return self.length
            case 0xA0:  # MSH
                byte = self.packet(at, ins, I64(ins.k), builder)
                return builder.shl(builder.and_(byte, I32(0xF)), I32(2))
        raise ValueError(f"no such load: {ins}")

    def packet(self, at: int, ins: Instruction, offset: Any, builder: ir.IRBuilder) -> Any:
        """Bytes of the packet; where it has none, the program ends in ``no``."""
        known = ins.mode != IND and ins.k + ins.size <= self.found[at]
        name = f"{'load' if ins.mode == IND else 'known' if known else 'fixed'}{8 * ins.size}"
        value = builder.call(self.lowering.external(name), [self.source, offset])
        if known:
            return builder.trunc(value, I32)
        there = self.registers.function.append_basic_block("there")
        builder.cbranch(builder.icmp_signed("<", value, I64(0)), self.no, there)
        builder.position_at_end(there)
        return builder.trunc(value, I32)

    def computed(self, ins: Instruction, builder: ir.IRBuilder) -> Any:
        """The result of ALU."""
        a = self.get(builder, ACCUMULATOR)
        if ins.what == NEG:
            return builder.neg(a)
        b = self.get(builder, INDEX) if ins.uses_x else I32(ins.k)
        if ins.what in (DIV, MOD):
            divide = self.registers.function.append_basic_block("divide")
            builder.cbranch(builder.icmp_unsigned("==", b, I32(0)), self.no, divide)
            builder.position_at_end(divide)
        if ins.what in (LSH, RSH):
            shift = builder.shl if ins.what == LSH else builder.lshr
            return builder.select(builder.icmp_unsigned("<", b, I32(32)), shift(a, b), I32(0))
        return _ALU[ins.what](builder, a, b)

    def jump(self, at: int, ins: Instruction, builder: ir.IRBuilder) -> None:
        """JMP in all its forms."""
        targets = [self.target(at, target, builder) for target in ins.targets(at)]
        if ins.what == JA:
            builder.branch(targets[0])
            return
        a, b = self.get(builder, ACCUMULATOR), self.get(builder, INDEX) if ins.uses_x else I32(ins.k)
        if ins.what == JSET:
            test = builder.icmp_unsigned("!=", builder.and_(a, b), I32(0))
        else:
            test = builder.icmp_unsigned(_COMPARE[ins.what], a, b)
        builder.cbranch(test, *targets)

    def target(self, at: int, target: int, builder: ir.IRBuilder) -> ir.Block:
        """The block to jump to; for a jump backwards one that ends the turn."""
        if target > at:
            return self.blocks[target]
        assert self.again is not None, "only turn() can hold a loop"
        block = self.registers.function.append_basic_block("again")
        ending = ir.IRBuilder(block)
        ending.debug_metadata = builder.debug_metadata
        self.again(ending, target)
        return block


class Turns:
    """The function ``turn(source, len, words)``: every looping program of a pipeline, entered by number."""

    def __init__(self, lowering: Lowering):
        self.lowering = lowering
        signature = ir.FunctionType(I32, [I8.as_pointer(), I32, I32.as_pointer()])
        self.function = ir.Function(lowering.module, signature, "turn")
        self.function.attributes.add("alwaysinline")
        self.subprogram = lowering.debug.function("turn", self.function)
        self.registers = Registers(self.function)
        builder = ir.IRBuilder(self.registers.body)
        self.ends = [self.end(I32(0)), self.end(I32(1))]
        self.switch = builder.switch(builder.load(self.function.args[2]), self.ends[0])
        self.entries = 0

    def end(self, matched: Any) -> ir.Block:
        """A block that ends the loop."""
        builder = ir.IRBuilder(self.function.append_basic_block("end"))
        builder.store(matched, self.function.args[2])
        builder.ret(I32(1))
        return builder.block

    def enter(self) -> tuple[int, ir.IRBuilder]:
        """A new entry: its number, and a builder where it starts."""
        number, block = self.entries, self.function.append_basic_block("enter")
        self.entries += 1
        self.switch.add_case(I32(number), block)
        return number, ir.IRBuilder(block)

    def word(self, builder: ir.IRBuilder, name: str) -> Any:
        """Address of the word that keeps a register."""
        return builder.gep(self.function.args[2], [I64(WORDS[name])], source_etype=I32)

    def add(self, expr: Classic) -> int:
        """Add a program; the number of its start."""
        location = self.lowering.debug.location(expr.where, self.subprogram)
        kept = sorted(used(expr.instructions))
        heads: dict[int, int] = {}

        def again(builder: ir.IRBuilder, target: int) -> None:
            for name in kept:
                builder.store(builder.load(self.registers[name]), self.word(builder, name))
            builder.store(I32(heads[target]), self.function.args[2])
            builder.ret(I32(0))

        start, builder = self.enter()
        builder.debug_metadata = location
        source, length, _ = self.function.args
        no, yes = self.ends
        program = Program(self.lowering, self.registers, source, length, yes, no, again)
        resumptions = {}
        for at, ins in enumerate(expr.instructions):
            for target in ins.targets(at):
                if target <= at and target not in heads:
                    heads[target], resumptions[target] = self.enter()
        program.lower(expr.instructions, builder)
        for target, resume in resumptions.items():
            resume.debug_metadata = location
            for name in kept:
                resume.store(resume.load(self.word(resume, name)), self.registers[name])
            resume.branch(program.blocks[target])
        return start


def reachable(instructions: tuple[Instruction, ...]) -> set[int]:
    """The instructions that a run can come to; libpcap leaves dead ones behind where it does not optimize."""
    seen: set[int] = set()
    todo = [0]
    while todo:
        at = todo.pop()
        if at not in seen:
            seen.add(at)
            todo += instructions[at].targets(at)
    return seen


def bytes_found(instructions: tuple[Instruction, ...], reached: list[int]) -> dict[int, int]:
    """For each instruction, how many bytes of the packet every way there has found.  Nothing is known where a turn of a
    loop starts."""
    found = dict.fromkeys(reached, 1 << 32) | {0: 0}
    found |= {target: 0 for at in reached for target in instructions[at].targets(at) if target <= at}
    for at in reached:
        ins = instructions[at]
        fixed = ins.operation in (LD, LDX) and ins.mode in (ABS, MSH)
        for target in ins.targets(at):
            found[target] = min(found[target], max(found[at], ins.k + ins.size if fixed else 0))
    return found


def leaders(instructions: tuple[Instruction, ...]) -> set[int]:
    """Where basic blocks start."""
    jumps = (target for at, ins in enumerate(instructions) if ins.operation == JMP for target in ins.targets(at))
    return {0, *jumps}


def used(instructions: Any) -> set[str]:
    """The registers that ``instructions`` name."""
    names = set()
    for ins in instructions:
        names |= {ACCUMULATOR, INDEX}
        if ins.operation in (ST, STX) or (ins.operation in (LD, LDX) and ins.mode == MEM):
            names.add(SCRATCH.format(ins.k))
    return names

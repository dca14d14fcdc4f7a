"""Lowering classic BPF (``xdpkit/language/classic.py``) to LLVM IR.  Each jump target becomes a basic block; A, X and
M[] are stack slots, which LLVM turns into registers.

A program that jumps backwards becomes a part of the generated function ``turn()`` (``turns.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llvmlite import ir

from ..language.classic import (
    ADD,
    AND,
    DIV,
    IND,
    JA,
    JEQ,
    JGE,
    JGT,
    JSET,
    LDX,
    LSH,
    MOD,
    MUL,
    NEG,
    OR,
    RET_A,
    RSH,
    STX,
    SUB,
    TXA,
    XOR,
    Instruction,
)
from .classify import Classify, Registers
from .flow import ACCUMULATOR, INDEX, SCRATCH, bytes_found, leaders, reachable, used

I1, I8, I32, I64 = ir.IntType(1), ir.IntType(8), ir.IntType(32), ir.IntType(64)

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


@dataclass
class Program:
    """Lowers one classic program.  The code reads the packet from ``source`` and ends in block ``yes`` or ``no``.
    ``again(builder, target)`` ends a block that jumps backwards.  ``ancillary``: what loads from beyond every packet
    find, by their offsets; each makes the value."""

    classify: Classify
    registers: Registers
    source: Any
    length: Any
    yes: ir.Block
    no: ir.Block
    again: Callable[[ir.IRBuilder, int], None] | None = None
    ancillary: Mapping[int, Callable[[ir.IRBuilder], Any]] = field(default_factory=dict)
    blocks: dict[int, ir.Block] = field(default_factory=dict)
    found: dict[int, int] = field(default_factory=dict)

    def lower(self, instructions: tuple[Instruction, ...], builder: ir.IRBuilder) -> None:
        """Write the whole program at the place of ``builder``."""
        reached = reachable(instructions)
        self.found = bytes_found(instructions, sorted(reached), self.ancillary)
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
        """Write one instruction, which ends the block if it jumps or returns."""
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
        """The value that LD or LDX loads."""
        match ins.mode:
            case 0x00:  # IMM
                return I32(ins.k)
            case 0x20 if ins.k in self.ancillary:
                return self.ancillary[ins.k](builder)
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
        """The value of bytes of the packet.  Where the packet ends before them, the program goes to ``no``."""
        checked = ins.mode != IND and ins.k + ins.size <= self.found[at]
        name = f"{'load' if ins.mode == IND else 'checked' if checked else 'fixed'}{8 * ins.size}"
        value = builder.call(self.classify.external(name), [self.source, offset])
        if checked:
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
        """Write a jump, conditional or not."""
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
        """The block to jump to.  A jump backwards goes to a block that ends the turn."""
        if target > at:
            return self.blocks[target]
        assert self.again is not None, "only turn() can hold a loop"
        block = self.registers.function.append_basic_block("again")
        ending = ir.IRBuilder(block)
        ending.debug_metadata = builder.debug_metadata
        self.again(ending, target)
        return block

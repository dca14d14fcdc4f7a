"""Loops of classic BPF: the generated function ``turn()``, which ``loop()`` (bpf/loop.h) runs through bpf_loop().

One turn runs until the program ends or jumps backwards.  Where it jumps backwards, the registers that the program uses
are stored in ``words`` with the number of the jump's target, and the next turn starts there.  The verifier checks the
function once, for one turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from llvmlite import ir

from ..language.classic import Classic
from .classify import Classify, Registers
from .flow import ACCUMULATOR, INDEX, SCRATCH, used
from .lower_classic import Program

I8, I32, I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
#: words[]: the state, A, X, M[0..15] (LOOP_WORDS in bpf/load.h).
WORDS = {ACCUMULATOR: 1, INDEX: 2, **{SCRATCH.format(i): 3 + i for i in range(16)}}


class Turns:
    """The function ``turn(source, len, words)``: every looping program of a pipeline, entered by number."""

    def __init__(self, classify: Classify):
        self.classify = classify
        signature = ir.FunctionType(I32, [I8.as_pointer(), I32, I32.as_pointer()])
        self.function = ir.Function(classify.module, signature, "turn")
        self.function.attributes.add("alwaysinline")
        self.subprogram = classify.debug.function("turn", self.function)
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

    def add(self, expr: Classic, ancillary: Mapping[int, int]) -> int:
        """Add a program; the number of its start.  ``ancillary``: what its loads from beyond every packet find."""
        location = self.classify.debug.location(expr.where, self.subprogram)
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
        found = {at: partial(_constant, value) for at, value in ancillary.items()}
        program = Program(self.classify, self.registers, source, length, yes, no, again, found)
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


def _constant(value: int, builder: ir.IRBuilder) -> ir.Value:
    return I32(value)

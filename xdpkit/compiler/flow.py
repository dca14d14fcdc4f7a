"""Control flow of a classic BPF program, for its lowering: reachable instructions, basic blocks, registers used."""

from __future__ import annotations

from collections.abc import Container, Iterable

from ..language.classic import ABS, JMP, LD, LDX, MEM, MSH, ST, STX, Instruction

#: Names of the registers; those of scratch memory are numbered.
ACCUMULATOR, INDEX, SCRATCH = "A", "X", "M{}"


def reachable(instructions: tuple[Instruction, ...]) -> set[int]:
    """The instructions that a run can reach.  Without its optimizer libpcap leaves dead instructions in a program."""
    seen: set[int] = set()
    todo = [0]
    while todo:
        at = todo.pop()
        if at not in seen:
            seen.add(at)
            todo += instructions[at].targets(at)
    return seen


def bytes_found(
    instructions: tuple[Instruction, ...], reached: list[int], apart: Container[int] = ()
) -> dict[int, int]:
    """For each instruction, how many bytes the packet has at least, because every path to the instruction has loaded
    them.  Where a turn of a loop starts, nothing is known.  ``apart``: offsets of loads that read no packet."""
    found = dict.fromkeys(reached, 1 << 32) | {0: 0}
    found |= {target: 0 for at in reached for target in instructions[at].targets(at) if target <= at}
    for at in reached:
        ins = instructions[at]
        fixed = ins.operation in (LD, LDX) and ins.mode in (ABS, MSH) and ins.k not in apart
        for target in ins.targets(at):
            found[target] = min(found[target], max(found[at], ins.k + ins.size if fixed else 0))
    return found


def leaders(instructions: tuple[Instruction, ...]) -> set[int]:
    """Where basic blocks start."""
    jumps = (target for at, ins in enumerate(instructions) if ins.operation == JMP for target in ins.targets(at))
    return {0, *jumps}


def used(instructions: Iterable[Instruction]) -> set[str]:
    """The registers that ``instructions`` name."""
    names = set()
    for ins in instructions:
        names |= {ACCUMULATOR, INDEX}
        if ins.operation in (ST, STX) or (ins.operation in (LD, LDX) and ins.mode == MEM):
            names.add(SCRATCH.format(ins.k))
    return names

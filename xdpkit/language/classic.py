"""Classic BPF: libpcap compiles a tcpdump string to such a program.  Here it is a condition, with an interpreter.

The machine has an accumulator A, an index register X and sixteen words M[] of scratch memory (McCanne and Jacobson,
"The BSD Packet Filter", USENIX 1993; libpcap's ``bpf_filter.c``).  All are unsigned, of 32 bits, and 0 at the start.  A
load beyond the packet and a division by zero end the program with 0.  The packet matches if the program returns
anything else.

libpcap emits backward jumps for ``protochain``, and its own interpreter follows them for ever where a chain of headers
leads back to itself.  Here a packet that needs more than :data:`MAX_TURNS` of them does not match.  A loop of
``protochain`` carries from turn to turn only a protocol number (five numbers continue the loop) and an offset (a
multiple of 4).  So a filter with one such loop means the same here as in libpcap, for every frame of up to 1,518 bytes
on which libpcap ends at all.  For longer frames and for several loops this holds as long as MAX_TURNS suffices.  (A
libpcap newer than 1.10 gives up after 64 turns.)

libpcap emits a read of M[] that nothing wrote for some combinations of ``geneve`` with ``or`` and ``not``.  Up to
version 1.10 its interpreter finds there what was on the stack; newer ones, and xdpkit, find 0.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from .devices import OUTBOUND
from .expr import Expr

__all__ = ["INTERFACE", "MAX_TURNS", "OUTGOING", "PACKET_TYPE", "Classic", "Instruction", "has_loops", "interpret"]

#: Backward jumps that a packet may take.
MAX_TURNS = 2048
#: Words of scratch memory: BPF_MEMWORDS.
SCRATCH_WORDS = 16

# Fields of an opcode (pcap/bpf.h); the values are those of the header's names.
LD, LDX, ST, STX, ALU, JMP, RET, MISC = range(8)
WORD, HALF, BYTE = 0x00, 0x08, 0x10
IMM, ABS, IND, MEM, LEN, MSH = 0x00, 0x20, 0x40, 0x60, 0x80, 0xA0
ADD, SUB, MUL, DIV, OR, AND, LSH, RSH, NEG, MOD, XOR = (n << 4 for n in range(11))
JA, JEQ, JGT, JGE, JSET = (n << 4 for n in range(5))
SOURCE_X = 0x08
RET_A = 0x10
TXA = 0x80

MASK = 0xFFFFFFFF
#: Loads from here ask Linux about the socket buffer: SKF_AD_PKTTYPE and SKF_AD_IFINDEX (linux/filter.h).
PACKET_TYPE, INTERFACE = 0xFFFF_F004, 0xFFFF_F008
#: The packet type of a packet that leaves: PACKET_OUTGOING (linux/if_packet.h).
OUTGOING = 4
WIDTHS = {WORD: 4, HALF: 2, BYTE: 1}


class Instruction(NamedTuple):
    """``struct bpf_insn``: opcode, jumps if true and if false (instructions to skip), and the constant."""

    code: int
    jt: int
    jf: int
    k: int

    @property
    def operation(self) -> int:
        """Class LD .. MISC: the low three bits."""
        return self.code & 0x07

    @property
    def mode(self) -> int:
        """Addressing mode of a load."""
        return self.code & 0xE0

    @property
    def size(self) -> int:
        """Bytes that a load from the packet reads."""
        return WIDTHS[self.code & 0x18]

    @property
    def what(self) -> int:
        """Operation of ALU and JMP, TXA or TAX of MISC."""
        return self.code & 0xF0

    @property
    def uses_x(self) -> bool:
        """The operand of ALU and JMP is X, not k."""
        return bool(self.code & SOURCE_X)

    def targets(self, at: int) -> tuple[int, ...]:
        """Where the instruction, standing at ``at``, goes on; k of a plain jump is signed."""
        if self.operation == RET:
            return ()
        if self.operation != JMP:
            return (at + 1,)
        if self.what == JA:
            return (at + 1 + (self.k ^ 0x80000000) - 0x80000000,)
        return at + 1 + self.jt, at + 1 + self.jf


@dataclass(frozen=True, slots=True, repr=False)
class Classic(Expr):
    """The classic BPF program ``instructions``, which came from the tcpdump string ``text``, returns non-zero.

    ``interfaces``: the devices that ``ifname`` names; the program knows the first by the number 1, and so on.  Loads
    from PACKET_TYPE find something only where the program ``asks_direction``, and those from INTERFACE where it names
    interfaces."""

    text: str
    instructions: tuple[Instruction, ...]
    interfaces: tuple[str, ...] = ()
    asks_direction: bool = False

    def __str__(self) -> str:
        return f"pcap({self.text!r})"

    @property
    def device_names(self) -> tuple[str, ...]:
        return (OUTBOUND,) * self.asks_direction + self.interfaces

    @property
    def device_choices(self) -> tuple[tuple[str], ...]:
        """The names that matter to the program, each alone, the last first."""
        return tuple((name,) for name in reversed(self.device_names))

    def ancillary(self, devices: Collection[str]) -> dict[int, int]:
        """What loads find that ask about the device, where conditions know it by the names ``devices``."""
        found = {}
        if self.asks_direction:
            found[PACKET_TYPE] = OUTGOING if OUTBOUND in devices else 0
        if self.interfaces:
            found[INTERFACE] = next((n for n, name in enumerate(self.interfaces, 1) if name in devices), 0)
        return found


def has_loops(program: tuple[Instruction, ...]) -> bool:
    """Does the program jump backwards anywhere?"""
    return any(target <= at for at, ins in enumerate(program) for target in ins.targets(at))


class Reject(Exception):
    """The program ends with 0."""


def interpret(
    program: tuple[Instruction, ...], frame: bytes, *, wire_len: int | None = None,
    ancillary: Mapping[int, int] = MappingProxyType({}),
) -> int:  # fmt: skip
    """What ``program`` returns for ``frame``; ``wire_len`` is the packet's length where ``frame`` was cut.
    ``ancillary``: the values of loads from beyond every packet, by their offsets."""
    return run(program, frame, wire_len=wire_len, ancillary=ancillary)[0]


def run(
    program: tuple[Instruction, ...], frame: bytes, *, wire_len: int | None = None, scratch: int = 0,
    ancillary: Mapping[int, int] = MappingProxyType({}),
) -> tuple[int, int]:  # fmt: skip
    """What ``program`` returns for ``frame``, and how often it jumped backwards; (0, MAX_TURNS + 1) where too often.
    ``scratch`` is what M[] holds at the start; tests use it to find out whether a program depends on it."""
    machine = _Machine(frame, len(frame) if wire_len is None else wire_len, ancillary)
    machine.memory = [scratch] * SCRATCH_WORDS
    at = turns = 0
    try:
        while True:
            ins = program[at]
            if ins.operation == RET:
                return (machine.a if ins.code & 0x18 == RET_A else ins.k), turns
            targets = ins.targets(at)
            if len(targets) == 2:
                next_at = targets[0] if machine.test(ins) else targets[1]
            else:
                (next_at,) = targets
                machine.step(ins)
            if next_at <= at:
                turns += 1
                if turns > MAX_TURNS:
                    return 0, turns
            at = next_at
    except Reject:
        return 0, turns


_ALU: dict[int, Callable[[int, int], int]] = {
    ADD: operator.add,
    SUB: operator.sub,
    MUL: operator.mul,
    OR: operator.or_,
    AND: operator.and_,
    XOR: operator.xor,
    LSH: lambda a, b: a << b if b < 32 else 0,
    RSH: lambda a, b: a >> b if b < 32 else 0,
    DIV: operator.floordiv,
    MOD: operator.mod,
    NEG: lambda a, _: -a,
}
_JUMPS: dict[int, Callable[[int, int], bool]] = {
    JEQ: operator.eq,
    JGT: operator.gt,
    JGE: operator.ge,
    JSET: lambda a, b: bool(a & b),
}


class _Machine:
    """Registers and scratch memory of one run."""

    def __init__(self, frame: bytes, wire_len: int, ancillary: Mapping[int, int]):
        self.frame, self.wire_len, self.ancillary = frame, wire_len, ancillary
        self.a = self.x = 0
        self.memory = [0] * SCRATCH_WORDS

    def packet(self, at: int, size: int) -> int:
        """``size`` bytes at ``at``, big-endian; X and k are added without wrapping round."""
        if at + size > len(self.frame):
            raise Reject
        return int.from_bytes(self.frame[at : at + size])

    def value(self, ins: Instruction) -> int:
        """What a load loads."""
        match ins.mode:
            case 0x00:  # IMM
                return ins.k
            case 0x20:  # ABS
                return self.ancillary[ins.k] if ins.k in self.ancillary else self.packet(ins.k, ins.size)
            case 0x40:  # IND
                return self.packet(self.x + ins.k, ins.size)
            case 0x60:  # MEM
                return self.memory[ins.k]
            case 0x80:  # LEN
                return self.wire_len
            case 0xA0:  # MSH: the length of an IPv4 header
                return 4 * (self.packet(ins.k, 1) & 0xF)
        raise ValueError(f"no such load: {ins}")

    def test(self, ins: Instruction) -> bool:
        """Is a conditional jump taken?"""
        return _JUMPS[ins.what](self.a, self.x if ins.uses_x else ins.k)

    def step(self, ins: Instruction) -> None:
        """Carry out an instruction that neither jumps nor returns."""
        match ins.operation:
            case 0:  # LD
                self.a = self.value(ins)
            case 1:  # LDX
                self.x = self.value(ins)
            case 2:  # ST
                self.memory[ins.k] = self.a
            case 3:  # STX
                self.memory[ins.k] = self.x
            case 4:  # ALU
                operand = self.x if ins.uses_x else ins.k
                if ins.what in (DIV, MOD) and operand == 0:
                    raise Reject
                self.a = _ALU[ins.what](self.a, operand) & MASK
            case 7:  # MISC
                if ins.what == TXA:
                    self.a = self.x
                else:
                    self.x = self.a

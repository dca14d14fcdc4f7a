"""The code that looks up rules in tables (rule_tables.py).

The words that a table reads are gathered once into an array on the stack.  ``descend`` (bpf/table.h) goes down each
tree of the table, mostly one, and the smallest number found is the rule that takes the packet.  The entries are part of
the program's object: the program reads them in place, they are loaded and removed with it, and built files have them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, cached_property
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
from llvmlite import ir

from ..language.fields import INNER, FieldSpec
from .boxes import Boxes, Word
from .classify import Classify
from .compiled import TableInfo
from .read import HEADER_BITS, Reader, side
from .rule_tables import Table
from .tree import ENTRY

if TYPE_CHECKING:
    from numpy.typing import NDArray

I8, I32, I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
POINTER = I8.as_pointer()
#: The section of the entries.  libbpf makes a map of the section, and freezes the map before it loads the program.
SECTION = ".rodata.table"


class TableLowering:
    """Writes the tables of one pipeline into ``classify``."""

    def __init__(self, classify: Classify, reader: Reader):
        self.classify, self.reader = classify, reader
        most = max((len(table.boxes.words) for table in classify.plan.tables), default=1)
        self.words = 1 << (max(most, 2) - 1).bit_length()  # a power of two, for the mask that bounds an index
        self.made: list[TableInfo] = []
        self._constants: dict[tuple[str, int], ir.Value] = {}

    @cached_property
    def room(self) -> ir.Value:
        """The array of words, which all tables use in turn."""
        return self.classify.room_for(ir.ArrayType(I32, self.words), "words")

    @property
    def zero(self) -> ir.Value:
        """A value that is 0, which neither LLVM nor the verifier knows.

        The verifier knows neither the value nor the bounds of a number that is combined with it, so it does not follow
        separate paths for different values of that number.  Otherwise it would follow each path into a table and
        through it by itself: one for each combination of headers, and for each entry near the root."""
        hide = ir.InlineAsm(ir.FunctionType(I32, [I32]), "", "=r,0")

        length = self.reader.member("len")

        def make(builder: ir.IRBuilder) -> ir.Value:
            return builder.xor(length, builder.call(hide, [length], attrs=("nounwind", "readnone")))

        return self.classify.once("zero", make)

    def lower(self, table: Table, builder: ir.IRBuilder) -> None:
        """Write the look-up of ``table`` at the place of ``builder``, which then stands where no rule of the table
        takes the packet."""
        classify, guard = self.classify, table.boxes.guard
        past, take = classify.block("past"), classify.block("take")
        builder.debug_metadata = classify.debug.location(table.rules[0][1].where)
        if guard:
            inside = classify.block("table")
            builder.cbranch(self.reader.present(builder, guard), inside, past)
            builder.position_at_end(inside)
        self._gather(table.boxes, builder, past)
        array = self._constant(table, "entries", lambda: b"".join(tree.entries.tobytes() for tree in table.trees))
        words = builder.bitcast(self.room, POINTER)
        found, at = None, 0
        for tree in table.trees:
            root = builder.gep(array, [I64(at)], source_etype=I8)
            rule = builder.call(
                classify.external("descend"),
                [root, I32(len(tree.entries)), I32(tree.depth), words, I32(4 * self.words - 4), self.zero],
            )
            at += tree.entries.nbytes
            found = rule if found is None else builder.select(builder.icmp_unsigned("<", rule, found), rule, found)
        builder.cbranch(builder.icmp_unsigned("<", found, I32(len(table.rules))), take, past)
        builder.position_at_end(take)
        classify.finish(builder, self._outcome(table, builder, found))
        builder.position_at_end(past)
        if table.info() not in self.made:
            self.made.append(table.info())

    def _gather(self, boxes: Boxes, builder: ir.IRBuilder, past: ir.Block) -> None:
        """Store the words of the packet; fields of a header that is absent are 0."""
        for header, group in groupby(enumerate(boxes.words), key=lambda pair: pair[1].header):
            words = list(group)
            fields = [(number, word.spec, word) for number, word in words if word.spec is not None]
            for number, word in words:
                if word.spec is None:
                    self._store(builder, number, self._there(builder, header))
            if not fields:
                continue
            if header is None or header in boxes.guard:
                self._fields(builder, fields, past)
                continue
            for number, _, _ in fields:
                self._store(builder, number, self.zero)
            there, after = self.classify.block("there"), self.classify.block("after")
            there_bit = builder.icmp_unsigned("!=", self._there(builder, header), I32(0))
            builder.cbranch(there_bit, there, after)
            builder.position_at_end(there)
            self._fields(builder, fields, after)
            builder.branch(after)
            builder.position_at_end(after)

    def _there(self, builder: ir.IRBuilder, header: str) -> ir.Value:
        """1 if ``header`` is present, else 0."""
        bit = HEADER_BITS[header.removeprefix(INNER)].bit_length() - 1
        present = builder.xor(self.reader.member(f"{side(header)}present"), self.zero)
        return builder.and_(builder.lshr(present, I32(bit)), I32(1))

    def _fields(self, builder: ir.IRBuilder, fields: list[tuple[int, FieldSpec, Word]], no: ir.Block) -> None:
        """Store the words of fields of one header, which is present."""
        values: dict[str, ir.Value] = {}
        pointer = None
        for number, spec, word in fields:
            if spec.name not in values:
                if isinstance(spec.at, str):
                    values[spec.name] = self.reader.field(builder, spec, no)
                else:
                    pointer = pointer or self.reader.address(builder, spec, no)
                    values[spec.name] = self.reader.read_at(builder, spec, pointer)
            value = values[spec.name]
            if word.mask is not None:
                value = builder.and_(value, value.type(word.mask))
            if word.shift:
                value = builder.lshr(value, value.type(word.shift))
            if value.type.width > 32:
                value = builder.trunc(value, I32)
            elif value.type.width < 32:
                value = builder.zext(value, I32)
            self._store(builder, number, builder.xor(value, self.zero))

    def _store(self, builder: ir.IRBuilder, number: int, value: ir.Value) -> None:
        place = builder.gep(builder.bitcast(self.room, POINTER), [I64(4 * number)], source_etype=I8)
        builder.store(value, builder.bitcast(place, I32.as_pointer()))

    def _outcome(self, table: Table, builder: ir.IRBuilder, rule: ir.Value) -> ir.Value:
        """The outcome of rule ``rule`` of the table.  Where all rules have the same action, outcomes have a constant
        distance and are computed; otherwise they are read from an array."""
        values = np.array([self.classify.outcome(index, each) for index, each in table.rules], np.uint32)
        step = values[1] - values[0] if len(values) > 1 else np.uint32(0)
        if (values == values[0] + np.arange(len(values), dtype=np.uint32) * step).all():
            return builder.add(builder.mul(rule, I32(int(step))), I32(int(values[0])))
        array = self._constant(table, "outcomes", lambda: values.astype("<u4").tobytes())
        place = builder.gep(array, [builder.shl(builder.zext(rule, I64), I64(2))], source_etype=I8)
        return builder.load(builder.bitcast(place, I32.as_pointer()))

    def _constant(self, table: Table, name: str, make: Callable[[], bytes]) -> ir.Value:
        """Address of data of ``table`` in the object's read-only section, where it is once."""
        key = name, table.rules[0][0]
        if key not in self._constants:
            data = make()
            kind = ir.ArrayType(I8, len(data))
            variable = ir.GlobalVariable(self.classify.module, kind, f"{name}.{len(self._constants)}")
            variable.initializer = ir.FormattedConstant(
                kind, f'c"{_escaped()[np.frombuffer(data, np.uint8)].tobytes().decode()}"'
            )
            variable.global_constant, variable.section, variable.align = True, SECTION, np.dtype(ENTRY).itemsize
            variable.linkage = "internal"
            self._constants[key] = variable.bitcast(POINTER)
        return self._constants[key]


#: Bytes as LLVM assembly writes them.
@cache
def _escaped() -> NDArray[np.bytes_]:
    """Each byte as the text of LLVM IR writes it."""
    return np.array([f"\\{byte:02x}".encode() for byte in range(256)])

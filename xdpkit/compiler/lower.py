"""Lowering: a pipeline becomes the LLVM IR of ``classify(const struct packet *, struct source *)``.

Each condition is lowered to branches (``lower_expr(expr, builder, yes, no)``), so that tests short-circuit and each
one keeps the Python line that wrote it as its debug location: the verifier's log and ``bpftool prog dump xlated linum``
then show that line.  A rule that matches returns a constant: ``rule << 16 | otherwise << 8 | verdict`` (bpf/act.h).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, singledispatchmethod

from llvmlite import ir

from ..actions import PASS, Redirect
from ..classic import Classic
from ..errors import Where
from ..expr import Always, And, Expr, Intervals, Not, Or, Present, Test
from ..fields import HEADERS, INNER, OUTER, PAYLOAD_MAX_SIZE, TUNNEL, FieldSpec, offsets
from ..pipeline import Pipeline, Rule
from .classic import Registers, Turns, lower_classic

I8, I32, I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
VOID = ir.VoidType()
OFFSETS = offsets()
POINTER = I8.as_pointer()
#: Functions of the data plane that generated code calls (bpf/load.h): result, then arguments.
EXTERNAL = {
    **{f"{kind}{bits}": (I64, POINTER, I64) for kind in ("load", "fixed", "known") for bits in (8, 16, 32)},
    "loop": (I32, POINTER, POINTER, I32, I32),
    **dict.fromkeys(("header", "bytes"), (I32, POINTER, I32, I32, POINTER, POINTER.as_pointer())),
}


@dataclass(frozen=True, slots=True)
class Lowered:
    """The IR of ``classify`` as text; ``tunnels``: it needs the module that walks into tunnels."""

    text: str
    tunnels: bool


def lower(pipeline: Pipeline) -> Lowered:
    """The IR of ``classify`` for ``pipeline``."""
    lowering = Lowering(pipeline)
    return Lowered(lowering.text(), lowering.tunnels)


def outcome(index: int, rule: Rule) -> int:
    """What classify() returns for ``rule``, number ``index``."""
    otherwise = rule.action.otherwise if isinstance(rule.action, Redirect) else PASS
    return index << 16 | otherwise.verdict << 8 | rule.action.verdict


class Lowering:
    """One pipeline on its way to IR."""

    def __init__(self, pipeline: Pipeline):
        self.module = ir.Module(name=pipeline.name)
        self.debug = DebugInfo(self.module, pipeline.where)
        self.function = ir.Function(self.module, ir.FunctionType(I32, [POINTER, POINTER]), "classify")
        self.function.attributes.add("alwaysinline")
        self.function.set_metadata("dbg", self.debug.subprogram)
        self.registers = Registers(self.function)
        asked = list(headers_asked(pipeline))
        self.read = set(asked)
        inside = any(name.startswith(INNER) for name in self.read)
        self.blurred = len(self.read) > (1 if inside else MANY_HEADERS) or len(asked) > MANY_TESTS
        self.opaque = self.blurred and len(self.read) > FEW_HEADERS
        self.tests = 0
        builder = ir.IRBuilder(self.registers.body)
        self.values: dict[str, ir.Value] = {}
        if len(asked) >= HOIST_TESTS:
            self.hoist(builder, pipeline)
        for index, rule in enumerate(pipeline.outcomes):
            take, skip = self.block("take"), self.block("skip")
            self.lower_expr(rule.expr, builder, take, skip)
            builder.position_at_end(take)
            builder.debug_metadata = self.debug.location(rule.where)
            builder.ret(I32(outcome(index, rule)))
            builder.position_at_end(skip)
        builder.unreachable()
        wanted = wanted_bits(self.read) | (BLUR if self.blurred else 0)
        self.constant("reads_headers", I32(int(bool(self.read))))
        self.constant("wanted", I64(wanted))
        if not self.tunnels:
            arguments = [POINTER, POINTER, I32, I32, I32]
            nothing = ir.Function(self.module, ir.FunctionType(VOID, arguments), "walk_tunnel")
            ir.IRBuilder(nothing.append_basic_block()).ret_void()

    @property
    def tunnels(self) -> bool:
        """Does a rule read what only the walk into tunnels finds?"""
        return any(name in TUNNEL or name.startswith(INNER) for name in self.read)

    def text(self) -> str:
        """The module as LLVM assembly."""
        return str(self.module)

    def constant(self, name: str, value: ir.Constant) -> None:
        """A function that returns ``value``."""
        function = ir.Function(self.module, ir.FunctionType(value.type, []), name)
        function.attributes.add("alwaysinline")
        ir.IRBuilder(function.append_basic_block()).ret(value)

    def block(self, name: str) -> ir.Block:
        """A new basic block at the end of the function; numbered, since llvmlite is slow to tell equal names apart."""
        return self.function.append_basic_block(f"{name}.{len(self.function.blocks)}")

    @cached_property
    def turns(self) -> Turns:
        """The function that holds the loops of the pipeline; made with the first of them."""
        return Turns(self)

    def external(self, name: str) -> ir.Function:
        """A function of the data plane, declared on first use."""
        if name not in self.module.globals:
            result, *arguments = EXTERNAL[name]
            ir.Function(self.module, ir.FunctionType(result, arguments), name)
        return self.module.globals[name]

    @singledispatchmethod
    def lower_expr(self, expr: Expr, builder: ir.IRBuilder, yes: ir.Block, no: ir.Block) -> None:
        """Branch to ``yes`` if ``expr`` holds, else to ``no``."""
        raise TypeError(f"no lowering for {type(expr).__name__}")

    @lower_expr.register
    def _(self, expr: Always, builder: ir.IRBuilder, yes: ir.Block, no: ir.Block) -> None:
        builder.debug_metadata = self.debug.location(expr.where)
        builder.branch(yes)

    @lower_expr.register
    def _(self, expr: Present, builder: ir.IRBuilder, yes: ir.Block, no: ir.Block) -> None:
        builder.debug_metadata = self.debug.location(expr.where)
        builder.cbranch(self.present(builder, expr.header), yes, no)

    @lower_expr.register
    def _(self, expr: Test, builder: ir.IRBuilder, yes: ir.Block, no: ir.Block) -> None:
        builder.debug_metadata = self.debug.location(expr.where)
        if expr.spec.header is not None:
            there = self.block("there")
            builder.cbranch(self.present(builder, expr.spec.header), there, no)
            builder.position_at_end(there)
        value = self.field(builder, expr.spec, no)
        if expr.mask is not None:
            value = builder.and_(value, value.type(expr.mask))
        builder.cbranch(in_intervals(builder, value, expr.intervals), yes, no)

    @lower_expr.register
    def _(self, expr: Not, builder: ir.IRBuilder, yes: ir.Block, no: ir.Block) -> None:
        self.lower_expr(expr.term, builder, no, yes)

    @lower_expr.register
    def _(self, expr: And, builder: ir.IRBuilder, yes: ir.Block, no: ir.Block) -> None:
        *first, last = expr.terms
        for term in first:
            more = self.block("and")
            self.lower_expr(term, builder, more, no)
            builder.position_at_end(more)
        self.lower_expr(last, builder, yes, no)

    @lower_expr.register
    def _(self, expr: Or, builder: ir.IRBuilder, yes: ir.Block, no: ir.Block) -> None:
        *first, last = expr.terms
        for term in first:
            more = self.block("or")
            self.lower_expr(term, builder, yes, more)
            builder.position_at_end(more)
        self.lower_expr(last, builder, yes, no)

    @lower_expr.register
    def _(self, expr: Classic, builder: ir.IRBuilder, yes: ir.Block, no: ir.Block) -> None:
        lower_classic(self, expr, builder, yes, no)

    def member(self, builder: ir.IRBuilder, name: str) -> ir.Value:
        """Load a member of ``struct packet`` at its own width."""
        offset, bits = OFFSETS[name]
        at = builder.gep(self.function.args[0], [I64(offset)], source_etype=I8)
        return builder.load(builder.bitcast(at, ir.IntType(bits).as_pointer()))

    def present(self, builder: ir.IRBuilder, header: str) -> ir.Value:
        """i1: the header is there."""
        prefix = INNER if header.startswith(INNER) else ""
        bit = I32(HEADER_BITS[header.removeprefix(INNER)])
        present = self.member(builder, prefix + "present")
        if self.opaque:
            self.tests += 1
            barrier = ir.InlineAsm(ir.FunctionType(I32, [I32, I32]), "", "=r,0,i", side_effect=False)
            present = builder.call(barrier, [present, I32(self.tests)])
        return builder.icmp_unsigned("!=", builder.and_(present, bit), I32(0))

    @cached_property
    def where(self) -> ir.Value:
        """Room for the pointer that header() and bytes() give back."""
        builder = ir.IRBuilder(self.registers.first)
        builder.position_at_start(self.registers.first)
        return builder.alloca(POINTER, name="where")

    @cached_property
    def room(self) -> ir.Value:
        """Room for bytes of the payload."""
        builder = ir.IRBuilder(self.registers.first)
        builder.position_at_start(self.registers.first)
        return builder.bitcast(builder.alloca(ir.ArrayType(I64, PAYLOAD_MAX_SIZE // 8), name="room"), POINTER)

    def field(self, builder: ir.IRBuilder, spec: FieldSpec, no: ir.Block) -> ir.Value:
        """The field's value as an integer at least as wide as the field; branches to ``no`` where the packet ends
        before it does."""
        if spec.name in self.values:
            return self.values[spec.name]
        if isinstance(spec.at, str):
            prefix = INNER if spec.name.startswith(INNER) else ""
            value = self.member(builder, prefix + spec.at)
        else:
            value = self.read_at(builder, spec, self.address(builder, spec, no))
        return cut(builder, value, spec)

    def read_at(self, builder: ir.IRBuilder, spec: FieldSpec, pointer: ir.Value) -> ir.Value:
        """The bytes that hold the field, in its header at ``pointer``."""
        assert isinstance(spec.at, int)
        return big_endian(builder, pointer, spec.at, spec.size, spec.kind != "bytes")

    def hoist(self, builder: ir.IRBuilder, pipeline: Pipeline) -> None:
        """Read all fields that the rules test, if they are few: header by header, 0 where a header is absent."""
        tests = (node for rule in pipeline.rules for node in rule.expr.nodes() if isinstance(node, Test))
        specs = {t.spec.name: t.spec for t in tests if not isinstance(t.spec.at, str) and t.spec.kind != "bytes"}
        if len(specs) > HOIST_FIELDS:
            return
        builder.debug_metadata = self.debug.location(pipeline.where)
        for header in dict.fromkeys(spec.header for spec in specs.values()):
            mine = [spec for spec in specs.values() if spec.header == header]
            start, there, done = builder.block, self.block("there"), self.block("done")
            builder.cbranch(self.present(builder, header or ""), there, done)
            builder.position_at_end(there)
            pointer = self.address(builder, mine[0], done)
            values = [cut(builder, self.read_at(builder, spec, pointer), spec) for spec in mine]
            loaded = builder.block
            builder.branch(done)
            builder.position_at_end(done)
            for spec, value in zip(mine, values, strict=True):
                phi = builder.phi(value.type)
                for block in (start, there):
                    phi.add_incoming(value.type(0), block)
                phi.add_incoming(value, loaded)
                self.values[spec.name] = phi

    def address(self, builder: ir.IRBuilder, spec: FieldSpec, no: ir.Block) -> ir.Value:
        """Where the header of ``spec`` starts."""
        header = HEADERS[spec.header or ""]
        prefix = INNER if header.name.startswith(INNER) else ""
        at = self.member(builder, f"{prefix}{header.slot}")
        source = self.function.args[1]
        if spec.kind == "bytes":
            at = builder.add(at, I32(spec.at))
            call = builder.call(self.external("bytes"), [source, at, I32(spec.size), self.room, self.where])
        else:
            room = builder.gep(
                self.function.args[0], [I64(OFFSETS[f"{prefix}room.{header.slot}"][0])], source_etype=I8
            )
            call = builder.call(self.external("header"), [source, at, I32(header.size), room, self.where])
        there = self.block("there")
        builder.cbranch(builder.icmp_unsigned("!=", call, I32(0)), there, no)
        builder.position_at_end(there)
        return builder.load(self.where)


#: Bit of each header in ``headers.present``.
HEADER_BITS = {header.name: 1 << bit for bit, header in enumerate(OUTER)}
#: BLUR in bpf/packet.h, and the size of a pipeline from which the verifier needs it.
BLUR = 1 << 31
MANY_HEADERS, MANY_TESTS = 10, 1000
#: Where more headers are read, each test of presence stands for itself: LLVM would keep the results of all of them, and
#: the verifier would follow every combination.
FEW_HEADERS = 16
#: Pipelines with this many tests of so few fields read each field once, in front of the rules.
HOIST_TESTS, HOIST_FIELDS = 16, 16


def headers_asked(pipeline: Pipeline) -> Iterator[str]:
    """The header of every test of a header or field in the rules, as often as it is tested."""
    for rule in pipeline.outcomes:
        for node in rule.expr.nodes():
            if isinstance(node, Present):
                yield node.header
            elif isinstance(node, Test) and node.spec.header is not None:
                yield node.spec.header


def wanted_bits(read: set[str]) -> int:
    """What wanted() returns: the bits of ``read`` and of all headers that may stand in front of them."""
    wanted, todo = set[str](), set(read)
    while todo:
        name = todo.pop()
        wanted.add(name)
        behind = set(HEADERS[name].behind)
        if name.startswith(INNER):
            behind |= {"ip", "ip6", "udp", *(t for t in TUNNEL if t != "gre.key"), "gre"}
        todo |= behind - wanted
    return sum(HEADER_BITS[n.removeprefix(INNER)] << (32 if n.startswith(INNER) else 0) for n in wanted)


def cut(builder: ir.IRBuilder, value: ir.Value, spec: FieldSpec) -> ir.Value:
    """The bits of ``value`` that are the field's."""
    if spec.shift:
        value = builder.lshr(value, value.type(spec.shift))
    if spec.shift + spec.bits < value.type.width:
        value = builder.and_(value, value.type(spec.maximum))
    return value


def big_endian(builder: ir.IRBuilder, pointer: ir.Value, at: int, size: int, aligned: bool) -> ir.Value:
    """The number of ``size`` bytes in network order, ``at`` bytes behind ``pointer``; loads are as wide as alignment
    allows where the header is ``aligned`` to 4 bytes."""
    result, done, wide = None, 0, ir.IntType(8 * size)
    if not aligned:  # bytes() points at the first of them
        at = 0
    while done < size:
        step = next(n for n in (8, 4, 2, 1) if n <= size - done and (at + done) % n == 0)
        part = ir.IntType(8 * step)
        place = builder.bitcast(builder.gep(pointer, [I64(at + done)], source_etype=I8), part.as_pointer())
        value = builder.load(place)
        if step > 1:
            value = builder.bswap(value)
        value = builder.zext(value, wide) if step < size else value
        result = value if result is None else builder.or_(builder.shl(result, wide(8 * step)), value)
        done += step
    return result


def in_intervals(builder: ir.IRBuilder, value: ir.Value, intervals: Intervals) -> ir.Value:
    """i1: ``value`` lies in one of ``intervals``; LLVM folds each to one compare (or a mask, for prefixes)."""
    result = None
    for low, high in intervals:
        if low == high:
            hit = builder.icmp_unsigned("==", value, value.type(low))
        else:
            hit = builder.icmp_unsigned("<=", builder.sub(value, value.type(low)), value.type(high - low))
        result = hit if result is None else builder.or_(result, hit)
    assert result is not None, "a test has at least one interval"
    return result


class DebugInfo:
    """Debug metadata: one compile unit and subprogram for the pipeline's file, a lexical block per further file."""

    def __init__(self, module: ir.Module, where: Where):
        self.module = module
        self.files: dict[str, ir.DIValue] = {}
        self.scopes: dict[tuple[str, int], ir.DIValue] = {}
        file = self.file(where.file)
        unit = module.add_debug_info(
            "DICompileUnit",
            {
                "language": ir.DIToken("DW_LANG_C99"),
                "file": file,
                "producer": "xdpkit",
                "runtimeVersion": 0,
                "isOptimized": True,
                "emissionKind": ir.DIToken("FullDebug"),
            },
            is_distinct=True,
        )
        module.add_named_metadata("llvm.dbg.cu", unit)
        module.add_named_metadata("llvm.module.flags", [I32(2), "Debug Info Version", I32(3)])
        self.unit, self.where = unit, where
        self.subprogram = self.function("classify")

    def function(self, name: str, function: ir.Function | None = None) -> ir.DIValue:
        """DISubprogram of a generated function, at the pipeline's line; set as that of ``function``."""
        file = self.file(self.where.file)
        signature = self.module.add_debug_info("DISubroutineType", {"types": self.module.add_metadata([None])})
        subprogram = self.module.add_debug_info(
            "DISubprogram",
            {
                "name": name,
                "linkageName": name,
                "scope": file,
                "file": file,
                "line": self.where.line,
                "scopeLine": self.where.line,
                "type": signature,
                "unit": self.unit,
                "spFlags": ir.DIToken("DISPFlagDefinition | DISPFlagOptimized"),
            },
            is_distinct=True,
        )
        if function is not None:
            function.set_metadata("dbg", subprogram)
        return subprogram

    def file(self, path: str) -> ir.DIValue:
        """DIFile for ``path``; LLVM reads the text of its lines from there into the BTF line info."""
        if path not in self.files:
            directory, name = os.path.split(path)
            self.files[path] = self.module.add_debug_info("DIFile", {"filename": name, "directory": directory})
        return self.files[path]

    def location(self, where: Where, subprogram: ir.DIValue | None = None) -> ir.DIValue:
        """DILocation of a line of the user's source, in classify() or another ``subprogram``."""
        subprogram = subprogram or self.subprogram
        scope = subprogram if where.file == self.where.file else self.scopes.get((where.file, id(subprogram)))
        if scope is None:
            scope = self.scopes[where.file, id(subprogram)] = self.module.add_debug_info(
                "DILexicalBlockFile", {"scope": subprogram, "file": self.file(where.file), "discriminator": 0}
            )
        return self.module.add_debug_info("DILocation", {"line": where.line, "column": 1, "scope": scope})

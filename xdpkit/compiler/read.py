"""Reading: which headers a packet has, and the fields in them, as LLVM values.

The walk (``bpf/walk.h``) notes where headers start; a field is read there when a rule tests it.  Members of ``struct
packet`` are loaded in the first block of the function.  Fields that a group of rules tests more than once are loaded in
front of the group.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property

from llvmlite import ir

from ..language.expr import Intervals, Test
from ..language.fields import HEADERS, INNER, MAPPED, OUTER, PAYLOAD_MAX_SIZE, TUNNEL, FieldSpec, field_named, offsets
from ..language.rule import Rule
from .classify import Classify

I8, I32, I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
POINTER = I8.as_pointer()
OFFSETS = offsets()
#: Bit of each header in ``headers.present``.
HEADER_BITS = {header.name: 1 << bit for bit, header in enumerate(OUTER)}
#: HIDE_HEADERS and HEADERS_IN_MAP in bpf/packet.h.
HIDE_HEADERS, HEADERS_IN_MAP = 1 << 31, 1 << 30
#: Most fields that are loaded in front of a group of rules: more would not fit on the stack.
HOIST_FIELDS = 16
#: Slots that the loop over IPv6's extension headers fills, and MAX_AT in bpf/packet.h.
EXTENSION_SLOTS, MAX_AT = ("frag", "routing"), 0x7FFF


class Reader:
    """Reads the packet for the rules of one pipeline."""

    def __init__(self, classify: Classify):
        self.classify = classify

    @property
    def wanted(self) -> int:
        """The value that wanted() returns: the bits of the headers that are read, and of all headers that may stand in
        front of them."""
        wanted, todo = set[str](), set(self.classify.plan.read)
        while todo:
            name = todo.pop()
            wanted.add(name)
            behind = set(HEADERS[name].behind)
            if name.startswith(INNER):
                behind |= {"ip", "ip6", "udp", "gre", *(t for t in TUNNEL if "." not in t)}
            todo |= behind - wanted
        bits = sum(HEADER_BITS[n.removeprefix(INNER)] << (32 if n.startswith(INNER) else 0) for n in wanted)
        return (
            bits
            | (HIDE_HEADERS if self.classify.plan.hides_headers else 0)
            | (HEADERS_IN_MAP if self.classify.plan.headers_in_map else 0)
        )

    def member(self, name: str) -> ir.Value:
        """The value of a member of ``struct packet``, with the member's own width."""
        offset, bits = OFFSETS[name]

        def load(builder: ir.IRBuilder) -> ir.Value:
            at = builder.gep(self.classify.function.args[0], [I64(offset)], source_etype=I8)
            return builder.load(builder.bitcast(at, ir.IntType(bits).as_pointer()))

        return self.classify.once(f"member {name}", load)

    def present(self, builder: ir.IRBuilder, headers: Iterable[str]) -> ir.Value:
        """i1: all of ``headers`` are present."""
        result = None
        for prefix, names in sides(headers):
            bits = I32(sum(HEADER_BITS[name] for name in names))
            present = self.member(prefix + "present")
            there = builder.icmp_unsigned("==", builder.and_(present, bits), bits)
            result = there if result is None else builder.and_(result, there)
        return result

    @cached_property
    def where(self) -> ir.Value:
        """A variable for the pointer that header() and bytes() return."""
        return self.classify.room_for(POINTER, "where")

    @cached_property
    def room(self) -> ir.Value:
        """A variable for bytes of the payload."""
        return self.classify.room_for(ir.ArrayType(I64, PAYLOAD_MAX_SIZE // 8), "room")

    def field(self, builder: ir.IRBuilder, spec: FieldSpec, no: ir.Block) -> ir.Value:
        """The field's value as an integer at least as wide as the field, where its header is known to be there;
        branches to ``no`` where the packet ends before a payload does."""
        if spec.name in self.classify.values:
            return self.classify.values[spec.name]
        if isinstance(spec.at, str):
            value = self.member(side(spec.name) + spec.at)
            return self.classify.once(spec.name, lambda first: cut(first, value, spec))
        for name, values in spec.only:
            more = self.classify.block("only")
            builder.cbranch(in_intervals(builder, self.field(builder, field_named(name), no), values), more, no)
            builder.position_at_end(more)
        return self.read_at(builder, spec, self.address(builder, spec, no))

    def read_at(self, builder: ir.IRBuilder, spec: FieldSpec, pointer: ir.Value) -> ir.Value:
        """The field in its header at ``pointer``."""
        assert isinstance(spec.at, int)
        at = 0 if spec.deep else spec.at  # bytes() points at the first of them
        value = big_endian(builder, pointer, at, spec.size)
        if spec.mapped:
            wide = ir.IntType(spec.bits)
            return builder.or_(builder.zext(value, wide), wide(MAPPED))
        return cut(builder, value, spec)

    def address(self, builder: ir.IRBuilder, spec: FieldSpec, no: ir.Block) -> ir.Value:
        """Where the header of ``spec`` starts, or the bytes of payload that it names."""
        header = HEADERS[spec.header or ""]
        prefix = side(header.name)
        packet, source, _ = self.classify.function.args
        at = self.member(f"{prefix}{header.slot}")
        if header.slot in EXTENSION_SLOTS:
            at = bounded(builder, at)
        if spec.deep:
            if spec.moved is not None:
                name, factor = spec.moved
                length = builder.zext(self.field(builder, field_named(name), no), I32)
                at = builder.add(at, builder.mul(length, I32(factor)))
            what = [I32(spec.at), I32(spec.size), builder.bitcast(self.room, POINTER)]
            call = builder.call(self.classify.external("bytes"), [source, at, *what, self.where])
        else:
            room = builder.gep(packet, [I64(OFFSETS[f"{prefix}room.{header.slot}"][0])], source_etype=I8)
            call = builder.call(self.classify.external("header"), [source, at, I32(header.size), room, self.where])
        there = self.classify.block("there")
        builder.cbranch(builder.icmp_unsigned("!=", call, I32(0)), there, no)
        builder.position_at_end(there)
        return builder.load(self.where)

    @contextmanager
    def hoisting(
        self, builder: ir.IRBuilder, headers: frozenset[str], rules: Iterable[Rule], no: ir.Block
    ) -> Iterator[None]:
        """Context manager: at its start the fields of ``headers`` (which are present here) that ``rules`` test more
        than once are read, if there are few of them; code that is written inside uses these values."""
        specs: dict[str, FieldSpec] = {}
        times: Counter[str] = Counter()
        for node in (node for rule in rules for node in rule.expr.nodes() if isinstance(node, Test)):
            if (
                node.spec.header in headers
                and not isinstance(node.spec.at, str)
                and not (node.spec.deep or node.spec.only)
            ):
                specs[node.spec.name] = node.spec
                times[node.spec.name] += 1
        often = [spec for name, spec in specs.items() if times[name] > 1 and name not in self.classify.values]
        if len(often) <= HOIST_FIELDS:
            for header in dict.fromkeys(spec.header for spec in often):
                mine = [spec for spec in often if spec.header == header]
                pointer = self.address(builder, mine[0], no)
                self.classify.values |= {spec.name: self.read_at(builder, spec, pointer) for spec in mine}
        yield
        for spec in often:
            self.classify.values.pop(spec.name, None)


def side(name: str) -> str:
    """The prefix of the side that a header is on: ``inner.`` inside a tunnel, empty outside."""
    return INNER if name.startswith(INNER) else ""


def sides(headers: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """The headers outside and those inside a tunnel, without prefix."""
    names = sorted(headers)
    for prefix in ("", INNER):
        found = [name.removeprefix(INNER) for name in names if side(name) == prefix]
        if found:
            yield prefix, found


def cut(builder: ir.IRBuilder, value: ir.Value, spec: FieldSpec) -> ir.Value:
    """The bits of ``value`` that are the field's."""
    if spec.shift:
        value = builder.lshr(value, value.type(spec.shift))
    if spec.shift + spec.bits < value.type.width:
        value = builder.and_(value, value.type(spec.maximum))
    return value


def big_endian(builder: ir.IRBuilder, pointer: ir.Value, at: int, size: int) -> ir.Value:
    """The number of ``size`` bytes in network order, ``at`` bytes behind ``pointer``, in loads aligned as ``at`` is."""
    result, done, wide = None, 0, ir.IntType(8 * size)
    while done < size:
        step = next(n for n in (8, 4, 2, 1) if n <= size - done and (at + done) % n == 0)
        part = ir.IntType(8 * step)
        place = builder.bitcast(builder.gep(pointer, [I64(at + done)], source_etype=I8), part.as_pointer())
        value = builder.load(place)
        value = builder.bswap(value) if step > 1 else value
        value = builder.zext(value, wide) if step < size else value
        result = value if result is None else builder.or_(builder.shl(result, wide(8 * step)), value)
        done += step
    return result


def bounded(builder: ir.IRBuilder, at: ir.Value) -> ir.Value:
    """The offset ``at`` with its bound known to the verifier.  LLVM may keep the offsets of two extension headers in
    one register, and load half of it from the stack, of which the verifier knows nothing; LLVM knows the bound itself,
    so the value is hidden from it."""
    hide = ir.InlineAsm(ir.FunctionType(I32, [I32]), "", "=r,0")
    return builder.and_(builder.call(hide, [at], attrs=("nounwind", "readnone")), I32(MAX_AT))


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

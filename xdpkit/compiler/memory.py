"""IR for what rules remember: look-ups in sets, limits, samples, and steps.

Maps and the functions on them are C templates (``bpf/set.bpf.c``, ``bpf/limit.bpf.c``).  :attr:`Memory.templates` lists
the copies that a pipeline needs, and the linker makes them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property

from llvmlite import ir

from ..language.actions import Mark, Mirror, Step
from ..language.fields import FieldSpec
from ..language.limits import COST_SHIFT, Bucket, Limit, Log, Sample
from ..language.rule import Rule
from ..language.sets import MAX_KEY_BYTES, Add, Member, SetSpec
from .classify import MARK, MARKED, MIRROR, MIRROR_RULE, Classify
from .names import limit_symbol, set_symbol
from .read import Reader

I8, I32, I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
VOID, POINTER = ir.VoidType(), I8.as_pointer()
#: With up to this many sets that are looked up more than once, the verifier may try for each set both that its map is
#: there and that it is not.
FEW_SETS = 2
#: Copies of whole packets are as long as the packet.
WHOLE = 0xFFFFFFFF


class Memory:
    """Writes the sets, limits and steps of one pipeline into ``classify``."""

    def __init__(self, classify: Classify, reader: Reader):
        self.classify, self.reader = classify, reader
        pipeline = classify.pipeline
        self.numbers = {limit.bucket: number for number, limit in enumerate(pipeline.limits)}
        #: Symbol to template of each copy that is called.
        self.templates: dict[str, str] = {}
        #: How often each set is looked up or added to, at most, by the rules of a shadow (True) and by those that act.
        self.lookups = {
            True: lookups(classify.plan.shadow.chained if classify.plan.shadow else ()),
            False: lookups(classify.plan.acting.chained),
        }

    def call(
        self, builder: ir.IRBuilder, template: str, symbol: str, what: str, arguments: Sequence[ir.Value],
        result: ir.Type = I32,
    ) -> ir.Value:  # fmt: skip
        """Call the function ``what`` of a template's copy."""
        self.templates[symbol] = template
        name, module = f"{symbol}_{what}", self.classify.module
        if name not in module.globals:
            ir.Function(module, ir.FunctionType(result, [a.type for a in arguments]), name)
        return builder.call(module.globals[name], list(arguments))

    def members(self, builder: ir.IRBuilder, spec: SetSpec) -> ir.Value:
        """The map of a set's members.  A set that is looked up more than once is fetched once for all rules of a
        section.

        The map is always there, but the verifier does not know that.  Where a map is first used it follows both cases,
        and the cases of several sets multiply.  So where there are many sets, the code goes on to the rules only if all
        maps are there."""

        def ask(at: ir.IRBuilder) -> ir.Value:
            members = self.call(at, "set", set_symbol(spec.name), "members", [], POINTER)
            if often > FEW_SETS:
                self.classify.require(at, at.icmp_unsigned("!=", members, POINTER(None)))
            return members

        found = self.lookups[self.classify.after_shadow is not None]
        often = sum(times > 1 for times in found.values()) if found[spec.name] > 1 else 0
        return self.classify.once(f"set {spec.name}", ask) if often else ask(builder)

    @cached_property
    def room(self) -> ir.Value:
        """A variable for a key, aligned so that fields can be stored whole."""
        first = self.classify.registers.first
        builder = ir.IRBuilder(first)
        builder.position_at_start(first)
        return builder.bitcast(builder.alloca(ir.ArrayType(I64, (MAX_KEY_BYTES + 4 + 7) // 8), name="key"), POINTER)

    def key(
        self, builder: ir.IRBuilder, fields: Sequence[FieldSpec], key_bytes: int, no: ir.Block, bits: int | None = None
    ) -> ir.Value:
        """Pointer to the values of ``fields``, whose headers are known to be there, in network order and filled up with
        zeros; ``bits`` goes in front, as the length of a prefix.  Branches to ``no`` where payload is missing."""
        values = [self.reader.field(builder, spec, no) for spec in fields]  # a field may be read through the same room
        start = 0 if bits is None else 4
        if bits is not None:
            builder.store(I32(bits), self.at(builder, 0, 32))
        at = start
        for spec, value in zip(fields, values, strict=True):
            size = (spec.bits + 7) // 8
            for offset, step in pieces(at, size):
                width = 8 * step
                part = fitted(builder, value, 8 * (at + size - offset - step), width)
                builder.store(builder.bswap(part) if step > 1 else part, self.at(builder, offset, width))
            at += size
        for offset, step in pieces(at, start + key_bytes - at):
            builder.store(ir.Constant(ir.IntType(8 * step), 0), self.at(builder, offset, 8 * step))
        return self.room

    def at(self, builder: ir.IRBuilder, offset: int, width: int) -> ir.Value:
        """The address ``offset`` bytes into the room, for an integer of ``width`` bits."""
        place = builder.gep(self.room, [I64(offset)], source_etype=I8)
        return builder.bitcast(place, ir.IntType(width).as_pointer())

    def there(self, builder: ir.IRBuilder, fields: Sequence[FieldSpec], no: ir.Block) -> None:
        """Go on only where the headers of ``fields`` are present."""
        missing = {spec.header for spec in fields if spec.header} - self.classify.present
        if missing:
            there = self.classify.block("there")
            builder.cbranch(self.reader.present(builder, missing), there, no)
            builder.position_at_end(there)

    def find(self, builder: ir.IRBuilder, expr: Member, no: ir.Block) -> ir.Value:
        """i32: 1 + the action of the member that fits, 0 for none."""
        self.there(builder, expr.fields, no)
        spec = expr.set
        bits = spec.key_bits if spec.intervals else None
        key = self.key(builder, expr.fields, spec.key_bytes, no, bits)
        members = self.members(builder, spec)
        arguments = [members, builder.bitcast(key, I32.as_pointer()), I32(int(spec.timeouts)), I32(bits or 0)]
        return self.call(builder, "set", set_symbol(spec.name), "find", arguments)

    def take(self, builder: ir.IRBuilder, limit: Limit, no: ir.Block) -> ir.Value:
        """i1: the packet is within the limit, and has taken its part of it."""
        self.there(builder, limit.per, no)
        key = self.key(builder, limit.per, limit.key_bytes, no)
        cost: ir.Value = I64(limit.cost(0))
        if limit.in_bytes:
            length = builder.zext(self.reader.member("len"), I64)
            cost = builder.lshr(builder.mul(length, I64(limit.unit_cost)), I64(COST_SHIFT))
        symbol = limit_symbol(self.numbers[limit.bucket])
        taken = self.call(builder, "limit", symbol, "take", [key, cost, I64(limit.tolerance)])
        return builder.icmp_unsigned("!=", taken, I32(0))

    def count(self, builder: ir.IRBuilder, expr: Bucket, more: ir.Value, no: ir.Block) -> ir.Value:
        """i64: the number in the bucket of ``expr``, before ``more`` is added to it."""
        self.there(builder, expr.per, no)
        key = self.key(builder, expr.per, expr.key_bytes, no)
        return self.call(builder, "limit", limit_symbol(self.numbers[expr.bucket]), "add", [key, more], I64)

    def drawn(self, builder: ir.IRBuilder, mod: int) -> ir.Value:
        """i64: a number of 0 to ``mod`` - 1."""
        bits = builder.zext(builder.call(self.classify.external("random_bits"), []), I64)
        return builder.lshr(builder.mul(bits, I64(mod)), I64(32))

    def sampled(self, builder: ir.IRBuilder, sample: Sample) -> ir.Value:
        """i1: the packet is in the sample."""
        drawn = builder.zext(builder.call(self.classify.external("random_bits"), []), I64)
        return builder.icmp_unsigned("<", drawn, I64(sample.threshold))

    def do(self, builder: ir.IRBuilder, step: Step, index: int, rule: Rule) -> None:
        """Write a step of rule number ``index``."""
        after = self.classify.block("after")
        match step:
            case Mark():
                self.classify.store(builder, MARK, I32(step.value))
                self.classify.store(builder, MARKED, I32(1))
            case Mirror():
                self.mirror(builder, step, index)
            case Log():
                logged = self.classify.block("log")
                builder.cbranch(self.take(builder, step.limit, after), logged, after)
                builder.position_at_end(logged)
                packet, source, _ = self.classify.function.args
                builder.call(self.classify.external("log_packet"), [source, packet, I32(index)])
            case Add():
                self.there(builder, step.fields, after)
                spec = step.set
                bits = spec.key_bits if spec.intervals else None
                key = self.key(builder, step.fields, spec.key_bytes, after, bits)
                timeout = I64(round(step.timeout * 1e9))
                arguments = [
                    self.members(builder, spec),
                    builder.bitcast(key, I32.as_pointer()),
                    timeout,
                    I32(bits or 0),
                ]
                done = self.call(builder, "set", set_symbol(spec.name), "add", arguments)
                full = self.classify.block("full")
                builder.cbranch(builder.icmp_unsigned("!=", done, I32(0)), after, full)
                builder.position_at_end(full)
                builder.call(self.classify.external("count_failed"), [I32(index)])
        builder.branch(after)
        builder.position_at_end(after)

    def mirror(self, builder: ir.IRBuilder, step: Mirror, index: int) -> None:
        """Note for the entry of the hook that a copy is wanted: as long as the longest that a rule requests, with the
        number of the first rule that requests one."""
        before = builder.load(self.classify.place(builder, MIRROR))
        wanted = I32(step.bytes or WHOLE)
        first = builder.icmp_unsigned("==", before, I32(0))
        rule = builder.select(first, I32(index), builder.load(self.classify.place(builder, MIRROR_RULE)))
        self.classify.store(builder, MIRROR_RULE, rule)
        self.classify.store(builder, MIRROR, builder.select(builder.icmp_unsigned(">", before, wanted), before, wanted))


def lookups(rules: Iterable[Rule]) -> Counter[str]:
    """How often a packet is looked up in each set or added to it, at most."""
    found = Counter[str]()
    for rule in rules:
        found.update(node.set.name for node in rule.nodes() if isinstance(node, Member))
        found.update(step.set.name for step in rule.steps if isinstance(step, Add))
    return found


def fitted(builder: ir.IRBuilder, value: ir.Value, shift: int, width: int) -> ir.Value:
    """``width`` bits of ``value`` from bit ``shift`` on; bits beyond the width of ``value`` are 0."""
    value = builder.lshr(value, value.type(shift)) if shift else value
    if value.type.width > width:
        return builder.trunc(value, ir.IntType(width))
    return builder.zext(value, ir.IntType(width)) if value.type.width < width else value


def pieces(at: int, size: int) -> list[tuple[int, int]]:
    """(offset, bytes) of the largest aligned stores that cover ``size`` bytes from ``at`` on."""
    found = []
    while size > 0:
        step = next(n for n in (8, 4, 2, 1) if n <= size and at % n == 0)
        found.append((at, step))
        at, size = at + step, size - step
    return found

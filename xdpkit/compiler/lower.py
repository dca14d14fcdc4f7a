"""Lowering: a pipeline becomes the LLVM IR of ``classify(const struct packet *, struct source *, struct steps *)``.

Each condition is lowered to branches (``lower_expr(expr, builder, yes, no)``), so that tests short-circuit and each
one keeps the Python line that wrote it as its debug location: the verifier's log and ``bpftool prog dump xlated linum``
then show that line.  What several rules ask is asked once (read.py), and neighbouring rules that need the same
headers form a group.  A rule that takes the packet returns a constant (``outcome``); one that goes on is counted, does
its steps, and the next one is tried.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, singledispatchmethod
from itertools import groupby

from llvmlite import ir

from ..language.actions import Action, Forward, Mark, Mirror, Redirect, Shadow, Verdict
from ..language.classic import Classic
from ..language.errors import Where
from ..language.expr import Always, And, Expr, Intervals, Not, Or, Present, Test
from ..language.fields import INNER, METADATA
from ..language.limits import Limit, Log, Sample
from ..language.metadata import TOLD
from ..language.pipeline import Pipeline
from ..language.rule import Rule
from ..language.sets import Member
from . import TableInfo
from .lower_classic import Registers, lower_classic
from .memory import SHADOW, Memory
from .read import Reader, fields_asked, headers_asked, reachable
from .rule_tables import Table, Tables, tables
from .turns import Turns

I8, I32, I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
VOID = ir.VoidType()
#: Up to so many rules that are tested one by one get all that LLVM's -O2 does, unless they branch much: of more than so
#: many rules that ask sets, the headers inside or the payload, and for more than so many different things.
FEW, FEW_ASK, FEW_ASKED = 32, 8, 2
#: Of more than so many rules LLVM keeps where headers start in halves of words of the stack, where the verifier does
#: not follow bounds: at TC they are bounded again where they are used, and what the walk finds is kept in a map.
FEW_BOUNDS = 11
#: From this many rules on, or more than FEW that look up sets, what one test finds out is not carried into the next
#: (see unknown()).
MANY = 128
#: So many entries of tables on a packet's way the verifier can follow once for each way through the headers.
DEEP = 16
POINTER = I8.as_pointer()
#: Functions of the data plane that generated code calls (bpf/load.h): result, then arguments.
EXTERNAL = {
    **{f"{kind}{bits}": (I64, POINTER, I64) for kind in ("load", "fixed", "known") for bits in (8, 16, 32)},
    "loop": (I32, POINTER, POINTER, I32, I32),
    "descend": (I32, POINTER, I32, I32, POINTER, I32, I32),
    "draw": (I32,),
    "passed": (VOID, POINTER, I32),
    "failed": (VOID, I32),
    "log_packet": (VOID, POINTER, POINTER, I32),
    "begin_again": (VOID, POINTER, POINTER, POINTER),
    "header": (I32, POINTER, I32, I32, POINTER, POINTER.as_pointer()),
    "bytes": (I32, POINTER, I32, I32, I32, POINTER, POINTER.as_pointer()),
}


@dataclass(frozen=True, slots=True)
class Lowered:
    """The IR of ``classify`` as text; the ``parts`` of the data plane it needs besides the hook's own; the copies of
    ``templates`` it calls, by symbol; how many rules are ``chained``, tested one by one, whether those are a ``large``
    program, and the ``tables`` of the others; ``name`` and ``where`` are the pipeline's.  ``spacious``: what the walk
    finds is kept in a map at every hook, because rules are tried beside those that act, or many read many headers."""

    text: str
    parts: tuple[str, ...]
    templates: dict[str, str]
    chained: int
    large: bool
    tables: tuple[TableInfo, ...]
    spacious: bool
    name: str
    where: Where


def lower(pipeline: Pipeline, tells: Sequence[str] = ()) -> Lowered:
    """The IR of ``classify`` for ``pipeline``; ``tells``: metadata for readers, names of TOLD."""
    lowering = Lowering(pipeline, tells)
    return Lowered(
        lowering.text(),
        lowering.parts,
        lowering.memory.templates,
        lowering.chained,
        lowering.large,
        tuple(lowering.tables.made),
        spacious=pipeline.shadowed is not None or (lowering.large and lowering.reader.blurred),
        name=pipeline.name,
        where=pipeline.where,
    )


class Lowering:
    """One pipeline on its way to IR."""

    def __init__(self, pipeline: Pipeline, tells: Sequence[str]):
        self.pipeline = pipeline
        self.module = ir.Module(name=pipeline.name)
        self.debug = DebugInfo(self.module, pipeline.where)
        self.function = ir.Function(self.module, ir.FunctionType(I32, [POINTER, POINTER, POINTER]), "classify")
        self.function.attributes.add("alwaysinline")
        self.function.set_metadata("dbg", self.debug.subprogram)
        self.registers = Registers(self.function)
        beside = list(reachable(pipeline.shadowed, len(pipeline.outcomes))) if pipeline.shadowed is not None else []
        rules = list(reachable(pipeline))
        headers = len(set(headers_asked(rule for _, rule in [*beside, *rules])))
        sections = [list(tables(section, headers)) for section in (beside, rules)]
        runs = [run for section in sections for run in section]
        found = [run for run in runs if isinstance(run, Table)]
        chained = [rule for run in runs if isinstance(run, list) for _, rule in run]
        self.reader = Reader(self, pipeline, chained, (header for table in found for header in table.boxes.headers))
        self.reader.blurred |= bool(beside) or sum(table.info().depth for table in found) > DEEP
        self.tables = Tables(self, found)
        self.memory = Memory(self, pipeline)
        remembering = sum(any(isinstance(node, Member) for node in rule.nodes()) for rule in chained)
        self.chained = len(chained)
        self.many = self.chained > MANY or remembering > FEW
        self.large = self.chained > FEW or is_branchy(chained)
        self.roomy = self.large or self.chained > FEW_BOUNDS
        self.known: frozenset[str] = frozenset()
        self.targets = {
            kind: {name: n for n, name in enumerate(pipeline.targets(kind))} for kind in (Forward, Redirect)
        }
        builder = ir.IRBuilder(self.registers.body)
        #: The block, in front of all rules of a section, for what they have in common.
        self.first = self.registers.first
        #: Where rules that are only tried go on, once one of them has taken the packet; None in those that act.
        self.tried = self.block("tried") if beside else None
        #: The last rule of the section that is lowered: it takes every packet.
        self.last = rules[-1]
        if self.tried is not None:
            self.last = beside[-1]
            self.lower_runs(sections[0], builder)
            builder.unreachable()
            self.act(builder, self.tried)
            self.last = rules[-1]
        self.lower_runs(sections[1], builder)
        builder.unreachable()
        self.constant("reads_headers", I32(int(not self.reader.read <= set(METADATA))))
        self.constant("wanted", I64(self.reader.wanted))
        self.constant("verdicts", I32(sum(1 << Verdict[name] for name in pipeline.verdicts)))
        self.constant("marks", I32(int(Mark in pipeline.steps)))
        self.constant("mirrors", I32(int(Mirror in pipeline.steps)))
        self.constant("tells", I32(sum(1 << TOLD.index(name) for name in tells)))
        self.constant("pairs", I32(len(pipeline.every_rule) if beside else 0))
        if "tunnel" not in self.parts:
            self.nothing("walk_tunnel", POINTER, POINTER, I32, I32, I32)
        if "mirror" not in self.parts:
            self.nothing("mirror", POINTER, POINTER, POINTER, I32)

    def act(self, builder: ir.IRBuilder, tried: ir.Block) -> None:
        """Begin with the rules that act, behind those that were ``tried``, as if there had been none: nothing that was
        computed for those is used again (bpf/beside.h says why)."""
        self.tried, self.first = None, tried
        self.reader.values.clear()
        builder.position_at_end(tried)
        builder.debug_metadata = self.debug.location(self.pipeline.where)
        packet, source, steps = self.function.args
        builder.call(self.external("begin_again"), [source, packet, steps])
        acting = self.block("acting")
        builder.branch(acting)
        builder.position_at_end(acting)

    @property
    def parts(self) -> tuple[str, ...]:
        """The modules of the hook that the rules need."""
        copies = not self.pipeline.steps.isdisjoint({Mirror, Log})
        return ("tunnel",) * self.reader.tunnels + ("mirror",) * copies

    def lower_runs(self, runs: list[Table | list[tuple[int, Rule]]], builder: ir.IRBuilder) -> None:
        """Rules in order: tables, and tests."""
        for run in runs:
            if isinstance(run, Table):
                self.tables.lower(run, builder)
                continue
            for headers, group in groupby(run, key=lambda pair: asked_first(pair[1].expr)):
                self.lower_group(headers, list(group), builder)

    def lower_group(self, headers: frozenset[str], rules: list[tuple[int, Rule]], builder: ir.IRBuilder) -> None:
        """Neighbouring rules that can hold only where ``headers`` are present: that is asked once, for all of them."""
        past = self.block("past")
        if headers:
            inside = self.block("group")
            builder.debug_metadata = self.debug.location(rules[0][1].where)
            builder.cbranch(self.reader.present(builder, headers), inside, past)
            builder.position_at_end(inside)
        with self.knowing(headers), self.reader.hoisting(builder, headers, (rule for _, rule in rules), past):
            for _, run in groupby(rules, key=asked_once):
                self.lower_rules(list(run), builder)
        builder.debug_metadata = self.debug.location(rules[-1][1].where)
        builder.branch(past)
        builder.position_at_end(past)

    def lower_rules(self, rules: list[tuple[int, Rule]], builder: ir.IRBuilder) -> None:
        """One rule, or those of one verdict map, which is asked once."""
        index, rule = rules[0]
        skip = self.block("skip")
        if rule.lookup is not None:
            self.lower_vmap(rules, builder, skip)
        else:
            take = self.block("take")
            self.lower_expr(rule.expr, builder, take, skip)
            builder.position_at_end(take)
            builder.debug_metadata = self.debug.location(rule.where)
            self.lower_end(index, rule, builder, skip)
        builder.position_at_end(skip)

    def lower_vmap(self, rules: list[tuple[int, Rule]], builder: ir.IRBuilder, skip: ir.Block) -> None:
        """A look-up, and for each of the map's actions the end of its rule."""
        _, rule = rules[0]
        assert rule.lookup is not None
        base = rule.expr.terms[:-1] if isinstance(rule.expr, And) else ()
        with ExitStack() as stack:
            for term in base:
                more = self.block("and")
                self.lower_expr(term, builder, more, skip)
                builder.position_at_end(more)
                stack.enter_context(self.knowing(required(term)))
            builder.debug_metadata = self.debug.location(rule.where)
            switch = builder.switch(self.memory.find(builder, rule.lookup, skip), skip)
        for index, one in rules:
            member = one.expr.terms[-1] if isinstance(one.expr, And) else one.expr
            assert isinstance(member, Member)
            assert member.action is not None
            end = self.block("take")
            switch.add_case(I32(1 + member.action), end)
            builder.position_at_end(end)
            self.lower_end(index, one, builder, skip)

    def lower_end(self, index: int, rule: Rule, builder: ir.IRBuilder, skip: ir.Block) -> None:
        """What a rule that holds does: its steps, and then its verdict, or the next rule."""
        if rule.goes_on:
            builder.call(self.external("passed"), [self.function.args[0], I32(index)])
        for step in rule.steps:
            self.memory.do(builder, step, index, rule)
        if rule.goes_on:
            builder.branch(skip)
        else:
            self.finish(builder, I32(self.outcome(index, rule)))

    def surely(self, builder: ir.IRBuilder, holds: ir.Value) -> None:
        """What is first of a section goes on only where ``holds``, as it always does; else the last rule takes the
        packet.  ``builder`` stands at the end of the first block."""
        more, never = self.block("more"), self.block("never")
        start = self.first.terminator
        builder.remove(start)
        builder.position_at_end(self.first)
        builder.cbranch(holds, more, never)
        self.first = more
        builder.position_at_end(more)
        builder.branch(start.operands[0])
        builder.position_at_end(never)
        self.finish(builder, I32(self.outcome(*self.last)))

    def finish(self, builder: ir.IRBuilder, outcome: ir.Value) -> None:
        """A rule takes the packet: return its outcome; or, of rules that are only tried, count it and go on to those
        that act."""
        if self.tried is None:
            builder.ret(outcome)
            return
        builder.call(self.external("passed"), [self.function.args[0], builder.lshr(outcome, I32(16))])
        self.memory.store(builder, SHADOW, builder.and_(outcome, I32(7)))
        builder.branch(self.tried)

    def outcome(self, index: int, rule: Rule) -> int:
        """What classify() returns for ``rule``, number ``index``: see bpf/act.h."""
        action: Action = (
            rule.action.would if isinstance(rule.action, Shadow) and self.tried is not None else rule.action
        )
        target = 0
        if isinstance(action, Forward):
            target = self.targets[Forward].get(action.device, 0)
        elif isinstance(action, Redirect):
            target = self.targets[Redirect].get(action.group, 0)
        return index << 16 | target << 6 | action.fallback.verdict << 3 | action.verdict

    @contextmanager
    def knowing(self, headers: frozenset[str]) -> Iterator[None]:
        """What is lowered inside runs only where ``headers`` are present."""
        before = self.known
        self.known |= headers
        yield
        self.known = before

    def text(self) -> str:
        """The module as LLVM assembly."""
        return str(self.module)

    def constant(self, name: str, value: ir.Constant) -> None:
        """A function that returns ``value``."""
        function = ir.Function(self.module, ir.FunctionType(value.type, []), name)
        function.attributes.add("alwaysinline")
        ir.IRBuilder(function.append_basic_block()).ret(value)

    def nothing(self, name: str, *arguments: ir.Type) -> None:
        """A function of the data plane that does nothing here."""
        function = ir.Function(self.module, ir.FunctionType(VOID, arguments), name)
        function.attributes.add("alwaysinline")
        ir.IRBuilder(function.append_basic_block()).ret_void()

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
        if expr.header in self.known:
            builder.branch(yes)
        else:
            builder.cbranch(self.reader.present(builder, {expr.header}), yes, no)

    @lower_expr.register
    def _(self, expr: Test, builder: ir.IRBuilder, yes: ir.Block, no: ir.Block) -> None:
        builder.debug_metadata = self.debug.location(expr.where)
        if expr.spec.header is not None and expr.spec.header not in self.known:
            there = self.block("there")
            builder.cbranch(self.reader.present(builder, {expr.spec.header}), there, no)
            builder.position_at_end(there)
        value = self.reader.field(builder, expr.spec, no)
        if expr.mask is not None:
            value = builder.and_(value, value.type(expr.mask))
        if self.many:
            value = unknown(builder, value)
        builder.cbranch(in_intervals(builder, value, expr.intervals), yes, no)

    @lower_expr.register
    def _(self, expr: Not, builder: ir.IRBuilder, yes: ir.Block, no: ir.Block) -> None:
        self.lower_expr(expr.term, builder, no, yes)

    @lower_expr.register
    def _(self, expr: And, builder: ir.IRBuilder, yes: ir.Block, no: ir.Block) -> None:
        *first, last = expr.terms
        with ExitStack() as stack:
            for term in first:
                more = self.block("and")
                self.lower_expr(term, builder, more, no)
                builder.position_at_end(more)
                stack.enter_context(self.knowing(required(term)))
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
    def _(self, expr: Member, builder: ir.IRBuilder, yes: ir.Block, no: ir.Block) -> None:
        builder.debug_metadata = self.debug.location(expr.where)
        found = self.memory.find(builder, expr, no)
        if expr.action is None:
            builder.cbranch(builder.icmp_unsigned("!=", found, I32(0)), yes, no)
        else:
            builder.cbranch(builder.icmp_unsigned("==", found, I32(1 + expr.action)), yes, no)

    @lower_expr.register
    def _(self, expr: Limit, builder: ir.IRBuilder, yes: ir.Block, no: ir.Block) -> None:
        builder.debug_metadata = self.debug.location(expr.where)
        builder.cbranch(self.memory.take(builder, expr, no), yes, no)

    @lower_expr.register
    def _(self, expr: Sample, builder: ir.IRBuilder, yes: ir.Block, no: ir.Block) -> None:
        builder.debug_metadata = self.debug.location(expr.where)
        builder.cbranch(self.memory.sampled(builder, expr), yes, no)

    @lower_expr.register
    def _(self, expr: Classic, builder: ir.IRBuilder, yes: ir.Block, no: ir.Block) -> None:
        lower_classic(self, expr, builder, yes, no)


def asked_once(numbered: tuple[int, Rule]) -> object:
    """The same for the rules of one verdict map, which is looked up once for all; else another for every rule."""
    index, rule = numbered
    return index if rule.lookup is None else (rule.lookup.set.name, rule.lookup.where)


def is_branchy(rules: Iterable[Rule]) -> bool:
    """Whether ``rules`` ask much of sets, headers inside and payload.

    Each such question is one that may fail.  LLVM, at -O2, makes a way of its own of how several of them turn out,
    which may spare a packet a branch, but the verifier follows each of those ways through all the rules behind."""
    asking, asked = 0, set[str]()
    for rule in rules:
        mine = {node.set.name for node in rule.nodes() if isinstance(node, Member)}
        for spec in fields_asked(rule):
            mine |= {spec.name} if spec.kind == "bytes" else {INNER} if spec.name.startswith(INNER) else set()
        asking, asked = asking + bool(mine), asked | mine
    return asking > FEW_ASK and len(asked) > FEW_ASKED


def required(expr: Expr) -> frozenset[str]:
    """Headers without which ``expr`` is false."""
    match expr:
        case Present():
            return frozenset({expr.header})
        case Test():
            return frozenset({expr.spec.header} if expr.spec.header else ())
        case Member():
            return frozenset(spec.header for spec in expr.fields if spec.header)
        case Limit():
            return frozenset(spec.header for spec in expr.per if spec.header)
        case And():
            return frozenset().union(*map(required, expr.terms))
        case Or():
            return frozenset.intersection(*map(required, expr.terms))
    return frozenset()


def asked_first(expr: Expr) -> frozenset[str]:
    """Those of :func:`required` that may be asked for in front of ``expr``: where one is missing no limit in it is
    tried, and no sample drawn.  What stands behind those must wait for its turn, for they count every packet."""
    if not isinstance(expr, (And, Or)):
        return required(expr)
    if isinstance(expr, Or):
        return frozenset.intersection(*map(asked_first, expr.terms))
    found = frozenset[str]()
    for term in expr.terms:
        found |= asked_first(term)
        if any(isinstance(node, (Limit, Sample)) for node in term.nodes()):
            break
    return found


def unknown(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """``value``, of which neither LLVM nor the verifier knows anything, whatever was asked of it before.

    Both follow what each test says about a field into all tests behind it.  That makes few rules fast; with many it
    takes them time that grows with the square of their number, and the verifier's budget of a million steps ends near
    550 rules.  The assembly statement hides the value from LLVM; the xor in front of it makes a value that the verifier
    does not tie to the field, so that what a branch says about it is forgotten with it.
    """
    if value.type.width > 64:
        high = unknown(builder, builder.trunc(builder.lshr(value, value.type(64)), I64))
        low = unknown(builder, builder.trunc(value, I64))
        wide = builder.shl(builder.zext(high, value.type), value.type(64))
        return builder.or_(wide, builder.zext(low, value.type))
    hide = ir.InlineAsm(ir.FunctionType(I64, [I64]), "", "=r,0")
    hidden = builder.call(hide, [builder.xor(builder.zext(value, I64), I64(1))], attrs=("nounwind", "readnone"))
    return builder.trunc(builder.xor(hidden, I64(1)), value.type)


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
            directory, name = os.path.split(path.encode(errors="replace").decode())  # metadata is UTF-8
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

"""Lowering: a pipeline becomes the LLVM IR of ``classify(const struct packet *, struct source *, struct steps *)``.

Every condition becomes branches (conditions.py).  Each test keeps the Python line that wrote it as its debug location,
and the verifier's log and ``bpftool prog dump xlated linum`` show that line.  A value that several rules need is read
once (read.py), and neighbouring rules that need the same headers form a group.  A rule that takes the packet returns a
constant (``outcome``); a rule that goes on is counted, does its steps, and the next rule is tried.

A chain is written out where a rule jumps to it, once for each such rule: a program has no return address, and for the
verifier a way back that is not known is a way to every caller.  Its rules have one number, and its limits one bucket,
wherever they are written.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby

from llvmlite import ir

from ..language.actions import INSPECTORS, Mark, Mirror, Redirect, Verdict
from ..language.chains import Goto, Jump, Return
from ..language.errors import Where
from ..language.expr import And
from ..language.fields import METADATA, WANTED_META, field_named
from ..language.limits import Log
from ..language.metadata import READER_METADATA
from ..language.pipeline import Pipeline
from ..language.rule import Rule
from ..language.sets import Member
from .classify import Classify
from .compiled import TableInfo
from .conditions import Conditions
from .lower_tables import TableLowering
from .memory import Memory
from .plan import Section, make_plan, required, required_first
from .read import Reader
from .rule_tables import Table

__all__ = ["Lowered", "lower"]

I32, I64 = ir.IntType(32), ir.IntType(64)
POINTER = ir.IntType(8).as_pointer()


@dataclass(frozen=True, slots=True)
class Lowered:
    """A pipeline as LLVM IR, and what linking must know of it.

    ``text``: the IR of ``classify``.  ``parts``: the modules of the data plane that it needs besides that of the hook.
    ``templates``: the copies of templates that it calls, from symbol to template.  ``chained``: how many rules are
    tested one by one.  ``large``: whether these make a large program, which gets fewer of LLVM's passes.  ``tables``:
    the rules that are looked up.  ``packet_in_map``: whether the walk keeps its findings in a map at every hook,
    because there is a shadow or because many rules read many headers.  ``sends``: whether packets may leave by a
    device, so that XDP completes their checksums.  ``name`` and ``where``: those of the pipeline."""

    text: str
    parts: tuple[str, ...]
    templates: dict[str, str]
    chained: int
    large: bool
    tables: tuple[TableInfo, ...]
    packet_in_map: bool
    sends: bool
    name: str
    where: Where


def lower(pipeline: Pipeline, reader_metadata: Sequence[str] = ()) -> Lowered:
    """The IR of ``classify`` for ``pipeline``.  ``reader_metadata``: the metadata that readers request, names of
    READER_METADATA."""
    plan = make_plan(pipeline)
    classify = Classify(plan)
    rules = RuleLowering(classify)
    builder = ir.IRBuilder(classify.registers.body)
    for section in plan.sections:
        if section is plan.acting and plan.shadow is not None:
            classify.start_acting(builder)
        rules.lower_section(section, builder)
        builder.unreachable()
    copies = not pipeline.steps.isdisjoint({Mirror, Log})
    tracks = pipeline.tracking is not None
    parts = ("tunnel",) * plan.tunnels + ("mirror",) * copies + ("track",) * tracks
    rejects = "REJECT" in pipeline.verdicts
    parts += ("reject",) * rejects
    parts += ("inspect",) * (INSPECTORS in pipeline.targets(Redirect))
    _constants(classify, rules.reader, reader_metadata)
    if "tunnel" not in parts:
        classify.empty("walk_tunnel", POINTER, POINTER, I32, I32, I32)
    if "mirror" not in parts:
        classify.empty("mirror", POINTER, POINTER, POINTER, I32)
    if "inspect" not in parts:
        classify.empty("inspect_room", I32, result=I32)
    if "track" not in parts:
        classify.empty("track_find", POINTER, POINTER, result=POINTER)
        classify.empty("track_judge", POINTER, result=I32)
        classify.empty("track_commit", POINTER, result=I32)
        classify.empty("track_count", POINTER)
    if rejects:
        classify.constant("reject_cost", I64(pipeline.rejects.cost(0)))
        classify.constant("reject_tolerance", I64(pipeline.rejects.tolerance))
    else:
        classify.empty("reject", POINTER, I32, I64, I32, I32, result=I32)
    return Lowered(
        str(classify.module),
        parts,
        rules.memory.templates,
        plan.chained,
        plan.large,
        tuple(rules.tables.made),
        packet_in_map=bool(plan.shadow) or (plan.large and plan.hides_headers),
        sends=not pipeline.verdicts.isdisjoint({"FORWARD", "TX"}),
        name=pipeline.name,
        where=pipeline.where,
    )


def _constants(classify: Classify, reader: Reader, reader_metadata: Sequence[str]) -> None:
    """Write the functions that tell the data plane what the rules need; LLVM removes the rest of the data plane."""
    plan, pipeline = classify.plan, classify.pipeline
    classify.constant("reads_headers", I32(int(not plan.read <= set(METADATA))))
    classify.constant("wanted", I64(reader.wanted))
    classify.constant("verdicts", I32(sum(1 << Verdict[name] for name in pipeline.verdicts)))
    tested = {field_named(name).at for name in pipeline.headerless_fields}
    classify.constant("wanted_meta", I32(sum(1 << bit for bit, name in enumerate(WANTED_META) if name in tested)))
    classify.constant("marks", I32(int(Mark in pipeline.steps)))
    classify.constant("mirrors", I32(int(Mirror in pipeline.steps)))
    classify.constant("reader_metadata", I32(sum(1 << READER_METADATA.index(name) for name in reader_metadata)))
    full = pipeline.full_outcome
    classify.constant("tracks", I32(int(pipeline.tracking is not None)))
    classify.constant("full_outcome", I32(0 if full is None else classify.outcome(full, pipeline.outcomes[full])))
    groups = pipeline.targets(Redirect)
    inspectors = groups.index(INSPECTORS) if INSPECTORS in groups else 0
    classify.constant("inspect_group", I32(inspectors))
    classify.constant("pairs", I32(len(pipeline.every_rule) if plan.shadow else 0))


class RuleLowering:
    """Writes the rules of a pipeline into ``classify``, in order."""

    def __init__(self, classify: Classify):
        self.classify = classify
        self.reader = Reader(classify)
        self.memory = Memory(classify, self.reader)
        self.tables = TableLowering(classify, self.reader)
        self.conditions = Conditions(classify, self.reader, self.memory)
        self.section = classify.plan.sections[0]
        #: Where packets go on behind the chain that is written now.
        self.back: ir.Block

    def lower_section(self, section: Section, builder: ir.IRBuilder) -> None:
        """Write the pipeline's own rules, the chains wherever a rule leads to them, and the default behind all."""
        self.section, self.back = section, self.classify.block("default")
        self._chain("", builder)
        blocks = self.classify.function.blocks
        blocks.append(blocks.pop(blocks.index(self.back)))  # LLVM lays blocks out in the order in which they are here
        builder.position_at_end(self.back)
        number, rule = section.default
        builder.debug_metadata = self.classify.debug.location(rule.where)
        self.classify.finish(builder, I32(self.classify.outcome(number, rule)))
        builder.position_at_end(self.classify.block("never"))

    def _chain(self, name: str, builder: ir.IRBuilder) -> None:
        """Write the rules of a chain in order; a part of it is a table or a list of rules that are tested.  At its end
        the packet goes back."""
        for part in self.section.chains[name]:
            if isinstance(part, Table):
                self.tables.lower(part, builder)
                continue
            for headers, group in groupby(part, key=lambda pair: required_first(pair[1].expr)):
                self._group(headers, list(group), builder)
        builder.branch(self.back)

    def _lead_to(self, name: str, builder: ir.IRBuilder, back: ir.Block) -> None:
        """Write chain ``name`` out, from which packets go back to ``back``."""
        before, self.back = self.back, back
        self._chain(name, builder)
        self.back = before

    def _group(self, headers: frozenset[str], rules: list[tuple[int, Rule]], builder: ir.IRBuilder) -> None:
        """Write neighbouring rules that can hold only where ``headers`` are present; one test for the headers stands in
        front of all of them."""
        past = self.classify.block("past")
        if headers:
            inside = self.classify.block("group")
            builder.debug_metadata = self.classify.debug.location(rules[0][1].where)
            builder.cbranch(self.reader.present(builder, headers), inside, past)
            builder.position_at_end(inside)
        with self.classify.knowing(headers), self.reader.hoisting(builder, headers, (rule for _, rule in rules), past):
            for _, run in groupby(rules, key=lookup_of):
                self._rules(list(run), builder)
        builder.debug_metadata = self.classify.debug.location(rules[-1][1].where)
        builder.branch(past)
        builder.position_at_end(past)

    def _rules(self, rules: list[tuple[int, Rule]], builder: ir.IRBuilder) -> None:
        """Write one rule, or the rules of one verdict map, which share one look-up."""
        index, rule = rules[0]
        skip = self.classify.block("skip")
        if rule.lookup is not None:
            self._vmap(rules, builder, skip)
        else:
            take = self.classify.block("take")
            self.conditions.lower(rule.expr, builder, take, skip)
            builder.position_at_end(take)
            builder.debug_metadata = self.classify.debug.location(rule.where)
            self._end(index, rule, builder, skip)
        builder.position_at_end(skip)

    def _vmap(self, rules: list[tuple[int, Rule]], builder: ir.IRBuilder, skip: ir.Block) -> None:
        """Write the look-up of a verdict map, and for each of the map's actions the end of its rule."""
        _, rule = rules[0]
        assert rule.lookup is not None
        base = rule.expr.terms[:-1] if isinstance(rule.expr, And) else ()
        with ExitStack() as stack:
            for term in base:
                more = self.classify.block("and")
                self.conditions.lower(term, builder, more, skip)
                builder.position_at_end(more)
                stack.enter_context(self.classify.knowing(required(term)))
            builder.debug_metadata = self.classify.debug.location(rule.where)
            switch = builder.switch(self.memory.find(builder, rule.lookup, skip), skip)
        for index, one in rules:
            member = one.expr.terms[-1] if isinstance(one.expr, And) else one.expr
            assert isinstance(member, Member)
            assert member.action is not None
            end = self.classify.block("take")
            switch.add_case(I32(1 + member.action), end)
            builder.position_at_end(end)
            self._end(index, one, builder, skip)

    def _end(self, index: int, rule: Rule, builder: ir.IRBuilder, skip: ir.Block) -> None:
        """Write what happens where a rule holds: its steps, and then its verdict, the next rule or another chain."""
        if rule.goes_on:
            builder.call(self.classify.external("count_passed"), [self.classify.function.args[0], I32(index)])
        for step in rule.steps:
            self.memory.do(builder, step, index, rule)
        match rule.action:
            case Goto():
                self._lead_to(rule.action.chain.name, builder, self.back)
            case Jump():
                self._lead_to(rule.action.chain.name, builder, skip)
            case Return():
                builder.branch(self.back)
            case _ if rule.goes_on:
                builder.branch(skip)
            case _:
                self.classify.finish(builder, I32(self.classify.outcome(index, rule)))


def lookup_of(numbered: tuple[int, Rule]) -> object:
    """A key to group rules by: the rules of one verdict map have the same key, so that they share one look-up; any
    other rule has a key of its own."""
    index, rule = numbered
    return index if rule.lookup is None else (rule.lookup.set.name, rule.lookup.where)

"""The plan of a program: which rules become tables and which become tests, and which measures their number and kind
call for.  This module makes no IR; it only looks at the rules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..language.chains import MAX_COPIES
from ..language.counted import Draw
from ..language.errors import PipelineError
from ..language.expr import Always, And, Expr, Or, Present, Test
from ..language.fields import INNER, TUNNEL
from ..language.limits import Bucket, Sample
from ..language.pipeline import Pipeline
from ..language.rule import Rule
from ..language.sets import Member
from .rule_tables import Table, tables

#: Up to FEW rules that are tested one by one get all passes of LLVM's -O2, unless they branch much: more than
#: FEW_BRANCHY_RULES of them test sets, headers inside a tunnel or payload, of more than FEW_BRANCHY_FIELDS kinds.
FEW, FEW_BRANCHY_RULES, FEW_BRANCHY_FIELDS = 32, 4, 2
#: With more rules than this, LLVM keeps the offsets of headers in half words of the stack, and the verifier knows no
#: bounds of those.  So at TC what the walk finds is kept in a map, and an offset is bounded again where it is used.
FEW_BOUNDS = 11
#: With this many rules or more, or with more than FEW rules that look up sets, the result of one test is hidden from
#: the next (see unknown()).
MANY = 128
#: The verifier can follow this many table entries on a packet's path once for each path through the headers.
DEEP = 16
#: Where rules read more headers than this, or make more tests, the findings of the walk are hidden from the verifier
#: (bpf/packet.h).
MANY_HEADERS, MANY_TESTS = 10, 1000

#: The headers that REJECT looks at, and those that tracking does.
ANSWERED = frozenset({"ip", "ip6", "frag", "tcp", "icmp", "icmp6"})
TRACKED = frozenset({"vlan", "vlan2", "ip", "ip6", "frag", "tcp", "udp", "sctp", "icmp", "icmp6"})

#: Rules in order with their numbers: a table, or some that are tested one by one.
Part = Table | list[tuple[int, Rule]]


@dataclass(frozen=True, slots=True)
class Section:
    """The rules of one pipeline that a packet may come to.  ``chains``: those of each chain by its name, and the
    pipeline's own under "".  ``copies``: how often each is written out: a chain wherever a rule jumps to it.
    ``default``: the rule that takes what is left, with its number."""

    chains: dict[str, tuple[Part, ...]]
    copies: dict[str, int]
    default: tuple[int, Rule]

    @property
    def tables(self) -> list[Table]:
        """The tables."""
        return [part for parts in self.chains.values() for part in parts if isinstance(part, Table)]

    @property
    def chained(self) -> list[Rule]:
        """The rules that are tested one by one, as often as they are written out."""
        found: list[Rule] = []
        for name, parts in self.chains.items():
            mine = [rule for part in parts if isinstance(part, list) for _, rule in part]
            found += mine * self.copies[name]
        return found


@dataclass(frozen=True, slots=True)
class Plan:
    """How the rules of ``pipeline`` become a program.

    ``shadow`` and ``acting``: the two sections of rules; the first is None without a shadow.  ``read``: the headers
    that the rules read.  ``chained``: how many rules are tested one by one, those of a chain counted as often as it is
    written out.  ``large``: whether the program gets fewer of LLVM's passes.  ``hides_values``: whether the result of
    one test is hidden from the next.  ``hides_headers``: whether the findings of the walk are hidden from the verifier.
    ``headers_in_map``: whether they are kept in a map at TC."""

    pipeline: Pipeline
    shadow: Section | None
    acting: Section
    read: frozenset[str]
    chained: int
    large: bool
    hides_values: bool
    hides_headers: bool
    headers_in_map: bool

    @property
    def sections(self) -> list[Section]:
        """The sections, in the order in which a packet comes to them."""
        return [section for section in (self.shadow, self.acting) if section is not None]

    @property
    def tables(self) -> list[Table]:
        """The tables of both sections."""
        return [table for section in self.sections for table in section.tables]

    @property
    def tunnels(self) -> bool:
        """Whether the rules read what the walk into tunnels finds."""
        return self.reads_inside or not self.read.isdisjoint(TUNNEL)

    @property
    def reads_inside(self) -> bool:
        """Whether the rules read headers inside a tunnel."""
        return any(name.startswith(INNER) for name in self.read)


def make_plan(pipeline: Pipeline) -> Plan:
    """The plan for ``pipeline``."""
    both = [(pipeline, 0)]
    if pipeline.shadowed is not None:
        both.append((pipeline.shadowed, len(pipeline.outcomes)))
    reached = [reachable(each, first) for each, first in both]
    rules = [rule for chains in reached for numbered in chains.values() for _, rule in numbered]
    headers = len(set(headers_read(rules)))
    sections = [
        Section(
            {name: tuple(parts) for name, parts in tables(chains, headers).items()},
            copies(each, chains),
            (first + len(each.outcomes) - 1, each.outcomes[-1]),
        )
        for (each, first), chains in zip(both, reached, strict=True)
    ]
    found = [table for section in sections for table in section.tables]
    chained = [rule for section in sections for rule in section.chained]
    tested = [*headers_read(chained), *(header for table in found for header in table.boxes.headers)]
    read = frozenset(tested)
    if pipeline.tracking is not None:
        read |= TRACKED
    if "REJECT" in pipeline.verdicts:
        read |= ANSWERED
    inside = any(name.startswith(INNER) for name in read)
    large = len(chained) > FEW or is_branchy(chained)
    return Plan(
        pipeline,
        shadow=sections[1] if len(sections) > 1 else None,
        acting=sections[0],
        read=read,
        chained=len(chained),
        large=large,
        hides_values=len(chained) > MANY or sum(map(looks_up, chained)) > FEW,
        hides_headers=len(read) > (1 if inside else MANY_HEADERS)
        or len(tested) > MANY_TESTS
        or len(sections) > 1
        or sum(table.info().depth for table in found) > DEEP,
        headers_in_map=large or len(chained) > FEW_BOUNDS,
    )


def looks_up(rule: Rule) -> bool:
    """Whether the condition of ``rule`` looks up a set."""
    return any(isinstance(node, Member) for node in rule.nodes())


def reachable(pipeline: Pipeline, first: int = 0) -> dict[str, list[tuple[int, Rule]]]:
    """The rules of each chain that a packet may come to, and the pipeline's own under "", with their numbers, from
    ``first`` on: up to the first that leaves no packet for those behind it."""
    numbers = {rule.name: number for number, rule in enumerate(pipeline.outcomes, first)}
    found: dict[str, list[tuple[int, Rule]]] = {}
    waiting = [""]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        mine = found[name] = []
        for rule in pipeline.rules_of(name):
            mine.append((numbers[rule.name], rule))
            waiting += [rule.target] if rule.target is not None else []
            if isinstance(rule.expr, Always) and rule.leaves:
                break
    return found


def copies(pipeline: Pipeline, chains: dict[str, list[tuple[int, Rule]]]) -> dict[str, int]:
    """How often each of ``chains`` is written out: once for every way of jumps and gotos that leads to it.
    PipelineError where that is too often."""
    found: dict[str, int] = {"": 1}
    callers = {
        name: [source for source, rules in chains.items() for _, r in rules if r.target == name] for name in chains
    }

    def count(name: str) -> int:
        if name not in found:
            found[name] = sum(map(count, callers[name]))
        return found[name]

    if sum(map(count, chains)) > MAX_COPIES:
        most = max(found, key=lambda name: found[name])
        spec = next(spec for spec in pipeline.chains if spec.name == most)
        raise PipelineError(
            f"{found[most]} ways lead to chain {most!r}, each of which is a copy of its rules in the program; at most "
            f"{MAX_COPIES} for all chains: jump to it from fewer rules of chains that are themselves jumped to often",
            spec.where,
        )
    return found


def headers_read(rules: Iterable[Rule]) -> Iterator[str]:
    """The header of every test of a header or field in the rules, as often as it is tested."""
    for rule in rules:
        yield from (node.header for node in rule.nodes() if isinstance(node, Present))
        yield from (spec.header for spec in rule.fields() if spec.header is not None)


def is_branchy(rules: Iterable[Rule]) -> bool:
    """Whether many of ``rules`` test many different sets, headers inside tunnels and payloads.

    Each such test can fail.  At -O2, LLVM makes a separate path for every combination of the results of several tests.
    That may save a packet a branch, but the verifier follows each path through all the rules behind it."""
    count, found = 0, set[str]()
    for rule in rules:
        mine = {node.set.name for node in rule.nodes() if isinstance(node, Member)}
        for spec in rule.fields():
            mine |= {spec.name} if spec.deep else {INNER} if spec.name.startswith(INNER) else set()
        count, found = count + bool(mine), found | mine
    return count > FEW_BRANCHY_RULES and len(found) > FEW_BRANCHY_FIELDS


def required(expr: Expr) -> frozenset[str]:
    """Headers without which ``expr`` is false."""
    match expr:
        case Present():
            return frozenset({expr.header})
        case Test():
            return frozenset({expr.spec.header} if expr.spec.header else ())
        case Member():
            return frozenset(spec.header for spec in expr.fields if spec.header)
        case Bucket():
            return frozenset(spec.header for spec in expr.per if spec.header)
        case And():
            return frozenset().union(*map(required, expr.terms))
        case Or():
            return frozenset.intersection(*map(required, expr.terms))
    return frozenset()


def required_first(expr: Expr) -> frozenset[str]:
    """The headers of :func:`required` that may be tested before the rest of ``expr``.  Where one of them is missing,
    ``expr`` tries no limit and draws no sample.  Headers that are required only behind a limit or a sample are left
    out, because a limit or sample counts every packet that reaches it."""
    if not isinstance(expr, (And, Or)):
        return required(expr)
    if isinstance(expr, Or):
        return frozenset.intersection(*map(required_first, expr.terms))
    found = frozenset[str]()
    for term in expr.terms:
        found |= required_first(term)
        if any(isinstance(node, (Bucket, Draw, Sample)) for node in term.nodes()):
            break
    return found

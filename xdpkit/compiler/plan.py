"""The plan of a program: which rules become tables and which become tests, and which measures their number and kind
call for.  This module makes no IR; it only looks at the rules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..language.counted import Draw
from ..language.expr import Always, And, Expr, Or, Present, Test
from ..language.fields import INNER, TUNNEL
from ..language.limits import Bucket, Sample
from ..language.pipeline import Pipeline
from ..language.rule import Rule
from ..language.sets import Member
from .rule_tables import Table, tables

#: Up to FEW rules that are tested one by one get all passes of LLVM's -O2, unless they branch much: more than
#: FEW_BRANCHY_RULES of them test sets, headers inside a tunnel or payload, of more than FEW_BRANCHY_FIELDS kinds.
FEW, FEW_BRANCHY_RULES, FEW_BRANCHY_FIELDS = 32, 8, 2
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
class Plan:
    """How the rules of ``pipeline`` become a program.

    ``shadow`` and ``acting``: the two sections of rules; the first is empty without a shadow.  ``read``: the headers
    that the rules read.  ``chained``: how many rules are tested one by one.  ``large``: whether the program gets fewer
    of LLVM's passes.  ``hides_values``: whether the result of one test is hidden from the next.  ``hides_headers``:
    whether the findings of the walk are hidden from the verifier.  ``headers_in_map``: whether they are kept in a map
    at TC."""

    pipeline: Pipeline
    shadow: tuple[Part, ...]
    acting: tuple[Part, ...]
    read: frozenset[str]
    chained: int
    large: bool
    hides_values: bool
    hides_headers: bool
    headers_in_map: bool

    @property
    def tables(self) -> list[Table]:
        """The tables of both sections."""
        return [part for part in (*self.shadow, *self.acting) if isinstance(part, Table)]

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
    shadow = list(reachable(pipeline.shadowed, len(pipeline.outcomes))) if pipeline.shadowed is not None else []
    acting = list(reachable(pipeline))
    headers = len(set(headers_read(rule for _, rule in [*shadow, *acting])))
    sections = [tuple(tables(section, headers)) for section in (shadow, acting)]
    parts = [part for section in sections for part in section]
    found = [part for part in parts if isinstance(part, Table)]
    chained = [rule for part in parts if isinstance(part, list) for _, rule in part]
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
        shadow=sections[0],
        acting=sections[1],
        read=read,
        chained=len(chained),
        large=large,
        hides_values=len(chained) > MANY or sum(map(looks_up, chained)) > FEW,
        hides_headers=len(read) > (1 if inside else MANY_HEADERS)
        or len(tested) > MANY_TESTS
        or bool(shadow)
        or sum(table.info().depth for table in found) > DEEP,
        headers_in_map=large or len(chained) > FEW_BOUNDS,
    )


def looks_up(rule: Rule) -> bool:
    """Whether the condition of ``rule`` looks up a set."""
    return any(isinstance(node, Member) for node in rule.nodes())


def reachable(pipeline: Pipeline, first: int = 0) -> Iterator[tuple[int, Rule]]:
    """The rules with their numbers, from ``first`` on, up to the first that takes every packet."""
    for index, rule in enumerate(pipeline.outcomes, first):
        yield index, rule
        if isinstance(rule.expr, Always) and not rule.goes_on:
            return


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

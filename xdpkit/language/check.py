"""Checks of rules before any packet comes: which rules can never match, and which only match what an earlier rule
takes.

A condition is brought to disjunctive form, that is to a list of alternatives.  An alternative says which headers must
be present, which must be absent, and in which intervals the value of each field may lie.  These findings follow from
the form.  Each finding is certain, but not every such rule is found: a condition of more than :data:`MAX_ALTERNATIVES`
alternatives is not checked.

* *impossible*: every alternative asks for headers that exclude each other, or for a value that no interval is left for;
* *unreachable*: an earlier rule of the same chain takes every packet;
* *shadowed*: every alternative is inside one alternative of one earlier rule of the same chain;
* *unused*: no rule that a packet can come to leads to the chain;
* *excluded*: the rules that lead to the chain let no packet in that the rule could match.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache

from .chains import ChainSpec
from .errors import PipelineError, Where
from .expr import Always, And, EitherFamily, Expr, Intervals, Not, Or, Present, Test, complement
from .fields import EXCLUSIVE, HEADERS, INNER, field_named
from .limits import Bucket
from .rule import Rule
from .sets import Member

__all__ = ["Finding", "PipelineWarning", "Seen", "findings_of_chains", "lacking_keys", "possible", "refuse_impossible"]

#: Alternatives of one condition that are looked at.
MAX_ALTERNATIVES = 64
#: Earlier rules that each new one is compared with, those with the fewest constraints first.
MAX_COMPARED = 128

#: The name of a field, and the mask under which its bits are tested.
Key = tuple[str, int | None]


@dataclass(frozen=True, slots=True)
class Finding:
    """``kind`` "unreachable" or "shadowed": ``rule`` never matches because of the earlier rule ``by``; "excluded": it
    never matches because of the rules that lead to its chain ``by``; "unused": no packet comes to chain ``rule``."""

    kind: str
    rule: str
    by: str
    where: Where

    def __str__(self) -> str:
        if self.kind == "unused":
            return f"{self.where}: chain {self.rule!r} is unused: no rule that a packet can come to leads to it"
        if self.kind == "excluded":
            said = f"no rule that leads to chain {self.by!r} lets a packet in that it could match"
            return f"{self.where}: rule {self.rule!r} is excluded: {said}"
        return f"{self.where}: rule {self.rule!r} is {self.kind}: {self.by!r} before it takes all that it could match"


class PipelineWarning(UserWarning):
    """A rule that is certainly not meant as it is written: it never matches because of an earlier one or of the rules
    that lead to its chain, or it takes packets because they lack what its limit or set is keyed by.  Or a chain that no
    packet comes to."""


@dataclass(frozen=True, slots=True)
class Alternative:
    """Headers that are ``there``, headers that are ``absent``, and the values that fields may have."""

    there: frozenset[str] = frozenset()
    absent: frozenset[str] = frozenset()
    values: dict[Key, Intervals] = field(default_factory=dict)


def alternatives(expr: Expr) -> list[Alternative] | None:
    """The possible alternatives of ``expr``; None where there are too many or some condition says nothing."""
    try:
        return list(_bounded(_expand(expr, True)))
    except _TooMany:
        return None


def possible(expr: Expr) -> bool:
    """May ``expr`` hold of some packet?  False is certain."""
    return alternatives(expr) != []


def refuse_impossible(expr: Expr) -> None:
    """PipelineError if ``expr`` can never hold; it names two parts that contradict each other, if it finds them."""
    if possible(expr):
        return
    terms = expr.terms[:MAX_ALTERNATIVES] if isinstance(expr, And) else ()
    for b, a in ((b, a) for at, b in enumerate(terms) for a in terms[:at]):
        if possible(a) and possible(b) and not possible(And((a, b), where=expr.where)):
            raise PipelineError(f"can never match: {a} and {b} exclude each other", expr.where)
    raise PipelineError(f"{expr} can never match", expr.where)


def lacking_keys(expr: Expr) -> Iterator[tuple[Expr, str]]:
    """The negated limits and sets in ``expr`` whose key may be missing from a packet that ``expr`` takes.

    A limit or set is false for a packet without the headers of its key, so its negation is true.  Yields each limit or
    set with the headers that its key needs, written as a condition."""
    if not any(isinstance(node, (Bucket, Member)) for node in expr.nodes()):
        return
    for keyed, others in _negated(expr, True, ()):
        context = tuple(map(_at_least, others))
        for needs in _keys_there(keyed):
            if alternatives(And((*context, Not(needs, where=keyed.where)), where=keyed.where)):
                yield keyed, _bracket(needs)


def _bracket(expr: Expr) -> str:
    return f"({expr})" if isinstance(expr, Or) else str(expr)


def _negated(expr: Expr, wanted: bool, others: tuple[Expr, ...]) -> Iterator[tuple[Expr, tuple[Expr, ...]]]:
    """The negated limits and sets in ``expr``, each with the other conditions that must hold at the same time."""
    keyed = isinstance(expr, (Bucket, Member)) or (
        isinstance(expr, EitherFamily) and any(isinstance(node, (Bucket, Member)) for node in expr.nodes())
    )
    if keyed:
        if not wanted:
            yield expr, others
    elif isinstance(expr, Not):
        yield from _negated(expr.term, not wanted, others)
    elif isinstance(expr, (And, Or)):
        for term in expr.terms[:MAX_ALTERNATIVES]:
            rest = tuple(t for t in expr.terms if t is not term) if isinstance(expr, And) else ()
            yield from _negated(term, wanted, others + rest)


def _keys_there(expr: Expr) -> list[Expr]:
    """The headers that the key of a limit or a set is read from, as conditions that must all hold."""
    if isinstance(expr, EitherFamily):
        return [Or(tuple(Present(h, where=expr.where) for h in ("ip", "ip6")), where=expr.where)]
    specs = expr.per if isinstance(expr, Bucket) else expr.fields if isinstance(expr, Member) else ()
    return [Present(name, where=expr.where) for name in dict.fromkeys(s.header for s in specs if s.header)]


def _at_least(expr: Expr) -> Expr:
    """A weaker condition that certainly holds wherever ``expr`` holds."""
    if isinstance(expr, (Bucket, Member)):
        return And((Always(where=expr.where), *_keys_there(expr)), where=expr.where)
    if isinstance(expr, (And, Or)):
        return replace(expr, terms=tuple(map(_at_least, expr.terms)))
    return expr if isinstance(expr, (Always, Present, Test)) or _is_plain(expr) else Always(where=expr.where)


def _is_plain(expr: Expr) -> bool:
    return all(isinstance(node, (Always, Present, Test, And, Or, Not)) for node in expr.nodes())


class Seen:
    """Earlier rules to compare a new rule with.  At most MAX_COMPARED are kept: those with the fewest constraints, and
    of equal ones the earlier."""

    def __init__(self) -> None:
        self._rules: dict[int, list[tuple[str, list[Alternative]]]] = {}
        self._count = 0
        self._kinds: list[_Kind] = []

    def add(self, name: str, expr: Expr, where: Where, *, takes: bool = True) -> Finding | None:
        """Note a rule, unless it ``takes`` no packet from the rules behind it.  Returns a finding where an earlier rule
        takes all that the new one could match."""
        form = alternatives(expr)
        if form is None:
            return None
        wide = sorted(found for kind in self._kinds for found in kind.wide(form[0])) if form else []
        rules = [self._general()[at] for at in wide] if wide else []
        found = next((Finding(kind, name, by, where) for by, w in rules if (kind := _takes(w, form))), None)
        if takes:
            self._note(name, form)
        return found

    def _note(self, name: str, form: list[Alternative]) -> None:
        weight = min((len(a.values) + len(a.there) + len(a.absent) for a in form), default=0)
        if self._count == MAX_COMPARED:
            most = max(self._rules)
            if weight >= most:
                return
            self._rules[most].pop()
            if not self._rules[most]:
                del self._rules[most]
            self._count -= 1
        self._rules.setdefault(weight, []).append((name, form))
        self._count += 1
        kinds: dict[tuple[frozenset[str], tuple[Key, ...]], _Kind] = {}
        for at, (_, known) in enumerate(self._general()):
            for alternative in known:
                keys = tuple(alternative.values)
                kind = kinds.setdefault((alternative.there, keys), _Kind(alternative.there, keys, []))
                kind.rules.append((at, [_hull(alternative.values[key]) for key in keys]))
        self._kinds = list(kinds.values())

    def _general(self) -> list[tuple[str, list[Alternative]]]:
        return [rule for weight in sorted(self._rules) for rule in self._rules[weight]]


@dataclass(frozen=True, slots=True)
class _Kind:
    """Alternatives of earlier rules that ask for the same headers and fields: the number of the rule, and the hulls of
    the fields' values."""

    there: frozenset[str]
    keys: tuple[Key, ...]
    rules: list[tuple[int, list[tuple[int, int]]]]

    def wide(self, narrow: Alternative) -> Iterable[int]:
        """The rules that may take all packets of ``narrow``, judged by headers and hulls alone."""
        if not self.there <= narrow.there:
            return ()
        found = self.rules
        for number, key in enumerate(self.keys):
            if key in narrow.values:  # otherwise ``narrow`` takes any value, and implies() decides
                low, high = _hull(narrow.values[key])
                found = [rule for rule in found if rule[1][number][0] <= low and high <= rule[1][number][1]]
        return [at for at, _ in found]


def _hull(intervals: Intervals) -> tuple[int, int]:
    return intervals[0][0], intervals[-1][1]


def _takes(wide: list[Alternative], narrow: list[Alternative]) -> str | None:
    """What a rule with ``wide`` does to a later one with ``narrow``."""
    if any(not (a.there or a.absent or a.values) for a in wide):
        return "unreachable"
    return "shadowed" if implies(narrow, wide) else None


def implies(narrow: list[Alternative], wide: list[Alternative]) -> bool:
    """Does every packet of ``narrow`` belong to ``wide``?  True is certain."""
    return all(any(_inside(a, b) for b in wide) for a in narrow)


def findings_of_chains(chains: Iterable[ChainSpec], rules: Iterable[Rule]) -> Iterator[Finding]:
    """The chains that are unused, and the rules of the others that are excluded."""
    by_chain: dict[str, list[Rule]] = {}
    for rule in rules:
        by_chain.setdefault(rule.chain, []).append(rule)
    entries: dict[str, list[Expr] | None] = {"": None}  # the conditions that let a packet into a chain; None: any does
    for name in _callers_first(by_chain):
        mine = entries.get(name)
        for rule in by_chain.get(name, ()):
            if rule.target is not None:
                entries.setdefault(rule.target, [])
                _let_in(entries, rule.target, mine, rule.expr)
            if rule.leaves and isinstance(rule.expr, Always):
                break
    for chain in chains:
        if chain.name not in entries:
            yield Finding("unused", chain.name, "", chain.where)
            continue
        ways = entries[chain.name]
        for rule in by_chain.get(chain.name, ()) if ways is not None else ():
            if ways is not None and not any(possible(And((way, rule.expr), where=rule.where)) for way in ways):
                yield Finding("excluded", rule.name, chain.name, rule.where)


def _let_in(entries: dict[str, list[Expr] | None], chain: str, caller: list[Expr] | None, expr: Expr) -> None:
    """Note that a rule with ``expr`` leads to ``chain``, for packets that one of ``caller`` has let in."""
    known = entries[chain]
    if known is None:
        return
    known += [expr] if caller is None else [And((way, expr), where=expr.where) for way in caller]
    if len(known) > MAX_ALTERNATIVES:
        entries[chain] = None


def _callers_first(by_chain: dict[str, list[Rule]]) -> list[str]:
    """The lists of rules that a packet may come to, each behind all that lead to it."""
    order: list[str] = []
    seen: set[str] = set()

    def visit(name: str) -> None:
        seen.add(name)
        for rule in by_chain.get(name, ()):
            if rule.target is not None and rule.target not in seen:
                visit(rule.target)
            if rule.leaves and isinstance(rule.expr, Always):
                break
        order.append(name)

    visit("")
    return order[::-1]


class _TooMany(Exception):
    """The condition has too many alternatives, or is of a kind that has no disjunctive form."""


def _bounded(found: Iterable[Alternative]) -> Iterator[Alternative]:
    for count, alternative in enumerate(found):
        if count >= MAX_ALTERNATIVES:
            raise _TooMany
        yield alternative


def _expand(expr: Expr, wanted: bool) -> list[Alternative]:
    """Alternatives of ``expr``, or of its opposite."""
    if isinstance(expr, Always):
        return [Alternative()] if wanted else []
    if isinstance(expr, Present):
        return [Alternative(_with(expr.header)) if wanted else _without(expr.header)]
    if isinstance(expr, Test):
        return _of_test(expr, wanted)
    if isinstance(expr, Not):
        return _expand(expr.term, not wanted)
    if isinstance(expr, (And, Or)):
        parts = [_expand(term, wanted) for term in _limited(expr.terms)]
        if isinstance(expr, Or) == wanted:
            return list(_bounded(a for part in parts for a in part))
        result = parts[0]
        for part in parts[1:]:
            result = list(_bounded(c for a in result for b in part for c in _joined(a, b)))
        return result
    raise _TooMany  # nothing is known of another kind of condition


def _limited(terms: tuple[Expr, ...]) -> tuple[Expr, ...]:
    if len(terms) > MAX_ALTERNATIVES:
        raise _TooMany
    return terms


def _without(header: str) -> Alternative:
    return Alternative(absent=frozenset({header}))


def _of_test(test: Test, wanted: bool) -> list[Alternative]:
    if test.spec.deep and not wanted:
        raise _TooMany  # false also where the payload is too short, and no alternative can say that
    header, key = test.spec.header, (test.spec.name, test.mask)
    only: dict[Key, Intervals] = {(name, None): values for name, values in test.spec.only}
    intervals = test.intervals if wanted else complement(test.intervals, test.spec.maximum)
    result = [Alternative(_with(header), values={**only, key: intervals})] if intervals else []
    if wanted or header is None:
        return result
    for (name, mask), values in only.items():
        rest = complement(values, field_named(name).maximum)
        result.append(Alternative(_with(header), values={(name, mask): rest}))
    return [*result, _without(header)]


@cache
def _with(header: str | None) -> frozenset[str]:
    """The headers that are there with ``header``."""
    return _closed(frozenset({header})) if header else frozenset()


def _joined(a: Alternative, b: Alternative) -> list[Alternative]:
    """The alternative in which ``a`` and ``b`` both hold, in a list; an empty list if they contradict each other."""
    there = _together(a.there, b.there, a.absent, b.absent)
    if there is None:
        return []
    values = a.values | b.values
    if len(values) < len(a.values) + len(b.values):
        for key in a.values.keys() & b.values.keys():
            values[key] = overlap(a.values[key], b.values[key])
            if not values[key]:
                return []
    return [Alternative(there, a.absent | b.absent if b.absent else a.absent, values)]


@lru_cache(1 << 12)
def _together(
    a: frozenset[str], b: frozenset[str], absent_a: frozenset[str], absent_b: frozenset[str]
) -> frozenset[str] | None:
    """The headers that are present where those of ``a`` and ``b`` are; None if no packet can have them all."""
    there, absent = _closed(a | b), absent_a | absent_b
    if there & absent or not _coexist(there):
        return None
    if any((behind := HEADERS[h].behind) and absent.issuperset(behind) for h in there):
        return None
    return there


@cache
def _closed(there: frozenset[str]) -> frozenset[str]:
    """``there``, and the headers that must stand in front of them because no other kind can."""
    result, todo = set(there), list(there)
    while todo:
        behind = HEADERS[todo.pop()].behind
        if len(behind) == 1 and behind[0] not in result:
            result.add(behind[0])
            todo.append(behind[0])
    return frozenset(result)


@cache
def implied(there: frozenset[str]) -> frozenset[str]:
    """Those headers of ``there`` that are implied by others of ``there``."""
    return frozenset(h for h in there if any(h in _closed(frozenset({other})) for other in there - {h}))


@cache
def _coexist(there: frozenset[str]) -> bool:
    """May these headers be in one packet?"""
    for prefix in ("", INNER):
        if any(len(there & {prefix + name for name in group}) > 1 for group in EXCLUSIVE):
            return False
    return all(
        not behind or any(_possible_behind(there, b) for b in behind) for behind in (HEADERS[h].behind for h in there)
    )


def _possible_behind(there: frozenset[str], header: str) -> bool:
    """May ``header`` stand in front of one of ``there``, as far as exclusion goes?"""
    prefix = INNER if header.startswith(INNER) else ""
    name = header.removeprefix(INNER)
    return not any(name in group and there & ({prefix + g for g in group} - {header}) for group in EXCLUSIVE)


def overlap(a: Intervals, b: Intervals) -> Intervals:
    """The values in both."""
    found, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        low, high = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
        if low <= high:
            found.append((low, high))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return tuple(found)


def _inside(narrow: Alternative, wide: Alternative) -> bool:
    """Does every packet of ``narrow`` belong to ``wide``?"""
    if not wide.there <= narrow.there:
        return False
    if any(h not in narrow.absent and _coexist(narrow.there | {h}) for h in wide.absent):
        return False
    return all(_fits(narrow, key, intervals) for key, intervals in wide.values.items())


def _fits(narrow: Alternative, key: Key, intervals: Intervals) -> bool:
    if intervals == ((0, field_named(key[0]).maximum),):
        return not field_named(key[0]).deep  # any value matches, but bytes may be missing
    have = narrow.values.get(key)
    return have is not None and overlap(have, intervals) == have

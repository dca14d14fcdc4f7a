"""Expressions: what a rule tests.

A :class:`Test` says that a field is present and that its value lies in one of a sorted list of closed intervals; every
operator (``==``, ``!=``, ``<``, prefixes, ranges, membership) becomes intervals when it is written, so that the
compiler and the reference evaluator have one case to get right.  :class:`Present` asks for a header.  ``&``, ``|``
and ``~`` join them.

A test on a header that is missing or cut short is false: ``udp.dport != 53`` is false on a TCP packet, while
``~(udp.dport == 53)`` is true there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

from .errors import PipelineError, Where
from .fields import FieldSpec

NO_TRUTH_VALUE = (
    "a condition has no truth value while it is declared: write & | ~ for and, or, not, "
    "field.isin([a, b]) for in, and field.between(low, high) for a range"
)

Intervals = tuple[tuple[int, int], ...]
_PACKAGE = __name__.partition(".")[0]


def here() -> Where:
    """The nearest place outside this package: the line the user wrote."""
    frame = sys._getframe(1)
    while frame.f_back and (frame.f_globals.get("__name__", "").split(".")[0] == _PACKAGE):
        frame = frame.f_back
    return Where(frame.f_code.co_filename, frame.f_lineno)


@dataclass(frozen=True, slots=True, repr=False)
class Expr:
    """A condition on a packet.  Two are equal where they say the same, wherever they are written."""

    where: Where = field(kw_only=True, compare=False)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}>"

    def nodes(self) -> Iterator[Expr]:
        """This condition and all that it is made of."""
        yield self
        for term in getattr(self, "terms", ()):
            yield from term.nodes()

    @property
    def needs_brackets(self) -> bool:
        """The condition, as text, goes into brackets where it stands beside & or |."""
        return False

    def __and__(self, other: object) -> Expr:
        return And((*_terms(self, And), *_terms(_operand(other, "&"), And)), where=here())

    def __or__(self, other: object) -> Expr:
        return Or((*_terms(self, Or), *_terms(_operand(other, "|"), Or)), where=here())

    def __rand__(self, other: object) -> Expr:
        return _operand(other, "&") & self

    def __ror__(self, other: object) -> Expr:
        return _operand(other, "|") | self

    def __invert__(self) -> Expr:
        return Not(self, where=here())

    def __bool__(self) -> NoReturn:
        raise PipelineError(NO_TRUTH_VALUE, here())


@dataclass(frozen=True, slots=True, repr=False)
class Present(Expr):
    """The packet has the whole header."""

    header: str

    def __str__(self) -> str:
        return self.header


@dataclass(frozen=True, slots=True, repr=False)
class Test(Expr):
    """The packet has the field, and its value lies in one of ``intervals`` (closed, sorted, apart); with ``mask`` only
    those bits of the value count."""

    spec: FieldSpec
    intervals: Intervals
    text: str
    mask: int | None = None

    __test__ = False  # not a pytest class

    @property
    def needs_brackets(self) -> bool:
        return not self.text.endswith(")")

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True, repr=False)
class And(Expr):
    """All of ``terms``."""

    terms: tuple[Expr, ...]

    def __str__(self) -> str:
        return " & ".join(_bracket(t, Or) for t in self.terms)


@dataclass(frozen=True, slots=True, repr=False)
class Or(Expr):
    """Any of ``terms``."""

    terms: tuple[Expr, ...]

    def __str__(self) -> str:
        return " | ".join(_bracket(t, And) for t in self.terms)


@dataclass(frozen=True, slots=True, repr=False)
class EitherFamily(Or):
    """A condition on an address of either family: its ``terms`` are the one for IPv4 and the one for IPv6, each behind
    the header that it is for; ``text`` is how it was written."""

    text: str = ""

    @property
    def needs_brackets(self) -> bool:
        return not self.text.endswith(")")

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True, repr=False)
class Not(Expr):
    """Not ``term``."""

    term: Expr

    @property
    def terms(self) -> tuple[Expr, ...]:
        return (self.term,)

    def __str__(self) -> str:
        return f"~{_bracket(self.term, (And, Or))}"


@dataclass(frozen=True, slots=True, repr=False)
class Always(Expr):
    """Every packet; the condition of a rule that states none."""

    def __str__(self) -> str:
        return "any"


def _bracket(term: Expr, kinds: type | tuple[type, ...]) -> str:
    chained = isinstance(term, kinds) and not isinstance(term, EitherFamily)
    return f"({term})" if term.needs_brackets or chained else str(term)


def _terms(expr: Expr, kind: type[And] | type[Or]) -> tuple[Expr, ...]:
    """The terms of a chain, so that ``a | b | c`` is one node: chains may be longer than Python's stack is deep."""
    return expr.terms if type(expr) is kind else (expr,)


class Named:
    """What may stand where a condition goes and becomes one there: a header, a field of one bit."""

    def condition(self) -> Expr:
        """The condition that it means."""
        raise NotImplementedError

    def __bool__(self) -> NoReturn:
        raise PipelineError(NO_TRUTH_VALUE, here())

    def __and__(self, other: object) -> Any:
        return self.condition() & other

    def __or__(self, other: object) -> Expr:
        return self.condition() | other

    def __rand__(self, other: object) -> Expr:
        mine = self.condition()
        return _operand(other, "&") & mine

    def __ror__(self, other: object) -> Expr:
        mine = self.condition()
        return _operand(other, "|") | mine

    def __invert__(self) -> Expr:
        return ~self.condition()


class Keyed(Named):
    """A set, as far as fields know it: ``ip.dst.isin(blocked)`` is ``blocked.match(ip.dst)``."""

    def match(self, *fields: Any) -> Expr:
        """The condition that ``fields`` are in it."""
        raise NotImplementedError


def _operand(other: object, operator: str) -> Expr:
    if isinstance(other, Named):
        return other.condition()
    if isinstance(other, str):
        raise _is_text(other)
    if not isinstance(other, Expr):
        raise PipelineError(
            f"{operator} joins conditions, not {other!r}: comparisons need brackets, as in "
            f"(udp.dport == 53) {operator} (ip.ttl > 1)",
            here(),
        )
    return other


def _is_text(text: str) -> PipelineError:
    return PipelineError(f"a string is no condition: write pcap({text!r}) for tcpdump syntax", here())


def as_expr(value: object) -> Expr:
    """A condition from what may stand where one goes: an expression, a header, a field of one bit."""
    if isinstance(value, Named):
        return value.condition()
    if isinstance(value, Expr):
        return value
    if isinstance(value, str):
        raise _is_text(value)
    raise PipelineError(f"{value!r} is no condition", here())


def merge(intervals: Iterable[tuple[int, int]]) -> Intervals:
    """Sorted, with those that touch joined."""
    out: list[tuple[int, int]] = []
    for low, high in sorted(intervals):
        if out and low <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(out[-1][1], high))
        else:
            out.append((low, high))
    return tuple(out)


def complement(intervals: Intervals, maximum: int) -> Intervals:
    """The values of 0..maximum that ``intervals`` leave out."""
    out, next_low = [], 0
    for low, high in intervals:
        if low > next_low:
            out.append((next_low, low - 1))
        next_low = high + 1
    if next_low <= maximum:
        out.append((next_low, maximum))
    return tuple(out)

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
    """The line of the user's source that called into this package."""
    frame = sys._getframe(1)
    while frame.f_back and (frame.f_globals.get("__name__", "").split(".")[0] == _PACKAGE):
        frame = frame.f_back
    return Where(frame.f_code.co_filename, frame.f_lineno)


@dataclass(frozen=True, slots=True, repr=False)
class Expr:
    """A condition on a packet.  Two conditions are equal if they test the same, whatever line declares them."""

    where: Where = field(kw_only=True, compare=False)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}>"

    def nodes(self) -> Iterator[Expr]:
        """This condition, its terms, and their terms in turn."""
        yield self
        for term in getattr(self, "terms", ()):
            yield from term.nodes()

    @property
    def device_names(self) -> tuple[str, ...]:
        """What it asks of the device where the packet is judged: names of :mod:`xdpkit.language.devices`."""
        return ()

    @property
    def needs_brackets(self) -> bool:
        """Whether the condition, as text, needs brackets next to & or |."""
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
    """The packet has the field, and the field's value lies in one of ``intervals``, which are closed, sorted and do not
    touch.  With ``mask``, only the bits of the mask are compared."""

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
    """A condition on an address of either family.  ``terms``: the condition for IPv4 and the condition for IPv6, each
    joined to the test for its header.  ``text``: the condition as the user wrote it."""

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
    """The terms of ``expr`` if it is of ``kind``, else ``expr`` alone.  So ``a | b | c`` becomes one node: a long chain
    of nested nodes would overflow Python's stack."""
    return expr.terms if type(expr) is kind else (expr,)


class Named:
    """An object that can stand for a condition, such as a header or a field of one bit."""

    def condition(self) -> Expr:
        """The condition that the object stands for."""
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
    """The part of a set that a field needs: ``ip.dst.isin(blocked)`` calls ``blocked.match(ip.dst)``."""

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
    """``value`` as a condition: an expression, a header, or a field of one bit.  PipelineError for anything else."""
    if isinstance(value, Named):
        return value.condition()
    if isinstance(value, Expr):
        return value
    if isinstance(value, str):
        raise _is_text(value)
    raise PipelineError(f"{value!r} is no condition", here())


def merge(intervals: Iterable[tuple[int, int]]) -> Intervals:
    """``intervals``, sorted, with intervals that touch or overlap joined."""
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

"""Expressions: what a rule tests.

A :class:`Test` says that a field is present and that its value lies in one of a sorted list of closed intervals; every
operator (``==``, ``!=``, ``<``, prefixes, ranges, membership) becomes intervals when it is written, so that the
compiler and the reference evaluator have one case to get right.  :class:`Present` asks for a header.  ``&``, ``|``
and ``~`` join them.

A test on a header that is missing or cut short is false: ``udp.dport != 53`` is false on a TCP packet, while
``~(udp.dport == 53)`` is true there.
"""

from __future__ import annotations

import ipaddress
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NoReturn

from .errors import PipelineError, Where
from .fields import FIELDS, HEADERS, FieldSpec

_NO_TRUTH_VALUE = (
    "a condition has no truth value while it is declared: write & | ~ for and, or, not, "
    "and field.between(low, high) for a range"
)

Intervals = tuple[tuple[int, int], ...]
_PACKAGE = __name__.rpartition(".")[0]


def here() -> Where:
    """The nearest place outside this package: the line the user wrote."""
    frame = sys._getframe(1)
    while frame.f_back and (frame.f_globals.get("__name__", "").split(".")[0] == _PACKAGE):
        frame = frame.f_back
    return Where(frame.f_code.co_filename, frame.f_lineno)


@dataclass(frozen=True, slots=True, eq=False)
class Expr:
    """A condition on a packet."""

    where: Where = field(kw_only=True)

    def nodes(self) -> Iterator[Expr]:
        """This condition and all that it is made of."""
        yield self
        for term in getattr(self, "terms", ()):
            yield from term.nodes()

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
        raise PipelineError(_NO_TRUTH_VALUE, here())


@dataclass(frozen=True, slots=True, eq=False)
class Present(Expr):
    """The header is there, wholly."""

    header: str

    def __str__(self) -> str:
        return self.header


@dataclass(frozen=True, slots=True, eq=False)
class Test(Expr):
    """The field is there and its value lies in one of ``intervals`` (closed, sorted, apart)."""

    spec: FieldSpec
    intervals: Intervals
    text: str

    __test__ = False  # not a pytest class

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True, eq=False)
class And(Expr):
    """All of ``terms``."""

    terms: tuple[Expr, ...]

    def __str__(self) -> str:
        return " & ".join(_bracket(t, Or) for t in self.terms)


@dataclass(frozen=True, slots=True, eq=False)
class Or(Expr):
    """Any of ``terms``."""

    terms: tuple[Expr, ...]

    def __str__(self) -> str:
        return " | ".join(_bracket(t, And) for t in self.terms)


@dataclass(frozen=True, slots=True, eq=False)
class Not(Expr):
    """Not ``term``."""

    term: Expr

    @property
    def terms(self) -> tuple[Expr, ...]:
        return (self.term,)

    def __str__(self) -> str:
        return f"~{_bracket(self.term, (And, Or))}"


@dataclass(frozen=True, slots=True, eq=False)
class Always(Expr):
    """Every packet; the condition of a rule that states none."""

    def __str__(self) -> str:
        return "any"


def _bracket(term: Expr, kinds: type | tuple[type, ...]) -> str:
    comparison = isinstance(term, Test) and not term.text.endswith(")")
    return f"({term})" if comparison or isinstance(term, kinds) else str(term)


def _terms(expr: Expr, kind: type[And] | type[Or]) -> tuple[Expr, ...]:
    """The terms of a chain, so that ``a | b | c`` is one node: chains may be longer than Python's stack is deep."""
    return expr.terms if isinstance(expr, kind) else (expr,)


def _operand(other: object, operator: str) -> Expr:
    if isinstance(other, Header):
        return other.present
    if isinstance(other, str):
        raise _is_text(other)
    if not isinstance(other, Expr):
        raise PipelineError(
            f"{operator} joins conditions, not {other!r}: comparisons need brackets, as in "
            f"(udp.dport == 53) {operator} (ip.ttl > 1)",
            here(),
        )
    return other


def parse_value(spec: FieldSpec, value: object) -> int:
    """``value`` as the integer that the field holds; PipelineError says how to write it."""
    if isinstance(value, bool) or not isinstance(value, (int, str, ipaddress.IPv4Address, ipaddress.IPv6Address)):
        raise PipelineError(f"{spec.name} compares with {_form(spec)}, not {value!r}", here())
    try:
        number = _number(spec, value)
    except ValueError:
        raise PipelineError(f"{spec.name} compares with {_form(spec)}, not {value!r}", here()) from None
    if not 0 <= number <= spec.maximum:
        raise PipelineError(f"{spec.name} is {spec.bits} bits wide: {value} can never match", here())
    return number


def _number(spec: FieldSpec, value: object) -> int:
    if isinstance(value, int):
        return value
    if spec.kind == "ipv4":
        return int(ipaddress.IPv4Address(value))
    if spec.kind == "ipv6":
        return int(ipaddress.IPv6Address(value))
    text = str(value)
    if spec.kind == "mac":
        if not re.fullmatch(r"[0-9a-fA-F]{2}([:-][0-9a-fA-F]{2}){5}", text):
            raise ValueError(text)
        return int(re.sub("[:-]", "", text), 16)
    return int(text, 0)


def _form(spec: FieldSpec) -> str:
    return {
        "ipv4": "an IPv4 address such as '192.0.2.1'",
        "ipv6": "an IPv6 address such as '2001:db8::1'",
        "mac": "a MAC address such as '02:00:00:00:00:01'",
    }.get(spec.kind, "a whole number")


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


class Field:
    """A field of a header, as rules name it: ``udp.dport == 53``, ``ip.src.within("192.0.2.0/24")``."""

    def __init__(self, spec: FieldSpec):
        self.spec = spec
        self.__doc__ = f"{spec.name}: {spec.doc} ({spec.bits} bits)"

    def __repr__(self) -> str:
        return self.spec.name

    __hash__ = object.__hash__

    def __bool__(self) -> NoReturn:
        raise PipelineError(_NO_TRUTH_VALUE, here())

    def _join(self, other: object) -> NoReturn:
        raise PipelineError(
            f"{self.spec.name} is no condition: compare it with something, in brackets beside & and |",
            here(),
        )

    __and__ = __rand__ = __or__ = __ror__ = _join

    def __invert__(self) -> NoReturn:
        self._join(None)

    def _test(self, intervals: Iterable[tuple[int, int]], text: str) -> Test:
        merged = merge(intervals)
        if not merged:
            raise PipelineError(f"{text} can never match", here())
        return Test(self.spec, merged, text, where=here())

    def _compare(self, operator: str, value: object, low: int, high: int) -> Test:
        return self._test([(low, high)] if low <= high else [], f"{self.spec.name} {operator} {value}")

    def __eq__(self, value: object) -> Test:  # type: ignore[override]
        number = parse_value(self.spec, value)
        return self._compare("==", value, number, number)

    def __ne__(self, value: object) -> Test:  # type: ignore[override]
        number = parse_value(self.spec, value)
        return self._test(complement(((number, number),), self.spec.maximum), f"{self.spec.name} != {value}")

    def __lt__(self, value: object) -> Test:
        return self._compare("<", value, 0, parse_value(self.spec, value) - 1)

    def __le__(self, value: object) -> Test:
        return self._compare("<=", value, 0, parse_value(self.spec, value))

    def __gt__(self, value: object) -> Test:
        return self._compare(">", value, parse_value(self.spec, value) + 1, self.spec.maximum)

    def __ge__(self, value: object) -> Test:
        return self._compare(">=", value, parse_value(self.spec, value), self.spec.maximum)

    def between(self, low: object, high: object) -> Test:
        """low <= field <= high."""
        a, b = parse_value(self.spec, low), parse_value(self.spec, high)
        if a > b:
            raise PipelineError(f"{self.spec.name}.between({low}, {high}) is empty: the lower bound goes first", here())
        return self._test([(a, b)], f"{self.spec.name}.between({low!r}, {high!r})")

    def within(self, *prefixes: object) -> Test:
        """The address lies in one of ``prefixes`` ("192.0.2.0/24", "2001:db8::/32", a network object, or a string
        "low-high")."""
        return self._test([self._prefix(p) for p in prefixes], f"{self.spec.name}.within({_commas(prefixes)})")

    def isin(self, values: Iterable[object]) -> Test:
        """The field equals one of ``values``."""
        if isinstance(values, str) or not isinstance(values, Iterable):
            raise PipelineError(f"{self.spec.name}.isin wants a list of values, not {values!r}", here())
        values = tuple(values)
        numbers = [parse_value(self.spec, v) for v in values]
        return self._test([(n, n) for n in numbers], f"{self.spec.name}.isin([{_commas(values)}])")

    def _prefix(self, prefix: object) -> tuple[int, int]:
        text = str(prefix)
        if isinstance(prefix, str) and "-" in text and self.spec.kind != "mac":
            low, _, high = text.partition("-")
            a, b = parse_value(self.spec, low.strip()), parse_value(self.spec, high.strip())
            if a <= b:
                return a, b
            raise PipelineError(f"the range {text} is empty: the lower bound goes first", here())
        if self.spec.kind not in ("ipv4", "ipv6"):
            raise PipelineError(f"{self.spec.name} is no address: use .between(low, high) or .isin([...])", here())
        version = ipaddress.IPv4Network if self.spec.kind == "ipv4" else ipaddress.IPv6Network
        try:
            net = version(text)
        except ValueError as error:
            hint = ""
            if "host bits" in str(error):
                hint = f": did you mean {version(text, strict=False)}?"
            elif (self.spec.kind == "ipv4") == (":" in text):
                hint = ": ip is IPv4, ip6 is IPv6"
            raise PipelineError(f"{text!r} is no prefix for {self.spec.name}{hint}", here()) from None
        return int(net.network_address), int(net.broadcast_address)


def _commas(values: Iterable[object]) -> str:
    return ", ".join(repr(v) if isinstance(v, (str, int)) else repr(str(v)) for v in values)


class Header:
    """A header: ``udp.dport`` is a field of it, ``udp.present`` (or plain ``udp`` beside & | ~) asks whether it is
    there."""

    def __init__(self, name: str, fields: dict[str, Field], doc: str):
        self._name, self._fields = name, fields
        self.__doc__ = doc

    def __getattr__(self, name: str) -> Field:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self._fields[name]
        except KeyError:
            raise PipelineError(
                f"{self._name} has no field {name!r}; it has {', '.join(self._fields)}", here()
            ) from None

    def __dir__(self) -> list[str]:
        return [*self._fields, "present"]

    def __repr__(self) -> str:
        return self._name

    @property
    def present(self) -> Expr:
        """The header is there, wholly."""
        if self._name not in HEADERS:
            return Always(where=here())
        return Present(self._name, where=here())

    def __bool__(self) -> NoReturn:
        raise PipelineError(_NO_TRUTH_VALUE, here())

    def _compare(self, other: object) -> NoReturn:
        raise PipelineError(f"{self._name} is a header: compare one of its fields, {', '.join(self._fields)}", here())

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _compare
    __hash__ = object.__hash__

    def __and__(self, other: object) -> Expr:
        return self.present & other

    def __or__(self, other: object) -> Expr:
        return self.present | other

    def __rand__(self, other: object) -> Expr:
        return _operand(other, "&") & self.present

    def __ror__(self, other: object) -> Expr:
        return _operand(other, "|") | self.present

    def __invert__(self) -> Expr:
        return ~self.present


def _is_text(text: str) -> PipelineError:
    return PipelineError(f"a string is no condition: write pcap({text!r}) for tcpdump syntax", here())


def as_expr(value: object) -> Expr:
    """A condition from what may stand where one goes: an expression or a header."""
    if isinstance(value, Header):
        return value.present
    if isinstance(value, Expr):
        return value
    if isinstance(value, str):
        raise _is_text(value)
    hint = ": compare it with something" if isinstance(value, Field) else ""
    raise PipelineError(f"{value!r} is no condition{hint}", here())


def _headers() -> dict[str, Header]:
    names: dict[str, dict[str, Field]] = {}
    for spec in FIELDS:
        header, _, name = spec.name.partition(".")
        names.setdefault(header, {})[name] = Field(spec)
    docs = {name: "; ".join(f"{f.spec.name}: {f.spec.doc}" for f in fields.values()) for name, fields in names.items()}
    return {name: Header(name, fields, docs[name]) for name, fields in names.items()}


HEADER_OBJECTS = _headers()
eth, vlan, vlan2, arp, ip, ip6, tcp, udp, icmp, icmp6, pkt = (HEADER_OBJECTS[name] for name in (*HEADERS, "pkt"))

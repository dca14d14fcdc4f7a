"""Conditions that count: ``quota("10 GB")`` and ``numgen("inc", 10) < 3``, as in nftables.

``quota`` is true until so many bytes have come; ``~quota(...)`` is what comes after that.  Every packet for which it is
tried adds its bytes, also one that is over.  ``numgen("inc", n)`` numbers the packets for which it is tried from 0 to
n - 1, over and over; ``numgen("random", n)`` draws one of these numbers for each packet.  Like a limit, a condition has
a bucket of its own, and it is tried from left to right: in ``udp & quota(...)`` only UDP packets count.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from .errors import PipelineError
from .expr import Expr, Intervals, complement, here, merge
from .headers import Field
from .limits import Bucket, check_capacity, key_fields, per_family

__all__ = ["Draw", "Number", "Quota", "Turn", "numgen", "quota"]

_UNITS = {"bytes": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kbytes": 1 << 10, "mbytes": 1 << 20, "gbytes": 1 << 30}


@dataclass(frozen=True, slots=True, repr=False)
class Quota(Bucket):
    """At most ``most`` bytes have come, this packet among them.  ``shared``: the name under which several conditions
    have the same bucket; ``per``, ``capacity`` and ``bucket`` as in :class:`Limit`."""

    most: int
    text: str
    shared: str = ""

    def __str__(self) -> str:
        parts = [repr(self.text), *self._per_text()]
        parts += [f"name={self.shared!r}"] if self.shared else []
        return f"quota({', '.join(parts)})"


@dataclass(frozen=True, slots=True, repr=False)
class Turn(Bucket):
    """The number of the packet, counted from 0 to ``mod`` - 1 over and over, is in ``intervals``."""

    mod: int
    intervals: Intervals
    text: str

    @property
    def needs_brackets(self) -> bool:
        return not self.text.endswith(")")

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True, repr=False)
class Draw(Expr):
    """A number of 0 to ``mod`` - 1, drawn for this packet, is in ``intervals``."""

    mod: int
    intervals: Intervals
    text: str

    @property
    def needs_brackets(self) -> bool:
        return not self.text.endswith(")")

    def __str__(self) -> str:
        return self.text


class Number:
    """What :func:`numgen` makes: compare it with ``==``, ``!=``, ``<``, ``<=``, ``>``, ``>=``, ``isin([...])``."""

    def __init__(self, kind: str, mod: int):
        self._kind, self._mod = kind, mod

    def __repr__(self) -> str:
        return f"numgen({self._kind!r}, {self._mod})"

    def __hash__(self) -> int:
        return object.__hash__(self)

    def __bool__(self) -> bool:
        raise PipelineError(f"{self} is no condition: compare it, as in {self} < 1", here())

    def _made(self, intervals: Intervals, text: str) -> Expr:
        if not intervals:
            raise PipelineError(f"{text} can never match: the numbers are 0 to {self._mod - 1}", here())
        kind = Turn if self._kind == "inc" else Draw
        return kind(self._mod, intervals, text, where=here())

    def _value(self, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= self._mod:
            raise PipelineError(f"{self} compares with a whole number of 0 to {self._mod - 1}, not {value!r}", here())
        return value

    def _between(self, low: int, high: int, text: str) -> Expr:
        high = min(high, self._mod - 1)
        return self._made(((low, high),) if low <= high else (), text)

    def __eq__(self, value: object) -> Expr:  # type: ignore[override]
        number = self._value(value)
        return self._between(number, number, f"{self} == {value}")

    def __ne__(self, value: object) -> Expr:  # type: ignore[override]
        number = self._value(value)
        return self._made(complement(((number, number),), self._mod - 1), f"{self} != {value}")

    def __lt__(self, value: object) -> Expr:
        return self._between(0, self._value(value) - 1, f"{self} < {value}")

    def __le__(self, value: object) -> Expr:
        return self._between(0, self._value(value), f"{self} <= {value}")

    def __gt__(self, value: object) -> Expr:
        return self._between(self._value(value) + 1, self._mod, f"{self} > {value}")

    def __ge__(self, value: object) -> Expr:
        return self._between(self._value(value), self._mod, f"{self} >= {value}")

    def isin(self, values: Iterable[int]) -> Expr:
        """The number is one of ``values``."""
        numbers = [self._value(value) for value in values]
        known = merge((n, n) for n in numbers if n < self._mod)
        return self._made(known, f"{self}.isin({numbers})")


def numgen(kind: str, mod: int) -> Number:
    """A number of 0 to ``mod`` - 1 for each packet for which it is tried: ``kind`` "inc" numbers them in turn, from 0;
    "random" draws one.  ``numgen("inc", 10) == 0`` is true of every tenth packet, ``numgen("random", 1000) < 25`` of
    2.5 % of them.  Each condition counts and draws by itself.  PipelineError for another kind and a wrong ``mod``."""
    if kind not in ("inc", "random"):
        raise PipelineError(f'numgen: the kind is "inc" or "random", not {kind!r}', here())
    if isinstance(mod, bool) or not isinstance(mod, int) or not 1 <= mod < 1 << 32:
        raise PipelineError(f"numgen: mod is a whole number of 1 to {(1 << 32) - 1}, not {mod!r}", here())
    return Number(kind, mod)


def quota(size: str, *, per: Field | Iterable[Field] | None = None, capacity: int = 65_536, name: str = "") -> Expr:
    """True until more than ``size`` bytes have come: "10 GB" (decimal: kB, MB, GB, TB), or "10 mbytes" as in nftables
    (a kbyte is 1024 bytes).  Frames count whole.

    ``per``, ``capacity``: a quota for each value of a field, as in :func:`limit`.  ``name``: all quotas of this name in
    the pipeline are one, to which a packet adds each time that one of them is tried.  PipelineError for a wrong size,
    key, capacity or name."""
    match = re.fullmatch(r"\s*(\d+)\s*([A-Za-z]+)\s*", size) if isinstance(size, str) else None
    unit = _UNITS.get(match[2].lower()) if match else None
    if not match or unit is None or not int(match[1]):
        raise PipelineError(f'quota {size!r}: a size is written "10 GB" or "500 mbytes"', here())
    most = int(match[1]) * unit
    if most >= 1 << 63:
        raise PipelineError(f"quota {size!r}: too large to be counted", here())
    if not isinstance(name, str) or not name.isprintable():
        raise PipelineError(f"quota {size!r}: name is a printable string, not {name!r}", here())
    what = f"quota {size!r}"
    specs = key_fields(per, what)
    check_capacity(capacity, what)
    return per_family(Quota(most, size.strip(), name, per=specs, capacity=capacity if specs else 1, where=here()))

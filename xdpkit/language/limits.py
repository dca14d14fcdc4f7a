"""Conditions that depend on time and chance: ``limit("1000/second")`` and ``sample(100)``.

``limit`` is true of a packet as long as packets (or bytes) come no faster than the rate, as in nftables;
``~limit(...)`` is true of the packets above the rate.  A limit is a token bucket: tokens that are not used are saved,
up to ``burst``.  With ``per`` every value of a field (or tuple of fields) has a bucket of its own.  A condition is
tried from left to right and no further than needed, so in ``udp & limit(...)`` only UDP packets take tokens.

The bucket is kept as one number, the time when it will be full again (the generic cell rate algorithm of ITU-T I.371,
in its virtual scheduling form): a packet costs ``cost`` and conforms if ``max(full, now) + cost - now <= burst``.
Times are in 1/64 ns of the monotonic clock, so that a byte at 100 Gbit/s is still more than 5 of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

from .actions import Step
from .errors import PipelineError
from .expr import And, EitherFamily, Expr, Present, here
from .fields import FieldSpec, families
from .headers import Field

__all__ = ["Bucket", "Limit", "Log", "Sample", "limit", "log", "sample"]

#: Times are counted in 2**-TIME_SHIFT ns; the cost of one packet or byte in 2**-COST_SHIFT of that unit.
TIME_SHIFT, COST_SHIFT = 6, 10
#: The largest packet length in bytes, and the largest time in the unit above, for which 64-bit arithmetic suffices.
MAX_BYTES, MAX_COST = 1 << 17, 1 << 60
MAX_KEY_BYTES = 64
_PERIODS = {"second": 1, "sec": 1, "s": 1, "minute": 60, "min": 60, "hour": 3600, "h": 3600, "day": 86_400, "d": 86_400}
_UNITS = {"": 1, "packets": 1, "packet": 1, "bytes": 1, "kbytes": 1 << 10, "mbytes": 1 << 20, "gbytes": 1 << 30}
_SI = {"": 1, "k": 1000, "M": 1_000_000, "G": 1_000_000_000}


@dataclass(frozen=True, slots=True, repr=False, kw_only=True)
class Bucket(Expr):
    """A condition that remembers: a number in a bucket, or in one for each value of the fields ``per``, ``capacity`` of
    them.  ``bucket`` names the state."""

    per: tuple[FieldSpec, ...] = ()
    capacity: int = 1
    bucket: str = ""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of each field in the key."""
        return tuple((f.bits + 7) // 8 for f in self.per)

    @property
    def key_bytes(self) -> int:
        """Bytes of a key; without ``per`` it is the key 0 of an array."""
        return -(-sum(self.sizes) // 4) * 4 or 4

    def _per_text(self) -> list[str]:
        if len(self.per) == 1:
            return [f"per={self.per[0].name}"]
        return [f"per=({', '.join(f.name for f in self.per)})"] if self.per else []


@dataclass(frozen=True, slots=True, repr=False)
class Limit(Bucket):
    """``count`` packets, or bytes if ``in_bytes``, in ``period`` seconds; at most ``burst`` at once.  ``per``: a bucket
    for each value of these fields, ``capacity`` of them, the least recently used giving way.  ``bucket`` names the
    state: rule and place in it."""

    count: int
    period: int
    in_bytes: bool
    burst: int
    text: str

    @property
    def unit_cost(self) -> int:
        """Cost of one packet or byte, in 2**-(TIME_SHIFT + COST_SHIFT) ns."""
        return round((self.period * 1_000_000_000 << TIME_SHIFT + COST_SHIFT) / self.count)

    def cost(self, packet_bytes: int) -> int:
        """Cost of a packet in 2**-TIME_SHIFT ns."""
        return self.unit_cost * (packet_bytes if self.in_bytes else 1) >> COST_SHIFT

    @property
    def tolerance(self) -> int:
        """Cost of a burst, in the same unit."""
        return self.unit_cost * self.burst >> COST_SHIFT

    def __str__(self) -> str:
        return f"limit({', '.join([repr(self.text), *self._per_text(), f'burst={self.burst}'])})"


@dataclass(frozen=True, slots=True, repr=False)
class Sample(Expr):
    """One packet in ``n``, by chance: true where 32 random bits are below 2**32 // n."""

    n: int

    @property
    def threshold(self) -> int:
        """The number that random bits must be below."""
        return (1 << 32) // self.n

    def __str__(self) -> str:
        return f"sample({self.n})"


@dataclass(frozen=True, slots=True)
class Log(Step):
    """A message to user space, ``link.events()``: time, rule, the packet's first bytes; at most as often as ``limit``
    says.  Made by :func:`xdpkit.log`."""

    limit: Limit

    def __str__(self) -> str:
        return f"LOG {self.limit.text}"


def limit(
    rate: str, *, burst: int | None = None, per: Field | Iterable[Field] | None = None, capacity: int = 65_536
) -> Expr:
    """True while packets come no faster than ``rate``: "400/minute", "10k/second", "10 mbytes/second" (as in nftables:
    a kbyte is 1024 bytes; k, M and G in front of the slash are decimal).

    ``burst``: packets, or bytes, that may come at once (default: what the rate allows in a tenth of a second, and at
    least 5 packets or 10,000 bytes).  ``per``: a field, or several, each value of which has its own bucket; where one
    of them is missing the condition is false, and ``~limit(...)`` true.  ``per=src`` (or ``dst``) serves IPv4 and IPv6.
    ``capacity``: buckets kept, for each family; the least recently used gives way.  PipelineError for a rate, burst,
    key or capacity that cannot be."""
    match = re.fullmatch(r"\s*(\d+)\s*([kMG]?)\s*([a-z]*)\s*/\s*([a-z]+)\s*", rate) if isinstance(rate, str) else None
    if not match or match[3] not in _UNITS or match[4] not in _PERIODS or not int(match[1]):
        raise PipelineError(f'limit {rate!r}: a rate is written "400/minute" or "10 mbytes/second"', here())
    in_bytes = match[3].endswith("bytes")
    count, period = int(match[1]) * _SI[match[2]] * _UNITS[match[3]], _PERIODS[match[4]]
    if burst is None:
        burst = max(count // (10 * period), 10_000 if in_bytes else 5)
    if isinstance(burst, bool) or not isinstance(burst, int) or burst < 1:
        raise PipelineError(f"limit {rate!r}: burst is a number of {'bytes' if in_bytes else 'packets'}", here())
    specs = key_fields(per, f"limit {rate!r}")
    check_capacity(capacity, f"limit {rate!r}")
    made = Limit(
        count, period, in_bytes, burst, rate.strip(), per=specs, capacity=capacity if specs else 1, where=here()
    )
    most = made.unit_cost * (MAX_BYTES if in_bytes else 1)
    if most >= 1 << 63 or made.tolerance >= MAX_COST or not made.unit_cost:
        raise PipelineError(f"limit {rate!r}, burst {burst}: too slow, too fast or too large to be counted", here())
    return per_family(made)


def key_fields(per: Field | Iterable[Field] | None, what: str) -> tuple[FieldSpec, ...]:
    """The fields of a key; ``what`` is the condition, for the error."""
    fields = () if per is None else (per,) if isinstance(per, Field) else tuple(per)
    wrong = next((f for f in fields if not isinstance(f, Field)), None)
    if wrong is not None:
        raise PipelineError(f"{what}: {wrong!r} is no field of a packet, such as ip.src", here())
    size = -(-sum((f.spec.bits + 7) // 8 for f in fields) // 4) * 4
    if size > MAX_KEY_BYTES:
        raise PipelineError(f"{what}: a key of {size} bytes; at most {MAX_KEY_BYTES}", here())
    return tuple(f.spec for f in fields)


def check_capacity(capacity: object, what: str) -> None:
    """PipelineError if ``capacity`` is no number of buckets."""
    if isinstance(capacity, bool) or not isinstance(capacity, int) or not 1 <= capacity <= 1 << 26:
        raise PipelineError(f"{what}: capacity is 1 to {1 << 26} buckets, not {capacity!r}", here())


_B = TypeVar("_B", bound=Bucket)


def per_family(made: _B) -> Expr:
    """``made``, or where it is per address of either family one for IPv4 and one for IPv6."""
    variants = families(made.per, mapped=False)
    if len(variants) == 1:
        return made
    terms = tuple(
        And((Present(header or "", where=made.where), replace(made, per=per)), where=made.where)
        for header, per in variants
    )
    return EitherFamily(terms, str(made), where=made.where)


def sample(n: int) -> Sample:
    """True for one packet in ``n``, by chance.  PipelineError unless ``n`` is 1 to 2**32."""
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= 1 << 32:
        raise PipelineError(f"sample({n!r}): one packet in how many? a number from 1 on", here())
    return Sample(n, where=here())


def log(rate: str = "5/second", *, burst: int | None = None) -> Log:
    """A step that reports packets to user space, at most at ``rate`` (see :func:`limit`): ``link.events()``.
    PipelineError for a wrong rate."""
    made = limit(rate, burst=burst)
    assert isinstance(made, Limit)
    if made.in_bytes:
        raise PipelineError(f"log {rate!r}: how many packets, not bytes", here())
    return Log(made)

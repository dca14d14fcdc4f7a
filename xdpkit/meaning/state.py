"""What a pipeline remembers from packet to packet, in plain Python: members of sets, buckets of limits and flows, with
the clock and the random numbers that they use.  The reference evaluator works on such a state, and the kernel's maps
must hold the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ..language.fields import FieldSpec
from ..language.limits import TIME_SHIFT, Bucket, Limit
from ..language.pipeline import Pipeline
from ..language.sets import Entry, SetSpec
from .flows import Flows
from .walk import Packet

__all__ = ["Members", "State", "draw"]


def key_of(packet: Packet, fields: Iterable[FieldSpec], key_bytes: int) -> bytes | None:
    """The values of ``fields`` in network order, each in whole bytes, filled up with zeros; None if one is absent."""
    parts = []
    for spec in fields:
        value = packet.value(spec)
        if value is None:
            return None
        parts.append(value.to_bytes((spec.bits + 7) // 8))
    return b"".join(parts).ljust(key_bytes, b"\0")


@dataclass(slots=True)
class Members:
    """The members of one set, by prefix length in bits; a look-up finds the longest prefix that matches."""

    spec: SetSpec
    by_bits: dict[int, dict[int, tuple[int, int]]] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(map(len, self.by_bits.values()))

    def put(self, entry: Entry, now_ns: int = 0) -> None:
        """Add ``entry``, or replace the one with the same key."""
        expires = now_ns + round(entry.timeout * 1e9) if entry.timeout else 0
        self.by_bits.setdefault(entry.bits, {})[_head(entry.key, entry.bits)] = (expires, entry.action)

    def find(self, key: bytes, now_ns: int) -> int | None:
        """The action of the longest member that matches ``key`` and has not timed out; None if there is none."""
        for bits in sorted(self.by_bits, reverse=True):
            expires, action = self.by_bits[bits].get(_head(key, bits), (-1, 0))
            if expires == 0 or expires > now_ns:
                return action
        return None

    def entry(self, key: bytes, now_ns: int) -> Entry | None:
        """The member that :meth:`find` finds, with the seconds that it stays."""
        for bits in sorted(self.by_bits, reverse=True):
            expires, action = self.by_bits[bits].get(_head(key, bits), (-1, 0))
            if expires == 0 or expires > now_ns:
                free = 8 * len(key) - bits
                head = (int.from_bytes(key) >> free << free).to_bytes(len(key))
                return Entry(head, bits, action, (expires - now_ns) / 1e9 if expires else 0)
        return None

    def add(self, key: bytes, timeout: float, now_ns: int) -> bool:
        """Do what the step ``Add`` does, and return False where the set is full.  If ``key`` itself is a member, its
        time-out starts again, unless it has none.  If ``key`` lies in the prefix of a member, nothing is added."""
        bits, expires = self.spec.key_bits, now_ns + round(timeout * 1e9) if timeout else 0
        mine, head = self.by_bits.setdefault(bits, {}), _head(key, bits)
        if head in mine:
            if mine[head][0]:
                mine[head] = (expires, 0)
            return True
        if self._covers(key, now_ns):
            return True
        if len(self) >= self.spec.capacity:
            return False
        mine[head] = (expires, 0)
        return True

    def _covers(self, key: bytes, now_ns: int) -> bool:
        """Whether the longest prefix that holds ``key`` has not timed out."""
        for bits in sorted(self.by_bits, reverse=True):
            if _head(key, bits) in self.by_bits[bits]:
                expires, _ = self.by_bits[bits][_head(key, bits)]
                return expires == 0 or expires > now_ns
        return False


def _head(key: bytes, bits: int) -> int:
    return int.from_bytes(key) >> 8 * len(key) - bits


def draw(random: int) -> int:
    """The 32 random bits that follow ``random``, by the linear congruential generator of Numerical Recipes.  A program
    in the kernel uses the kernel's generator, except in tests that compare it with the reference."""
    return (random * 1664525 + 1013904223) & 0xFFFFFFFF


@dataclass(slots=True)
class State:
    """The state of one pipeline.  ``now_ns``: the clock in nanoseconds, since 1970 in UTC where rules ask for the
    time of day.  ``random``: 32 bits from which the next are drawn.  Set both before each packet."""

    pipeline: Pipeline
    now_ns: int = 0
    random: int = 0
    sets: dict[str, Members] = field(default_factory=dict)
    buckets: dict[tuple[str, bytes], int] = field(default_factory=dict)
    flows: Flows | None = None

    def __post_init__(self) -> None:
        if self.pipeline.tracking is not None:
            self.flows = Flows(self.pipeline.tracking)
        for spec in self.pipeline.sets:
            members = self.sets.setdefault(spec.name, Members(spec))
            for entry in spec.members:
                members.put(entry, self.now_ns)

    def load(self, entries: Mapping[str, Iterable[Entry]]) -> None:
        """Put more members into sets, by name."""
        for name, more in entries.items():
            for entry in more:
                self.sets[name].put(entry, self.now_ns)

    def take(self, limit: Limit, key: bytes, packet_bytes: int) -> bool:
        """Take the tokens of a packet out of a bucket.  False where the packet is above the rate: it takes none."""
        now = self.now_ns << TIME_SHIFT
        full = max(self.buckets.get((limit.bucket, key), 0), now) + limit.cost(packet_bytes)
        if full - now > limit.tolerance:
            return False
        self.buckets[limit.bucket, key] = full
        return True

    def count(self, expr: Bucket, key: bytes, more: int) -> int:
        """The number in a bucket, before ``more`` is added to it."""
        before = self.buckets.get((expr.bucket, key), 0)
        self.buckets[expr.bucket, key] = before + more
        return before

    def drawn(self, mod: int) -> int:
        """Return a number of 0 to ``mod`` - 1, by chance."""
        self.random = draw(self.random)
        return self.random * mod >> 32

    def sample(self, threshold: int) -> bool:
        """True with a chance of ``threshold`` in 2**32."""
        self.random = draw(self.random)
        return self.random < threshold

"""Hypothesis strategies: frames and pipelines that love the same boundaries.

Values of both come from the small pools below, so that a random rule matches a random frame often and misses it by one
often.

``HYPOTHESIS_PROFILE=fuzz`` makes every property test run long, with new examples each time (see :func:`examples`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_network
from itertools import pairwise
from random import Random
from struct import pack
from typing import TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.database import DirectoryBasedExampleDatabase

from xdpkit.actions import DROP, PASS, REDIRECT, TX, Redirect
from xdpkit.expr import HEADER_OBJECTS, Expr, Field
from xdpkit.pipeline import Pipeline
from xdpkit.reference import EXTENSIONS, MAX_EXTENSIONS

T = TypeVar("T")
FUZZ = os.environ.get("HYPOTHESIS_PROFILE") == "fuzz"
SAVED = os.environ.get("XDPKIT_FUZZ_EXAMPLES", "")


def examples(count: int, *, shrink: bool = True) -> settings:
    """Settings of a property test: ``count`` examples, the same in every run; to fuzz, five times as many new ones.
    Without ``shrink`` the first failure is the one that is shown: for tests whose failures take long."""
    phases = [Phase.explicit, Phase.reuse, Phase.generate, *([Phase.target, Phase.shrink] if shrink else [])]
    return settings(
        max_examples=5 * count if FUZZ else count,
        derandomize=not FUZZ,
        database=DirectoryBasedExampleDatabase(SAVED) if FUZZ and SAVED else None,
        deadline=None,
        print_blob=True,
        phases=phases,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def again(test: str) -> str:
    """How to run a failing property test again, for its notes."""
    return f"again: pytest tests/{test}; longer: HYPOTHESIS_PROFILE=fuzz pytest tests/{test}"


MACS = (0, 0x020000000001, 0x020000000002, 0xFFFFFFFFFFFF)
ETHERTYPES = (0x0800, 0x86DD, 0x0806, 0x8100, 0x88A8, 0x05DC, 0xFFFF)
TPIDS = (0x8100, 0x88A8)
TCIS = (0, 1, 0x0FFF, 0x1000, 0x2005, 0xE000, 0xFFFF)
IP4 = (0, 0x0A000001, 0xC0000200, 0xC0000201, 0xC00002FF, 0xC0000300, 0xFFFFFFFF)
IP6 = tuple(
    int(IPv6Address(text))
    for text in ("::", "2001:db8::", "2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", "2001:db8:0:1::", "ff02::1")
)
PORTS = (0, 52, 53, 54, 255, 256, 443, 0xFFFF)
PROTOS = (*EXTENSIONS, 1, 6, 17, 58, 4, 59, 63, 64, 108, 135, 255)
BYTES = (0, 1, 2, 63, 64, 128, 254, 255)
LENGTHS = (0, 20, 40, 46, 255, 256, 1500, 0xFFFF)
#: Lengths of chains of extension headers about the walk's limit.
OVERLONG = (MAX_EXTENSIONS, MAX_EXTENSIONS + 1, MAX_EXTENSIONS + 2)
SIZES = (0, 1, 13, 14, 18, 34, 42, 54, 60, 64, 128, 1514)

#: Where the values of a field come from, by its name, else by its kind, else by its width.
POOLS: dict[object, tuple[int, ...]] = {
    "eth.type": ETHERTYPES, "vlan.etype": ETHERTYPES, "vlan2.etype": ETHERTYPES,
    "vlan.id": tuple(tci & 0xFFF for tci in TCIS), "vlan2.id": tuple(tci & 0xFFF for tci in TCIS),
    "vlan.pcp": (0, 1, 2, 7), "vlan2.pcp": (0, 1, 2, 7), "arp.op": (0, 1, 2, 0xFFFF),
    "ip.proto": PROTOS, "ip6.proto": PROTOS, "ip.len": LENGTHS, "ip6.len": LENGTHS,
    "pkt.len": SIZES, "pkt.queue": (0, 1, 0xFFFFFFFF),
    "mac": MACS, "ipv4": IP4, "ipv6": IP6, 16: PORTS, 8: BYTES,
}  # fmt: skip


def of(pool: Sequence[T]) -> st.SearchStrategy[T]:
    """One of ``pool``."""
    return st.sampled_from(pool)


# ---- frames ----
#
# Plain functions of a random.Random: Hypothesis drives them choice by choice in frames(), which shrinks, and by the
# seed in batches(), which is fifty times as fast.  Frames are judged one by one, so a test that fails on a batch names
# the shortest frame that fails and loses nothing by not shrinking.


def _transport(rng: Random, proto: int) -> bytes:
    """What follows an IP header that names ``proto``."""
    if proto == 6:
        return pack("!HHIIBBHHH", rng.choice(PORTS), rng.choice(PORTS), 0, 0, 0x50, rng.choice(BYTES), 0, 0, 0)
    if proto == 17:
        return pack("!HHHH", rng.choice(PORTS), rng.choice(PORTS), 8, 0)
    if proto in (1, 58):
        return pack("!BBHI", rng.choice(BYTES), rng.choice(BYTES), 0, 0)
    return _noise(rng, 40)


def _noise(rng: Random, limit: int) -> bytes:
    return rng.randbytes(rng.randint(0, limit))


def _some_proto(rng: Random) -> int:
    return rng.choice((6, 17, 1, 58) if rng.random() < 0.8 else PROTOS)


def _arp(rng: Random) -> bytes:
    """ARP, mostly for IPv4 over Ethernet."""
    kind = rng.choice([(1, 0x0800, 6, 4)] * 4 + [(6, 0x0800, 6, 4), (1, 0x86DD, 6, 4), (1, 0x0800, 8, 4)])
    return pack("!HHBBH6xI6xI", *kind, rng.choice(POOLS["arp.op"]), rng.choice(IP4), rng.choice(IP4))


def _ipv4(rng: Random) -> bytes:
    """IPv4: with options, in fragments, with a wrong version or header length."""
    proto = _some_proto(rng)
    version, ihl = rng.choice((4, 4, 4, 4, 4, 4, 4, 6)), rng.choice((5, 5, 5, 5, 5, 6, 15, 15, 4, 0))
    fragment = rng.choice((0, 0, 0, 0, 0x4000, 0x2000, 0x8000, 0x2001, 0x0001, 0x1FFF, 0x1000))
    tos, length, ttl = rng.choice(BYTES), rng.choice(LENGTHS), rng.choice(BYTES)
    head = pack("!BBHHHBBH", version << 4 | ihl, tos, length, 0, fragment, ttl, proto, 0)
    options = b"\1" * (4 * ihl - 20)
    return head + pack("!II", rng.choice(IP4), rng.choice(IP4)) + options + _transport(rng, proto)


def _extension(rng: Random, kind: int, following: int, honest: bool) -> bytes:
    """An IPv6 extension header of ``kind``; one that is not ``honest`` may lie about its length or be a fragment's."""
    if honest:
        return pack("!BBHI", following, 0, 0, 0)
    if kind == 44:
        return pack("!BBHI", following, rng.choice((0, 255)), rng.choice((0, 0, 0, 1, 6, 8, 0xFFF8)), 0)
    units = rng.choice((4, 4, 1, 0, 2, 255) if kind == 51 else (0, 0, 0, 1, 2, 255))
    size = 4 * (min(units, 8) + 2) if kind == 51 else 8 * (min(units, 4) + 1)
    return pack("!BB", following, units).ljust(size, b"\1")


def _ipv6(rng: Random) -> bytes:
    """IPv6 with a chain of extension headers, up to two more than the walk passes."""
    chain = [rng.choice(EXTENSIONS) for _ in range(rng.choice((0, 0, 1, 1, 2, 3, MAX_EXTENSIONS - 1, *OVERLONG)))]
    numbers = [*chain, _some_proto(rng)]
    version, length, hop_limit = rng.choice((6, 6, 6, 6, 6, 6, 6, 4)), rng.choice(LENGTHS), rng.choice(BYTES)
    head = pack("!BBHHBB", version << 4, 0, 0, length, numbers[0], hop_limit)
    addresses = rng.choice(IP6).to_bytes(16) + rng.choice(IP6).to_bytes(16)
    honest = rng.random() < 0.5
    body = b"".join(_extension(rng, kind, following, honest) for kind, following in pairwise(numbers))
    return head + addresses + body + _transport(rng, numbers[-1])


_BODIES: dict[int, Callable[[Random], bytes]] = {0x0800: _ipv4, 0x86DD: _ipv6, 0x0806: _arp}


def _well_formed(rng: Random) -> bytes:
    """Ethernet with up to three tags and what its EtherType says."""
    frame = rng.choice(MACS).to_bytes(6) + rng.choice(MACS).to_bytes(6)
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2, 2, 3))):
        frame += pack("!HH", rng.choice(TPIDS), rng.choice(TCIS))
    ethertype = rng.choice((0x86DD, 0x86DD, 0x86DD, 0x0800, 0x0800, 0x0800, 0x0806, rng.choice(ETHERTYPES)))
    body = _BODIES[ethertype](rng) if ethertype in _BODIES else _noise(rng, 60)
    return frame + pack("!H", ethertype) + body + _noise(rng, 4)


def make_frame(rng: Random, min_size: int = 14) -> bytes:
    """A frame of ``min_size`` to about 500 bytes: well-formed, cut short anywhere, with bits flipped, plain noise."""
    frame = _well_formed(rng)
    form = rng.choice(("whole", "whole", "cut", "cut", "flip", "noise"))
    if form == "cut":
        return frame[: rng.randint(min_size, len(frame))]
    if form == "flip":
        changed = bytearray(frame)
        for _ in range(rng.randint(1, 3)):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        return bytes(changed)
    return rng.randbytes(rng.randint(min_size, 100)) if form == "noise" else frame


def frames(min_size: int = 14) -> st.SearchStrategy[bytes]:
    """One frame; see :func:`make_frame`."""
    return st.randoms(use_true_random=False).map(lambda rng: make_frame(rng, min_size))


def batches(size: int) -> st.SearchStrategy[list[bytes]]:
    """``size`` frames, known by a seed."""

    def batch(seed: int) -> list[bytes]:
        rng = Random(seed)
        return [make_frame(rng) for _ in range(size)]

    return st.integers(0, 2**32 - 1).map(batch)


def truncations(frame: bytes, min_size: int = 14) -> list[bytes]:
    """``frame`` cut short at every byte, and whole."""
    return [frame[:size] for size in range(min_size, len(frame) + 1)]


# ---- pipelines ----

_FIELDS: tuple[Field, ...] = tuple(
    getattr(header, name) for header in HEADER_OBJECTS.values() for name in dir(header) if name != "present"
)


_FIELD = of(_FIELDS)


def _pool(field: Field) -> tuple[int, ...]:
    spec = field.spec
    return next(POOLS[key] for key in (spec.name, spec.kind, spec.bits) if key in POOLS)


@cache
def values(field: Field) -> st.SearchStrategy[int]:
    """Values for ``field``, in the pool that the frames use or one beside."""
    near = {max(0, min(v + d, field.spec.maximum)) for v in (*_pool(field), field.spec.maximum) for d in (-1, 0, 1)}
    return of((*_pool(field), *sorted(near)))


@st.composite
def comparisons(draw: st.DrawFn) -> Expr:
    """One test of one field; never one that can never match, which would not be accepted."""
    field = draw(_FIELD)
    value, other = draw(values(field)), draw(values(field))
    low, high = min(value, other), max(value, other)
    choices: list[Callable[[], Expr]] = [
        lambda: field == value,
        lambda: field != value,
        lambda: field <= value,
        lambda: field >= value,
        lambda: field.between(low, high),
        lambda: field.isin([value, other]),
        lambda: field.isin(draw(st.lists(values(field), min_size=1, max_size=5))),
    ]
    if value > 0:
        choices.append(lambda: field < value)
    if value < field.spec.maximum:
        choices.append(lambda: field > value)
    if field.spec.kind in ("ipv4", "ipv6"):
        address = IPv4Address if field.spec.kind == "ipv4" else IPv6Address
        choices += [
            lambda: field.within(draw(_prefixes(field))),
            lambda: field.within(f"{address(low)}-{address(high)}", draw(_prefixes(field))),
        ] * 2
    return draw(of(tuple(choices)))()


@st.composite
def _prefixes(draw: st.DrawFn, field: Field) -> str:
    bits = field.spec.bits
    length = draw(of((0, 1, bits // 4, 24, bits // 2 - 1, bits // 2, bits // 2 + 1, bits - 1, bits)))
    return str(ip_network((draw(of(_pool(field))).to_bytes(bits // 8), length), strict=False))


_PRESENCE = of(tuple(HEADER_OBJECTS.values())).map(lambda header: header.present)


@cache
def conditions() -> st.SearchStrategy[Expr]:
    """Comparisons and headers joined by & | ~."""
    return st.recursive(
        st.one_of(comparisons(), comparisons(), comparisons(), _PRESENCE),
        lambda inner: st.one_of(
            st.builds(lambda a, b: a & b, inner, inner),
            st.builds(lambda a, b: a | b, inner, inner),
            inner.map(lambda a: ~a),
        ),
        max_leaves=6,
    )


_ACTION = of((PASS, DROP, TX, REDIRECT, Redirect(otherwise=DROP)))


@st.composite
def pipelines(draw: st.DrawFn, max_rules: int = 6) -> Pipeline:
    """Pipelines of 0 to ``max_rules`` rules."""
    pipe = Pipeline("any", default=draw(_ACTION))
    for _ in range(draw(st.integers(0, max_rules))):
        pipe.rule(draw(conditions()), draw(_ACTION))
    return pipe


def listing(pipeline: Pipeline) -> str:
    """The rules, one a line, for the notes of a failing example."""
    return "\n".join(f"  {rule.name}: {rule}" for rule in pipeline.outcomes)

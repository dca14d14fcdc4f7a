"""Hypothesis strategies: frames and pipelines that love the same boundaries.

Values of both come from the small pools below, so that a random rule matches a random frame often and misses it by one
often.

``HYPOTHESIS_PROFILE=fuzz`` makes every property test run long, with new examples each time (see :func:`examples`).
"""

from __future__ import annotations

import os
import warnings
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

from xdpkit.language.actions import DROP, PASS, REDIRECT, TX, Action, Redirect
from xdpkit.language.chains import RETURN
from xdpkit.language.check import PipelineWarning, possible
from xdpkit.language.expr import And, Expr, here
from xdpkit.language.fields import FIELDS
from xdpkit.language.headers import HEADER_OBJECTS, Field, field_object
from xdpkit.language.pipeline import CLOCK, Chain, Pipeline
from xdpkit.meaning.walk import EXTENSIONS, MAX_EXTENSIONS

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
PROTOS = (*EXTENSIONS, 1, 6, 17, 58, 4, 41, 47, 132, 59, 63, 64, 108, 135, 255)
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
    "mac": MACS, "ipv4": IP4, "ipv6": IP6, 16: PORTS, 8: BYTES, 32: IP4, 20: (0, 1, 0xFFFFF),
    "vxlan.vni": tuple(a >> 8 for a in IP4), "geneve.vni": tuple(a >> 8 for a in IP4), "tcp.mss": (0, 1, 1460),
    "udp.len": LENGTHS, "gre.proto": (0x0800, 0x86DD, 0x6558), "geneve.proto": (0x0800, 0x86DD, 0x6558),
    "gtpu.type": (1, 255),
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
    if proto in (1, 58):
        kind = rng.choice((0, 8, 13, 18, 19, 3, 5, 12, 128, 129, 130, 2, 4, 134, 135, 136, 137, rng.choice(BYTES)))
        head = pack("!BBHHH", kind, rng.choice(BYTES), 0, rng.choice(PORTS), rng.choice(PORTS))
        return head + b"".join(rng.choice(IP6).to_bytes(16) for _ in range(rng.choice((0, 1, 2))))
    if proto == 132:
        return pack("!HHII", rng.choice(PORTS), rng.choice(PORTS), rng.choice(IP4), 0)
    inside = {6: _tcp, 17: _udp, 47: _gre, 4: _ipv4, 41: _ipv6}
    return inside[proto](rng) if proto in inside else _noise(rng, 40)


#: No-operation, maximum segment size (and one that lies), window scale, SACK permitted, a length of 0, the end.
TCP_OPTIONS = (b"\1", b"\1" * 4, b"\2\4\5\xb4", b"\2\4\0\1", b"\2\3\0", b"\3\3\7", b"\4\2", b"\5\0", b"\0")


def _tcp(rng: Random) -> bytes:
    """TCP with options; some lie about their length, some headers about theirs."""
    options = b""
    while len(options) < 40 and rng.random() < 0.6:
        options += rng.choice(TCP_OPTIONS)
    words = rng.choice((5 + (len(options) + 3) // 4, 5 + (len(options) + 3) // 4, 5, 15, 4, 0))
    ports, numbers = (rng.choice(PORTS), rng.choice(PORTS)), (rng.choice(IP4), rng.choice(IP4))
    tail = (min(words, 15) << 4, rng.choice(BYTES), rng.choice(PORTS), 0, rng.choice(PORTS))
    return pack("!HHIIBBHHH", *ports, *numbers, *tail) + options + _noise(rng, 12)


def _gre(rng: Random) -> bytes:
    """GRE with checksum, key and sequence number or without, now and then of a kind that is not walked."""
    flags = rng.choice((0, 0, 0x2000, 0x2000, 0x8000, 0x1000, 0xB000, 0x3000, 0x4000, 0x2001, 0xFFFF))
    ethertype = rng.choice((0x0800, 0x86DD, 0x6558, 0x6558, 0x8847, 0))
    options = b"".join(rng.choice(IP4).to_bytes(4) for flag in (0x8000, 0x2000, 0x1000) if flags & flag)
    return pack("!HH", flags, ethertype) + options + _inside(rng, ethertype)


def _inside(rng: Random, ethertype: int) -> bytes:
    """What a tunnel holds."""
    if ethertype == 0x6558:
        return _well_formed(rng, rng.choice((0, 0, 1, 2)))
    return _BODIES[ethertype](rng) if ethertype in _BODIES else _noise(rng, 30)


def _udp(rng: Random) -> bytes:
    """UDP, often to a port of a tunnel."""
    port = rng.choice((4789, 6081, 2152, 2152, rng.choice(PORTS), rng.choice(PORTS)))
    head, vni = pack("!HHHH", rng.choice(PORTS), port, rng.choice(LENGTHS), 0), rng.choice(IP4)
    if port == 4789:
        return head + pack("!BBHI", rng.choice((8, 8, 8, 0, 0xFF)), 0, 0, vni) + _inside(rng, 0x6558)
    if port == 6081:
        words, ethertype = rng.choice((0, 0, 1, 3, 63)), rng.choice((0x6558, 0x0800, 0x86DD, 0))
        first = rng.choice((0, 0, 0, 0x40)) | words
        return head + pack("!BBHI", first, 0, ethertype, vni) + bytes(4 * words) + _inside(rng, ethertype)
    if port == 2152:
        return head + _gtpu(rng)
    return head + _noise(rng, 12)


def _gtpu(rng: Random) -> bytes:
    """GTP-U with its options and extension headers, up to two more than the walk passes."""
    flags = rng.choice((0x30, 0x30, 0x32, 0x31, 0x34, 0x34, 0x37, 0x20, 0x50))
    out = pack("!BBHI", flags, rng.choice((255, 255, 255, 1)), rng.choice(LENGTHS), rng.choice(IP4))
    if flags & 7:
        chain = [rng.choice((0x85, 0x40)) for _ in range(rng.choice((0, 1, 1, 2, 4, 5, 6)))]
        out += pack("!HBB", 0, 0, chain[0] if chain else 0)
        for following in [*chain[1:], 0] if chain else []:
            words = rng.choice((1, 1, 2, 0))
            out += bytes([words]) + bytes(max(4 * words - 2, 2)) + bytes([following])
    return out + rng.choice((_ipv4, _ipv6))(rng)


def _mpls(rng: Random) -> bytes:
    """Labels, up to two more than the walk passes."""
    labels = [rng.choice((0, 1, 0xFFFFF)) for _ in range(rng.choice((1, 1, 2, 3, 8, 9, 10)))]
    bottoms = [0] * (len(labels) - 1) + [1]
    stack = (label << 12 | rng.choice((0, 7)) << 9 | s << 8 | 64 for label, s in zip(labels, bottoms, strict=True))
    return b"".join(pack("!I", word) for word in stack) + rng.choice((_ipv4, _ipv6))(rng)


def _noise(rng: Random, limit: int) -> bytes:
    return rng.randbytes(rng.randint(0, limit))


def _some_proto(rng: Random) -> int:
    return rng.choice((6, 17, 17, 1, 58, 132, 47) if rng.random() < 0.8 else PROTOS)


def _arp(rng: Random) -> bytes:
    """ARP, mostly for IPv4 over Ethernet, or with addresses of other lengths."""
    others = [(6, 0x0800, 6, 4), (1, 0x86DD, 6, 4), (1, 0x0800, 8, 4), (32, 0x0800, 20, 4), (1, 0x0800, 255, 4),
              (1, 0x0800, 6, 255), (1, 0x0804, 6, 2), (1, 0x0800, 0, 4)]  # fmt: skip
    kind = rng.choice([(1, 0x0800, 6, 4)] * 6 + others)
    hardware, protocol = rng.choice(MACS).to_bytes(6) + bytes(kind[2]), rng.choice(IP4).to_bytes(4) + bytes(kind[3])
    address = hardware[: kind[2]] + protocol[: kind[3]]
    return pack("!HHBBH", *kind, rng.choice(POOLS["arp.op"])) + address + address


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
        return pack("!BBHI", following, 0, rng.choice((0, 1, 0x0201)) if kind == 43 else 0, 0)
    if kind == 43:
        units = rng.choice((0, 0, 1, 2))
        return pack("!BBBB", following, units, rng.choice((0, 2, 4)), rng.choice((0, 1, 255))).ljust(
            8 * units + 8, b"\1"
        )
    if kind == 44:
        return pack("!BBHI", following, rng.choice((0, 255)), rng.choice((0, 0, 0, 1, 6, 8, 0xFFF8)), 0)
    units = rng.choice((4, 4, 1, 0, 2, 255) if kind == 51 else (0, 0, 0, 1, 2, 255))
    size = 4 * (min(units, 8) + 2) if kind == 51 else 8 * (min(units, 4) + 1)
    return pack("!BB", following, units).ljust(size, b"\1")


def _ipv6(rng: Random) -> bytes:
    """IPv6 with a chain of extension headers, up to two more than the walk passes."""
    count = rng.choice((0, 0, 1, 1, 2, 3, MAX_EXTENSIONS - 1, *OVERLONG))
    chain = [rng.choice(tuple(EXTENSIONS)) for _ in range(count)]
    numbers = [*chain, _some_proto(rng)]
    version, length, hop_limit = rng.choice((6, 6, 6, 6, 6, 6, 6, 4)), rng.choice(LENGTHS), rng.choice(BYTES)
    head = pack("!BBHHBB", version << 4, 0, 0, length, numbers[0], hop_limit)
    addresses = rng.choice(IP6).to_bytes(16) + rng.choice(IP6).to_bytes(16)
    honest = rng.random() < 0.5
    body = b"".join(_extension(rng, kind, following, honest) for kind, following in pairwise(numbers))
    return head + addresses + body + _transport(rng, numbers[-1])


_BODIES: dict[int, Callable[[Random], bytes]] = {
    0x0800: _ipv4, 0x86DD: _ipv6, 0x0806: _arp, 0x8847: _mpls, 0x8848: _mpls
}  # fmt: skip


def _well_formed(rng: Random, tags: int | None = None) -> bytes:
    """Ethernet with up to three tags and what its EtherType says."""
    frame = rng.choice(MACS).to_bytes(6) + rng.choice(MACS).to_bytes(6)
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2, 2, 3)) if tags is None else tags):
        frame += pack("!HH", rng.choice(TPIDS), rng.choice(TCIS))
    ethertype = rng.choice((0x86DD, 0x86DD, 0x86DD, 0x0800, 0x0800, 0x0800, 0x0806, 0x8847, rng.choice(ETHERTYPES)))
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

_PAYLOAD = tuple(f"{p}payload[{o}:{n}]" for p in ("", "inner.") for o, n in ((0, 1), (0, 4), (1, 3), (7, 2), (2, 16)))
_FIELDS: tuple[Field, ...] = tuple(
    field_object(name) for name in (*(spec.name for spec in FIELDS if spec.name not in CLOCK), *_PAYLOAD)
)


_FIELD = of(_FIELDS)


def pool(field: Field) -> tuple[int, ...]:
    spec = field.spec
    if spec.kind == "ip":
        return (*IP6, *(0xFFFF << 32 | value for value in IP4))
    keys = (spec.name.removeprefix("inner."), spec.kind, spec.bits)
    pool = next((POOLS[key] for key in keys if key in POOLS), (0, 1, 2, spec.maximum >> 1, spec.maximum))
    return tuple(value for value in pool if value <= spec.maximum)


@cache
def values(field: Field) -> st.SearchStrategy[int]:
    """Values for ``field``, in the pool that the frames use or one beside."""
    near = {max(0, min(v + d, field.spec.maximum)) for v in (*pool(field), field.spec.maximum) for d in (-1, 0, 1)}
    return of((*pool(field), *sorted(near)))


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
    if field.spec.alone:
        choices += [field.condition] * 2
    if field.spec.bits <= 32:
        mask = draw(of((1, 2, 0x12, field.spec.maximum, field.spec.maximum >> 1 or 1))) & field.spec.maximum or 1
        choices += [lambda: (field & mask) == value & mask, lambda: (field & mask) != value & mask]
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
    return str(ip_network((draw(of(pool(field))).to_bytes(bits // 8), length), strict=False))


_PRESENCE = of(tuple(header for name, header in HEADER_OBJECTS.items() if name != "meta")).map(
    lambda header: header.present
)


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
def pipelines(draw: st.DrawFn, max_rules: int = 6, *, chains: bool = True) -> Pipeline:
    """Pipelines of 0 to ``max_rules`` rules; half of them with up to 4 ``chains`` of up to 4 rules."""
    pipe = Pipeline("any", default=draw(_ACTION))
    made = [pipe.chain(f"c{n}") for n in range(draw(of((0, 0, 0, 1, 2, 4))) if chains else 0)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PipelineWarning)
        both: list[Pipeline | Chain] = [pipe, *made]
        for at, chain in enumerate(both):
            for _ in range(draw(st.integers(0, 4 if at else max_rules))):
                condition, action = draw(conditions()), draw(actions(made[at:], _ACTION))
                if made and bool(draw(of((False, False, True)))):
                    condition = HEADER_OBJECTS["pkt"].present
                if possible(condition):
                    chain.rule(condition, action)
    return pipe


@st.composite
def actions(draw: st.DrawFn, chains: Sequence[Chain], others: st.SearchStrategy[Action]) -> Action:
    """An action of ``others``, or where there are ``chains`` rather one that leads to one of them, or back."""
    kind = draw(of((0, 1, 2, 3, 4))) if chains else draw(of((0, 0, 0, 4)))
    if kind in (0, 4) and not (kind == 4 and draw(st.booleans())):
        return draw(others)
    if kind == 4:
        return RETURN
    chain = draw(of(tuple(chains)))
    return chain.goto if kind == 1 else chain.jump


def _rule(rng: Random) -> Expr:
    """A rule of an access list: prefixes that contain each other, ranges of ports, either of two protocols, wildcards,
    negations, presence alone."""
    six = rng.random() < 0.3
    network = HEADER_OBJECTS["ip6" if six else "ip"]
    parts: list[Expr] = []
    for side in ("src", "dst"):
        field: Field = getattr(network, side)
        if rng.random() < 0.6:
            known, bits = pool(field), field.spec.bits
            length = rng.choice((0, 1, bits // 4, 24, bits // 2, bits // 2 + 1, bits - 8, bits - 1, bits))
            prefix = str(ip_network((rng.choice(known).to_bytes(bits // 8), length), strict=False))
            address = IPv6Address if six else IPv4Address
            low, high = sorted(rng.choice(known) for _ in range(2))
            tests = [field.within(prefix)] * 4 + [field.within(f"{address(low)}-{address(high)}"), field != low]
            parts.append(rng.choice(tests))
    for header in rng.choice((("tcp",), ("udp",), ("tcp", "udp"), ())):
        port = getattr(HEADER_OBJECTS[header], rng.choice(("sport", "dport", "dport")))
        low, high = sorted(rng.choice(PORTS) for _ in range(2))
        choices = [
            port == low,
            port == high,
            port.between(low, high),
            port >= low,
            port != high,
            port.isin([low, high]),
        ]
        parts.append(rng.choice([*choices, ~(port == low), HEADER_OBJECTS[header].present]))
    if len(parts) > 1 and rng.random() < 0.3:
        parts[-2:] = [parts[-2] | parts[-1]]
    if rng.random() < 0.1:
        parts.append(HEADER_OBJECTS["eth"].src.isin(rng.sample(MACS, 2)))
    if rng.random() < 0.1:
        parts.append(rng.choice(((HEADER_OBJECTS["tcp"].flags & 0x12) == 2, ~HEADER_OBJECTS["vlan"].present)))
    return And(tuple(parts), where=here()) if parts else network.present


def rule_lists() -> st.SearchStrategy[Pipeline]:
    """Pipelines of 1 to 300 plain rules, known by a seed, whose values are those of the frames."""

    def make(seed: int) -> Pipeline:
        rng = Random(seed)
        pipe = Pipeline("list", default=rng.choice((PASS, DROP)))
        actions = rng.choice(((DROP,), (DROP, PASS), (PASS, DROP, TX, REDIRECT, Redirect(otherwise=DROP))))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PipelineWarning)
            for _ in range(rng.choice((1, 2, 5, 20, 60, 150, 300))):
                if possible(condition := _rule(rng)):
                    pipe.rule(condition, rng.choice(actions))
            pipe.rule(HEADER_OBJECTS["tcp"].dport == 1, DROP)
        return pipe

    return st.integers(0, 2**32 - 1).map(make)


def listing(pipeline: Pipeline) -> str:
    """The rules, one a line, for the notes of a failing example."""
    return "\n".join(f"  {rule.name}: {rule}" for rule in pipeline.outcomes)

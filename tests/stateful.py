"""Hypothesis strategies for rules that remember: sets, verdict maps, limits, samples and steps, over the frames and
boundaries of ``strategies.py``."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from hypothesis import strategies as st
from strategies import actions, comparisons, conditions, make_frame, of, pool

from xdpkit.language.actions import COUNT, DROP, PASS, REDIRECT, TX, Forward, Mark, Redirect
from xdpkit.language.chains import Jump
from xdpkit.language.check import PipelineWarning, possible
from xdpkit.language.counted import numgen, quota
from xdpkit.language.expr import Expr
from xdpkit.language.headers import Field, field_object, pkt
from xdpkit.language.limits import limit, sample
from xdpkit.language.pipeline import Chain, Pipeline
from xdpkit.language.sets import Set

#: Fields of every width that a key may have.
_KEYS = tuple(
    field_object(name)
    for name in (
        "ip.src", "ip.dst", "ip.src", "ip.dst", "ip6.src", "ip6.dst", "tcp.dport", "udp.dport", "udp.sport", "eth.src",
        "eth.dst", "eth.src", "eth.dst", "eth.type", "vlan.id", "ip.proto", "ip.ttl", "tcp.flags", "ip.df", "pkt.len",
        "vxlan.vni", "inner.ip.src", "payload[0:4]", "payload[1:3]", "arp.spa", "ip6.flow", "src", "dst", "src", "dst",
    )
)  # fmt: skip
_FIELD = of(_KEYS)
_ACTION = of((PASS, DROP, TX, REDIRECT, Redirect(otherwise=DROP), Forward("lo"), Forward("lo", otherwise=PASS)))
SECOND = 1_000_000_000


@dataclass(frozen=True)
class Arrival:
    """A frame, when it comes, and the random bits it meets."""

    frame: bytes
    now_ns: int
    random: int


def arrivals(size: int) -> st.SearchStrategy[list[Arrival]]:
    """``size`` frames, of few kinds so that they meet again, in bursts and with pauses."""

    def some(seed: int) -> list[Arrival]:
        rng, now, found = Random(seed), 1 << 40, []
        kinds = [make_frame(rng) for _ in range(max(4, size // 4))]
        for _ in range(size):
            now += rng.choice((0, 0, 1, 999, SECOND // 1000, SECOND // 10, SECOND, 61 * SECOND))
            found.append(Arrival(rng.choice(kinds), now, rng.getrandbits(32)))
        return found

    return st.integers(0, 2**32 - 1).map(some)


@st.composite
def sets(draw: st.DrawFn, pipe: Pipeline, name: str, timed: bool, chains: Sequence[Chain] = ()) -> Set:
    """A set or verdict map of ``pipe``, with members that frames are likely to have; it may lead to ``chains``."""
    fields = draw(st.lists(_FIELD, min_size=1, max_size=draw(of((1, 1, 2, 3)))))
    intervals, verdicts = draw(st.booleans()), draw(st.lists(actions(chains, _ACTION), min_size=1, max_size=3))
    is_map = draw(of((True, False, False)))
    made = {}
    for _ in range(draw(of((0, 4, 12)))):
        member: list[object] = [draw(of(pool(f))) for f in fields]
        if intervals and fields[-1].spec.kind != "bytes":
            member[-1] = draw(_prefixes(fields[-1]))
        made[tuple(member)] = draw(of(tuple(verdicts)))
    capacity = draw(of((400, 3000)))
    if is_map:
        return pipe.vmap(name, *fields, actions=verdicts, intervals=intervals, members=made, capacity=capacity)
    timeouts, small = timed and draw(st.booleans()), draw(st.booleans())
    members = list(made)[: 4 if small else 12]
    if small:
        members = [m for m in members if "-" not in str(m[-1])]
        capacity = max(5, len(members) + 1)
    return pipe.set(name, *fields, intervals=intervals, timeouts=timeouts, members=members, capacity=capacity)


@st.composite
def _prefixes(draw: st.DrawFn, field: Field) -> object:
    """A value, or an interval of the field, as members are written."""
    value, bits = draw(of(pool(field))), field.spec.bits
    free = draw(of((0, 1, bits // 4, bits // 2, bits)))
    low = value >> free << free
    high = low | (1 << free) - 1
    if free == 0 or field.spec.kind not in ("ipv4", "ipv6", "ip", "uint", "flags"):
        return value
    if field.spec.kind in ("ipv4", "ipv6", "ip"):
        import ipaddress

        if field.spec.kind == "ip" and value >> 32 == 0xFFFF:  # an IPv4 address
            free = min(free, 32)
            return f"{ipaddress.IPv4Address((value & 0xFFFFFFFF) >> free << free)}/{32 - free}"

        kind = ipaddress.IPv4Address if field.spec.kind == "ipv4" else ipaddress.IPv6Address
        return f"{kind(low)}/{bits - free}"
    return f"{low}-{high}"


@st.composite
def _remembering(draw: st.DrawFn, known: list[Set], timed: bool) -> Expr:
    kind = draw(of((0, 1, 2, 3))) if timed else 0
    if kind <= 1 and known:
        chosen = draw(of(tuple(known)))
        first = chosen.spec.fields[0]
        alike = [
            f for f in _KEYS
            if (f.spec.bits, f.spec.kind) == (first.bits, first.kind)
            or (first.kind == "ip" and f.spec.kind in ("ipv4", "ipv6"))
        ]  # fmt: skip
        if len(chosen.spec.fields) == 1 and draw(st.booleans()):
            return draw(of(tuple(alike))).isin(chosen)
        return chosen.condition()
    if kind == 2:
        choices: list[Expr] = [sample(draw(of((1, 2, 3, 1 << 16, 1 << 32))))]
        mod = draw(of((2, 3, 7, 1000)))
        number = numgen(draw(of(("inc", "random"))), mod)
        choices += [number == draw(of((0, 1))), number != 1, number.isin([0, mod - 1]), number < draw(of((1, 2)))]
        choices.append(quota(draw(of(("300 B", "1 kbytes", "1 MB"))), per=draw(st.lists(_FIELD, max_size=2))))
        choices.append(quota("2 kB", name=draw(of(("a", "b")))))
        return draw(of(tuple(choices)))
    rate, burst = draw(of(("1/second", "10/minute", "1000/second", "1M/second"))), draw(of((1, 2, 5)))
    if draw(st.booleans()):
        rate, burst = draw(of(("300 bytes/second", "100 kbytes/second", "1 gbytes/second"))), 200 * burst
    return limit(rate, burst=burst, per=draw(st.lists(_FIELD, max_size=2)))


@st.composite
def pipelines(draw: st.DrawFn, prefix: str = "s", *, timed: bool = True) -> Pipeline:
    """Up to 6 rules over up to 3 sets, with steps, and in half of them up to 3 chains of up to 3 rules; nothing that
    depends on time or chance unless ``timed``."""
    pipe = Pipeline("remembers", default=draw(_ACTION))
    chains = [pipe.chain(f"c{n}") for n in range(draw(of((0, 0, 1, 3))))]
    known = [draw(sets(pipe, f"{prefix}{n}", timed, chains)) for n in range(draw(of((1, 2, 3))))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PipelineWarning)
        every: list[Pipeline | Chain] = [pipe, *chains]
        for at, rules in enumerate(every):
            _append(draw, pipe, rules, chains[at:], draw(of((1, 2, 3) if at else (2, 3, 4, 6))), known, timed)
    return pipe


def _append(
    draw: st.DrawFn, pipe: Pipeline, rules: Pipeline | Chain, chains: list[Chain], count: int, known: list[Set],
    timed: bool,
) -> None:  # fmt: skip
    """``count`` rules for ``rules``, which may lead to ``chains``."""
    plain, below = [s for s in known if not s.spec.actions], [chain.spec for chain in chains]
    for _ in range(count):
        maps = [s for s in known if s.spec.actions and not any(f"{s.name}:" in r.name for r in pipe.rules)]
        maps = [s for s in maps if all(not isinstance(a, Jump) or a.chain in below for a in s.spec.actions)]
        if maps and bool(draw(st.booleans())):
            rules.apply(maps[0], when=draw(st.none() | comparisons()))
            continue
        condition = draw(_remembering(known, timed))
        form = draw(of((0, 0, 1, 2, 3, 4)))
        if form == 0 and draw(st.booleans()):
            condition = pkt.present
        elif form == 1:
            condition = draw(conditions()) & condition
        elif form == 2:
            condition = condition | draw(conditions())
        elif form == 3:
            condition = ~condition
        elif form == 4:
            condition = condition & draw(conditions())
        steps = [COUNT, Mark(draw(of((1, 7, 1 << 31))))] if draw(st.booleans()) else []
        if plain and bool(draw(st.booleans())):
            chosen = draw(of(tuple(plain)))
            steps.append(chosen.add(timeout=draw(of((0, 1, 60))) if chosen.spec.timeouts else 0))
        action = [draw(actions(chains, _ACTION))] if not steps or draw(st.booleans()) else []
        if possible(condition):
            rules.rule(condition, *steps, *action)

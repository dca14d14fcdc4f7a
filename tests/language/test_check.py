"""What is said of a rule when it is declared: it never matches, or an earlier one takes all that it could."""

from __future__ import annotations

import warnings
from functools import reduce
from operator import or_

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import conditions, examples, frames

from xdpkit.language.actions import DROP, PASS
from xdpkit.language.check import PipelineWarning, alternatives, implies, possible
from xdpkit.language.errors import PipelineError
from xdpkit.language.expr import Expr, as_expr
from xdpkit.language.headers import arp, eth, gtpu, icmp, inner, ip, ip6, payload, pkt, tcp, udp, vlan, vlan2
from xdpkit.language.pipeline import Pipeline
from xdpkit.meaning.evaluate import holds, walk
from xdpkit.meaning.state import State

#: For conditions that remember nothing.
STATE = State(Pipeline("none"))


@pytest.mark.parametrize(
    "condition",
    [
        ip & ip6,
        tcp & udp,
        arp & ip,
        arp & tcp,
        icmp & ip6,
        (tcp.dport == 80) & (tcp.dport == 443),
        (ip.ttl < 5) & (ip.ttl > 5),
        (tcp.dport == 80) & ip & (udp.sport == 1),
        vlan2 & ~vlan,
        udp & ~ip & ~ip6,
        gtpu & tcp,
        tcp.syn & ~tcp,
        inner.tcp & inner.udp,
        ((tcp.flags & 2) == 2) & ((tcp.flags & 2) == 0),
        (pkt.len < 64) & (pkt.len > 100),
        (ip & ip6) | (tcp & udp),
    ],
    ids=str,
)
def test_a_rule_that_can_never_match_is_an_error_at_its_line(condition: Expr):
    with pytest.raises(PipelineError, match=r"test_check\.py:\d+: .*(never match)"):
        Pipeline("p").rule(condition, DROP)


def test_the_error_names_what_contradicts():
    with pytest.raises(PipelineError, match="can never match: ip and ip6 exclude each other"):
        Pipeline("p").rule(tcp & ip & ip6, DROP)


@pytest.mark.parametrize(
    "condition",
    [
        ip & inner.ip6,
        ip & ~udp,
        tcp & inner.udp,
        ~ip & ~ip6,
        (ip.src == "192.0.2.1") & (ip.dst == "192.0.2.1"),
        ~(tcp.dport == 80) & (tcp.dport != 443),
        ~(payload[0:4] == b"GET ") & (tcp.dport == 80),
        reduce(or_, (udp.dport == n for n in range(0, 400, 2))) & ip,
    ],
    ids=lambda c: str(c)[:40],
)
def test_a_rule_that_may_match_is_taken(condition: Expr):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Pipeline("p").rule(condition, DROP)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (udp, udp.dport == 53),
        (ip.src.within("10.0.0.0/8"), ip.src.within("10.1.0.0/16") & tcp),
        (udp.dport.between(1, 100), (udp.dport == 5) | (udp.dport == 7)),
        (udp | tcp, tcp.dport == 80),
        (~tcp, udp & ip),
        (eth, vlan.id == 5),
        (tcp.syn, tcp.syn & ~tcp.ack),
        (tcp.flags.has("syn"), tcp.flags.has("syn") & (tcp.dport == 80)),
        (payload[0:4] == b"GET ", (payload[0:4] == b"GET ") & (tcp.dport == 80)),
        (udp.dport >= 0, udp.sport == 5),
    ],
    ids=str,
)
def test_a_rule_behind_a_wider_one_is_shadowed_and_the_warning_points_at_it(first: object, second: object):
    pipe = Pipeline("p")
    pipe.rule(first, PASS, name="wide")
    with pytest.warns(PipelineWarning, match="rule 'narrow' is shadowed: 'wide' before it") as caught:
        rule = pipe.rule(second, DROP, name="narrow")
    assert (caught[0].filename, caught[0].lineno) == (rule.where.file, rule.where.line)
    (finding,) = pipe.check()
    assert (finding.kind, finding.rule, finding.by) == ("shadowed", "narrow", "wide")


def test_behind_a_rule_that_takes_everything_nothing_is_reached():
    pipe = Pipeline("p")
    pipe.rule(pkt, PASS, name="all")
    with pytest.warns(PipelineWarning, match="unreachable"):
        pipe.rule(ip, DROP)
    assert [f.kind for f in pipe.check()] == ["unreachable"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (udp.dport == 53, udp),
        (tcp.dport == 80, udp.dport == 80),
        (~(udp.dport == 53), udp),
        (payload[0:4] >= 0, udp),
        ((tcp.flags & 2) == 2, tcp.flags == 3),
        (udp.dport.between(1, 10) & ip, udp.dport == 5),
    ],
    ids=str,
)
def test_a_rule_that_an_earlier_one_may_leave_something_is_not_warned_of(first: object, second: object):
    pipe = Pipeline("p")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe.rule(first, PASS)
        pipe.rule(second, DROP)
    assert pipe.check() == []


@examples(300)
@given(conditions(), conditions(), st.lists(frames(0), min_size=5, max_size=5))
def test_what_is_said_never_matches_and_what_is_implied_follows(a: Expr, b: Expr, batch: list[bytes]):
    both = a & b
    narrow, wide = alternatives(both), alternatives(a)
    packets = [walk(frame) for frame in batch]
    if not possible(both):
        assert not any(holds(both, packet, STATE) for packet in packets)
    for x, y in ((alternatives(b), wide), (wide, alternatives(b)), (narrow, wide)):
        if x is not None and y is not None and implies(x, y):
            for packet in packets:
                p, q = (b, a) if y is wide and x is not narrow else (a, b) if x is wide else (both, a)
                assert not holds(p, packet, STATE) or holds(q, packet, STATE)


def test_as_expr_of_a_condition_is_itself():
    condition = udp.dport == 53
    assert as_expr(condition) is condition

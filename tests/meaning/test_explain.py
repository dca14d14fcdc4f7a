"""Explanations: they say what the reference does, with the conditions that it asked."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, note
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether
from stateful import Arrival, arrivals, pipelines
from strategies import again, examples, listing

from xdpkit import DROP, PASS, Pipeline, explain, icmp, ip, limit, pkt, src, tcp
from xdpkit.meaning.evaluate import State, run
from xdpkit.meaning.explain import explain_packet
from xdpkit.meaning.walk import walk

pytestmark = pytest.mark.filterwarnings("ignore::xdpkit.PipelineWarning")


@examples(60)
@given(pipelines(), arrivals(30))
def test_an_explanation_is_what_the_reference_does_and_takes_what_it_takes(pipe: Pipeline, stream: list[Arrival]):
    note(f"{again('meaning/test_explain.py')}\n{listing(pipe)}")
    one, two = State(pipe), State(pipe)
    for arrival in stream:
        for state in (one, two):
            state.now_ns, state.random = arrival.now_ns, arrival.random
        outcome = run(pipe, arrival.frame, one)
        found = explain_packet(pipe, walk(arrival.frame, now_ns=two.now_ns), two)
        assert (found.rule, found.passed) == (outcome.rule, tuple(outcome.passed))
        held = [tried.rule for tried in found.tried if tried.held]
        assert held == [rule for rule in (*outcome.passed, outcome.rule) if rule is not pipe.outcomes[-1]]
        assert one.buckets == two.buckets
        assert json.loads(json.dumps(found.as_dict()))["verdict"] == outcome.rule.action.verdict.name
        assert all("\n" not in line for line in found.lines(everything=True))


def edge() -> Pipeline:
    pipe = Pipeline("edge", default=DROP)
    bans = pipe.set("bans", src, members=["203.0.113.0/24"])
    web = pipe.chain("web")
    web.rule(bans, DROP, name="banned")
    web.rule(tcp.syn & ~limit("1/day", burst=3, per=src), DROP, name="flood")
    web.rule(pkt, PASS, name="ok")
    pipe.apply(pipe.vmap("ports", tcp.dport, actions=[web.jump], members={443: web.jump}))
    pipe.rule(~(ip.ttl < 5) & icmp, PASS, name="icmp")
    return pipe


def terms(frame: object) -> list[str]:
    return [f"{tried.rule.name} {term}" for tried in explain(edge(), bytes(frame)).tried for term in tried.terms]  # type: ignore[call-overload]


def test_terms_say_what_was_found():
    assert terms(Ether() / IP(src="198.51.100.7") / TCP(dport=443, flags="S")) == [
        "ports:JUMP web tcp.dport in ports -> JUMP web (member 443: JUMP web)",
        "web/banned src in bans: no (198.51.100.7 is no member)",
        "web/flood tcp.syn (tcp.syn is 1)",
        "web/flood ~limit('1/day', per=src, burst=3): no (3 of 3 packets left)",
        "web/ok any",
    ]
    assert terms(Ether() / IP(src="203.0.113.9") / TCP(dport=443))[1:] == [
        "web/banned src in bans (member 203.0.113.0/24)"
    ]
    assert terms(Ether() / IP(ttl=64) / UDP(dport=53)) == [
        "ports:JUMP web tcp.dport in ports -> JUMP web: no (no tcp)",
        "icmp ~(ip.ttl < 5) (ip.ttl is 64)",
        "icmp icmp: no",
    ]
    assert terms(Ether() / ARP())[1:] == ["icmp ~(ip.ttl < 5) (no ip)", "icmp icmp: no"]


def test_lines_name_the_packet_the_verdict_and_the_rules_that_held():
    found = explain(edge(), bytes(Ether() / IP(src="203.0.113.9", dst="192.0.2.1") / TCP(sport=9, dport=443)))
    first, second, *rules = found.lines()
    assert first == "203.0.113.9.9 > 192.0.2.1.443 tcp, 54 bytes"
    assert second.startswith("DROP by rule 'web/banned' (")
    assert [line.split(":")[0].strip() for line in rules] == ["ports", "web/banned"]
    assert str(found) == "\n".join(found.lines())
    assert explain(edge(), bytes(Ether() / ARP())).lines()[1].startswith("DROP by the default (")

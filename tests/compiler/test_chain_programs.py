"""Chains in the kernel: what random ones mean is in the property tests of test_engines.py and test_memory.py, whose
pipelines have chains; here is what they cost, and what they share."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from engines import one_by_one
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from traffic import until

from xdpkit import COUNT, DROP, PASS, RETURN, Action, Pipeline, attach, eth, ip, limit, pkt, routing, tcp
from xdpkit.compiler import HOOKS, compile_pipeline
from xdpkit.compiler.built import Built
from xdpkit.link.ruleset import Ruleset
from xdpkit.meaning.evaluate import evaluate

pytestmark = [pytest.mark.root, pytest.mark.filterwarnings("ignore::xdpkit.PipelineWarning")]


def frame(port: int, source: str = "198.51.100.1") -> bytes:
    return bytes(Ether() / IP(src=source) / TCP(dport=port) / bytes(20))


def counts(ruleset: Ruleset) -> dict[str, int]:
    return {c.rule.name: c.packets for c in ruleset.program.counts() if c.packets}


@one_by_one
def test_a_chain_that_is_jumped_to_from_several_rules_has_one_limit_and_one_counter(hook: str):
    pipe = Pipeline("shared", default=DROP)
    few = pipe.chain("few")
    few.rule(limit("1/day", burst=3), PASS, name="within")
    few.rule(pkt, COUNT, name="over")
    for port in (1, 2, 3):
        pipe.rule(tcp.dport == port, few.jump, name=f"to {port}")
    pipe.rule(tcp, few.goto, name="into")
    with Ruleset(Built(pipe, {}), hook, explain=True) as ruleset:
        taken = [ruleset.program.judge(frame(port), now_ns=1 << 40)[0].name for port in (1, 2, 3, 1, 2, 9)]
        assert taken == ["few/within"] * 3 + ["default"] * 3
        # A packet to a port comes to the chain twice: from its own rule and, coming back, from the last one.
        assert counts(ruleset) == {
            "to 1": 2, "to 2": 2, "to 3": 1, "into": 3, "few/within": 3, "few/over": 5, "default": 3,
        }  # fmt: skip


def many(chains: int, each: int) -> Pipeline:
    """A verdict map of ports that leads to chains of source prefixes."""
    pipe = Pipeline("many")
    made = [pipe.chain(f"c{n}") for n in range(chains)]
    pipe.apply(pipe.vmap("ports", tcp.dport, members={1000 + n: chain.jump for n, chain in enumerate(made)}))
    for n, chain in enumerate(made):
        for i in range(each):
            chain.rule(ip.src.within(f"10.{n}.{i}.0/24"), DROP)
    pipe.rule(tcp.dport == 1000, DROP, name="rest of the first")
    return pipe


@pytest.mark.parametrize("hook", HOOKS)
def test_plain_rules_of_fifty_chains_are_fifty_tables(hook: str):
    pipe = many(50, 20)
    compiled = compile_pipeline(pipe, hook)
    assert len(compiled.tables) == 50
    with Ruleset(Built(pipe, {hook: compiled}), hook, explain=True) as ruleset:
        assert ruleset.program.info()["verified_instructions"] < 50_000
        for port, source in ((1000, "10.0.0.1"), (1049, "10.49.19.1"), (1049, "10.48.19.1"), (1000, "10.1.0.1")):
            data = frame(port, source)
            if hook != "socket":  # a test run hides the Ethernet header from a socket filter
                assert ruleset.program.judge(data)[0] is evaluate(pipe, data)


@pytest.mark.parametrize("hook", HOOKS)
def test_offsets_that_are_kept_on_the_stack_have_bounds_where_they_are_used(hook: str):
    """Found at random: at XDP the verifier had lost those of the routing header."""
    pipe = Pipeline("offsets")
    chain = pipe.chain("chain")
    pipe.rule((tcp.flags & 0x12) == 2, chain.jump)
    pipe.rule(eth.src == "02:00:00:00:00:01", RETURN)
    pipe.rule(routing.seg_left == 1, COUNT)
    chain.rule(pkt, RETURN)
    assert verified(pipe, hook) < 20_000


def nested(width: int, depth: int, each: int) -> Pipeline:
    """``width`` rules of each chain jump to the next, ``depth`` chains deep, with ``each`` other rules behind them."""
    pipe = Pipeline("nested")
    chains: list[Any] = [pipe, *(pipe.chain(f"c{n}") for n in range(depth))]
    for upper, lower in pairwise(chains):
        for n in range(width):
            upper.rule(tcp.dport == n, lower.jump)
    for at, chain in enumerate(chains):
        for n in range(each):
            chain.rule((tcp.dport != n) & (ip.ttl == 10 * at + n), DROP)
    return pipe


def verified(pipe: Pipeline, hook: str) -> int:
    """Steps that the verifier took."""
    with Ruleset(Built(pipe, {}), hook, explain=True) as ruleset:
        return ruleset.program.info()["verified_instructions"]


@pytest.mark.parametrize("hook", HOOKS)
def test_a_chain_costs_the_verifier_its_own_steps_for_each_way_that_leads_to_it(hook: str):
    """Not one more for each way through the rules in front of the jump."""
    alone = verified(nested(1, 1, 8), hook)
    assert verified(nested(8, 1, 8), hook) <= 8 * alone
    assert verified(nested(2, 4, 8), hook) <= 31 * alone


@one_by_one
def test_chains_fifteen_deep_are_judged_as_the_reference_does(hook: str):
    pipe = nested(1, 15, 2)
    with Ruleset(Built(pipe, {}), hook, explain=True) as ruleset:
        for port in (0, 1, 2):
            for ttl in range(0, 160, 5):
                data = bytes(Ether() / IP(ttl=ttl) / TCP(dport=port))
                assert ruleset.program.judge(data)[0] is evaluate(pipe, data)


def test_a_ledger_counts_on_when_chains_change_and_a_shadow_has_its_own(make_veth):
    left, right = make_veth()

    def rules(action: Action) -> Pipeline:
        pipe = Pipeline("live")
        web = pipe.chain("web")
        few = limit("1/day", burst=3)
        pipe.rule(tcp, web.jump, name="to-web")
        web.rule(few, COUNT, name="few")
        web.rule(tcp.dport == 80, action, name="http")
        return pipe

    data = frame(80)
    with right.namespace, attach(rules(PASS), right.name, shadow=rules(DROP)) as link:
        left.send([data] * 2)
        until(lambda: link.ledger().seen == 2, "2 packets")
        shadow = link.ledger().shadow
        assert shadow is not None
        assert {rule.name: rule.packets for rule in shadow.rules} == {
            "to-web": 2, "web/few": 2, "web/http": 2, "default": 0,
        }  # fmt: skip
        assert shadow.differences == (("PASS", "DROP", 2),)
        link.update(rules(DROP))
        left.send([data] * 2)
        until(lambda: link.ledger().seen == 4, "4 packets")
        ledger = link.ledger()
    assert {r.name: r.packets for r in ledger.rules} == {"to-web": 4, "web/few": 3, "web/http": 4, "default": 0}
    assert [rule.chain for rule in ledger.rules] == ["", "web", "web", ""]
    assert ledger.problems() == ()

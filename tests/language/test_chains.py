"""Chains: how they are declared, what is refused, what is found out about them, and what they mean."""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether

from xdpkit import (
    COUNT,
    DROP,
    PASS,
    RETURN,
    Mark,
    Pipeline,
    PipelineError,
    PipelineWarning,
    ip,
    limit,
    pkt,
    tcp,
    udp,
)
from xdpkit.compiler import compile_pipeline
from xdpkit.meaning.evaluate import Outcome, State, run


def frame(dport: int, source: str = "198.51.100.1", kind: type = TCP) -> bytes:
    return bytes(Ether() / IP(src=source) / kind(dport=dport))


def met(pipe: Pipeline, data: bytes) -> list[str]:
    """The names of the rules that a frame passes, and of the one that takes it."""
    outcome: Outcome = run(pipe, data, State(pipe))
    return [rule.name for rule in (*outcome.passed, outcome.rule)]


def shop() -> Pipeline:
    """Jumps, a goto and returns, two deep."""
    pipe = Pipeline("shop", default=DROP)
    web, log = pipe.chain("web"), pipe.chain("log")
    pipe.rule(tcp.dport == 80, Mark(1), web.jump, name="to-web")
    pipe.rule(tcp.dport == 81, web.goto, name="into-web")
    pipe.rule(tcp, PASS, name="tcp")
    pipe.rule(udp, RETURN, name="udp")
    pipe.rule(pkt, PASS, name="rest")
    web.rule(ip.src == "10.0.0.1", DROP, name="bad")
    web.rule(ip.src == "10.0.0.2", RETURN, name="own")
    web.rule(ip.src == "10.0.0.3", log.goto, name="odd")
    web.rule(ip.src == "10.0.0.4", log.jump, name="new")
    web.rule(pkt, COUNT, name="end")
    log.rule(tcp.syn, COUNT, name="syn")
    return pipe


# ---- what they mean: the words of nft(8) ----


def test_behind_a_jump_the_packet_comes_back_and_behind_a_goto_it_does_not():
    assert met(shop(), frame(80)) == ["to-web", "web/end", "tcp"]
    assert met(shop(), frame(81)) == ["into-web", "web/end", "default"]


def test_a_chain_gives_a_verdict_as_the_pipeline_does():
    assert met(shop(), frame(80, "10.0.0.1")) == ["to-web", "web/bad"]


def test_return_leaves_the_chain_and_of_the_pipeline_it_means_the_default():
    assert met(shop(), frame(80, "10.0.0.2")) == ["to-web", "web/own", "tcp"]
    assert met(shop(), frame(9, kind=UDP)) == ["udp", "default"]


def test_behind_a_goto_in_a_chain_the_packet_goes_where_that_chain_was_jumped_from():
    assert met(shop(), frame(80, "10.0.0.3")) == ["to-web", "web/odd", "log/syn", "tcp"]
    assert met(shop(), frame(81, "10.0.0.3")) == ["into-web", "web/odd", "log/syn", "default"]
    assert met(shop(), frame(80, "10.0.0.4")) == ["to-web", "web/new", "log/syn", "web/end", "tcp"]


def test_steps_in_front_of_a_jump_are_done():
    pipe = shop()
    assert run(pipe, frame(80), State(pipe)).mark == 1


def test_a_verdict_map_leads_to_chains():
    pipe = Pipeline("map")
    ssh, web = pipe.chain("ssh"), pipe.chain("web")
    ssh.rule(ip.src == "10.0.0.1", DROP, name="bad")
    web.rule(pkt, DROP, name="all")
    ports = pipe.vmap("ports", tcp.dport, members={22: ssh.jump, 80: web.goto, 23: DROP, 24: RETURN})
    pipe.apply(ports)
    pipe.rule(tcp, PASS, name="tcp")
    assert met(pipe, frame(22)) == ["ports:JUMP ssh", "tcp"]
    assert met(pipe, frame(22, "10.0.0.1")) == ["ports:JUMP ssh", "ssh/bad"]
    assert met(pipe, frame(80)) == ["ports:GOTO web", "web/all"]
    assert met(pipe, frame(23)) == ["ports:DROP"]
    assert met(pipe, frame(24)) == ["ports:RETURN", "default"]
    assert met(pipe, frame(25)) == ["tcp"]


def test_a_limit_in_a_chain_is_one_however_it_is_reached():
    pipe = Pipeline("limited")
    chain = pipe.chain("few")
    chain.rule(limit("1/day", burst=3), PASS, name="within")
    pipe.rule(tcp.dport == 1, chain.jump)
    pipe.rule(tcp.dport == 2, chain.jump)
    pipe.rule(tcp, DROP, name="over")
    state = State(pipe)
    taken = [run(pipe, frame(1 + n % 2), state).rule.name for n in range(6)]
    assert taken == ["few/within"] * 3 + ["over"] * 3
    assert [limit.bucket for limit in pipe.limits] == ["few/within/1"]


# ---- declaring them ----


def test_rules_of_chains_follow_the_pipelines_own_and_are_named_by_their_chain():
    pipe = shop()
    assert [rule.name for rule in pipe.rules[4:7]] == ["rest", "web/bad", "web/own"]
    assert [chain.name for chain in pipe.chains] == ["web", "log"]
    assert [rule.name for rule in pipe.rules_of("log")] == ["log/syn"]
    assert str(pipe.rules[0]) == "tcp.dport == 80 -> MARK 0x1, JUMP web"
    assert {rule.chain for rule in pipe.rules} == {"", "web", "log"}
    web = Pipeline("p").chain("web")
    assert [web.rule(tcp.dport == n, DROP).name for n in (1, 2)] == ["web/rule-1", "web/rule-2"]
    assert repr(web) == "<Chain web of p: 2 rules>"


def test_the_digest_covers_chains():
    pipe, other, empty = shop(), shop(), shop()
    assert pipe.digest() == other.digest()
    other.chain("log2")
    assert other.digest() != pipe.digest()
    empty.rule(udp, RETURN)
    assert empty.digest() != pipe.digest()


def refused(what: str, declare) -> None:
    pipe = Pipeline("refused")
    with pytest.raises(PipelineError, match=what) as caught:
        declare(pipe)
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).startswith(f"{__file__}:")


def circle(pipe: Pipeline) -> None:
    a, b, c = (pipe.chain(name) for name in "abc")
    a.rule(tcp, b.jump)
    b.rule(tcp, c.goto)
    c.rule(tcp, a.jump)


def test_what_comes_back_to_itself_is_refused():
    refused("chain 'c' would come back to itself: c -> a -> b -> c$", circle)

    def itself(pipe: Pipeline) -> None:
        web = pipe.chain("web")
        web.rule(tcp, web.goto)

    refused("chain 'web' would come back to itself: web -> web$", itself)


def deep(pipe: Pipeline, levels: int) -> None:
    chains: list[Any] = [pipe, *(pipe.chain(f"c{n}") for n in range(levels))]
    for upper, lower in pairwise(chains):
        upper.rule(tcp, lower.jump)


def test_chains_are_as_deep_as_in_nftables_and_no_deeper():
    deep(Pipeline("deep"), 15)
    refused(
        "chains are too deep: the pipeline -> c0 -> .* -> c15; nftables and xdpkit allow 15$", lambda p: deep(p, 16)
    )


def test_a_chain_of_another_pipeline_is_refused():
    other = Pipeline("other").chain("web")
    wants = (
        r"chain 'web' \(.*test_chains.py:\d+\) is not one of pipeline 'refused': declare it with pipe.chain\('web'\)$"
    )
    refused(wants, lambda pipe: pipe.rule(tcp, other.jump))
    refused(wants, lambda pipe: (pipe.chain("web"), pipe.rule(tcp, other.goto)))
    refused(wants, lambda pipe: pipe.apply(pipe.vmap("ports", tcp.dport, members={80: other.jump})))


def test_words_that_are_no_action_are_refused():
    refused(r"is no action: write chain.jump or chain.goto$", lambda pipe: pipe.rule(tcp, pipe.chain("web")))
    refused(r"JUMP web ends the rule: nothing can stand behind it$", lambda p: p.rule(tcp, p.chain("web").jump, DROP))
    refused("chain name 'a/b'", lambda pipe: pipe.chain("a/b"))
    refused("chain 'web' is declared already$", lambda pipe: (pipe.chain("web"), pipe.chain("web")))
    with pytest.raises(PipelineError, match="is no action: PASS"):
        Pipeline("p", default=RETURN)


def test_a_chain_may_cut_management_off_and_comes_behind_it():
    refused("'to-web' .* could cut management off", lambda pipe: (
        pipe.rule(tcp, pipe.chain("web").jump, name="to-web"), pipe.management("192.0.2.0/28"),
    ))  # fmt: skip


def test_a_name_of_a_chains_rule_that_is_taken_is_refused():
    def twice(pipe: Pipeline) -> None:
        web = pipe.chain("web")
        web.rule(tcp, DROP, name="x")
        web.rule(udp, DROP, name="x")

    refused("rule name 'web/x' is taken", twice)


def test_ways_through_chains_that_are_too_many_to_be_written_out_are_refused():
    pipe = Pipeline("wide")
    chains: list[Any] = [pipe, *(pipe.chain(f"c{n}") for n in range(13))]
    for upper, lower in pairwise(chains):
        upper.rule(tcp.dport == 1, lower.jump)
        upper.rule(tcp.dport == 2, lower.jump)
    with pytest.raises(PipelineError, match="8192 ways lead to chain 'c12'"):
        compile_pipeline(pipe)


# ---- what is found out ----


def test_a_rule_of_a_chain_that_never_matches_is_warned_of_at_its_line():
    pipe = Pipeline("p")
    web = pipe.chain("web")
    pipe.rule(tcp, web.jump)
    web.rule(tcp.dport < 1024, RETURN, name="low")
    with pytest.warns(PipelineWarning, match="rule 'web/ssh' is shadowed: 'web/low'") as caught:
        web.rule(tcp.dport == 22, DROP, name="ssh")
    assert caught[0].filename == __file__
    assert [(f.kind, f.rule) for f in pipe.check()] == [("shadowed", "web/ssh")]


def test_rules_behind_a_goto_for_every_packet_are_unreachable_and_behind_a_jump_they_are_not():
    pipe = Pipeline("p")
    web = pipe.chain("web")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe.rule(pkt, web.jump)
        pipe.rule(tcp, DROP)
        pipe.rule(pkt, web.goto)
        with pytest.raises(PipelineWarning, match="unreachable"):
            pipe.rule(udp, DROP)


def test_a_jump_that_never_matches_is_found():
    pipe = Pipeline("p")
    web = pipe.chain("web")
    pipe.rule(tcp, DROP, name="all")
    with pytest.warns(PipelineWarning, match="'to-web' is shadowed: 'all'"):
        pipe.rule(tcp.dport == 80, web.jump, name="to-web")


def test_chains_that_no_packet_comes_to_are_found_and_compiling_warns_of_them():
    pipe = Pipeline("p")
    web, deeper, used = pipe.chain("web"), pipe.chain("deeper"), pipe.chain("used")
    web.rule(tcp, deeper.jump)
    pipe.rule(udp, used.jump)
    used.rule(pkt, RETURN)
    assert [(f.kind, f.rule) for f in pipe.check()] == [("unused", "web"), ("unused", "deeper")]
    assert str(pipe.check()[0]).endswith("chain 'web' is unused: no rule that a packet can come to leads to it")
    with pytest.warns(PipelineWarning, match="chain 'web' is unused") as caught:
        compile_pipeline(pipe)
    assert {w.filename for w in caught} == {__file__}


def test_rules_that_no_way_into_their_chain_allows_are_found():
    pipe = Pipeline("p")
    web, deep = pipe.chain("web"), pipe.chain("deep")
    pipe.rule(tcp.dport == 80, web.jump)
    pipe.rule((tcp.dport == 443) & ip, web.jump)
    web.rule(udp, DROP, name="udp")
    web.rule(tcp.dport == 22, DROP, name="ssh")
    web.rule(tcp.dport == 443, DROP, name="https")
    web.rule(tcp.syn, deep.jump)
    deep.rule(tcp.dport == 22, DROP, name="ssh")
    deep.rule(~ip, DROP, name="six")
    assert [(f.kind, f.rule, f.by) for f in pipe.check()] == [
        ("excluded", "web/udp", "web"), ("excluded", "web/ssh", "web"), ("excluded", "deep/ssh", "deep"),
    ]  # fmt: skip
    assert str(pipe.check()[0]).endswith(
        "rule 'web/udp' is excluded: no rule that leads to chain 'web' lets a packet in that it could match"
    )

"""Rules that remember: every engine comes to what the reference comes to, with the same clock and randomness."""

from __future__ import annotations

from collections import Counter

import pytest
from engines import counted, drain, live, one_by_one, packet_socket, runs
from hypothesis import given, note
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from stateful import Arrival, arrivals, pipelines
from strategies import again, batches, examples, listing

from xdpkit import COUNT, DROP, PASS, TX, Mark, Pipeline, eth, inner, ip, limit, payload, pkt, tcp, udp
from xdpkit.compiler import HOOKS, memory, plan
from xdpkit.compiler.built import Built
from xdpkit.kernel.core import check, lib
from xdpkit.lab import Port
from xdpkit.language.actions import Verdict
from xdpkit.link.ruleset import Ruleset
from xdpkit.meaning.evaluate import State, run

pytestmark = [pytest.mark.root, pytest.mark.filterwarnings("ignore::xdpkit.PipelineWarning")]


def assert_remembered_alike(pipe: Pipeline, stream: list[Arrival], hook: str) -> None:
    """Each frame is taken by the same rule, and rules have counted the same in the end."""
    state, counts, failed = State(pipe), Counter[str](), Counter[str]()
    with Ruleset(Built(pipe, {}), hook, explain=True) as ruleset:
        for number, arrival in enumerate(a for a in stream if runs(hook, a.frame)):
            state.now_ns, state.random = arrival.now_ns, arrival.random
            outcome = run(pipe, arrival.frame, state)
            taken, _ = ruleset.program.judge(arrival.frame, now_ns=arrival.now_ns, random=arrival.random)
            assert taken.name == outcome.rule.name, f"frame {number}, {arrival.frame.hex()}"
            counts.update(rule.name for rule in (outcome.rule, *outcome.passed))
            failed.update(rule.name for rule in outcome.failed)
        counted = ruleset.program.counts()
    assert Counter({c.rule.name: c.packets for c in counted if c.packets}) == counts
    assert Counter({c.rule.name: c.failed for c in counted if c.failed}) == failed


@one_by_one
@examples(25)
@given(pipelines(), arrivals(80))
def test_what_rules_remember_is_the_same_in_the_kernel_and_in_the_reference(
    hook: str, pipe: Pipeline, stream: list[Arrival]
):
    note(f"{again('test_memory.py')}\n{pipe}\n{listing(pipe)}")
    for spec in pipe.sets:
        note(f"{spec.name}: {spec.kind}, {spec.capacity}: {[spec.text(e) for e in spec.members]}")
    assert_remembered_alike(pipe, stream, hook)


@one_by_one
@examples(20)
@given(pipelines(), arrivals(80))
def test_a_large_program_remembers_as_a_small_one_does(hook: str, pipe: Pipeline, stream: list[Arrival]):
    note(f"{again('test_memory.py')}\n{pipe}\n{listing(pipe)}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "FEW", -1)
        patch.setattr(memory, "FEW_SETS", 0)
        assert_remembered_alike(pipe, stream, hook)


@one_by_one
def test_a_limit_in_front_of_a_test_also_counts_packets_without_the_header_that_is_tested(hook: str):
    """The header is not asked for before it is its turn."""
    pipe = Pipeline("limited")
    pipe.rule(~limit("1/day", burst=3) & (udp.dport == 53), DROP, name="over")
    asked, other = (bytes(Ether() / IP() / above) for above in (UDP(dport=53), TCP(dport=53)))
    stream = [Arrival(frame, 1 << 40, 0) for frame in (other, other, asked, asked, other, asked)]
    assert_remembered_alike(pipe, stream, hook)


@examples(25, shrink=False)
@given(pipelines(timed=False), batches(120), st.sampled_from([lib.XK_RECVMMSG, lib.XK_TPACKET_V3]))
def test_the_socket_filter_remembers_as_the_reference_does(wire: Port, pipe: Pipeline, batch: list[bytes], kind: int):
    """On a device, with the clock that there is: nothing here depends on time."""
    note(f"{again('test_memory.py')}\n{pipe}\n{listing(pipe)}")
    batch, state, counts, wanted = live(batch), State(pipe), Counter[str](), []
    for frame in batch:
        outcome = run(pipe, frame, state)
        counts.update(rule.name for rule in (outcome.rule, *outcome.passed))
        wanted += [frame] if outcome.rule.action.verdict is Verdict.REDIRECT else []
    with wire.namespace, Ruleset(Built(pipe, {}), "socket") as ruleset, wire.capture() as seen:
        with packet_socket(wire, ruleset.program, kind) as sock:
            wire.peer.send(batch)
            assert seen.wait(len(batch)) == batch, "the wire itself"
            check(lib.xk_quiesce())
            assert counted(ruleset.program) == counts
            assert drain(sock, len(wanted)) == wanted


@one_by_one
@examples(15)
@given(pipelines(), pipelines("t"), arrivals(60))
def test_a_shadow_counts_what_it_would_do_alone_and_changes_nothing(
    hook: str, pipe: Pipeline, other: Pipeline, stream: list[Arrival]
):
    """Both judge every packet; their sets have other names, or they would be the same."""
    note(again("compiler/test_memory.py"))
    stream = [a for a in stream if runs(hook, a.frame)]
    mine, theirs = State(pipe), State(shadow := other.shadow())
    counts, pairs = Counter[str](), Counter[tuple[Verdict, Verdict]]()
    with Ruleset(Built(pipe.with_shadow(other), {}), hook, explain=True) as ruleset:
        for arrival in stream:
            theirs.now_ns = mine.now_ns = arrival.now_ns
            theirs.random = arrival.random
            would = run(shadow, arrival.frame, theirs)
            mine.random = theirs.random  # the shadow draws first
            outcome = run(pipe, arrival.frame, mine)
            taken, _ = ruleset.program.judge(arrival.frame, now_ns=arrival.now_ns, random=arrival.random)
            assert taken.name == outcome.rule.name
            counts.update(rule.name for rule in (would.rule, *would.passed))
            pairs[outcome.rule.action.verdict, would.rule.action.would.verdict] += 1
        counted, met = ruleset.program.shadow_counts()
    assert Counter({c.rule.name: c.packets for c in counted if c.packets}) == counts
    assert met == pairs


@examples(15, shrink=False)
@given(pipelines(timed=False), pipelines("t", timed=False), batches(120))
def test_the_socket_filter_tries_a_shadow_as_the_reference_does(
    wire: Port, pipe: Pipeline, other: Pipeline, batch: list[bytes]
):
    note(f"{again('test_memory.py')}\n{pipe}\n{listing(pipe)}\n{listing(other)}")
    batch, mine, theirs = live(batch), State(pipe), State(shadow := other.shadow())
    counts, pairs, wanted = Counter[str](), Counter[tuple[Verdict, Verdict]](), []
    for frame in batch:
        would, outcome = run(shadow, frame, theirs), run(pipe, frame, mine)
        counts.update(rule.name for rule in (would.rule, *would.passed))
        pairs[outcome.rule.action.verdict, would.rule.action.would.verdict] += 1
        wanted += [frame] if outcome.rule.action.verdict is Verdict.REDIRECT else []
    with wire.namespace, Ruleset(Built(pipe.with_shadow(other), {}), "socket") as ruleset, wire.capture() as seen:
        with packet_socket(wire, ruleset.program, lib.XK_RECVMMSG) as sock:
            wire.peer.send(batch)
            assert seen.wait(len(batch)) == batch, "the wire itself"
            check(lib.xk_quiesce())
            counted, met = ruleset.program.shadow_counts()
            assert Counter({c.rule.name: c.packets for c in counted if c.packets}) == counts
            assert met == pairs
            assert drain(sock, len(wanted)) == wanted


def wild() -> Pipeline:
    """Few rules, and many ways through them: headers inside tunnels, keys of several fields, members added."""
    pipe = Pipeline("wild", default=PASS)
    flags = pipe.vmap("flags", tcp.flags, actions=[PASS])
    ports = pipe.set("ports", tcp.dport, timeouts=True)
    flows = pipe.set("flows", inner.ip.src, eth.dst, payload[1:3])
    pipe.rule((ip.proto == 3) & flows, COUNT, Mark(1), PASS)
    pipe.apply(flags)
    pipe.rule((inner.payload[0:4] == 4294967294) & tcp.flags.isin(flags), ports.add(timeout=1))
    pipe.rule(tcp.flags.isin(flags), COUNT, Mark(1), flows.add())
    pipe.rule(~((inner.tcp.dport == 55) | (inner.ip.df == 0)) & flows, ports.add(timeout=1), PASS)
    pipe.rule(pkt, PASS)
    return pipe


def tame() -> Pipeline:
    """A map and a set."""
    pipe = Pipeline("tame", default=PASS)
    pipe.apply(pipe.vmap("senders", eth.src, actions=[PASS], intervals=True))
    pipe.rule(ip.src.isin(pipe.set("sources", ip.src, timeouts=True)), TX)
    return pipe


def chained() -> Pipeline:
    """Rules that are tried one by one, each over another header."""
    pipe = Pipeline("chained", default=DROP)
    for n in range(10):
        pipe.rule((inner.tcp.dport == n) & (inner.ip.ttl < 100 + n), TX)
        pipe.rule((ip.src == n) & (tcp.dport == n) & (payload[0:4] == n), PASS)
        pipe.rule((tcp.flags == n) & limit("10/second"), PASS)
        pipe.rule(udp.dport == 1000 + n, DROP)
    return pipe


def verified(pipe: Pipeline, hook: str) -> int:
    """Steps that the verifier took."""
    with Ruleset(Built(pipe, {}), hook, explain=True) as ruleset:
        return ruleset.program.info()["verified_instructions"]


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize(("live", "shadow"), [(wild, tame), (tame, wild), (wild, chained), (chained, wild)])
def test_a_shadow_costs_the_verifier_its_own_steps_and_not_those_of_the_live_rules_again(live, shadow, hook: str):
    """Ways through one ruleset are not followed for each way through the other."""
    both = verified(live().with_shadow(shadow()), hook)
    assert both <= 2 * (verified(live(), hook) + verified(shadow(), hook))

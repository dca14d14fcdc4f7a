"""Connections: XDP and TC come to what the reference comes to, packet by packet."""

from __future__ import annotations

from collections import Counter

import pytest
from connections import ACK, HOSTS4, RST, SYN, conversations, link, network, segment, tracking_pipelines
from engines import one_by_one, runs
from hypothesis import given, note
from hypothesis import strategies as st
from stateful import Arrival
from strategies import again, examples, listing

from xdpkit.compiler.built import Built
from xdpkit.kernel.flowmaps import FLOW, FULL, LEARN_UNTIL
from xdpkit.language import headers
from xdpkit.language.actions import DROP, PASS
from xdpkit.language.pipeline import Pipeline
from xdpkit.language.tracking import ct
from xdpkit.link.ruleset import Ruleset
from xdpkit.meaning.evaluate import State, run

pytestmark = [pytest.mark.root, pytest.mark.filterwarnings("ignore::xdpkit.PipelineWarning")]


def assert_tracked_alike(pipe: Pipeline, stream: list[Arrival], hook: str, learn_seconds: float = 0) -> None:
    """Each packet is taken by the same rule; the tables refuse as many."""
    state, counts = State(pipe), Counter[str]()
    assert state.flows is not None
    learn_until = stream[0].now_ns + round(learn_seconds * 1e9)
    state.flows.learn_until_ns = learn_until
    with Ruleset(Built(pipe, {}), hook, explain=True) as ruleset:
        assert ruleset.tables is not None
        ruleset.tables.write_note(LEARN_UNTIL, learn_until)
        for number, arrival in enumerate(a for a in stream if runs(hook, a.frame)):
            state.now_ns, state.random = arrival.now_ns, arrival.random
            outcome = run(pipe, arrival.frame, state)
            taken, _ = ruleset.program.judge(arrival.frame, now_ns=arrival.now_ns, random=arrival.random)
            assert taken.name == outcome.rule.name, f"frame {number}, {arrival.frame.hex()}"
            counts.update(rule.name for rule in (outcome.rule, *outcome.passed))
        counted = ruleset.program.counts()
        assert ruleset.tables.note(FULL) == state.flows.refused
    assert Counter({c.rule.name: c.packets for c in counted if c.packets}) == counts


@one_by_one
@examples(25)
@given(tracking_pipelines(), conversations(120), st.sampled_from((0, 0, 3)))
def test_connections_are_the_same_in_the_kernel_and_in_the_reference(
    hook: str, pipe: Pipeline, stream: list[Arrival], learn_seconds: float
):
    note(f"{again('compiler/test_connections.py')}\n{pipe}\n{listing(pipe)}\n{pipe.tracking}")
    assert_tracked_alike(pipe, stream, hook, learn_seconds)


def tcp(source: bytes, flags: int, seq: int, ack: int = 0, *, back: bool = False) -> bytes:
    ends, ports = ((HOSTS4[1], source), (443, 1000)) if back else ((source, HOSTS4[1]), (1000, 443))
    return link(4, ()) + network(*ends, 6, segment(*ports, seq, ack, flags, 1000))


@one_by_one
def test_a_flood_of_syns_takes_no_place_of_a_connection(hook: str):
    """Of half-open ones the table keeps as many as it has room for; an answered one is not among them."""
    pipe = Pipeline("flooded", default=DROP)
    pipe.track(capacity=10, half_open=64)
    pipe.rule(ct.established, PASS, name="known")
    pipe.rule(ct.new, PASS, name="new")
    client, now = HOSTS4[0], 1 << 40
    with Ruleset(Built(pipe, {}), hook, explain=True) as ruleset:

        def judge(frame: bytes) -> str:
            return ruleset.program.judge(frame, now_ns=now)[0].name

        handshake = [tcp(client, SYN, 100), tcp(client, SYN | ACK, 500, 101, back=True), tcp(client, ACK, 101, 501)]
        assert [judge(frame) for frame in handshake] == ["new", "known", "known"]
        for n in range(3000):
            assert judge(tcp((0xC6336400 + n).to_bytes(4), SYN, n)) == "new"
        assert judge(tcp(client, ACK, 101, 501)) == "known"
        assert ruleset.tables is not None
        assert [len(table.read(FLOW)[0]) for table in (ruleset.tables.flows,)] == [1]
        assert len(ruleset.tables.half_open.read(FLOW)[0]) < 1000
        assert ruleset.tables.note(FULL) == 0


@one_by_one
def test_chains_ask_for_the_state_of_a_connection(hook: str):
    pipe = Pipeline("chained", default=DROP)
    pipe.track()
    services = pipe.chain("services")
    services.rule(ct.new & (headers.tcp.dport == 443), PASS, name="web")
    services.rule(ct.invalid, DROP, name="invalid")
    pipe.rule(ct.established, PASS, name="known")
    pipe.rule(headers.tcp, services.jump, name="to services")
    client = HOSTS4[0]
    frames = [
        tcp(client, ACK, 1, 2), tcp(client, SYN, 100), tcp(client, SYN | ACK, 500, 101, back=True),
        tcp(client, ACK, 101, 501), tcp(client, RST, 99_999, back=True),
    ]  # fmt: skip
    assert_tracked_alike(pipe, [Arrival(frame, 1 << 40, 0) for frame in frames], hook)

"""Connections: XDP and TC come to what the reference comes to, packet by packet."""

from __future__ import annotations

from collections import Counter

import pytest
from connections import conversations, tracking_pipelines
from engines import one_by_one, runs
from hypothesis import given, note
from hypothesis import strategies as st
from stateful import Arrival
from strategies import again, examples, listing

from xdpkit.compiler.built import Built
from xdpkit.kernel.flowmaps import FULL, LEARN_UNTIL
from xdpkit.language.pipeline import Pipeline
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

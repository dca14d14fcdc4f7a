"""Declarations of tracked connections: what is refused, what it prints, what a built file keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from xdpkit import DROP, PASS, REDIRECT, Pipeline, PipelineError, Timeouts, ct, tcp
from xdpkit.compiler.built import Built, read, write
from xdpkit.language.errors import NotSupported


def test_a_condition_on_flows_needs_a_pipeline_that_tracks():
    with pytest.raises(PipelineError, match=r"ct\.new needs a pipeline that tracks: call pipe\.track\(\) before"):
        Pipeline("p").rule(ct.new & tcp, PASS)


def test_a_pipeline_tracks_once():
    pipe = Pipeline("p")
    pipe.track()
    with pytest.raises(PipelineError, match=r"tracks already, since .*test_tracking\.py"):
        pipe.track()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"capacity": 0}, "capacity is a number of flows"),
        ({"half_open": True}, "half_open is a number of flows"),
        ({"full": REDIRECT}, "full is DROP or PASS"),
        ({"loose": 1}, "loose is True or False"),
        ({"timeouts": {"tcp": 3}}, "no timeout 'tcp'; there are tcp_syn_sent"),
        ({"timeouts": {"udp": -3}}, "timeout udp: seconds"),
        ({"timeouts": 3}, "timeouts is a Timeouts or a dict"),
    ],
)
def test_a_wrong_declaration_is_one_line_that_says_what_is_wanted(options: dict[str, object], said: str):
    with pytest.raises(PipelineError, match=said):
        Pipeline("p").track(**options)  # type: ignore[arg-type]


def test_states_of_a_packet_exclude_each_other():
    pipe = Pipeline("p")
    pipe.track()
    with pytest.raises(PipelineError, match="exclude each other"):
        pipe.rule(ct.new & ct.established, PASS)


def test_a_full_table_has_an_outcome_of_its_own_where_it_drops():
    pipe = Pipeline("p")
    pipe.track()
    pipe.rule(ct.new, PASS, name="new")
    assert [rule.name for rule in pipe.outcomes] == ["new", "flow table full", "default"]
    passing = Pipeline("p")
    passing.track(full=PASS)
    assert [rule.name for rule in passing.outcomes] == ["default"]
    with pytest.raises(PipelineError, match="is taken"):
        pipe.rule(ct.new, PASS, name="flow table full")


def test_a_built_file_keeps_what_is_tracked(tmp_path: Path):
    pipe = Pipeline("p", default=DROP)
    pipe.track(capacity=10, full=PASS, timeouts={"udp": 5}, count=True)
    pipe.rule(ct.established | ct.related & ct.reply, PASS, name="known")
    write(Built(pipe, {}), tmp_path / "p.xdp")
    again = read(tmp_path / "p.xdp").pipeline
    assert again.tracking == pipe.tracking
    assert str(again.rules[0].expr) == str(pipe.rules[0].expr)
    assert pipe.tracking is not None
    assert pipe.tracking.timeouts == Timeouts(udp=5)
    assert "udp=5.0" in str(pipe.tracking)


def test_a_socket_filter_does_not_track():
    from xdpkit import compile_pipeline

    pipe = Pipeline("p")
    pipe.track()
    with pytest.raises(NotSupported, match="tracks connections: XDP or TC"):
        compile_pipeline(pipe, "socket")

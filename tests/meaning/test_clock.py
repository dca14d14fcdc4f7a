"""What rules ask for that is in no header: the time of day, and what the skb carries."""

from __future__ import annotations

import socket
import time
from contextlib import suppress

import pytest
from engines import one_by_one
from hypothesis import given, note
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from strategies import again, examples
from traffic import until

from xdpkit import DROP, PASS, Pipeline, PipelineError, attach, compile_pipeline, meta, udp
from xdpkit.kernel.program import Program, tai_seconds
from xdpkit.meaning.evaluate import Metadata, State, evaluate, run
from xdpkit.sockets.options import Mode

FRAME = bytes(Ether() / IP() / UDP())
DAY_NS = 86_400 * 10**9
#: 2026-11-29 is a Sunday.
SUNDAY_NS = 1_795_910_400 * 10**9


def at(pipe: Pipeline, now_ns: int) -> str:
    state = State(pipe)
    state.now_ns = now_ns
    return run(pipe, FRAME, state).rule.name


def test_day_and_time_are_written_as_people_write_them():
    pipe = Pipeline("office")
    pipe.rule(meta.day.isin(["Saturday", "sun"]), DROP, name="weekend")
    pipe.rule(meta.hour.between("08:00", "17:29:59"), PASS, name="open")
    pipe.rule(meta.hour >= 86_399, DROP, name="last second")
    minute = 60 * 10**9
    assert at(pipe, SUNDAY_NS) == at(pipe, SUNDAY_NS - 1) == "weekend"
    monday = SUNDAY_NS + DAY_NS
    assert [at(pipe, monday + m * minute) for m in (479, 480, 1049, 1050)] == ["default", "open", "open", "default"]
    assert at(pipe, monday + DAY_NS - 1) == "last second"


@pytest.mark.parametrize("value", ["25:00", "8", "12:60", "noon"])
def test_a_time_that_is_none_is_refused(value: str):
    if value == "8":
        assert str(meta.hour == value) == "meta.hour == 8"
        return
    with pytest.raises(PipelineError, match=r"meta\.hour compares with a time such as '17:30' \(UTC\)"):
        meta.hour == value  # noqa: B015
    with pytest.raises(PipelineError, match=r"meta\.day compares with a day such as 'Monday'"):
        meta.day == value  # noqa: B015


def test_mark_and_priority_are_0_where_nobody_has_set_them():
    pipe = Pipeline("marks")
    pipe.rule((meta.mark == 0) & (meta.priority == 0), PASS, name="none")
    pipe.rule((meta.mark & 0xF0) == 0x10, PASS, name="mark")
    assert evaluate(pipe, FRAME).name == "none"
    assert evaluate(pipe, FRAME, metadata=Metadata(mark=0x1F)).name == "mark"
    assert evaluate(pipe, FRAME, metadata=Metadata(mark=0x2F, priority=7)).name == "default"
    assert pipe.metadata == {}


@pytest.mark.root
@one_by_one
@examples(20)
@given(st.integers(0, 86_399), st.integers(0, 86_399), st.sets(st.integers(0, 6), min_size=1),
       st.lists(st.integers(0, 2**62), max_size=20))  # fmt: skip
def test_the_kernel_knows_day_and_time_as_the_reference_does(hook: str, a: int, b: int, days: set[int], times):
    note(again("meaning/test_clock.py"))
    pipe = Pipeline("clock")
    pipe.rule(meta.hour.between(min(a, b), max(a, b)) & meta.day.isin(sorted(days)), DROP, name="both")
    pipe.rule(meta.hour < max(a, 1), DROP, name="hour")
    pipe.rule(meta.day.isin(sorted(days)), DROP, name="day")
    edges = [SUNDAY_NS + (d * 86_400 + s) * 10**9 + n for d in days for s in (a, b) for n in (0, -1)]
    with Program(compile_pipeline(pipe, hook), explain=True) as program:
        for now_ns in [*edges, *times]:
            assert program.judge(FRAME, now_ns=now_ns)[0].name == at(pipe, now_ns)


@pytest.mark.root
@pytest.mark.parametrize("mode", ["native", "generic", "tc_ingress"])
def test_a_rule_holds_at_the_time_that_it_is(make_veth, mode: Mode):
    left, right = make_veth()
    now, pipe = int(time.time()), Pipeline("now")
    day, second = (now // 86_400 + 4) % 7, now % 86_400
    near = [(second + n) % 86_400 for n in range(-300, 301)]  # also when the test runs at midnight
    pipe.rule(meta.hour.isin(near) & meta.day.isin([day, (day + 1) % 7]), DROP, name="now")
    with right.namespace, attach(pipe, right.name, mode=mode) as link:
        left.send([FRAME] * 5)
        until(lambda: link.ledger().seen == 5, "5 packets")
        assert [r.packets for r in link.ledger().rules] == [5, 0]
    assert tai_seconds() in range(-1, 60)


@pytest.mark.root
def test_egress_reads_the_mark_and_the_priority_of_the_sending_socket(make_veth):
    _, right = make_veth(addresses=("10.0.0.1/24", "10.0.0.2/24"))
    pipe = Pipeline("marks")
    pipe.rule(udp & (meta.mark == 7) & (meta.priority == 6), DROP, name="both")
    pipe.rule(udp & (meta.mark == 7), DROP, name="mark")
    pipe.rule(udp, DROP, name="neither")
    with right.namespace, attach(pipe, right.name, mode="tc_egress") as link:
        for mark, priority in ((7, 6), (7, 0), (0, 6)):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, priority)
                sock.setblocking(False)
                with suppress(OSError):  # DROP at egress tells the sender
                    sock.sendto(b"x", ("10.0.0.1", 9))
        until(lambda: sum(r.packets for r in link.ledger().rules[:3]) == 3, "3 packets")
        assert [r.packets for r in link.ledger().rules[:3]] == [1, 1, 1]


@pytest.mark.root
def test_xdp_says_that_there_is_no_mark_yet(make_veth):
    _, right = make_veth()
    pipe = Pipeline("marks")
    pipe.rule(meta.mark == 5, DROP)
    with right.namespace, attach(pipe, right.name, mode="native") as link:
        assert "no packet has meta.mark" in str(link.attachment)
    with right.namespace, attach(pipe, right.name, mode="tc_ingress") as link:
        assert "no packet has" not in str(link.attachment)

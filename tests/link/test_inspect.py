"""Decisions in user space about packets on a bridge: every packet is judged, or `otherwise` counts for it."""

import subprocess
import sys
import threading

import numpy as np
import pytest
from traffic import frames, number, until

from xdpkit import (
    DROP,
    PASS,
    Inspect,
    NotSupported,
    Pipeline,
    PipelineError,
    SocketOptions,
    attach,
    bridge,
    detach_bridge,
    udp,
)
from xdpkit.kernel.core import ffi

SMALL = SocketOptions(ring_size=64, debug=True)


@pytest.fixture
def wire(lab):
    """`wire(**options of lab.veth)`: (left, a, b, right): left's peer is a, right's is b; a and b in one namespace."""

    def make(**options):
        middle = lab.namespace("middle")
        left, a = lab.veth(lab.namespace("left"), middle, names=("left", "a"), **options)
        b, right = lab.veth(middle, lab.namespace("right"), names=("b", "right"), **options)
        return left, a, b, right

    return make


def dns(otherwise=PASS):
    pipe = Pipeline("dns", default=PASS)
    pipe.rule(udp.dport == 53, Inspect(otherwise=otherwise), name="dns")
    return pipe


def even(batch):
    """Packets of even numbers pass."""
    return [number(batch.frame(i)) % 2 == 0 for i in range(len(batch))]


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_a_decision_in_python_passes_some_and_drops_others_and_the_ledger_sums(wire, mode):
    left, a, _, right = wire()
    sides = []

    def decide(batch):
        sides.append((batch.side, len(batch)))
        assert (batch.headers.dport == 53).all()
        assert (batch.lengths == 300).all()
        return even(batch)

    there, back = frames(left, right, range(200), size=300), frames(right, left, range(200), size=300)
    with left.capture() as at_left, right.capture() as at_right, a.namespace:
        with bridge(dns(), inside="a", outside="b", mode=mode, options=SMALL) as joined:
            with joined.inspect(decide) as inspector:
                for n in range(0, 200, 20):
                    left.send(there[n : n + 20])
                    right.send(back[n : n + 20])
                    until(lambda n=n: inspector.stats(0).packets == inspector.stats(1).packets == n + 20, "are judged")
            left.send(frames(left, right, range(3), dport=80))
            at_left.wait(100, timeout=20)
            at_right.wait(103, timeout=20)
    assert list(at_right)[:100] == there[::2]
    assert list(at_left) == back[::2]
    assert sum(n for side, n in sides if side == "inside") == sum(n for side, n in sides if side == "outside") == 200
    ledger = joined.ledger()
    assert (ledger.redirected, ledger.delivered, ledger.lost, ledger.no_socket) == (400, 400, 0, 0)
    assert (ledger.sink, ledger.written, ledger.refused) == ("inspected", 200, 200)
    assert ledger.problems() == joined.inside.ledger().problems() == joined.outside.ledger().problems() == ()


@pytest.mark.parametrize(("otherwise", "arrive"), [(PASS, 5), (DROP, 0)])
def test_while_nobody_inspects_what_was_declared_counts(wire, otherwise, arrive):
    left, a, _, right = wire()
    with right.capture() as got, a.namespace:
        with bridge(dns(otherwise), inside="a", outside="b") as joined:
            left.send(frames(left, right, range(5)) + frames(left, right, [9], dport=80))
            got.wait(arrive + 1, timeout=20)
            with joined.inspect(lambda batch: True):
                left.send(frames(left, right, range(5)))
                got.wait(arrive + 6, timeout=20)
            left.send(frames(left, right, range(5)) + frames(left, right, [9], dport=80))
            got.wait(2 * arrive + 7, timeout=20)
    ledger = joined.ledger()
    assert (ledger.no_socket, ledger.redirected, ledger.written) == (10, 5, 5)
    assert ledger.forwarded == 2 + 2 * arrive
    assert ledger.problems() == ()


@pytest.mark.parametrize("otherwise", [PASS, DROP])
def test_a_slow_inspector_loses_nothing_what_finds_no_room_is_treated_as_declared(wire, otherwise):
    left, a, _, right = wire()
    go_on = threading.Event()

    def decide(batch):
        go_on.wait(30)
        return np.ones(len(batch), bool)

    with right.capture() as got, a.namespace:
        with bridge(dns(otherwise), inside="a", outside="b", options=SMALL) as joined, joined.inspect(decide):
            left.send(frames(left, right, range(300)))
            until(lambda: joined.ledger().totals.seen == 300, "all are seen")
            there = joined.ledger()
            assert (there.redirected, there.no_socket, there.lost) == (64, 236, 0)
            go_on.set()
            got.wait(300 if otherwise is PASS else 64, timeout=20)
            until(lambda: joined.ledger().written == 64, "those that found room are judged")
            left.send(frames(left, right, range(50)))
            until(lambda: joined.ledger().written == 114, "there is room again")
    ledger = joined.ledger()
    assert (ledger.lost, ledger.written, ledger.no_socket, ledger.problems()) == (0, 114, 236, ())
    assert len(got) == (350 if otherwise is PASS else 114)


def test_a_decision_that_fails_ends_the_inspection_and_is_raised(wire):
    left, a, _, right = wire()
    with right.capture() as got, a.namespace, bridge(dns(), inside="a", outside="b") as joined:
        inspector = joined.inspect(lambda batch: batch.frame(999))
        left.send(frames(left, right, range(5)))
        got.wait(5, timeout=20)
        left.send(frames(left, right, range(5)))
        got.wait(10, timeout=20)
        with pytest.raises(IndexError, match="packet 999 of"):
            inspector.close()
        inspector.close()
    assert joined.ledger().problems() == ()


def test_a_decision_in_c_is_called_with_its_context(wire):
    left, a, _, right = wire()
    counts = ffi.new("uint32_t[2]")

    @ffi.callback("xk_decide")  # as good as any function of C
    def decide(context, direction, data, sizes, count, verdicts):
        ffi.cast("uint32_t *", context)[direction] += count
        for i in range(count):
            verdicts[i] = data[i][sizes[i] - 1] == ord(".")

    with right.capture() as got, a.namespace, bridge(dns(), inside="a", outside="b") as joined:
        addresses = int(ffi.cast("uintptr_t", decide)), int(ffi.cast("uintptr_t", counts))
        with joined.inspect(addresses[0], context=addresses[1]):
            left.send(frames(left, right, range(5)))
            got.wait(5, timeout=20)
    assert list(counts) == [5, 0]


def test_packets_of_several_buffers_go_on_whole(wire):
    left, a, _, right = wire(mtu=9000)
    sent = [frame for n in range(40) for frame in frames(left, right, [n], size=64 + 223 * n)]
    with right.capture() as got, a.namespace:
        with bridge(dns(), inside="a", outside="b", options=SMALL) as joined, joined.inspect(even):
            assert joined.inside.attachment.multi_buffer
            for n, frame in enumerate(sent):
                left.send([frame])
                until(lambda n=n: joined.ledger().delivered == n + 1, "it is judged")
            got.wait(20, timeout=20)
    assert list(got) == sent[::2]


def test_inspection_goes_on_through_an_update(wire):
    left, a, _, right = wire()
    with right.capture() as got, a.namespace:
        with bridge(dns(), inside="a", outside="b") as joined, joined.inspect(even):
            left.send(frames(left, right, range(10)))
            got.wait(5, timeout=20)
            new = dns()
            new.rule(udp.dport == 80, DROP, name="web")
            joined.update(new)
            left.send(frames(left, right, range(10)))
            got.wait(10, timeout=20)
    assert joined.ledger().written == 10
    assert joined.ledger().problems() == ()


CHILD = """
import sys
from xdpkit import DROP, PASS, Inspect, Pipeline, bridge, udp
pipe = Pipeline("dns", default=PASS)
pipe.rule(udp.dport == 53, Inspect(otherwise=PASS if sys.argv[1] == "PASS" else DROP), name="dns")
wire = bridge(pipe, inside="a", outside="b", fail="open")
inspector = wire.inspect(lambda batch: True)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("otherwise", [PASS, DROP])
def test_after_a_kill_of_the_inspector_what_was_declared_counts(wire, otherwise):
    left, a, _, right = wire()
    child = a.namespace.popen(
        [sys.executable, "-c", CHILD, str(otherwise)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "ready\n"
    try:
        with right.capture() as got:
            left.send(frames(left, right, range(5)))
            got.wait(5, timeout=20)
            child.kill()
            child.wait()
            left.send(frames(left, right, range(5000)) + frames(left, right, [9], dport=80))
            got.wait(5006 if otherwise is PASS else 6, timeout=20)
        with a.namespace, right.capture() as got:
            with bridge(dns(otherwise), inside="a", outside="b", fail="open") as joined, joined.inspect(even):
                left.send(frames(left, right, range(10)))
                got.wait(5, timeout=20)
                joined.detach()
    finally:
        with a.namespace:
            detach_bridge(inside="a", outside="b")


def test_where_it_means_nothing_it_is_refused(wire):
    _, a, _, _ = wire()
    with a.namespace:
        with pytest.raises(PipelineError, match="Inspect has a meaning on a bridge only"):
            attach(dns(), "a")
        with bridge(Pipeline("none"), inside="a", outside="b") as joined:
            with pytest.raises(ValueError, match="no rule of pipeline 'none' has the action Inspect"):
                joined.inspect(even)
        with bridge(dns(), inside="a", outside="b", mode="tc_ingress") as joined:
            with pytest.raises(NotSupported, match="Inspect on a, in mode tc_ingress"):
                joined.inspect(even)

"""A bridge: one ruleset on two devices, what it shares, and what becomes of it."""

import errno
import socket
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from commands import held
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import Ether
from traffic import frames, number, take, until

from xdpkit import (
    DROP,
    PASS,
    REDIRECT,
    REJECT,
    Pipeline,
    attach,
    bridge,
    ct,
    detach_bridge,
    dev,
    limit,
    meta,
    open_link,
    src,
    udp,
)
from xdpkit.device import netdev
from xdpkit.link.bridge import BridgeNames


@pytest.fixture
def wire(lab):
    """`wire(**options of lab.veth)`: (left, a, b, right): left's peer is a, right's is b; a and b in one namespace."""

    def make(**options):
        middle = lab.namespace("middle")
        left, a = lab.veth(lab.namespace("left"), middle, names=("left", "a"), **options)
        b, right = lab.veth(middle, lab.namespace("right"), names=("b", "right"), **options)
        return left, a, b, right

    return make


def rules():
    pipe = Pipeline("wire", default=PASS)
    pipe.rule(udp.dport == 9, DROP, name="discard")
    return pipe


MODES = ["native", "generic", "tc_ingress"]


def counts(ledger):
    return {rule.name: rule.packets for rule in ledger.rules}


@pytest.mark.parametrize("mode", MODES)
def test_what_passes_is_the_same_byte_for_byte_and_what_is_dropped_never_arrives(wire, mode):
    left, a, _, right = wire()
    there = frames(left, right, range(100), size=300)
    back = frames(right, left, range(100), size=1500)
    with left.capture() as at_left, right.capture() as at_right:
        with a.namespace, bridge(rules(), inside="a", outside="b", mode=mode) as joined:
            for n in range(0, 100, 10):
                left.send(frames(left, right, range(10), dport=9) + there[n : n + 10])
                right.send(back[n : n + 10] + frames(right, left, range(10), dport=9))
                at_right.wait(n + 10, timeout=20)
                at_left.wait(n + 10, timeout=20)
            assert counts(joined.inside.ledger()) == counts(joined.outside.ledger()) == {"discard": 100, "default": 100}
    assert list(at_right) == there
    assert list(at_left) == back
    ledger = joined.ledger()
    assert (ledger.final, ledger.seen, ledger.forwarded, ledger.problems()) == (True, 400, 200, ())
    assert counts(ledger) == {"discard": 200, "default": 200}
    if mode == "native":
        assert (ledger.sent_on, ledger.unreported) == (200, 0)


@pytest.mark.parametrize("mode", MODES)
def test_the_sides_are_told_apart(wire, mode):
    left, a, _, right = wire()
    pipe = Pipeline("sides", default=DROP)
    pipe.rule(dev.inside, PASS, name="out")
    pipe.rule(dev.outside & (udp.dport == 53), PASS, name="in")
    with left.capture() as at_left, right.capture() as at_right:
        with a.namespace, bridge(pipe, inside="a", outside="b", mode=mode):
            left.send(frames(left, right, range(5), dport=80))
            right.send(frames(right, left, range(5), dport=80) + frames(right, left, range(7), dport=53))
            at_right.wait(5, timeout=20)
            at_left.wait(7, timeout=20)
    assert (len(at_right), len(at_left)) == (5, 7)


def test_both_sides_share_sets_and_limits(wire):
    left, a, _, right = wire()
    pipe = Pipeline("shared", default=PASS)
    seen = pipe.set("seen", src, intervals=False, timeouts=True)
    pipe.rule(dev.inside & (udp.dport == 1), seen.add(timeout=60), name="learn")
    pipe.rule(dev.outside & seen, DROP, name="known")
    pipe.rule((udp.dport == 2) & ~limit("1/day", burst=10), DROP, name="over")
    with a.namespace, bridge(pipe, inside="a", outside="b") as joined:
        left.send(frames(left, right, [1], dport=1))
        until(lambda: counts(joined.ledger())["learn"] == 1, "the inside has learnt")
        right.send(frames(right, left, [1]))  # of the same source
        until(lambda: counts(joined.ledger())["known"] == 1, "the outside knows")
        assert len(joined.sets["seen"]) == 1
        joined.sets["seen"].replace([])
        left.send(frames(left, right, range(8), dport=2))
        right.send(frames(right, left, range(8), dport=2))
        until(lambda: counts(joined.ledger())["over"] == 6, "ten of both together pass")


def test_an_update_changes_both_sides_or_none(wire):
    left, a, _, right = wire()
    with a.namespace, bridge(rules(), inside="a", outside="b") as joined:
        left.send(frames(left, right, range(3), dport=9))
        until(lambda: counts(joined.ledger())["discard"] == 3, "three are dropped")
        new = rules()
        new.rule(udp.dport == 10, DROP, name="ten")
        joined.update(new)
        for port, other in ((left, right), (right, left)):
            port.send(frames(port, other, range(2), dport=10) + frames(port, other, range(2), dport=9))
        until(lambda: counts(joined.ledger()) == {"discard": 7, "ten": 4, "default": 0}, "both have the new rules")
        with pytest.raises(ValueError, match="one side of a bridge"):
            joined.inside.update(new)
        before = joined.inside.program.info()["id"], joined.outside.program.info()["id"]
        other = rules()
        other.rule(udp.dport == 11, DROP, name="eleven")
        joined.outside._swap = refuse  # type: ignore[method-assign]
        with pytest.raises(OSError, match="refused"):
            joined.update(other)
        assert (joined.inside.program.info()["id"], joined.outside.program.info()["id"]) == before
        assert joined.lost is None
        left.send(frames(left, right, range(2), dport=11) + frames(left, right, range(2), dport=10))
        until(lambda: counts(joined.ledger()) == {"discard": 7, "ten": 6, "default": 2}, "both have the old rules")


def refuse(_):
    raise OSError(5, "refused")


CHILD = """
import sys, time
from xdpkit import DROP, PASS, REDIRECT, REJECT, Pipeline, attach, bridge, udp
pipe = Pipeline("wire", default=PASS)
pipe.rule(udp.dport == 9, DROP, name="discard")
wire = bridge(pipe, inside="a", outside="b", fail=sys.argv[1], mode=sys.argv[2])
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def killed(wire):
    """`killed(fail, mode)`: (left, a, b, right) of a bridge whose process got SIGKILL; what stays is taken away."""
    made = []

    def make(fail, mode="native"):
        left, a, _, right = ports = wire()
        made.append(a)
        child = a.namespace.popen(
            [sys.executable, "-c", CHILD, fail, mode], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert child.stdout.readline() == "ready\n"
        with right.capture() as got:
            left.send(frames(left, right, range(5)))
            got.wait(5, timeout=20)
        child.kill()
        child.wait()
        return ports

    yield make
    for port in made:
        with port.namespace:
            detach_bridge(inside="a", outside="b")


def test_a_bridge_without_a_word_about_it_leaves_the_devices_as_they_were(killed):
    left, a, b, right = killed("detach")
    for port in (a, b):
        assert held(port) == ()
    with a.capture() as stack, right.capture() as got:
        left.send(frames(left, right, range(5)))
        stack.wait(5, timeout=20)
    assert list(got) == []


@pytest.mark.parametrize("mode", ["native", "tc_ingress"])
def test_a_bridge_that_fails_closed_lets_nothing_cross_nor_come_to_the_host(killed, mode):
    left, a, _, right = killed("closed", mode)
    with a.namespace, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as host:
        host.bind(("0.0.0.0", 53))
        host.setblocking(False)
        with right.capture() as got:
            left.send(frames(left, right, range(5)))
            guard = open_link(BridgeNames("a", "b").guards[0])
            until(lambda: guard.ledger().seen == 5, "the guard drops them")
            assert guard.ledger().rules[-1].packets == 5
            guard.close()
        assert list(got) == []
        with pytest.raises(BlockingIOError):
            host.recv(1)
        with bridge(rules(), inside="a", outside="b", fail="closed", mode=mode) as again, right.capture() as got:
            left.send(frames(left, right, range(5)))
            got.wait(5, timeout=20)
            again.detach()
        assert not detach_bridge(inside="a", outside="b")
        with a.capture() as stack:
            left.send(frames(left, right, range(5)))
            stack.wait(5, timeout=20)


@pytest.mark.parametrize("mode", MODES)
def test_a_bridge_that_fails_open_goes_on_with_its_rules_and_is_taken_over_without_loss(killed, mode):
    left, a, b, right = killed("open", mode)
    with right.capture() as got, left.generator(frames(left, right, [0])) as stream:
        left.send(frames(left, right, range(5), dport=9))
        stream.start(3000, rate_pps=1000)
        with a.namespace:
            for _ in range(2):
                with bridge(rules(), inside="a", outside="b", fail="open", mode=mode) as again:
                    pass
            again = bridge(rules(), inside="a", outside="b", fail="open", mode=mode)
            stream.wait(30)
            stream.settle()
            got.wait(3000, timeout=20)
            assert counts(again.ledger()) == {"discard": 5, "default": 3005}
            again.detach()
            assert not detach_bridge(inside="a", outside="b")
            assert held(a) == held(b) == ()
    assert len(got) == 3000


def test_reloads_under_a_stream_of_1000_packets_a_second_each_way_lose_none(wire):
    left, a, _, right = wire()
    with left.capture() as at_left, right.capture() as at_right, a.namespace:
        with bridge(rules(), inside="a", outside="b") as joined:
            with left.generator(frames(left, right, [0])) as there, right.generator(frames(right, left, [0])) as back:
                there.start(3000, rate_pps=1000)
                back.start(3000, rate_pps=1000)
                for n in range(20):
                    new = rules()
                    new.rule(udp.dport == 100 + n, DROP, name="new")
                    joined.update(new)
                there.wait(60)
                back.wait(60)
                there.settle()
                back.settle()
            at_right.wait(3000, timeout=20)
            at_left.wait(3000, timeout=20)
    ledger = joined.ledger()
    assert (ledger.updates, ledger.seen, ledger.forwarded, ledger.dropped_there) == (20, 6000, 6000, 0)
    assert ledger.problems() == ()
    assert (len(at_left), len(at_right)) == (3000, 3000)


@pytest.mark.parametrize("mode", MODES)
def test_a_refusal_goes_back_to_the_side_that_it_came_from(wire, mode):
    left, a, _, right = wire()
    pipe = Pipeline("wire", default=PASS)
    pipe.rule(udp.dport == 9, REJECT, name="refused")
    with left.namespace:  # a veth end with a program takes what XDP transmits to it
        awake = attach(Pipeline("all"), "left", mode="native")
    with awake, left.capture() as at_left, right.capture() as at_right:
        with a.namespace, bridge(pipe, inside="a", outside="b", mode=mode) as joined:
            left.send(frames(left, right, range(3), dport=9) + frames(left, right, [4]))
            at_left.wait(3, timeout=20)
            at_right.wait(1, timeout=20)
    assert {ICMP in Ether(frame) for frame in at_left} == {True}
    assert (len(at_left), len(at_right), joined.ledger().problems()) == (3, 1, ())


@pytest.mark.parametrize("mode", MODES)
def test_what_redirect_finds_no_socket_for_crosses_and_sockets_take_the_packets_of_their_side(wire, mode):
    left, a, _, right = wire()
    pipe = Pipeline("wire", default=PASS)
    pipe.rule(udp.dport == 53, REDIRECT, name="dns")
    with right.capture() as got, a.namespace, bridge(pipe, inside="a", outside="b", mode=mode) as joined:
        left.send(frames(left, right, range(5)))
        got.wait(5, timeout=20)
        with joined.inside.sockets() as sockets:
            left.send(frames(left, right, range(10, 15)))
            assert [number(frame) for frame in take(sockets, 5)] == list(range(10, 15))
        left.send(frames(left, right, range(5)))
        got.wait(10, timeout=20)
    ledger = joined.ledger()
    assert (ledger.forwarded, ledger.redirected, ledger.no_socket, ledger.problems()) == (10, 5, 10, ())


def looks(joined, condition, what):
    """Until a look at the devices has found it."""

    def look():
        with suppress(OSError):
            joined.check()
        return condition()

    until(look, what)


@pytest.mark.parametrize("mirrors", [False, True])
def test_a_device_that_goes_down_is_said_and_what_goes_there_is_counted(wire, mirrors):
    left, a, b, right = wire()
    with a.namespace, bridge(rules(), inside="a", outside="b", mirror_carrier=mirrors) as joined:
        netdev.set_up(b.index, False)
        looks(joined, lambda: any(note.startswith("b is down") for note in joined.notes), "it is said")
        assert netdev.device("a").up is not mirrors
        assert joined.lost is None
        if not mirrors:
            left.send(frames(left, right, range(5)))
            until(lambda: joined.ledger().forwarding.down == 5, "they are counted as what they are")
        netdev.set_up(b.index, True)
        looks(joined, lambda: any(note.startswith("b is up again") for note in joined.notes), "it is said again")
        until(lambda: netdev.device("a").carrier and netdev.device("b").carrier, "both have carrier")
        with right.capture() as got:
            left.send(frames(left, right, range(5)))
            got.wait(5, timeout=20)
        assert [note for note in joined.notes if "b is" in note] == [
            "b is down" + ", so a was taken down" * mirrors, "b is up again" + ", so a was raised" * mirrors,
        ]  # fmt: skip


def test_a_device_that_is_deleted_cuts_the_bridge_with_one_line_and_what_goes_there_is_counted(wire):
    left, a, _, right = wire()
    with a.namespace, bridge(rules(), inside="a", outside="b") as joined:
        a.namespace.run(["ip", "link", "del", "dev", "b"])
        looks(joined, lambda: joined.lost is not None, "it is found")
        with pytest.raises(OSError, match="b: the device was deleted") as caught:
            until(lambda: joined.check() or time.sleep(0.1), "it is raised", timeout=3)  # type: ignore[func-returns-value]
        assert caught.value.errno == errno.ENODEV
        left.send(frames(left, right, range(5)))
        until(lambda: joined.ledger().totals.no_device == 5, "they are dropped and counted")
    assert [note for note in joined.notes if "deleted" in note] == ["b: the device was deleted"]
    assert joined.ledger().problems() == ()


def test_devices_of_different_mtus_are_said_at_the_start_and_when_it_changes(wire):
    left, a, _, right = wire(mtu=1600)
    with a.namespace:
        a.namespace.run(["ip", "link", "set", "dev", "b", "mtu", "1500"])
        with bridge(rules(), inside="a", outside="b") as joined:
            assert any("the MTU of b is 1500 and that of a 1600" in note for note in joined.notes)
            left.send(frames(left, right, range(3), size=1590))
            until(lambda: joined.ledger().forwarding.too_long == 3, "what is too long is counted")
            a.namespace.run(["ip", "link", "set", "dev", "b", "mtu", "1400"])
            looks(joined, lambda: "the MTU of b is 1400 and that of a 1600" in str(joined.notes), "it is said")


def test_wrong_uses_are_refused_and_nothing_stays(wire):
    _, a, b, _ = wire()
    pipe = Pipeline("sides", default=PASS)
    pipe.rule(dev.inside & (meta.mark == 1), DROP, name="inside")
    with a.namespace:
        with pytest.raises(ValueError, match="cannot be both sides"):
            bridge(rules(), inside="a", outside="a")
        with pytest.raises(ValueError, match="fail 'shut': one of detach, closed, open"):
            bridge(rules(), inside="a", outside="b", fail="shut")  # type: ignore[arg-type]
        with pytest.raises(OSError, match="none"):
            bridge(rules(), inside="a", outside="none")
        with attach(rules(), "b"), pytest.raises(OSError, match="b is held by"):
            bridge(rules(), inside="a", outside="b", fail="closed", mode="native")
        assert held(a) == held(b) == ()
        assert not detach_bridge(inside="a", outside="b")
        with bridge(pipe, inside="a", outside="b") as joined:
            assert repr(joined) == "<Bridge sides on a and b: native, fail detach>"
            assert str(joined.ledger()).startswith("sides on a and b: native")


def tracking():
    pipe = Pipeline("tracks", default=DROP)
    pipe.track()
    pipe.rule(ct.established, PASS, name="known")
    pipe.rule(ct.new & dev.inside & (udp.dport == 53), PASS, name="out")
    return pipe


@pytest.mark.parametrize("mode", MODES)
def test_both_sides_know_the_connections_of_each_and_updates_keep_them(wire, mode):
    """An answer crosses to whoever asked, also after an update, and nothing else comes in."""
    left, a, _, right = wire()

    def ask(n):
        return Ether(src=left.mac, dst=right.mac) / IP(src="10.0.0.1", dst="10.9.9.9") / UDP(sport=n, dport=53)

    def answer(n):
        return Ether(src=right.mac, dst=left.mac) / IP(src="10.9.9.9", dst="10.0.0.1") / UDP(sport=53, dport=n)

    with a.namespace, bridge(tracking(), inside="a", outside="b", mode=mode) as joined:
        right.send([answer(1)])
        left.send([ask(2)])
        until(lambda: counts(joined.ledger())["out"] == 1, "the question")
        right.send([answer(2)])
        until(lambda: counts(joined.ledger())["known"] == 1, "its answer")
        joined.update(tracking())
        right.send([answer(2), answer(3)])
        until(lambda: counts(joined.ledger())["default"] == 2, "those that nobody asked for")
        assert counts(joined.ledger())["known"] == 2
        (flow,) = joined.flows()
        assert (str(flow.source), flow.sport, flow.half_open) == ("10.0.0.1", 2, False)
        joined.learn(600)
        right.send([answer(4)])
        until(lambda: counts(joined.ledger())["known"] == 3, "what goes on, while the bridge learns")

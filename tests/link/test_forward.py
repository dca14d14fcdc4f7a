"""Forwarding between two devices, and back out of one: frames of one UMEM, on veth.  Every frame's owner is checked."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from traffic import detach_by_force, frames, number, until

from xdpkit import PASS, REDIRECT, Forward, NotSupported, Pipeline, SocketOptions, attach, forward, udp
from xdpkit.compiler.built import build


def dns():
    pipe = Pipeline("dns", default=PASS)
    pipe.rule(udp.dport == 53, REDIRECT, name="dns")
    return pipe


DNS = build(dns())
TINY = SocketOptions(ring_size=4, debug=True)
SMALL = SocketOptions(ring_size=64, debug=True)


@pytest.fixture
def bridge(lab):
    """`bridge(queues=1, mtu=1500)`: (left, a, b, right): left's peer is a, right's is b; a and b in one namespace."""

    def make(**options):
        middle = lab.namespace("middle")
        left, a = lab.veth(lab.namespace("left"), middle, names=("left", "a"), **options)
        b, right = lab.veth(middle, lab.namespace("right"), names=("b", "right"), **options)
        return left, a, b, right

    return make


def all_home(running):
    """Every frame is free or in FILL, and FILL is full."""
    full = 2 * running.ring_size
    return all(f["free"] + f["fill"] == f["frames"] and f["fill"] in (full, full // 2) for f in running.frames())


UNALIGNED = SocketOptions(ring_size=64, debug=True, unaligned="on", chunk_size=3000)


@pytest.mark.parametrize("options", [TINY, SMALL, UNALIGNED], ids=["rings of 4", "rings of 64", "unaligned"])
@pytest.mark.parametrize("wait", ["adaptive", "sleep", "busy", "nap"])
def test_packets_cross_both_ways_in_order_and_every_frame_comes_back(bridge, options, wait):
    left, a, _, right = bridge()
    there, back = frames(left, right, range(200), size=300), frames(right, left, range(200), size=1500)
    with left.capture() as at_left, right.capture() as at_right:
        with a.namespace, attach(DNS, "a", options=options) as one, attach(DNS, "b", options=options) as two:
            with forward(one, two, wait=wait) as running:
                for n in range(0, 200, 4):  # rings of 4 hold no more
                    until(lambda: all_home(running), "all frames free or in FILL")
                    left.send(there[n : n + 4])
                    right.send(back[n : n + 4])
                    at_right.wait(n + 4, timeout=20)
                    at_left.wait(n + 4, timeout=20)
                until(lambda: all_home(running), "all frames free or in FILL")
                assert running.stats(0).written == running.stats(1).written == 200
                assert one.attachment.shared_umem
                assert (two.attachment.shared_umem, two.attachment.huge_pages) == (True, False)
                layouts = [(link.attachment.unaligned, link.attachment.chunk_size) for link in (one, two)]
                assert layouts[0] == layouts[1]
    assert list(at_right) == there
    assert list(at_left) == back
    for link in (one, two):
        ledger = link.ledger()
        assert (ledger.sink, ledger.written, ledger.lost, ledger.problems()) == ("forwarded", 200, 0, ())


def test_a_flood_both_ways_is_accounted_for_to_the_packet(bridge):
    left, a, _, right = bridge(queues=2)
    with a.namespace, attach(DNS, "a", options=SMALL) as one, attach(DNS, "b", options=SMALL) as two:
        with (
            left.generator(frames(left, right, [0])) as east,
            right.generator(frames(right, left, [0])) as west,
        ):
            with forward(one, two) as running:
                east.start(60_000)
                west.start(60_000)
                east.wait(30)
                west.wait(30)
                east.settle()
                west.settle()
            until(lambda: running.ended, "the end")
            passed = east.sent - east.dropped, west.sent - west.dropped
    for link, count, far in ((one, passed[0], two), (two, passed[1], one)):
        ledger = link.ledger()
        assert ledger.problems() == ()
        assert ledger.seen == count
        assert ledger.written + ledger.lost == count
        assert far.ledger().written > 0


def test_what_no_rule_redirects_is_not_forwarded(bridge):
    left, a, _, right = bridge()
    with right.capture() as got, a.capture() as stack:
        with a.namespace, attach(DNS, "a", options=SMALL) as one, attach(DNS, "b", options=SMALL) as two:
            with forward(one, two):
                left.send(frames(left, a, [1], dport=80) + frames(left, a, [2]))
                got.wait(1, timeout=20)
                stack.wait(1, timeout=20)
    assert [number(f) for f in got] == [2]
    assert [number(f) for f in stack] == [1]


def test_jumbo_packets_are_forwarded_in_their_buffers(bridge):
    left, a, _, right = bridge(mtu=9000)
    sent = [frame for n in range(40) for frame in frames(left, right, [n], size=64 + 223 * n)]
    with right.capture() as got:
        with a.namespace, attach(DNS, "a", options=SMALL) as one, attach(DNS, "b", options=SMALL) as two:
            with forward(one, two) as running:
                assert one.attachment.multi_buffer
                for n, frame in enumerate(sent):
                    left.send([frame])
                    got.wait(n + 1, timeout=20)
                until(lambda: all_home(running), "all frames free or in FILL")
                assert running.stats().bytes == sum(map(len, sent))
    assert list(got) == sent


def test_a_device_reflects_with_its_addresses_exchanged(make_veth):
    left, right = make_veth()
    sent = frames(left, right, range(200))
    with left.capture() as got, right.namespace, attach(DNS, right.name, options=SMALL) as link:
        with forward(link, link) as running:
            for n in range(0, 200, 10):
                left.send(sent[n : n + 10])
                got.wait(n + 10, timeout=20)
            until(lambda: all_home(running), "all frames free or in FILL")
    assert list(got) == [f[6:12] + f[:6] + f[12:] for f in sent]
    assert (link.ledger().written, link.ledger().problems()) == (200, ())


def test_the_sockets_of_a_link_can_be_opened_again_after_forwarding(bridge):
    left, a, _, right = bridge()
    with a.namespace, attach(DNS, "a", options=SMALL) as one, attach(DNS, "b", options=SMALL) as two:
        for _ in range(2):
            with forward(one, two), right.capture() as got:
                left.send(frames(left, right, range(3)))
                got.wait(3, timeout=20)
        with one.sockets() as sockets, sockets.count() as workers:
            left.send(frames(left, right, range(3)))
            until(lambda: workers.stats().written == 3, "3 packets counted")
    assert one.ledger().problems() == ()


def test_what_cannot_be_forwarded_is_refused_in_one_line(bridge):
    _, a, _, _ = bridge(queues=2)
    with a.namespace:
        with attach(DNS, "a", mode="tc_ingress") as one, attach(DNS, "b") as two:
            with pytest.raises(NotSupported, match="forwarding on a, in mode tc_ingress: mode native or generic"):
                forward(one, two)
        with attach(DNS, "a", queues=[0]) as one, attach(DNS, "b") as two:
            with pytest.raises(ValueError, match="a has sockets on 1 queues and b on 2: choose as many"):
                forward(one, two)
            with two.sockets():
                with pytest.raises(OSError, match=r"b queue 0: .* has this queue: stop its owner"):
                    forward(two, two)
        with attach(DNS, "a", bind="zerocopy") as one, pytest.raises(NotSupported, match="a queue 0: bind"):
            forward(one, one)


def deleted_first(a, far):
    far.namespace.run(["ip", "link", "del", "dev", far.name])


def detached(a, far):
    detach_by_force(a)


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (deleted_first, "forwarding on a and b: a: the device was deleted"),
        (detached, "forwarding on a and b: [ab]: the pipeline was detached by force"),
    ],
)
def test_a_forwarder_ends_by_itself_when_a_link_is_lost_and_says_why(bridge, event, said):
    left, a, _, right = bridge()
    with a.namespace, attach(DNS, "a", options=SMALL) as one, attach(DNS, "b", options=SMALL) as two:
        running = forward(one, two)
        with right.capture() as got:
            left.send(frames(left, right, range(3)))
            got.wait(3, timeout=20)
        assert not running.wait(0)
        event(a, left)
        with pytest.raises(OSError, match=said):
            running.wait(20)
        assert running.ended
        with pytest.raises(OSError, match=said):
            running.close()
    assert one.ledger().written == 3
    assert one.ledger().problems() == two.ledger().problems() == ()


def test_waiting_for_a_forwarder_ends_when_it_is_closed(bridge):
    _, a, _, _ = bridge()
    with a.namespace, attach(DNS, "a", options=SMALL) as one, attach(DNS, "b", options=SMALL) as two:
        with forward(one, two) as running, ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(running.wait)
            running.close()
            assert waiting.result(timeout=10)


# ---- FORWARD in the kernel: what the other device does not take ----


def wire(to):
    return Pipeline(f"to-{to}", default=Forward(to))


def set_link(port, *words):
    port.namespace.run(["ip", "link", "set", "dev", port.name, *words])


def mtu_smaller(out, far):
    set_link(out, "mtu", "1000")


def down(out, far):
    set_link(out, "down")


def far_end_down(out, far):
    set_link(far, "down")


def deleted(out, far):
    out.namespace.run(["ip", "link", "del", "dev", out.name])


@pytest.mark.parametrize(
    ("event", "stage"),
    [
        (mtu_smaller, "longer than its MTU"),
        (down, "device down"),
        (far_end_down, "refused there"),
        (deleted, "no device"),
    ],
)
def test_each_packet_that_the_other_device_does_not_take_is_in_a_row_that_says_why(bridge, event, stage):
    left, a, b, right = bridge()
    many = frames(left, right, range(64), size=1400)
    with a.namespace, attach(wire("b"), "a") as link:
        left.send(many)
        until(lambda: link.ledger().seen == 64, "64 packets seen")
        event(b, right)
        left.send(many)
        until(lambda: link.ledger().seen == 128, "128 packets seen")
    ledger = link.ledger()
    rows = {row[0].strip(): row[1] for row in ledger.rows()}
    assert (rows[stage], rows["sent"] + ledger.unreported, ledger.problems()) == (64, 64, ())


@pytest.mark.parametrize("event", [mtu_smaller, down, far_end_down, deleted])
def test_the_ledger_sums_while_the_other_device_changes_under_traffic(bridge, event):
    left, a, b, right = bridge()
    with a.namespace, attach(wire("b"), "a") as link, left.generator(frames(left, right, [0], size=1400)) as flood:
        flood.start()
        until(lambda: link.ledger().seen > 5000, "5000 packets seen")
        event(b, right)
        seen = link.ledger().seen
        until(lambda: link.ledger().seen > seen + 5000, "5000 more")
        flood.stop()
        flood.settle()
    ledger = link.ledger()
    assert ledger.problems() == ()
    assert ledger.dropped_there + ledger.totals.no_device > 0
    assert ledger.forwarded == ledger.sent_on + ledger.dropped_there + ledger.unreported


def test_in_generic_mode_the_ledger_says_what_the_kernel_refused_to_forward(bridge):
    left, a, b, right = bridge()
    with a.namespace, attach(wire("b"), "a", mode="generic") as link:
        left.send(frames(left, right, range(10)))
        until(lambda: link.ledger().seen == 10, "10 packets seen")
        set_link(b, "down")
        left.send(frames(left, right, range(10)))
        until(lambda: link.ledger().seen == 20, "20 packets seen")
    rows = {row[0].strip(): row[1] for row in link.ledger().rows()}
    assert (rows["forwarded"], rows["device down"], rows["handed over"]) == (20, 10, 10)
    assert link.ledger().problems() == ()

"""When packets left: TX timestamps on veth, in copy mode, where the kernel says when it was done with each."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from traffic import frames, until

from xdpkit import PASS, REDIRECT, NotSupported, Pipeline, SocketOptions, attach, udp
from xdpkit.compiler.built import build
from xdpkit.kernel.features import FEATURES, has
from xdpkit.language.actions import Redirect
from xdpkit.sockets.queues import Refused, open_first, setups

pytestmark = pytest.mark.needs("TX metadata")


def dns():
    pipe = Pipeline("dns", default=PASS)
    pipe.rule(udp.dport == 53, REDIRECT, name="dns")
    return pipe


DNS = build(dns())
TIMED = SocketOptions(ring_size=64, debug=True, tx=True, tx_timestamp="on")
LAYOUTS = {
    "aligned": TIMED,
    "unaligned": replace(TIMED, unaligned="on", chunk_size=3000),
    "shared": replace(TIMED, shared_umem="on"),
    "no wakeup": replace(TIMED, need_wakeup="off"),
}


def tai():
    return time.clock_gettime_ns(time.CLOCK_TAI)


def collect(sockets, count, queue=None):
    """`count` times, as they come: (numbers, times)."""
    numbers: list[int] = []
    times: list[int] = []

    def more():
        sent = sockets.sent_times(queue=queue)
        assert (sent.numbers.dtype, sent.times.dtype) == (np.uint64, np.uint64)
        assert len(sent) == len(sent.numbers) == len(sent.times)
        numbers.extend(sent.numbers.tolist())
        times.extend(sent.times.tolist())
        return len(times) >= count

    until(more, f"{count} times")
    return numbers, times


def send_all(sockets, packets, **options):
    """In as many calls as it takes; frames come back meanwhile."""
    done = 0

    def more():
        nonlocal done
        done += sockets.send(packets[done:], **options)
        sockets.complete()
        return done == len(packets)

    until(more, f"{len(packets)} packets are taken")


def completed(sockets):
    until(lambda: sockets.complete() >= 0 and not any(x.frames()["tx"] for x in sockets.xsks), "all are completed")


@pytest.mark.parametrize("mode", ["native", "generic"])
@pytest.mark.parametrize("options", LAYOUTS.values(), ids=LAYOUTS)
def test_every_packet_has_its_time_between_before_and_after(make_veth, mode, options):
    left, right = make_veth()
    sent = frames(right, left, range(200))
    with right.namespace, left.capture() as got, attach(DNS, right.name, mode=mode, options=options) as link:
        with link.sockets() as sockets:
            assert link.attachment.tx_timestamp == "software"
            assert "TX timestamps in software (CLOCK_TAI)" in str(link.attachment)
            before, edges = tai(), []
            for n in range(0, 200, 20):
                send_all(sockets, sent[n : n + 20], timestamp=True)
                completed(sockets)
                edges.append(tai())
            numbers, times = collect(sockets, 200)
            got.wait(200, timeout=20)
    assert list(got) == sent
    assert numbers == list(range(200))
    assert times == sorted(times)
    for n, after in enumerate(edges):
        assert all(before <= t <= after for t in times[20 * n : 20 * n + 20])
        before = after


def test_only_those_asked_for_are_timed_and_numbers_count_all(make_veth):
    left, right = make_veth()
    sent = frames(right, left, range(30))
    with right.namespace, attach(DNS, right.name, options=TIMED) as link, link.sockets() as sockets:
        for n in range(0, 30, 10):
            assert sockets.send(sent[n : n + 10], timestamp=n == 10) == 10
        completed(sockets)
        assert sockets.sent_times().numbers.tolist() == list(range(10, 20))
        assert len(sockets.sent_times()) == 0  # each is told once


def test_no_time_is_lost_while_the_reader_is_within_the_bound_and_beyond_it_losses_are_counted(make_veth):
    left, right = make_veth()
    options = replace(TIMED, ring_size=8)
    kept = 16 * 8
    sent = frames(right, left, range(kept + 50))
    with right.namespace, attach(DNS, right.name, options=options) as link, link.sockets() as sockets:
        send_all(sockets, sent[:kept], timestamp=True)
        completed(sockets)
        assert sockets.stats().tx_times_lost == 0
        send_all(sockets, sent[kept:], timestamp=True)
        completed(sockets)
        assert sockets.stats().tx_times_lost == 50
        assert sockets.sent_times().numbers.tolist() == list(range(kept))
        send_all(sockets, sent[:5], timestamp=True)  # there is room again
        assert collect(sockets, 5)[0] == list(range(kept + 50, kept + 55))
        assert sockets.stats().transmitted == kept + 55
        where = sockets.xsks[0].frames()
        assert where["free"] + where["fill"] == where["frames"]


def test_a_packet_of_several_buffers_has_one_time(make_veth):
    left, right = make_veth(mtu=9000)
    sent = [f for n in range(5) for f in frames(right, left, [n], size=60 + 2000 * n)]
    with right.namespace, left.capture() as got, attach(DNS, right.name, options=TIMED) as link:
        with link.sockets() as sockets:
            assert link.attachment.multi_buffer
            send_all(sockets, sent, timestamp=True)
            numbers, times = collect(sockets, 5)
            completed(sockets)
            assert len(sockets.sent_times()) == 0
            got.wait(5, timeout=20)
    assert (list(got), numbers, sorted(times)) == (sent, list(range(5)), times)


def test_a_checksum_and_a_time_can_be_asked_for_together(make_veth):
    left, right = make_veth()
    whole = bytes(Ether(src=right.mac, dst=left.mac) / IP(src="192.0.2.1", dst="192.0.2.2") / UDP(dport=9) / b"12345")
    pseudo = sum(int.from_bytes(whole[i : i + 2]) for i in range(26, 34, 2)) + 17 + (len(whole) - 34)
    pseudo = (pseudo & 0xFFFF) + (pseudo >> 16)
    partial = whole[:40] + pseudo.to_bytes(2) + whole[42:]
    with right.namespace, left.capture() as got:
        with attach(DNS, right.name, options=replace(TIMED, checksum=True)) as link, link.sockets() as sockets:
            before = tai()
            assert sockets.send([partial], checksum=(34, 6), timestamp=True) == 1
            assert sockets.send([partial], checksum=(34, 6)) == 1
            assert sockets.send([whole], timestamp=True) == 1
            numbers, times = collect(sockets, 2)
            got.wait(3, timeout=20)
        with attach(DNS, right.name, options=TIMED) as link, link.sockets() as sockets:
            with pytest.raises(NotSupported, match=r"a checksum by the device: SocketOptions\(checksum=True\)"):
                sockets.send([partial], checksum=(34, 6))
    assert list(got) == [whole] * 3
    assert numbers == [0, 2]
    assert before <= times[0] <= times[1] <= tai()


def test_each_queue_counts_its_own(make_veth):
    left, right = make_veth(queues=2)
    with right.namespace, attach(DNS, right.name, options=TIMED) as link, link.sockets() as sockets:
        for queue, count in ((0, 7), (1, 3)):
            assert sockets.send(frames(right, left, range(count)), queue=queue, timestamp=True) == count
        for queue, count in ((1, 3), (0, 7)):
            assert collect(sockets, count, queue)[0] == list(range(count))


def test_groups_that_share_a_queue_get_their_own_times(make_veth):
    """Either socket may take the other's frames off their COMPLETION ring."""
    left, right = make_veth()
    pipe = Pipeline("groups", default=PASS)
    pipe.rule(udp.dport == 53, Redirect(group="dns"))
    pipe.rule(udp.dport == 80, Redirect(group="web"))
    sent = frames(right, left, range(9))
    with right.namespace, attach(pipe, right.name, options=TIMED) as link, link.sockets() as sockets:
        one, other = sockets.group("dns"), sockets.group("web")
        assert one.send(sent[:4], timestamp=True) == 4
        assert other.send(sent[4:], timestamp=True) == 5
        completed(sockets)
        assert one.sent_times().numbers.tolist() == [0, 1, 2, 3]
        assert other.sent_times().numbers.tolist() == [0, 1, 2, 3, 4]


# ---- want, require, got ----


def test_without_the_option_a_time_is_refused(make_veth):
    left, right = make_veth()
    options = replace(TIMED, tx_timestamp="auto", checksum=True)
    with right.namespace, attach(DNS, right.name, options=options) as link, link.sockets() as sockets:
        assert link.attachment.tx_timestamp == "off"
        for call in (lambda: sockets.send(frames(right, left, [1]), timestamp=True), sockets.sent_times):
            with pytest.raises(NotSupported, match=r"TX timestamps: SocketOptions\(tx_timestamp=\.\.\.\)"):
                call()


@pytest.mark.parametrize("wanted", ["on", "want:on"])
def test_zero_copy_is_given_up_for_times_unless_it_is_required(make_veth, wanted):
    _, right = make_veth()
    options = replace(TIMED, tx_timestamp=wanted)
    said = "zero-copy with TX timestamps .*a driver that reports when packets left, which veth does not"
    with right.namespace:
        with attach(DNS, right.name, options=options) as link, link.sockets():
            assert (link.attachment.bind, link.attachment.tx_timestamp) == ("copy", "software")
            assert "; not zero-copy with TX timestamps (a driver that reports when packets left" in str(link.attachment)
        with attach(DNS, right.name, bind="zerocopy", options=options) as link:
            if wanted == "on":
                with pytest.raises(NotSupported, match=said):
                    link.sockets()
            else:  # and veth has no zero-copy at all
                with pytest.raises(NotSupported, match="zero-copy"):
                    link.sockets()


def test_a_driver_with_zero_copy_and_no_times_keeps_the_one_that_is_required(make_veth):
    """What is tried, and in which order, where the kernel would take it."""
    _, right = make_veth()

    def opens(way):
        if way.tx_timestamp and way.zerocopy:
            raise Refused("zerocopy", NotSupported("x", "another driver"), "tx_timestamp")
        return way

    def first(bind, wanted):
        with attach(DNS, right.name, bind=bind, options=replace(TIMED, tx_timestamp=wanted)) as link:
            way, _, refused = open_first(list(setups(link._attached)), opens)
            return way.zerocopy, way.tx_timestamp, refused

    walk = ("zero-copy with TX timestamps (another driver)",)
    with right.namespace:
        assert first("auto", "on") == (False, True, walk)
        assert first("auto", "want:on") == (False, True, walk)
        assert first("zerocopy", "want:on") == (True, False, walk)
        assert first("auto", "off") == (True, False, ())
        with pytest.raises(NotSupported, match="another driver"):
            first("zerocopy", "on")


@pytest.fixture
def no_tx_metadata(monkeypatch):
    """A kernel before 6.8, as far as anyone asks."""
    monkeypatch.setitem(FEATURES, "TX metadata", replace(FEATURES["TX metadata"], probe=lambda: False))
    has.cache_clear()
    yield
    has.cache_clear()


def test_a_kernel_without_tx_metadata_is_one_line_or_done_without(make_veth, no_tx_metadata):
    _, right = make_veth()
    with right.namespace:
        with attach(DNS, right.name, options=TIMED) as link:
            with pytest.raises(NotSupported, match=r"^TX timestamps on right: TX metadata, Linux 6\.8 or later; this"):
                link.sockets()
        with attach(DNS, right.name, options=replace(TIMED, tx_timestamp="want:on")) as link, link.sockets():
            assert link.attachment.tx_timestamp == "off"
            assert "; not TX timestamps (TX metadata, Linux 6.8 or later" in str(link.attachment)
        with attach(DNS, right.name, options=SocketOptions(tx=True, checksum=True)) as link:
            with pytest.raises(NotSupported, match=r"^checksums on right: TX metadata, Linux 6\.8 or later"):
                link.sockets()


def test_times_of_sockets_that_do_not_send_mean_nothing():
    with pytest.raises(ValueError, match="tx_timestamp 'on' without a TX ring: tx=True"):
        SocketOptions(tx_timestamp="on")

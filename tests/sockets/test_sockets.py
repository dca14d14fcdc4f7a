"""AF_XDP sockets on veth: frames, views, losses, sinks.  Rings of 4 with 8 frames wrap and starve at once."""

import errno
import gc
import os
import resource
import select
import signal
import subprocess
import threading
import time
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from blocks import capture
from scapy.utils import PcapNgReader, rdpcap
from traffic import drain, frames, last, number, take, until

from xdpkit import DROP, PASS, REDIRECT, FrameError, Pipeline, Redirect, SocketOptions, attach, tcp, udp
from xdpkit.compiler.built import build
from xdpkit.device.netlink import iproute
from xdpkit.sockets.batch import NO_RULE
from xdpkit.sockets.workers import open_capture
from xdpkit.sockets.xsk import wait

MODES = ("native", "generic", "af_packet")
TINY = SocketOptions(ring_size=4, frames=8, debug=True)


def dns():
    pipe = Pipeline("dns", default=PASS)
    pipe.rule(udp.dport == 53, REDIRECT, name="dns")
    return pipe


DNS = build(dns())  # compiled once for all tests


@pytest.fixture
def tiny(make_veth):
    """(left, right, link, socket): one queue with rings of 4 and 8 frames, every owner checked."""
    left, right = make_veth()
    with right.namespace, attach(DNS, right.name, options=TINY) as link, link.sockets() as sockets:
        yield left, right, link, sockets.xsks[0]


def receive(socket, limit=512):
    assert wait([socket], 5), "no packet within 5 s"
    return socket.receive(limit)


def arrive(link, seen):
    until(lambda: link.ledger().seen == seen, f"{seen} packets seen")


# ---- rings and frames ----


def test_rings_of_4_wrap_around_many_times(tiny):
    left, right, link, socket = tiny
    assert socket.frames() == {"free": 4, "fill": 4, "rx": 0, "held": 0, "tx": 0, "completion": 0, "frames": 8}
    for start in range(0, 600, 3):
        sent = frames(left, right, range(start, start + 3), size=60 + start)
        left.send(sent)
        got: list[bytes] = []
        while len(got) < 3:
            with receive(socket, 2) as batch:
                assert len(batch) <= 2
                got += [bytes(frame) for frame in batch.frames]
                assert socket.frames()["held"] == len(batch)
        assert got == sent
        assert socket.frames() == {"free": 4, "fill": 4, "rx": 0, "held": 0, "tx": 0, "completion": 0, "frames": 8}
    assert (link.ledger().delivered, link.ledger().lost) == (600, 0)


def test_held_frames_starve_the_kernel_and_giving_them_back_ends_it(tiny):
    left, right, link, socket = tiny
    for round_ in range(3):
        base = round_ * 17
        left.send(frames(left, right, range(4)))
        arrive(link, base + 4)
        first = receive(socket)
        assert (len(first), socket.frames()["fill"], socket.frames()["free"]) == (4, 4, 0)  # free frames took over
        left.send(frames(left, right, range(4, 8)))
        arrive(link, base + 8)
        second = receive(socket)
        assert {k: n for k, n in socket.frames().items() if n} == {"held": 8, "frames": 8}
        left.send(frames(left, right, range(8, 13)))
        arrive(link, base + 13)
        assert socket.receive() is None
        assert link.ledger().fill_empty == 5 * (round_ + 1)
        assert [number(f) for b in (first, second) for f in b.frames] == list(range(8))
        first.end()
        assert socket.frames()["fill"] == 4
        second.end()
        assert {k: n for k, n in socket.frames().items() if n} == {"free": 4, "fill": 4, "frames": 8}
        left.send(frames(left, right, range(20, 24)))
        arrive(link, base + 17)
        with receive(socket) as batch:
            assert [number(f) for f in batch.frames] == [20, 21, 22, 23]
    assert link.ledger().rx_ring_full == 0
    assert link.ledger().problems() == ()


def test_a_full_rx_ring_is_counted_as_that(tiny):
    left, right, link, socket = tiny
    left.send(frames(left, right, range(4)))
    arrive(link, 4)
    batch = receive(socket)
    left.send(frames(left, right, range(4, 8)))
    arrive(link, 8)
    batch.end()  # now FILL has 4 frames, and RX 4 packets that nobody reads
    assert {k: n for k, n in socket.frames().items() if n} == {"fill": 4, "rx": 4, "frames": 8}
    left.send(frames(left, right, range(8, 11)))
    arrive(link, 11)
    ledger = link.ledger()
    assert (ledger.rx_ring_full, ledger.fill_empty, ledger.waiting, ledger.in_flight) == (3, 0, 4, 0)
    assert {k: n for k, n in socket.frames().items() if n} == {"fill": 4, "rx": 4, "frames": 8}
    with receive(socket) as batch:
        assert [number(f) for f in batch.frames] == [4, 5, 6, 7]
    left.send(frames(left, right, [11]))
    with receive(socket) as batch:
        assert [number(f) for f in batch.frames] == [11]
    assert link.ledger().problems() == ()


def test_frames_given_back_twice_are_refused(tiny):
    left, right, _, socket = tiny
    left.send(frames(left, right, [1]))
    batch = receive(socket)
    address = batch._addr.copy()
    batch.end()
    batch.end()
    with pytest.raises(OSError, match="right queue 0: frame check"):
        socket.recycle(address)


@pytest.mark.parametrize(
    "options", [SocketOptions(headroom=128), SocketOptions(chunk_size=4096, ring_size=1, frames=2)]
)
def test_packets_are_whole_for_any_layout_of_frames(make_veth, options):
    left, right = make_veth()
    sent = frames(left, right, range(1), size=1514)
    with right.namespace, attach(DNS, right.name, options=options) as link, link.sockets() as sockets:
        for _ in range(20):
            left.send(sent)
            assert take(sockets, 1) == sent


@pytest.mark.parametrize("mode", MODES)
def test_frames_of_3000_bytes_arrive_whole(make_veth, mode):
    left, right = make_veth(mtu=3000)
    sent = frames(left, right, range(50), size=3014)
    with right.namespace, attach(DNS, right.name, mode=mode) as link, link.sockets() as sockets:
        left.send(sent)
        assert take(sockets, 50) == sent


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_a_packet_longer_than_a_frame_is_counted_as_that(make_veth, mode):
    left, right = make_veth()
    single = SocketOptions(multi_buffer="off")
    with right.namespace, attach(DNS, right.name, mode=mode, options=single) as link, link.sockets() as sockets:
        for port in (left, right):  # behind the back of the open socket, whose frames take 1792 bytes
            with port.namespace, iproute("raise the MTU") as ip:
                ip.link("set", index=port.index, mtu=3000)
        left.send(frames(left, right, range(7), size=2500) + frames(left, right, [8], size=1792) + last(left, right))
        assert [number(f) for f in drain(sockets, [0])[0]] == [8]
    ledger = link.ledger()
    assert (ledger.too_long, ledger.lost, ledger.delivered, ledger.problems()) == (7, 7, 2, ())
    assert "larger chunk_size" in str(ledger)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("vlan", [0, 5])
def test_tagged_frames_are_delivered_with_their_tag(make_veth, mode, vlan):
    left, right = make_veth()
    sent = frames(left, right, range(30), size=1518, vlan=vlan)
    with right.namespace, attach(DNS, right.name, mode=mode) as link, link.sockets() as sockets:
        left.send(sent + last(left, right))
        assert drain(sockets, [0]) == {0: sent}
    assert link.ledger().seen_bytes == sum(map(len, sent)) + 64


# ---- the ledger sums ----


@pytest.mark.parametrize("mode", ["native", "generic"])
@pytest.mark.parametrize("options", [TINY, SocketOptions(ring_size=64)], ids=["rings of 4", "rings of 64"])
def test_a_flooded_slow_consumer_is_accounted_for_to_the_packet(make_veth, mode, options):
    left, right = make_veth(queues=2)
    flood, read = frames(left, right, range(500)), 0
    with right.namespace, attach(DNS, right.name, mode=mode, options=options) as link:
        with link.sockets() as sockets:
            for queue in (0, 1) * 5:
                left.send(flood, queue=queue)
                for batch in sockets.batches(timeout=5, limit=3):  # one batch of at most 3, then it pauses
                    read += len(batch)
                    break
                for socket in sockets.xsks:
                    socket.frames()
                assert link.ledger().in_flight >= 0
        ledger = link.ledger()
    assert (ledger.seen, ledger.redirected, ledger.delivered) == (5000, 5000, read)
    assert ledger.lost > 0
    assert (ledger.in_flight, ledger.problems()) == (0, ())
    assert link.ledger().problems() == ()


@pytest.mark.parametrize("mode", MODES)
def test_flooded_workers_are_accounted_for_to_the_packet(make_veth, tmp_path, mode):
    left, right = make_veth(queues=2)
    flood = frames(left, right, range(2000), size=1000)
    with right.namespace, attach(DNS, right.name, mode=mode, options=TINY) as link:
        with link.sockets() as sockets, sockets.write(tmp_path / "out.pcapng") as workers:
            for queue in (0, 1, 0, 1):
                left.send(flood, queue=queue)
            assert link.ledger().in_flight >= 0
    ledger = link.ledger()
    assert (ledger.seen, ledger.in_flight, ledger.waiting, ledger.problems()) == (8000, 0, 0, ())
    assert ledger.delivered == ledger.written == workers.stats().packets == 8000 - ledger.lost
    _, packets, statistics = capture((tmp_path / "out.pcapng").read_bytes())
    assert len(packets) == ledger.written
    assert sum(s["os_dropped"] for s in statistics) == ledger.lost
    assert sum(s["received"] for s in statistics) == 8000


def test_a_flooded_packet_socket_is_accounted_for_to_the_packet(make_veth):
    left, right = make_veth()
    with right.namespace, attach(DNS, right.name, mode="af_packet") as link:
        with link.sockets() as sockets:
            left.send(frames(left, right, range(12_000), size=1500))  # the ring holds 16 MB
            read = sum(map(len, sockets.batches(timeout=0.05)))
        ledger = link.ledger()
    assert (ledger.seen, ledger.delivered, ledger.delivered + ledger.rx_ring_full) == (12_000, read, 12_000)
    assert ledger.rx_ring_full > 0
    assert (ledger.in_flight, ledger.problems()) == (0, ())


@pytest.mark.parametrize("mode", MODES)
def test_packets_that_nobody_read_are_waiting_in_the_final_ledger(make_veth, mode):
    left, right = make_veth()
    with right.namespace, attach(DNS, right.name, mode=mode) as link:
        with link.sockets():
            left.send(frames(left, right, range(20)))
            arrive(link, 20)
    ledger = link.ledger()
    assert (ledger.waiting, ledger.delivered, ledger.in_flight, ledger.problems()) == (20, 0, 0, ())


# ---- views ----


def test_a_view_raises_when_its_batch_has_ended(tiny):
    left, right, _, socket = tiny
    left.send(frames(left, right, range(3)))
    with receive(socket, 1) as batch:
        view, seen = batch.frames[0], batch.frames
        assert view.readonly
        assert len(seen[0:1]) == 1
        assert batch.frames[-1] is view
        with pytest.raises(IndexError):
            batch.frames[1]
        with pytest.raises(TypeError):
            view[0] = 1
    with pytest.raises(ValueError, match="released"):
        bytes(view)
    for stale in (lambda: seen[0], lambda: batch.frames[0], lambda: batch.view(0)):
        with pytest.raises(FrameError, match="the batch has ended"):
            stale()
    assert len(batch.lengths) == len(batch.timestamps) == 1  # the columns stay


@pytest.mark.parametrize(
    "derive", [lambda v: np.frombuffer(v, np.uint8), lambda v: v[10:], memoryview], ids=["array", "slice", "memoryview"]
)
def test_what_is_derived_from_a_view_keeps_its_frame_until_it_is_gone(tiny, derive):
    left, right, link, socket = tiny
    left.send(frames(left, right, [1], size=500))
    with receive(socket) as batch:
        kept = derive(batch.frames[0])
        content = bytes(kept)
    assert number(content) == 1
    for start in range(0, 120, 3):
        left.send(frames(left, right, range(start, start + 3), size=500))
        arrive(link, 1 + start + 3)
        with receive(socket) as batch:
            assert len(batch) == 3
        assert socket.frames()["held"] == 1
        assert bytes(kept) == content
    del kept
    gc.collect()
    assert socket.receive() is None
    assert {k: n for k, n in socket.frames().items() if n} == {"free": 4, "fill": 4, "frames": 8}


def test_what_is_derived_from_a_view_outlives_its_socket(make_veth):
    left, right = make_veth()
    with right.namespace, attach(DNS, right.name, options=TINY) as link:
        with link.sockets() as sockets:
            left.send(frames(left, right, range(4), size=1000))
            arrive(link, 4)
            with receive(sockets.xsks[0]) as batch:
                kept = [np.frombuffer(view, np.uint8) for view in batch.frames]
            left.send(frames(left, right, range(100), size=1000))
        with link.sockets() as sockets:
            left.send(frames(left, right, range(100), size=1000))
            assert [bytes(k) for k in kept] == frames(left, right, range(4), size=1000)
    gc.collect()
    assert [bytes(k) for k in kept] == frames(left, right, range(4), size=1000)
    while kept:
        kept.pop()
    assert link.ledger().problems() == ()


def test_a_view_cannot_be_made_when_the_socket_is_closed(tiny):
    left, right, link, socket = tiny
    left.send(frames(left, right, range(2)))
    arrive(link, 2)
    batch = receive(socket)
    view = batch.frames[0]
    link.close()
    assert number(view) == 0  # made before: it keeps the UMEM
    with pytest.raises(FrameError, match="closed"):
        batch.frames[1]
    batch.end()
    with pytest.raises(FrameError, match="closed"):
        socket.receive()


def test_a_socket_starved_by_views_recovers_when_they_go(tiny):
    left, right, link, socket = tiny
    kept = []
    for n in range(2):
        left.send(frames(left, right, range(4)))
        arrive(link, 4 * n + 4)
        with receive(socket) as batch:
            kept += [np.frombuffer(view, np.uint8) for view in batch.frames]
    assert {k: n for k, n in socket.frames().items() if n} == {"held": 8, "frames": 8}
    stop = threading.Event()

    def drops_them_while_the_other_thread_waits():
        kept.clear()
        while not stop.is_set():
            left.send(frames(left, right, [9]))

    thread = threading.Thread(target=drops_them_while_the_other_thread_waits)
    thread.start()
    try:
        with receive(socket) as batch:
            assert number(batch.frames[0]) == 9
    finally:
        stop.set()
        thread.join()


# ---- columns ----


def test_timestamps_increase_within_a_queue_and_rules_are_those_that_matched(make_veth):
    left, right = make_veth(queues=2)
    pipe = Pipeline("three", default=PASS)
    pipe.rule(udp.dport == 1, REDIRECT, name="one")
    pipe.rule(tcp.present, DROP, name="tcp")
    pipe.rule(udp.dport == 2, REDIRECT, name="two")
    pipe.rule(udp.dport == 53, REDIRECT, name="dns")
    by_port = [frames(left, right, range(200), dport=port) for port in (1, 2, 53)]
    times: dict[int, list[int]] = {0: [], 1: []}
    rules: list[int] = []
    numbers: list[int] = []
    with right.namespace, attach(pipe, right.name, timestamps=True) as link, link.sockets() as sockets:
        before = time.time_ns()
        for queue in (0, 1):
            left.send([by_port[n % 3][n] for n in range(200)], queue=queue)
        after = time.time_ns()
        for batch in sockets.batches(timeout=5):
            times[batch.queue] += batch.timestamps.tolist()
            rules += batch.rules.tolist()
            numbers += map(number, batch.frames)
            if len(numbers) == 400:
                break
        assert link.attachment.timestamps
    assert rules == [(0, 2, 3)[n % 3] for n in numbers]
    for column in times.values():
        assert len(column) == 200
        assert all(a < b for a, b in pairwise(column))  # per packet, not per batch
    clock_step = 1_000_000  # of the two clocks against each other
    assert before - clock_step <= min(times[0])
    assert max(times[1]) <= after + clock_step
    assert max(times[0]) < min(times[1])


@pytest.mark.parametrize("mode", MODES)
def test_without_metadata_a_batch_has_the_time_and_no_rules(make_veth, mode):
    left, right = make_veth()
    with right.namespace, attach(DNS, right.name, mode=mode) as link, link.sockets() as sockets:
        before = time.time_ns()
        left.send(frames(left, right, range(10), size=777))
        batches = [(b.lengths.copy(), b.timestamps, b.rules, len(b)) for b in sockets.batches(timeout=0.1)]
        after = time.time_ns()
    assert sum(n for *_, n in batches) == 10
    for lengths, times, rules, n in batches:
        assert (lengths.dtype, times.dtype, rules.dtype) == (np.uint32, np.uint64, np.uint32)
        assert lengths.tolist() == [777] * n
        assert all(before - 1_000_000 <= t <= after for t in times.tolist())
        assert rules.tolist() == [NO_RULE] * n


@pytest.mark.parametrize("mode", MODES)
def test_batches_end_after_a_silent_timeout_and_respect_the_limit(make_veth, mode):
    left, right = make_veth()
    with right.namespace, attach(DNS, right.name, mode=mode) as link, link.sockets() as sockets:
        started = time.monotonic()
        assert list(sockets.batches(timeout=0.05)) == []
        assert time.monotonic() - started >= 0.05
        left.send(frames(left, right, range(100)))
        arrive(link, 100)
        sizes = [len(batch) for batch in sockets.batches(timeout=0.05, limit=7)]
    assert sum(sizes) == 100
    assert max(sizes) <= 7


@pytest.mark.parametrize("mode", ["native", "af_packet"])
def test_ctrl_c_ends_the_wait_for_packets(make_veth, mode):
    _, right = make_veth()
    me = threading.get_native_id()

    def interrupts():
        waiting = ("7 ", "271 ")  # poll, ppoll
        until(lambda: Path(f"/proc/self/task/{me}/syscall").read_text().startswith(waiting), "poll()")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupts)
    with right.namespace, attach(DNS, right.name, mode=mode) as link, link.sockets() as sockets:
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            next(sockets.batches())
        thread.join()


# ---- transmit ----


def test_transmitted_packets_reach_the_peer_and_their_frames_come_back(make_veth):
    left, right = make_veth()
    options = SocketOptions(ring_size=4, frames=8, tx=True, debug=True)
    sent = frames(right, left, range(300), size=700)
    with right.namespace, left.capture() as got, attach(DNS, right.name, options=options) as link:
        with link.sockets() as sockets:
            (socket,) = sockets.xsks
            done = completed = 0
            while done < len(sent):
                done += socket.transmit(sent[done : done + 7])
                where = socket.frames()
                completed += socket.complete()
                assert where["tx"] + where["completion"] <= 4
            until(lambda: socket.complete() == 0 and socket.frames()["tx"] == 0, "all completed")
            got.wait(300)
            assert {k: n for k, n in socket.frames().items() if n} == {"free": 4, "fill": 4, "frames": 8}
            left.send(frames(left, right, range(10)))  # and it still receives
            assert len(take(sockets, 1)) > 0
    assert got == sent


def test_more_packets_than_the_kernel_sends_at_once_all_leave(make_veth):
    left, right = make_veth()
    options = SocketOptions(ring_size=256, frames=512, tx=True)
    sent = frames(right, left, range(200))
    with right.namespace, left.capture() as got, attach(DNS, right.name, options=options) as link:
        with link.sockets() as sockets:
            assert sockets.xsks[0].transmit(sent) == 200
            until(lambda: sockets.xsks[0].complete() == 0 and sockets.xsks[0].frames()["tx"] == 0, "all completed")
            got.wait(200)
    assert got == sent


def test_a_packet_that_cannot_be_transmitted_is_refused_before_any_is_sent(make_veth):
    left, right = make_veth()
    good = frames(right, left, [1])[0]
    with right.namespace, left.capture() as got:
        with attach(DNS, right.name, options=SocketOptions(ring_size=4, tx=True, debug=True)) as link:
            with link.sockets() as sockets:
                (socket,) = sockets.xsks
                for bad, code in ((b"\0" * 2113, errno.EMSGSIZE), (b"", errno.EINVAL), (b"\0" * 13, errno.EINVAL)):
                    with pytest.raises(OSError, match=r"right queue 0: transmit: packet (longer|shorter)") as caught:
                        socket.transmit([good, bad])
                    assert caught.value.errno == code
                assert socket.transmit([]) == 0
                assert socket.transmit([good]) == 1
                got.wait(1)
                until(socket.complete, "the completion")
                assert socket.frames()["tx"] == 0
        with attach(DNS, right.name) as link, link.sockets() as sockets:
            with pytest.raises(OSError, match="without a TX ring"):
                sockets.xsks[0].transmit([good])
            assert sockets.xsks[0].complete() == 0
    assert got == [good]


# ---- workers ----


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("queues", [1, 4])
def test_a_limit_is_exact_across_queues(make_veth, tmp_path, mode, queues):
    left, right = make_veth(queues=queues)
    with right.namespace, attach(DNS, right.name, mode=mode) as link, link.sockets() as sockets:
        with sockets.count(limit=1000) as workers:
            for queue in range(queues):
                left.send(frames(left, right, range(600)), queue=queue)
            left.send(frames(left, right, range(600)))
            until(lambda: workers.done, "the limit")
        assert (workers.stats().written, workers.stats().error) == (1000, 0)
        with sockets.write(tmp_path / "out.pcapng", limit=10) as workers:
            pass  # the inflow has stopped: a second run of workers sees what was left, nothing
        ledger = link.ledger()
    assert (ledger.delivered, ledger.written + ledger.refused) == (600 * (queues + 1), 600 * (queues + 1))
    assert ledger.written == 1000
    assert link.ledger().problems() == ()


def test_workers_count_bytes_and_report_each_queue(make_veth):
    left, right = make_veth(queues=2)
    with right.namespace, attach(DNS, right.name) as link, link.sockets() as sockets:
        with sockets.count(cpus=[0, 1]) as workers:
            left.send(frames(left, right, range(30), size=100), queue=0)
            left.send(frames(left, right, range(20), size=200), queue=1)
            until(lambda: workers.stats().packets == 50, "the packets")
            assert [(w.packets, w.bytes, w.written) for w in workers.each()] == [(30, 3000, 30), (20, 4000, 20)]
            with pytest.raises(ValueError, match="workers drain these sockets"):
                sockets.count()
            with pytest.raises(ValueError, match="workers drain these sockets"):
                next(sockets.batches())
        workers.close()
        assert workers.stats().bytes == 7000
        assert workers.done
    with pytest.raises(ValueError, match="the sockets are closed"):
        sockets.count()


def test_workers_for_cpus_that_there_are_not_are_refused(make_veth, tmp_path):
    _, right = make_veth(queues=2)
    kept = tmp_path / "kept.pcapng"
    kept.write_bytes(b"precious")
    with right.namespace, attach(DNS, right.name) as link, link.sockets() as sockets:
        with pytest.raises(ValueError, match="1 cpus for 2 queues"):
            sockets.write(kept, cpus=[0])
        assert kept.read_bytes() == b"precious"
        with pytest.raises(OSError, match="worker of queue 1: pthread_create"):
            sockets.count(cpus=[0, 9999])
        with sockets.count() as workers:
            assert not workers.done


def write_capture(make_veth, path, mode="native", snaplen=0):
    """100 frames of 65.. bytes to each of 2 queues; (frames sent, time before and after, link)."""
    left, right = make_veth(queues=2)
    sent = [frames(left, right, [n], size=65 + n)[0] for n in range(100)]
    before = time.time_ns()
    with right.namespace, attach(DNS, right.name, mode=mode, timestamps=True) as link:
        with link.sockets() as sockets, sockets.write(path, snaplen=snaplen) as workers:
            for queue in (0, 1):
                left.send(sent, queue=queue)
            until(lambda: workers.stats().packets == 200, "the packets")
    return sent, before - 1_000_000, time.time_ns() + 1_000_000, link


@pytest.mark.parametrize("mode", MODES)
def test_a_capture_file_holds_every_packet_with_time_queue_and_verdict(make_veth, tmp_path, mode):
    path = tmp_path / "out.pcapng"
    sent, before, after, link = write_capture(make_veth, path, mode)
    interfaces, packets, statistics = capture(path.read_bytes())
    queues = 1 if mode == "af_packet" else 2
    assert [(i["name"], i["linktype"], i["tsresol"], i["snaplen"]) for i in interfaces] == [("right", 1, 9, 0)] * queues
    for queue, interface in enumerate(interfaces):
        assert f"right queue {queue}: " in interface["description"]
        assert "dns: " in interface["filter"]
    for queue in (0, 1) if mode == "native" else (0,):
        mine = [p for p in packets if p["interface"] == queue]
        assert [p["data"] for p in mine] == (sent if mode == "native" else sent * 2)
        assert all(p["length"] == len(p["data"]) for p in mine)
        assert all(p["queue"] == (None if mode == "af_packet" else queue) for p in mine)
        assert all(p["flags"] == 1 for p in mine)  # inbound
        assert {p["verdict"] for p in mine} == {None if mode == "af_packet" else b"\2" + (4).to_bytes(8, "little")}
        times = [p["time_ns"] for p in mine]
        assert times == sorted(times)
        assert before <= times[0]
        assert times[-1] <= after
    assert [s["interface"] for s in statistics] == list(range(queues))
    assert sum(s["delivered"] for s in statistics) == link.ledger().written == 200
    assert sum(s["os_dropped"] for s in statistics) == 0


def test_tcpdump_and_scapy_read_the_capture(make_veth, tmp_path):
    path = tmp_path / "out.pcapng"
    sent, *_ = write_capture(make_veth, path)
    _, packets, _ = capture(path.read_bytes())
    assert sorted(bytes(p) for p in rdpcap(str(path))) == sorted(sent * 2)
    with PcapNgReader(str(path)) as reader:
        read = list(reader)
    assert [bytes(p) for p in read] == [p["data"] for p in packets]
    assert [round(p.time * 1_000_000_000) for p in read] == [p["time_ns"] for p in packets]
    done = subprocess.run(["tcpdump", "-nr", str(path), "--nano", "-tt"], check=True, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 200
    assert all("198.51.100.1.4000 > 192.0.2.1.53" in line for line in lines)
    first = packets[0]["time_ns"]
    assert lines[0].startswith(f"{first // 10**9}.{first % 10**9:09}")
    assert "truncated" not in done.stderr


@pytest.mark.parametrize("mode", MODES)
def test_snaplen_keeps_that_many_bytes_and_the_true_length(make_veth, tmp_path, mode):
    path = tmp_path / "out.pcapng"
    sent, *_ = write_capture(make_veth, path, mode, snaplen=67)
    interfaces, packets, _ = capture(path.read_bytes())
    assert {i["snaplen"] for i in interfaces} == {67}
    assert sorted((p["data"], p["length"]) for p in packets) == sorted((f[:67], len(f)) for f in sent * 2)


def test_statistics_count_what_was_lost_per_queue(make_veth, tmp_path):
    left, right = make_veth(queues=2)
    path = tmp_path / "out.pcapng"
    with right.namespace, attach(DNS, right.name, options=TINY) as link:
        with link.sockets() as sockets:
            left.send(frames(left, right, range(9)), queue=1)
            arrive(link, 9)
            with sockets.write(path):
                pass
    _, packets, statistics = capture(path.read_bytes())
    assert [p["queue"] for p in packets] == [1] * 4
    assert [(s["received"], s["os_dropped"], s["delivered"]) for s in statistics] == [(0, 0, 0), (9, 5, 4)]


def test_a_file_that_python_buffers_is_written_in_order(make_veth, tmp_path):
    left, right = make_veth()
    path = tmp_path / "out.pcapng"
    with right.namespace, attach(DNS, right.name) as link, link.sockets() as sockets, path.open("wb") as file:
        with sockets.write(file) as workers:
            left.send(frames(left, right, range(5)))
            until(lambda: workers.stats().packets == 5, "the packets")
        assert not file.closed
    _, packets, statistics = capture(path.read_bytes())
    assert ([number(p["data"]) for p in packets], len(statistics)) == ([0, 1, 2, 3, 4], 1)


def test_a_longer_file_is_replaced_whole_and_an_appending_one_is_kept(make_veth, tmp_path):
    _, right = make_veth()
    replaced, appended = tmp_path / "replaced.pcapng", tmp_path / "appended.pcapng"
    for path in (replaced, appended):
        path.write_bytes(b"x" * 100_000)
    with right.namespace, attach(DNS, right.name) as link, link.sockets() as sockets:
        file = open_capture(replaced)
        assert replaced.stat().st_size == 100_000  # until the workers start
        with sockets.write(file):
            pass
        with appended.open("ab") as file, sockets.write(file):
            pass
    capture(replaced.read_bytes())
    assert appended.read_bytes()[:100_000] == b"x" * 100_000
    capture(appended.read_bytes()[100_000:])


@pytest.mark.parametrize("path", ["/no/such/directory/out.pcapng", "/proc/out.pcapng", "/dev/full", "/"])
def test_a_file_that_cannot_be_written_is_named_and_the_sockets_stay_usable(make_veth, path):
    left, right = make_veth()
    opened = len(os.listdir("/proc/self/fd"))
    with right.namespace, attach(DNS, right.name) as link, link.sockets() as sockets:
        with pytest.raises(OSError, match=path) as caught:
            sockets.write(path)
        assert caught.value.filename == path
        left.send(frames(left, right, range(5)))
        assert len(take(sockets, 5)) == 5
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == opened


def test_a_reader_that_goes_away_ends_the_sink_and_the_packets_count_as_refused(make_veth):
    left, right = make_veth()
    with right.namespace, attach(DNS, right.name) as link, link.sockets() as sockets:
        reader, writer = os.pipe()
        with os.fdopen(writer, "wb", buffering=0) as file:
            workers = sockets.write(file)
            os.close(reader)
            left.send(frames(left, right, range(5)))
            until(lambda: workers.done, "the sink has ended")
            left.send(frames(left, right, range(5)))
            until(lambda: workers.stats().packets == 10, "the packets")
            with pytest.raises(BrokenPipeError):
                workers.close()
    ledger = link.ledger()
    assert (ledger.delivered, ledger.written, ledger.refused, ledger.problems()) == (10, 0, 10, ())


def test_a_reader_of_a_pipe_that_does_not_read_cannot_keep_the_workers_from_stopping(make_veth):
    left, right = make_veth(queues=2)
    reader, writer = os.pipe()
    with right.namespace, attach(DNS, right.name) as link, link.sockets() as sockets:
        with os.fdopen(writer, "wb", buffering=0) as file:
            workers = sockets.write(file)
            for queue in (0, 1):  # more than the MiB of the pipe
                left.send(frames(left, right, range(800), size=1000), queue=queue)
            until(lambda: full(writer), "a full pipe")
            with pytest.raises(TimeoutError):
                workers.close()
    os.close(reader)
    ledger = link.ledger()
    assert (ledger.delivered, ledger.written + ledger.refused, ledger.problems()) == (1600, 1600, ())
    assert ledger.refused > 0


def full(pipe):
    return not select.select([], [pipe], [], 0)[1]


def test_named_groups_of_sockets_get_what_is_redirected_to_them(make_veth, tmp_path):
    """Several sockets on a queue share its frames; each group is drained by itself, and an update moves them along."""
    left, right = make_veth(queues=2)
    pipe, more = Pipeline("groups"), Pipeline("more")
    for each in (pipe, more):
        if each is more:
            each.rule(udp.dport == 7, Redirect(group="echo"), name="echo")
        each.rule(udp.dport == 53, Redirect(group="dns"), name="dns")
        each.rule(udp.dport == 80, Redirect(group="web", otherwise=DROP), name="web")
        each.rule(udp, REDIRECT, name="rest")
    sent = {port: frames(left, right, range(port * 100, port * 100 + 50), dport=port) for port in (53, 80, 9)}
    with right.namespace, attach(pipe, right.name, mode="native") as link, link.sockets() as sockets:
        with pytest.raises(ValueError, match="no rule redirects to a group 'echo'"):
            sockets.group("echo")
        for turn, queue in enumerate((0, 1)):
            if turn:
                link.update(more)
            dns_group = sockets.group("dns")
            with dns_group.write(tmp_path / f"{turn}.pcapng"):
                for batch in sent.values():
                    left.send(batch, queue=queue)
                got = take(sockets.group("web"), 50)
                assert [number(f) for f in got] == [number(f) for f in sent[80]]
                got = take(sockets.group(""), 50)
                assert [number(f) for f in got] == [number(f) for f in sent[9]]
            _, packets, _ = capture((tmp_path / f"{turn}.pcapng").read_bytes())
            assert [p["data"] for p in packets] == sent[53]
    ledger = link.ledger()
    assert (ledger.redirected, ledger.delivered, ledger.problems()) == (300, 300, ())


@contextmanager
def limited(what, soft):
    """A limit of this process."""
    before = resource.getrlimit(what)
    resource.setrlimit(what, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(what, before)


def test_sockets_without_descriptors_say_which_limit_to_raise(make_veth):
    _, right = make_veth()
    said = []
    with right.namespace, attach(dns(), right.name) as link:
        free = os.dup(0)
        os.close(free)
        for more in range(20):
            try:
                with limited(resource.RLIMIT_NOFILE, free + more):
                    link.sockets().close()
                break
            except OSError as error:  # wherever it is: nothing stays open
                said.append(str(error))
    assert more == len(said) < 19
    assert all("[Errno 24]" in text for text in said)
    assert any("right queue 0: socket(AF_XDP): Too many open files: raise 'ulimit -n'" in text for text in said)


def test_sockets_without_memory_say_which_limit_to_raise(make_veth):
    _, right = make_veth()
    options = SocketOptions(ring_size=1 << 16)  # a UMEM of 256 MiB
    with right.namespace, attach(dns(), right.name, options=options) as link:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        with (
            limited(resource.RLIMIT_AS, used + (64 << 20)),
            pytest.raises(OSError, match="raise 'ulimit -v'") as caught,
        ):
            link.sockets()
        assert caught.value.errno == errno.ENOMEM
        assert "UMEM of 131072 frames" in str(caught.value)

"""Copies of packets: a ring buffer for each CPU, read in the order of their times."""

import os
import threading

import numpy as np
import pytest
from blocks import capture
from traffic import frames, number, until

from xdpkit import DROP, REDIRECT, Mirror, Pipeline, SocketOptions, attach, udp
from xdpkit.lab.generator import udp_frame
from xdpkit.sockets.copies import ring_bytes, rings_of

CPUS = sorted(os.sched_getaffinity(0))
RECORD = 8 + 32  # in front of a packet: the ring buffer's header, and struct copy


def tap(step=None):
    """All UDP is copied and dropped."""
    pipe = Pipeline("tap")
    pipe.rule(udp, step or Mirror(), name="all")
    pipe.rule(udp, DROP, name="end")
    return pipe


def run_on(cpu, link, frame, times=1):
    """Give the program ``frame`` on that CPU."""

    def run():
        os.sched_setaffinity(0, {cpu})
        link.program.test_run(frame, repeat=times)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()


def received(copies, count):
    """All batches until there were ``count`` packets."""
    batches = []
    for batch in copies.batches(timeout=5):
        batches.append(batch)
        if sum(len(b) for b in batches) >= count:
            return batches
    raise AssertionError(f"{sum(len(b) for b in batches)} of {count} came")


def test_copies_of_all_cpus_come_in_the_order_of_their_times(make_veth):
    left, right = make_veth()
    made = frames(left, right, range(200))
    with right.namespace, attach(tap(), right.name, mode="native") as link, link.copies() as copies:
        for n, frame in enumerate(made):
            run_on(CPUS[n % len(CPUS)], link, frame)
        batches = received(copies, 200)
    times = np.concatenate([b.timestamps for b in batches])
    assert [number(f) for b in batches for f in b.frames] == list(range(200))
    assert (np.diff(times.astype(np.int64)) >= 0).all()


def test_a_file_of_copies_of_all_cpus_is_in_the_order_of_their_times(make_veth, tmp_path):
    left, right = make_veth()
    (frame,) = frames(left, right, [0])
    path = tmp_path / "out.pcapng"
    with right.namespace, attach(tap(), right.name, mode="native") as link, link.copies() as copies:
        with copies.write(path) as workers:
            threads = [threading.Thread(target=run_on, args=(cpu, link, frame, 20_000)) for cpu in CPUS]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            total = len(CPUS) * 20_000
            until(lambda: workers.stats().packets + link.ledger().mirror_full == total, "the copies")
        lost = link.ledger().mirror_full
    _, packets, statistics = capture(path.read_bytes())
    times = [p["time_ns"] for p in packets]
    assert times == sorted(times)
    assert (len(packets), statistics[-1]["delivered"], statistics[-1]["os_dropped"]) == (
        total - lost,
        total - lost,
        lost,
    )


@pytest.mark.parametrize("cpu", CPUS)
def test_what_finds_no_room_is_counted_on_its_cpu(make_veth, cpu):
    left, right = make_veth()
    (frame,) = frames(left, right, [0])
    options = SocketOptions(copies_buffer=8192 * len(CPUS))
    with right.namespace, attach(tap(), right.name, mode="native", options=options) as link, link.copies():
        run_on(cpu, link, frame, 100)
        ledger = link.ledger()
    room = (8192 - 1) // (RECORD + 96)  # one byte stays free
    assert (ledger.mirrored, ledger.mirror_full, ledger.mirror_full_on) == (room, 100 - room, {cpu: 100 - room})
    assert f"user space was too slow ({100 - room} on CPU {cpu}); copies only" in str(ledger)
    assert link.ledger().mirror_full_on == {cpu: 100 - room}  # also when the reader has gone


def test_a_reader_that_comes_again_starts_with_empty_ring_buffers(make_veth):
    left, right = make_veth()
    with right.namespace, attach(tap(), right.name, mode="native") as link:
        for turn in range(3):
            with link.copies() as copies:
                for cpu in CPUS:
                    run_on(cpu, link, frames(left, right, [turn])[0])
                assert {number(f) for b in received(copies, len(CPUS)) for f in b.frames} == {turn}
        assert link.ledger().mirrored == 3 * len(CPUS)


@pytest.mark.parametrize("mode", ["native", "tc_ingress"])
@pytest.mark.parametrize("snaplen", [10, 60])
def test_the_program_copies_no_more_than_the_file_keeps(make_veth, tmp_path, mode, snaplen):
    """So more packets find room: 1500 bytes each would fill the ring buffers of 8 KiB with 5."""
    left, right = make_veth()
    path = tmp_path / "out.pcapng"
    room = (8192 - 1) // (RECORD + 96)
    options = SocketOptions(copies_buffer=8192 * len(CPUS))
    made = [udp_frame(1500, src_mac=left.mac, dst_mac=right.mac).frame]
    with right.namespace, attach(tap(), right.name, mode=mode, options=options) as link, link.copies() as copies:
        with copies.write(path, snaplen=snaplen, wait="sleep"):
            left.send(made * room)
            until(lambda: link.ledger().mirrored == room, "the copies")
        assert link.ledger().mirror_full == 0
    _, packets, _ = capture(path.read_bytes())
    assert [(len(p["data"]), p["length"]) for p in packets] == [(snaplen, 1500)] * room
    assert packets[0]["data"] == made[0][:snaplen]


@pytest.mark.parametrize("kept", [14, 15, 18])
def test_a_tagged_packet_is_copied_however_few_bytes_are_wanted(make_veth, kept):
    """At TC the kernel has taken the tag out, and it goes back in."""
    left, right = make_veth()
    (frame,) = frames(left, right, [0], vlan=7)
    with right.namespace, attach(tap(Mirror(kept)), right.name, mode="tc_ingress") as link, link.copies() as copies:
        left.send([frame])
        (batch,) = received(copies, 1)
        assert bytes(batch.frames[0]) == frame[:kept]


def test_a_copy_wakes_a_reader_that_sleeps_whatever_its_cpu(make_veth):
    left, right = make_veth()
    with right.namespace, attach(tap(), right.name, mode="native") as link, link.copies() as copies:
        with copies.count(wait="sleep") as workers:
            for n in range(20):
                until(lambda n=n: workers.stats().waits > n, "the worker goes to sleep")
                run_on(CPUS[n % len(CPUS)], link, frames(left, right, [n])[0])
                until(lambda n=n: workers.stats().packets == n + 1, "the packet comes")


def test_redirect_at_tc_uses_the_buffer_that_was_asked_for(make_veth):
    left, right = make_veth()
    pipe = Pipeline("all")
    pipe.rule(udp, REDIRECT, name="all")
    options = SocketOptions(copies_buffer=8192 * len(CPUS))
    with right.namespace, attach(pipe, right.name, mode="tc_ingress", options=options) as link, link.sockets():
        left.send(frames(left, right, range(300)))
        until(lambda: link.ledger().seen == 300, "the packets")
        ledger = link.ledger()
    room = (8192 - 1) // (RECORD + 96)
    assert sum(ledger.ring_full_on.values()) == ledger.rx_ring_full >= 300 - room * len(CPUS) > 0
    assert "on CPU" in str(ledger)


@pytest.mark.parametrize(
    ("buffer", "ring_size", "mtu", "rings", "size"),
    [
        (None, 2048, 1500, 2, 4 << 20),  # as many packets as an RX ring has, for each CPU
        (None, 2048, 2026, 2, 4 << 20),
        (None, 8, 9000, 1, 128 << 10),
        (None, 2048, 65536, 2, 16 << 20),  # a ring buffer's most
        (None, 2048, 1500, 128, 512 << 10),  # 64 MiB in all
        (256 << 20, 2048, 1500, 2, 128 << 20),
        (100 << 20, 2048, 1500, 3, 32 << 20),  # the power of two below
        (4096, 2048, 1500, 2, 4096),  # a page
        (4096, 2048, 9000, 2, 16384),  # the longest packet
    ],
)
def test_the_size_of_a_ring_buffer(buffer, ring_size, mtu, rings, size):
    assert ring_bytes(SocketOptions(copies_buffer=buffer, ring_size=ring_size), mtu, rings) == size


@pytest.mark.parametrize(
    ("cpus", "online", "rings"),
    [(2, {0, 1}, [0, 1]), (4, {0, 2}, [0, 1, 1, 1]), (4, {1}, [0, 0, 0, 0]), (2, set(), [0, 0]), (2, {0, 7}, [0, 0])],
)
def test_cpus_that_are_offline_share_the_ring_buffers_of_the_others(cpus, online, rings):
    assert rings_of(cpus, online) == rings


def test_a_buffer_that_is_no_size_is_refused():
    with pytest.raises(ValueError, match="copies_buffer 100: 4096 bytes or more"):
        SocketOptions(copies_buffer=100)

"""What a capture file holds: packets of several queues in the order of their times, whole blocks on a full disk."""

import contextlib
import os
import random
import subprocess
import time

import pytest
from blocks import blocks, capture
from traffic import frames, number, until

from xdpkit import PASS, REDIRECT, Mirror, Pipeline, attach, udp
from xdpkit.files.reader import read_captures
from xdpkit.kernel.core import check, ffi, lib
from xdpkit.sockets import workers as workers_module

DNS = Pipeline("dns")
DNS.rule(udp.dport == 53, REDIRECT, name="dns")


def test_packets_of_four_queues_are_in_the_order_of_their_times(make_veth, tmp_path):
    left, right = make_veth(queues=4)
    path = tmp_path / "out.pcapng"
    with right.namespace, attach(DNS, right.name, mode="native", timestamps=True) as link:
        with link.sockets() as sockets, sockets.write(path) as workers:
            for turn in range(50):
                for queue in range(4):
                    left.send(frames(left, right, range(turn * 100, turn * 100 + 100)), queue=queue)
            until(lambda: workers.stats().packets == 20_000, "the packets")
    _, packets, _ = capture(path.read_bytes())
    times = [p["time_ns"] for p in packets]
    assert times == sorted(times)
    for queue in range(4):
        assert [number(p["data"]) for p in packets if p["queue"] == queue] == list(range(5000))


def test_a_queue_without_packets_holds_nothing_back(make_veth):
    left, right = make_veth(queues=4)
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    got = bytearray()

    def read():
        with contextlib.suppress(BlockingIOError):
            got.extend(os.read(reader, 1 << 20))
        return len([kind for kind, _ in blocks(bytes(got)) if kind == 6])

    with right.namespace, attach(DNS, right.name, mode="native", timestamps=True) as link:
        with link.sockets() as sockets, os.fdopen(writer, "wb", buffering=0) as file, sockets.write(file):
            for turn in range(5):
                left.send(frames(left, right, range(10)), queue=turn % 2)
                until(lambda wanted=10 * turn + 10: read() == wanted, "the packets come out of the pipe")
    os.close(reader)


@pytest.mark.parametrize("seed", range(5))
def test_a_full_disk_leaves_whole_blocks_and_the_ledger_counts_them(make_veth, tmp_path, seed):
    left, right = make_veth(queues=2)
    kib = random.Random(seed).randrange(8, 2000, 4)
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "none", str(disk)], check=True)
    try:
        with right.namespace, attach(DNS, right.name, mode="native", timestamps=True) as link:
            with link.sockets() as sockets:
                workers = sockets.write(disk / "out.pcapng")
                sent = 0
                while not workers.done:
                    for queue in (0, 1):
                        left.send(
                            frames(left, right, range(100), size=random.Random(sent).randrange(60, 1500)), queue=queue
                        )
                        sent += 100
                    until(lambda wanted=sent: workers.stats().packets == wanted, "the packets")
                with pytest.raises(OSError, match="No space left"):
                    workers.close()
            ledger = link.ledger()
        data = (disk / "out.pcapng").read_bytes()
        _, packets, _ = capture(data)
        assert (ledger.written, ledger.refused) == (len(packets), sent - len(packets))
        assert ledger.problems() == ()
        assert len(list(read_captures([disk / "out.pcapng"]))) == len(packets)
        done = subprocess.run(["tcpdump", "-nr", disk / "out.pcapng"], capture_output=True, text=True, check=True)
        assert "truncated" not in done.stderr
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_packets_carry_the_name_of_their_rule_and_after_an_update_of_the_new_one(make_veth, tmp_path):
    left, right = make_veth()
    path = tmp_path / "out.pcapng"
    other = Pipeline("other")
    other.rule(udp.dport == 7, REDIRECT, name="echo")
    other.rule(udp.dport == 53, REDIRECT, name="names [and] brackets")
    with right.namespace, attach(DNS, right.name, mode="native", timestamps=True) as link:
        with link.sockets() as sockets, sockets.write(path) as workers:
            left.send(frames(left, right, range(3)))
            until(lambda: workers.stats().packets == 3, "the packets")
            link.update(other)
            left.send(frames(left, right, range(3)))
            until(lambda: workers.stats().packets == 6, "the packets")
    _, packets, _ = capture(path.read_bytes())
    assert [p["comment"] for p in packets] == ["rule dns"] * 3 + ["rule names [and] brackets"] * 3


@pytest.mark.parametrize("mode", ["native", "tc_ingress"])
def test_copies_carry_queue_and_rule(make_veth, tmp_path, mode):
    left, right = make_veth(queues=2)
    path = tmp_path / "out.pcapng"
    pipe = Pipeline("copies")
    pipe.rule(udp.dport == 53, Mirror(), name="copied")
    pipe.rule(udp, PASS, name="rest")
    with right.namespace, attach(pipe, right.name, mode=mode) as link:
        with link.copies() as copies, copies.write(path, wait="nap") as workers:
            for queue in (0, 1):
                left.send(frames(left, right, range(5)), queue=queue)
            until(lambda: workers.stats().packets == 10, "the copies")
    _, packets, _ = capture(path.read_bytes())
    assert {p["comment"] for p in packets} == {"rule copied"}
    # veth without NAPI notes no queue in the skb, which is queue 0 to TC
    assert sorted(p["queue"] for p in packets) == [0] * 5 + [int(mode == "native")] * 5


def test_statistics_are_in_the_file_before_the_end(make_veth, tmp_path, monkeypatch):
    monkeypatch.setattr(workers_module, "STATISTICS_SECONDS", 0.05)
    left, right = make_veth(queues=2)
    path = tmp_path / "out.pcapng"
    with right.namespace, attach(DNS, right.name, mode="native") as link:
        with link.sockets() as sockets, sockets.write(path):
            left.send(frames(left, right, range(7)), queue=1)
            last = {}

            def counted():
                last.update({s["interface"]: s["delivered"] for s in capture(path.read_bytes())[2]})
                return last == {0: 0, 1: 7}

            until(counted, "statistics of both queues")


def test_a_delay_of_more_than_four_seconds_is_kept(make_veth):
    left, right = make_veth()
    delays = ffi.new("uint64_t[]", 1)
    sink, worker, stats = (
        ffi.new("struct xk_sink **"),
        ffi.new("struct xk_worker **"),
        ffi.new("struct xk_worker_stats *"),
    )
    (frame,) = frames(left, right, [0], size=80)
    frame = frame[:60] + (time.monotonic_ns() - 10**10).to_bytes(8, "big") + frame[68:]
    with right.namespace, attach(DNS, right.name, mode="native") as link, link.sockets() as sockets:
        check(lib.xk_sink_delays(60, delays, 1, sink))
        check(lib.xk_worker_start_xsk(sockets.xsks[0].xsk, sink[0], 0, 0, 0, -1, worker))
        left.send([frame])

        def received():
            lib.xk_worker_stats(worker[0], stats)
            return stats.packets == 1

        until(received, "the packet")
        sockets.stop_inflow()
        lib.xk_worker_stop(worker[0])
        lib.xk_worker_join(worker[0], stats)
        lib.xk_sink_close(sink[0])
    assert 10**10 < delays[0] < 10**11


def test_a_reader_of_a_ring_buffer_naps_unless_another_wait_is_chosen(make_veth):
    _, right = make_veth()
    pipe = Pipeline("copies")
    pipe.rule(udp.dport == 53, Mirror(), name="copied")
    with right.namespace, attach(pipe, right.name, mode="native") as link, link.copies() as copies:
        with copies.count() as workers:
            until(lambda: workers.stats().waits > 3, "naps")
            assert workers.stats().looks == 0
        with copies.count(wait="busy") as workers:
            until(lambda: workers.stats().looks > 3, "looks")
            assert workers.stats().waits == 0

"""Packets of several buffers, ways to lay out UMEM, what was asked of the kernel and what it gave, on veth."""

import errno
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from blocks import capture
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from traffic import drain, frames, last, number, take, until

from xdpkit import (
    DROP,
    PASS,
    REDIRECT,
    FrameError,
    NotSupported,
    Pipeline,
    SocketOptions,
    attach,
    payload,
    pcap,
    pkt,
    udp,
)
from xdpkit.compiler import compile_pipeline
from xdpkit.compiler.built import build
from xdpkit.device.placement import choose, parse_list
from xdpkit.kernel.program import Program
from xdpkit.language.actions import Mark
from xdpkit.meaning.evaluate import evaluate
from xdpkit.sockets.options import parse_choice

NR_HUGEPAGES = Path("/proc/sys/vm/nr_hugepages")


def dns():
    pipe = Pipeline("dns", default=PASS)
    pipe.rule(udp.dport == 53, REDIRECT, name="dns")
    return pipe


DNS = build(dns())
SMALL = SocketOptions(ring_size=64, debug=True)
LAYOUTS = {
    "4096": SMALL,
    "2048": replace(SMALL, chunk_size=2048),
    "headroom": replace(SMALL, chunk_size=2048, headroom=512),
    "unaligned": replace(SMALL, unaligned="on", chunk_size=3000),
}
layouts = pytest.mark.parametrize("options", LAYOUTS.values(), ids=LAYOUTS)
xdp = pytest.mark.parametrize("mode", ["native", "generic"])


def jumbo(left, right, count=30):
    """Numbered frames of 64 to 9000 bytes and some."""
    return [f for n in range(count) for f in frames(left, right, [n], size=64 + n * (8950 // (count - 1)))]


# ---- packets of several buffers ----


@xdp
@layouts
def test_a_packet_of_several_buffers_reads_as_one(make_veth, mode, options):
    left, right = make_veth(mtu=9000)
    sent = jumbo(left, right)
    with right.namespace, attach(DNS, right.name, mode=mode, options=options) as link, link.sockets() as sockets:
        assert link.attachment.multi_buffer
        assert "multi-buffer" in str(link.attachment)
        for frame in sent:
            left.send([frame])
            assert take(sockets, 1) == [frame]
        where = sockets.xsks[0].frames()
        assert where["free"] + where["fill"] == where["frames"]
    ledger = link.ledger()
    assert (ledger.seen_bytes, ledger.delivered, ledger.lost) == (sum(map(len, sent)), len(sent), 0)
    assert ledger.problems() == ()


def test_lengths_are_those_of_whole_packets_and_buffers_show_them_without_a_copy(make_veth):
    left, right = make_veth(mtu=9000)
    (sent,) = frames(left, right, [7], size=9000)
    with right.namespace, attach(DNS, right.name, options=SMALL, timestamps=True) as link, link.sockets() as sockets:
        left.send([sent])
        for batch in sockets.batches(timeout=5):
            assert (batch.lengths.tolist(), batch.rules.tolist(), batch.marks.tolist()) == ([9000], [0], [0])
            parts = batch.buffers(0)
            assert [len(p) for p in parts] == [3840, 3840, 1320]
            assert b"".join(parts) == sent == bytes(batch.frames[0])
            assert sockets.xsks[0].frames()["held"] == 3
            break
        with pytest.raises(FrameError):
            batch.view(0)
        with pytest.raises(ValueError, match="released"):
            bytes(parts[0])


def test_marks_go_with_the_packets_that_rules_mark(make_veth):
    left, right = make_veth(mtu=9000)
    pipe = Pipeline("marked", default=PASS)
    pipe.rule(pkt.len > 5000, Mark(0xDEADBEEF), name="long")
    pipe.rule(udp.dport == 53, REDIRECT, name="dns")
    with right.namespace, attach(pipe, right.name, options=SMALL) as link, link.sockets() as sockets:
        left.send(frames(left, right, [1]) + frames(left, right, [2], size=9000) + frames(left, right, [3]))
        marks = []
        for batch in sockets.batches(timeout=5):
            marks += batch.marks.tolist()
            if len(marks) == 3:
                break
    assert marks == [0, 0xDEADBEEF, 0]


def test_a_limit_counts_packets_and_never_splits_one(make_veth):
    left, right = make_veth(mtu=9000)
    sent = frames(left, right, range(8), size=8000)
    with right.namespace, attach(DNS, right.name, options=SMALL) as link, link.sockets() as sockets:
        left.send(sent)
        until(lambda: sockets.stats().unread == 8, "8 packets, in 24 buffers, wait")
        got = []
        for batch in sockets.batches(timeout=0, limit=3):
            got.append([bytes(frame) for frame in batch.frames])
        assert got == [sent[:3], sent[3:6], sent[6:]]


@xdp
def test_jumbo_packets_without_room_are_counted_as_fill_empty_or_ring_full(make_veth, mode):
    left, right = make_veth(mtu=9000)
    options = SocketOptions(ring_size=8, frames=16, debug=True)
    with right.namespace, attach(DNS, right.name, mode=mode, options=options) as link:
        with link.sockets():
            left.send(frames(left, right, range(20), size=9000))
            until(lambda: link.ledger().seen == 20, "20 packets seen")
    ledger = link.ledger()
    assert (ledger.waiting, ledger.lost, ledger.too_long, ledger.problems()) == (2, 18, 0, ())


@xdp
@layouts
def test_capture_files_hold_whole_jumbo_packets(make_veth, tmp_path, mode, options):
    left, right = make_veth(mtu=9000)
    sent, path = jumbo(left, right), tmp_path / "out.pcapng"
    with right.namespace, attach(DNS, right.name, mode=mode, options=replace(options, ring_size=512)) as link:
        with link.sockets() as sockets, sockets.write(path) as workers:
            left.send(sent)
            until(lambda: workers.stats().packets == len(sent), "all received")
    _, packets, _ = capture(path.read_bytes())
    assert [p["data"] for p in packets] == sent


def test_snaplen_cuts_a_jumbo_packet_at_any_buffer(make_veth, tmp_path):
    left, right = make_veth(mtu=9000)
    (sent,), path = frames(left, right, [1], size=9000), tmp_path / "out.pcapng"
    for snaplen in (60, 3840, 3841, 7680, 7777, 9000, 20000):
        with right.namespace, attach(DNS, right.name, options=SMALL) as link, link.sockets() as sockets:
            with sockets.write(path, snaplen=snaplen) as workers:
                left.send([sent])
                until(lambda: workers.stats().packets == 1, "received")
        _, (packet,), _ = capture(path.read_bytes())
        assert (packet["data"], packet["length"]) == (sent[:snaplen], 9000)


def test_flooded_workers_account_for_every_jumbo_packet(make_veth):
    left, right = make_veth(mtu=9000)
    flood = frames(left, right, range(300), size=8000)
    with right.namespace, attach(DNS, right.name, options=replace(SMALL, ring_size=16)) as link:
        with link.sockets() as sockets, sockets.count() as workers:
            for _ in range(5):
                left.send(flood)
            until(lambda: link.ledger().seen == 1500, "all seen")
        assert workers.stats().bytes == 8000 * workers.stats().packets
    ledger = link.ledger()
    assert (ledger.seen, ledger.delivered + ledger.lost, ledger.problems()) == (1500, 1500, ())


def test_native_jumbo_is_refused_where_packets_of_several_buffers_are_off(make_veth):
    _, right = make_veth(mtu=9000)
    with right.namespace, pytest.raises(OSError, match="MTU 9000 is too large for AF_XDP") as caught:
        attach(DNS, right.name, options=replace(SMALL, multi_buffer="off"))
    assert caught.value.errno == errno.EMSGSIZE


def test_packets_of_several_buffers_can_be_had_where_the_mtu_does_not_ask(make_veth):
    left, right = make_veth()
    options = replace(SMALL, multi_buffer="on", chunk_size=2048, headroom=1000)  # frames take 792 bytes
    sent = frames(left, right, range(20), size=1500)
    with right.namespace, attach(DNS, right.name, options=options) as link, link.sockets() as sockets:
        left.send(sent)
        assert take(sockets, 20) == sent
        assert link.attachment.multi_buffer


WORD = b"\x0a\x0b\x0c\x0d"


# ---- every engine reads a packet of several buffers alike ----


def deep():
    """Rules that read far behind the first buffer."""
    pipe = Pipeline("deep", default=PASS)
    pipe.rule(pkt.len >= 8500, DROP, name="long")
    pipe.rule(pcap("udp and ether[5000] = 0x2a"), DROP, name="byte")
    pipe.rule(pcap("udp and ether[6001:4] = 0x01020304"), DROP, name="word")
    pipe.rule(pcap("udp and ether[3519:2] = 0x0506"), DROP, name="across")
    pipe.rule(payload[4000:4] == 0x0A0B0C0D, DROP, name="payload")
    pipe.rule(payload[3475:8] == 0x0A0B0C0D2E2E2E2E, DROP, name="payload-across")
    return pipe


@pytest.fixture(scope="module")
def deep_programs():
    pipe = deep()
    with Program(compile_pipeline(pipe, "xdp_frags"), explain=True) as program:
        yield pipe, program


@settings(deadline=None)
@given(
    size=st.integers(60, 9000),
    marks=st.lists(
        st.sampled_from([(5000, b"\x2a"), (6001, b"\1\2\3\4"), (3519, b"\5\6"), (7042, b"\x0a\x0b\x0c\x0d")]),
        max_size=4,
    ),
)
def test_bytes_behind_the_first_buffer_are_judged_as_the_reference_does(deep_programs, size, marks):
    pipe, program = deep_programs
    frame = bytearray(bytes(Ether() / IP() / UDP(dport=53)).ljust(size, b"."))
    for at, text in marks:
        frame[at : at + len(text)] = text[: max(0, size - at)]
    packet = bytes(frame[:size])
    assert program.judge(packet)[0].name == evaluate(pipe, packet).name


# ---- UMEM ----


@pytest.fixture
def huge_pages():
    """8 huge pages reserved, and back to what was."""
    before = NR_HUGEPAGES.read_text()
    NR_HUGEPAGES.write_text(str(int(before) + 8))
    if int(NR_HUGEPAGES.read_text()) < int(before) + 8:
        NR_HUGEPAGES.write_text(before)
        pytest.fail("the kernel found no 8 huge pages")
    yield
    NR_HUGEPAGES.write_text(before)


def test_umem_in_huge_pages_is_read_back(make_veth, huge_pages):
    left, right = make_veth()
    sent = frames(left, right, range(50))
    with right.namespace, attach(DNS, right.name, options=replace(SMALL, huge_pages="on")) as link:
        with link.sockets() as sockets:
            assert sockets.xsks[0]._pool.umem.page_size > os.sysconf("SC_PAGE_SIZE")
            assert link.attachment.huge_pages
            assert "huge pages" in str(link.attachment)
            left.send(sent)
            assert take(sockets, 50) == sent


def test_huge_pages_that_are_not_reserved_are_refused_or_done_without(make_veth):
    _, right = make_veth()
    with right.namespace:
        options = replace(SMALL, ring_size=4096, huge_pages="on", frames=1 << 20)  # 2 GiB: more than anybody reserved
        with attach(DNS, right.name, options=options) as link:
            with pytest.raises(
                NotSupported, match=r"huge pages: \d+ free huge pages of 2 MiB, .*/proc/sys/vm/nr_hugepages"
            ):
                link.sockets()
        with attach(DNS, right.name, options=replace(SMALL, huge_pages="want:on", frames=1 << 17)) as link:
            with link.sockets():
                assert link.attachment.huge_pages is False
                assert re.search(r"not huge pages \(\d+ free huge pages of 2 MiB", str(link.attachment))


def test_queues_share_one_umem(make_veth):
    left, right = make_veth(queues=4)
    with right.namespace, attach(DNS, right.name, options=replace(SMALL, shared_umem="on")) as link:
        with link.sockets() as sockets:
            assert link.attachment.shared_umem
            assert len({id(x._pool.umem) for x in sockets.xsks}) == 1
            sent = {q: frames(left, right, range(100 * q, 100 * q + 60)) for q in range(4)}
            for queue, batch in sent.items():
                left.send(batch + last(left, right), queue=queue)
            assert drain(sockets, range(4)) == sent
            for socket in sockets.xsks:
                where = socket.frames()
                assert where["free"] + where["fill"] == where["frames"]
    assert link.ledger().problems() == ()


def test_workers_drain_a_shared_umem(make_veth):
    left, right = make_veth(queues=2)
    with right.namespace, attach(DNS, right.name, options=replace(SMALL, shared_umem="on")) as link:
        with link.sockets() as sockets, sockets.count():
            for queue in (0, 1):
                left.send(frames(left, right, range(500)), queue=queue)
            until(lambda: link.ledger().seen == 1000, "all seen")
    ledger = link.ledger()
    assert (ledger.delivered + ledger.lost, ledger.problems()) == (1000, ())


def test_unaligned_frames_take_packets_and_send_them(make_veth):
    left, right = make_veth()
    options = replace(SMALL, unaligned="on", chunk_size=2304, tx=True)
    sent = [f for n in range(300) for f in frames(left, right, [n], size=1514 if n % 3 else 64)]
    with right.namespace, left.capture() as got, attach(DNS, right.name, options=options) as link:
        with link.sockets() as sockets:
            for n in range(0, 300, 30):
                left.send(sent[n : n + 30])
                assert take(sockets, 30) == sent[n : n + 30]
                assert sockets.send(sent[n : n + 30]) == 30
                got.wait(n + 30, timeout=20)
                until(lambda: sockets.complete() >= 0 and sockets.xsks[0].frames()["tx"] == 0, "completed")
    assert list(got) == sent


@pytest.mark.parametrize(
    ("requested", "mtu", "layout"),
    [
        ({}, 1500, (False, 2048)),
        ({"unaligned": "on"}, 1500, (True, 2112)),
        ({"unaligned": "off"}, 1500, (False, 2048)),
        ({"unaligned": "want:on", "chunk_size": 2048}, 1500, (True, 2048)),
        ({"chunk_size": 2048}, 1500, (False, 2048)),
        ({}, 3000, (False, 4096)),
        ({"unaligned": "on"}, 3000, (True, 4096)),
        ({}, 9000, (False, 4096)),
    ],
)
def test_frames_lie_as_they_were_requested(make_veth, requested, mtu, layout):
    _, right = make_veth(mtu=mtu)
    with right.namespace, attach(DNS, right.name, options=replace(SMALL, **requested)) as link, link.sockets():
        assert (link.attachment.unaligned, link.attachment.chunk_size) == layout
        assert ("unaligned frames of" in str(link.attachment)) == layout[0]


def test_no_more_frames_go_round_than_fill_and_a_batch_need(make_veth):
    left, right = make_veth()
    seen: list[int] = []
    with right.namespace, attach(DNS, right.name, options=SMALL) as link, link.sockets() as sockets:
        socket = sockets.xsks[0]
        for n in range(0, 1000, 20):
            left.send(frames(left, right, range(n, n + 20)))
            left_over = 20
            while left_over:
                batch = socket.receive(left_over)
                if batch is not None:
                    with batch:
                        seen += [np.frombuffer(packet, np.uint8).ctypes.data for packet in batch.frames]
                        left_over -= len(batch)
    assert len(set(seen)) <= 64 + 20  # FILL, and the largest batch


# ---- several sockets on a queue ----


def flows(left, right, count):
    head = Ether(src=left.mac, dst=right.mac) / IP(src="198.51.100.1", dst="192.0.2.1")
    return [
        bytes(head / UDP(sport=1000 + n, dport=53, chksum=0) / b"xdpkit\0\0\0\0".ljust(22, b".")) for n in range(count)
    ]


def test_sockets_of_one_queue_share_its_flows(make_veth):
    left, right = make_veth()
    sent = flows(left, right, 64)
    with right.namespace, attach(DNS, right.name, options=replace(SMALL, sockets_per_queue=3)) as link:
        with link.sockets() as sockets:
            assert len(sockets.xsks) == 3
            got: dict[bytes, set[int]] = {}
            for _ in range(4):
                left.send(sent)
                seen = 0
                while seen < len(sent):
                    for number_, socket in enumerate(sockets.xsks):
                        if (batch := socket.receive()) is not None:
                            with batch:
                                seen += len(batch)
                                for frame in batch.frames:
                                    got.setdefault(bytes(frame), set()).add(number_)
            assert all(len(where) == 1 for where in got.values())  # a flow stays with its socket
            assert {n for where in got.values() for n in where} == {0, 1, 2}
            assert set(got) == set(sent)
            sockets.xsks[0].frames()
    assert link.ledger().problems() == ()


def test_threads_of_one_queue_account_for_every_packet(make_veth):
    left, right = make_veth()
    sent = flows(left, right, 64) * 40
    with right.namespace, attach(DNS, right.name, options=replace(SMALL, sockets_per_queue=4)) as link:
        with link.sockets() as sockets:
            with sockets.count() as workers:
                left.send(sent)
                until(lambda: link.ledger().seen == len(sent), "all seen")
                until(lambda: link.ledger().waiting == 0, "all received")
            assert workers.stats().packets + sockets.stats().rx_dropped + sockets.stats().rx_ring_full == len(sent)
            where = sockets.xsks[0].frames()
            assert where["free"] + where["fill"] == where["frames"]
    assert link.ledger().problems() == ()


# ---- transmit ----


def test_an_array_of_packets_is_sent_row_by_row(make_veth):
    left, right = make_veth()
    sent = frames(right, left, range(200), size=100)
    rows = np.frombuffer(b"".join(sent), np.uint8).reshape(200, 100)
    with right.namespace, left.capture() as got, attach(DNS, right.name, options=replace(SMALL, tx=True)) as link:
        with link.sockets() as sockets:
            done = 0
            while done < 200:
                done += sockets.send(rows[done:])
                sockets.complete()
            got.wait(200, timeout=20)
            stats = sockets.stats()
            assert stats.transmitted == 200
            assert stats.kicks <= 20  # a system call for a batch, not for a packet
            assert sockets.send(rows[:, ::-1][:1]) == 1  # not contiguous: copied
            got.wait(201, timeout=20)
            for bad in (rows.astype(np.uint16), rows[0]):
                with pytest.raises(ValueError, match="rows of a uint8 array of 2 dimensions"):
                    sockets.send(bad)  # type: ignore[arg-type]
    assert got[:200] == sent
    assert got[200] == sent[0][::-1]


def test_a_packet_longer_than_a_frame_is_sent_in_several(make_veth):
    left, right = make_veth(mtu=9000)
    sent = jumbo(right, left)
    options = replace(SMALL, tx=True)
    with right.namespace, left.capture() as got, attach(DNS, right.name, options=options) as link:
        with link.sockets() as sockets:
            for n, frame in enumerate(sent):
                until(lambda frame=frame: sockets.send([frame]), "room")
                got.wait(n + 1, timeout=20)
            until(lambda: sockets.complete() >= 0 and sockets.xsks[0].frames()["tx"] == 0, "completed")
            with pytest.raises(OSError, match="longer than a frame"):
                sockets.send([bytes(80_000)])
    assert list(got) == sent


def test_sending_says_what_it_needs(make_veth):
    _, right = make_veth()
    packet = b"\0" * 64
    with right.namespace:
        with attach(DNS, right.name) as link, link.sockets() as sockets:
            with pytest.raises(ValueError, match=r"no TX ring: SocketOptions\(tx=True\)"):
                sockets.send([packet])
        with attach(DNS, right.name, options=replace(SMALL, tx=True)) as link, link.sockets() as sockets:
            with pytest.raises(ValueError, match="queue 3 has no socket"):
                sockets.send([packet], queue=3)
            with pytest.raises(NotSupported, match=r"a checksum by the device: SocketOptions\(checksum=True\)"):
                sockets.send([packet], checksum=(34, 6))
        with attach(DNS, right.name, mode="af_packet") as link, link.sockets() as sockets:
            with pytest.raises(NotSupported, match="sending in mode af_packet"):
                sockets.send([packet])


def test_the_kernel_computes_checksums_that_are_asked_for(make_veth):
    left, right = make_veth()
    whole = bytes(Ether(src=right.mac, dst=left.mac) / IP(src="192.0.2.1", dst="192.0.2.2") / UDP(dport=9) / b"12345")
    udp_at, sum_at = 34, 6
    pseudo = sum(int.from_bytes(whole[i : i + 2]) for i in range(26, 34, 2)) + 17 + (len(whole) - udp_at)
    pseudo = (pseudo & 0xFFFF) + (pseudo >> 16)
    partial = whole[: udp_at + sum_at] + pseudo.to_bytes(2) + whole[udp_at + sum_at + 2 :]
    options = replace(SMALL, tx=True, checksum=True)
    with right.namespace, left.capture() as got, attach(DNS, right.name, options=options) as link:
        with link.sockets() as sockets:
            assert "not zero-copy (a driver that computes checksums for AF_XDP" in str(link.attachment)
            assert sockets.send([partial], checksum=(udp_at, sum_at)) == 1
            assert sockets.send([whole]) == 1
            got.wait(2, timeout=20)
            with pytest.raises(OSError, match="the checksum is not in the packet"):
                sockets.send([partial], checksum=(len(partial), 0))
    assert list(got) == [whole, whole]


# ---- waiting, and where ----


@pytest.mark.parametrize("wait", ["adaptive", "busy", "sleep", "nap"])
def test_workers_say_how_they_waited(make_veth, wait):
    left, right = make_veth()
    with right.namespace, attach(DNS, right.name) as link, link.sockets() as sockets:
        with sockets.count(wait=wait, cpus=[0]) as workers:
            until(lambda: workers.stats().looks + workers.stats().waits > 0, "a look that found nothing")
            left.send(frames(left, right, range(10)))
            until(lambda: workers.stats().packets == 10, "10 packets")
            if wait == "adaptive":
                until(lambda: workers.stats().waits > 0, "a sleep")
    stats = workers.stats()
    assert (stats.waits > 0, stats.looks > 0) == (wait != "busy", wait in ("adaptive", "busy"))
    assert stats.cpus == (0,)
    with right.namespace, attach(DNS, right.name) as link, link.sockets() as sockets:
        with pytest.raises(ValueError, match="wait 'never': adaptive, busy, sleep, nap"):
            sockets.count(wait="never")  # type: ignore[arg-type]


def test_workers_are_pinned_to_cpus_that_they_may_use(make_veth):
    _, right = make_veth(queues=4)
    with right.namespace, attach(DNS, right.name) as link, link.sockets() as sockets:
        with sockets.count() as workers:
            cpus = [w.cpus[0] for w in workers.each()]
        assert set(cpus) == set(sorted(os.sched_getaffinity(0))[:4])
        with sockets.count(cpus=[-1] * 4) as workers:
            assert workers.stats().cpus == (-1,) * 4


def test_cpus_near_the_device_that_serve_no_interrupt_come_first():
    assert choose(3, range(8), [4, 5, 6, 7], [4]) == (5, 6, 7)
    assert choose(4, range(8), [4, 5], [4]) == (5, 5, 5, 5)
    assert choose(2, range(8), [4, 5], [4, 5]) == (0, 1)
    assert choose(2, [4], [4, 5], [4]) == (4, 4)
    assert choose(2, [1, 3], [0], []) == (1, 3)
    assert parse_list("0-2,8\n") == {0, 1, 2, 8}
    assert parse_list("\n") == set()


def test_busy_polling_is_refused_or_done_without_where_the_driver_names_no_napi(make_veth):
    left, right = make_veth()
    with right.namespace:
        with attach(DNS, right.name, options=replace(SMALL, busy_poll="on")) as link:
            with pytest.raises(NotSupported, match="busy polling on right: a driver that names the NAPI of a queue"):
                link.sockets()
        with attach(DNS, right.name, options=replace(SMALL, busy_poll="want:on")) as link, link.sockets() as sockets:
            assert link.attachment.busy_poll is False
            assert "not busy poll (a driver that names the NAPI" in str(link.attachment)
            left.send(frames(left, right, [1]))
            assert [number(f) for f in take(sockets, 1)] == [1]


def test_without_need_wakeup_packets_come_and_go(make_veth):
    left, right = make_veth()
    sent = frames(right, left, range(100))
    with right.namespace, left.capture() as got:
        with attach(DNS, right.name, options=replace(SMALL, need_wakeup="off", tx=True)) as link:
            with link.sockets() as sockets:
                assert "no need_wakeup" in str(link.attachment)
                left.send(frames(left, right, [5]))
                assert [number(f) for f in take(sockets, 1)] == [5]
                done = 0
                while done < 100:
                    done += sockets.send(sent[done:])
                    sockets.complete()
                got.wait(100, timeout=20)
    assert list(got) == sent


# ---- options ----


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"unaligned": True}, "unaligned True: auto, on, off, or want:NAME"),
        ({"busy_poll": "maybe"}, "busy_poll 'maybe': auto, on, off, or want:NAME"),
        ({"chunk_size": 3000}, "chunk_size 3000: 2048 or 4096, or any number between with unaligned=on"),
        ({"chunk_size": 1000, "unaligned": "on"}, "chunk_size 1000: 2048 to 4096"),
        ({"sockets_per_queue": 0}, "sockets_per_queue 0: 1 to 64"),
        ({"busy_poll_us": 0}, "busy_poll_us 0"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        SocketOptions(**options)


def test_a_switch_is_walked_as_it_was_asked_for():
    options = SocketOptions(huge_pages="want:on", need_wakeup="off", busy_poll="on")
    assert options.switch("huge_pages", auto=False) == (True, False)
    assert options.switch("need_wakeup", auto=True) == (False,)
    assert options.switch("busy_poll", auto=False) == (True,)
    assert options.switch("shared_umem", auto=False) == (False,)
    assert parse_choice("x", "auto", ("on", "off")) == ("on", "off")


def test_what_the_kernel_gave_is_in_the_json(make_veth):
    _, right = make_veth()
    with right.namespace, attach(DNS, right.name, options=SMALL) as link:
        assert link.ledger().as_dict()["attachment"]["need_wakeup"] is None  # type: ignore[index]
        with link.sockets():
            got = link.ledger().as_dict()["attachment"]
    wanted = {
        "need_wakeup": True, "busy_poll": False, "huge_pages": False, "multi_buffer": False, "shared_umem": False,
        "unaligned": False, "chunk_size": 2048,
    }  # fmt: skip
    assert {name: got[name] for name in wanted} == wanted  # type: ignore[index]

"""AF_XDP zero-copy on NICs that have it: what is got, that every packet is accounted for, and what is left behind.

A packet that finds no descriptor at the NIC is lost before any program sees it, so senders here wait for what they sent
(`feed`) where a test counts to the packet."""

import errno
import re
import signal
import subprocess
import sys
import threading
import time
from functools import cache
from pathlib import Path

import pytest
from blocks import capture
from traffic import frames, number, until
from wire import ready, set_link, wire

from xdpkit import DROP, PASS, REDIRECT, TX, NotSupported, Pipeline, SocketOptions, attach, udp
from xdpkit.compiler.built import build
from xdpkit.device import ethtool, netdev

XDPKIT = str(Path(sys.executable).with_name("xdpkit"))
DNS_FILE = str(Path(__file__).parents[2] / "pipelines" / "dns.py")
SOURCES = [f"198.18.{37 * n % 256}.{n}" for n in range(1, 17)]  # igb's RSS looks at addresses, not at UDP ports
WINDOW = 64  # packets under way at once: less than any ring of a NIC holds
TRANSMITTING = SocketOptions(tx=True, debug=True)
CHECKED = SocketOptions(debug=True)


@cache
def pipeline(*, echo=False):
    """Port 53 is redirected, 80 dropped, 7 sent back if `echo`; the rest passes.  Compiled once for all tests."""
    pipe = Pipeline("ports", default=PASS)
    pipe.rule(udp.dport == 53, REDIRECT, name="dns")
    pipe.rule(udp.dport == 80, DROP, name="web")
    if echo:
        pipe.rule(udp.dport == 7, TX, name="echo")
    return build(pipe)


def flows(left, right, numbers, **options):
    """Numbered frames of 16 senders in turn, so that every queue gets some."""
    by_source = [frames(left, right, numbers, source=source, **options) for source in SOURCES]
    return [by_source[i % len(SOURCES)][i] for i in range(len(numbers))]


def feed(link, far, packets):
    """Send all of `packets` to the link, each window after the one before was seen."""
    seen = link.ledger().seen
    for start in range(0, len(packets), WINDOW):
        part = packets[start : start + WINDOW]
        far.send(part)
        seen += len(part)
        until(lambda: link.ledger().seen >= seen, f"{seen} packets seen")  # noqa: B023  (called here)


def received(sockets, count):
    """`count` packets: [(queue, bytes)] in the order of arrival."""
    got = []
    for batch in sockets.batches(timeout=10):
        got += [(batch.queue, bytes(frame)) for frame in batch.frames]
        if len(got) >= count:
            return got
    raise AssertionError(f"{len(got)} of {count} packets came")


def transmit(socket, packets, arrived):
    """Send `packets`, each window after the one before arrived; then the kernel has given every frame back."""
    for start in range(0, len(packets), WINDOW):
        part = packets[start : start + WINDOW]
        assert socket.transmit(part) == len(part)
        until(lambda: socket.complete() >= 0 and _none_under_way(socket), "all frames are completed")
        arrived.wait(min(start + WINDOW, len(packets)), timeout=10)


def _none_under_way(socket):
    where = socket.frames()
    return where["tx"] == where["completion"] == 0


# ---- want, require, got ----


@pytest.mark.parametrize("bind", ["zerocopy", "auto", "want:zerocopy"])
def test_the_kernel_says_zero_copy_and_so_does_the_link(nics, bind):
    near, _ = nics
    with attach(pipeline(), near.name, mode="native", bind=bind) as link, link.sockets() as sockets:
        assert [x.zerocopy for x in sockets.xsks] == [True] * near.queues  # XDP_OPTIONS, read back
        assert (link.attachment.mode, link.attachment.bind, link.attachment.walk) == ("native", "zerocopy", ())
        assert str(link.attachment).startswith("native, zero-copy, queue")


def test_auto_picks_native_zero_copy_by_itself(nics):
    near, _ = nics
    with attach(pipeline(), near.name) as link, link.sockets():
        at = link.attachment
        assert (at.mode, at.bind, at.queues) == ("native", "zerocopy", tuple(range(near.queues)))


def test_copy_that_is_required_is_copy_also_here(nics):
    near, far = nics
    with attach(pipeline(), near.name, bind="copy") as link, link.sockets() as sockets:
        assert not any(x.zerocopy for x in sockets.xsks)
        assert link.attachment.bind == "copy"
        ready(near, far)
        sent = flows(far, near, range(100))
        feed(link, far, sent)
        assert sorted(f for _, f in received(sockets, 100)) == sorted(sent)


def test_zero_copy_in_generic_mode_is_refused_before_a_packet_moves(nics):
    near, _ = nics
    with attach(pipeline(), near.name, mode="generic", bind="zerocopy") as link:
        with pytest.raises(NotSupported, match=f"{near.name}: zero-copy: mode native, and this is generic"):
            link.sockets()


# ---- what goes in front of packets ----


def test_times_are_the_device_s_or_the_kernel_s_and_got_says_whose(nics):
    near, far = nics
    options = SocketOptions(tx=True, debug=True, tx_timestamp="on")
    packets = frames(near, far, range(WINDOW))
    able = "tx-timestamp" in near.device.xsk_features
    with attach(pipeline(), near.name, options=options) as link, link.sockets() as sockets:
        wanted = ("zerocopy", "device") if able else ("copy", "software")
        assert (link.attachment.bind, link.attachment.tx_timestamp) == wanted
        ready(near, far)
        before, numbers, times = time.clock_gettime_ns(time.CLOCK_TAI), [], []
        assert sockets.send(packets, timestamp=True) == WINDOW

        def more():
            sent = sockets.sent_times()
            numbers.extend(sent.numbers.tolist())
            times.extend(sent.times.tolist())
            return len(times) == WINDOW

        until(more, "a time for every packet", timeout=60)
    assert numbers == list(range(WINDOW))
    assert able or (before <= times[0] and times == sorted(times))


# ---- packets ----


@pytest.mark.parametrize("size", [64, 1514])
def test_packets_arrive_whole_in_order_on_every_queue_and_the_ledger_sums(nics, size):
    near, far = nics
    sent = flows(far, near, range(1000), size=size)
    with attach(pipeline(), near.name, bind="zerocopy", options=CHECKED) as link:
        with link.sockets() as sockets:
            ready(near, far)
            feed(link, far, sent)
            got = received(sockets, len(sent))
        ledger = link.ledger()
    assert sorted(frame for _, frame in got) == sorted(sent)
    assert {queue for queue, _ in got} == set(range(near.queues))
    for queue in range(near.queues):  # within a window the sender's own queues overtake each other
        windows = [number(frame) // WINDOW for q, frame in got if q == queue]
        assert windows == sorted(windows)
    assert (ledger.seen, ledger.redirected, ledger.delivered, ledger.lost) == (1000, 1000, 1000, 0)
    assert ledger.problems() == ()


def test_tagged_packets_of_1518_bytes_arrive_with_their_tag(nics):
    near, far = nics
    igb = near.device.driver == "igb"
    if igb:  # it takes the tag out of the packet otherwise, as the doctor says, and tags that nobody registered away
        ethtool.set_features(near.name, {"rx-vlan-hw-parse": False})
    try:
        sent = frames(far, near, range(WINDOW), size=1518, vlan=5)
        with attach(pipeline(), near.name, bind="zerocopy", options=CHECKED) as link, link.sockets() as sockets:
            ready(near, far)
            with netdev.promiscuous(near.index):
                feed(link, far, sent)
            assert sorted(frame for _, frame in received(sockets, WINDOW)) == sorted(sent)
    finally:
        if igb:
            ethtool.set_features(near.name, {"rx-vlan-hw-parse": True})


def test_rings_of_64_wrap_around_many_times(nics):
    """Smaller ones would wrap sooner, but leave the NIC too few frames for three packets at once."""
    near, far = nics
    options = SocketOptions(ring_size=64, frames=128, debug=True)
    with attach(pipeline(), near.name, bind="zerocopy", options=options) as link, link.sockets() as sockets:
        ready(near, far)
        for start in range(0, 450, 3):
            sent = frames(far, near, range(start, start + 3))
            far.send(sent)
            assert [frame for _, frame in received(sockets, 3)] == sent
        for socket in sockets.xsks:
            where = socket.frames()
            assert (where["held"], where["rx"], where["frames"]) == (0, 0, 128)
    assert (link.ledger().delivered, link.ledger().problems()) == (450, ())


def test_drop_and_pass_keep_their_meaning_beside_zero_copy_sockets(nics):
    near, far = nics
    ports = {53: 300, 80: 200, 9: 400}
    mixed = [f for port, count in ports.items() for f in flows(far, near, range(count), dport=port)]
    with near.capture() as stack, attach(pipeline(), near.name, bind="zerocopy", options=CHECKED) as link:
        with link.sockets() as sockets:
            ready(near, far)
            feed(link, far, mixed)
            got = received(sockets, 300)
            stack.wait(400, timeout=10)
    ledger = link.ledger()
    assert {r.name: r.packets for r in ledger.rules} == {"dns": 300, "web": 200, "default": 400}
    assert sorted(f for _, f in got) == sorted(mixed[:300])
    assert sorted(stack) == sorted(mixed[500:])
    assert (ledger.delivered, ledger.lost, ledger.problems()) == (300, 0, ())


def test_tx_sends_back_every_packet_where_zero_copy_can():
    with wire("igb") as (near, far):
        sent = flows(far, near, range(300), dport=7)
        with far.capture() as back, attach(pipeline(echo=True), near.name, bind="zerocopy") as link, link.sockets():
            ready(near, far)
            for start in range(0, 300, WINDOW):
                feed(link, far, sent[start : start + WINDOW])
                back.wait(min(start + WINDOW, 300), timeout=10)
        assert sorted(f[12:] for f in back) == sorted(f[12:] for f in sent)
        assert {f[:12] for f in back} == {sent[0][6:12] + sent[0][:6]}
        assert link.ledger().problems() == ()


def test_tx_is_kept_from_zero_copy_where_the_driver_would_lose_it():
    """Should virtio_net learn it, this fails: then let it have zero-copy (xdpkit/sockets/zerocopy.py)."""
    with wire("virtio_net") as (near, far):
        with attach(pipeline(echo=True), near.name, bind="zerocopy") as link:
            with pytest.raises(NotSupported, match=f"zero-copy on {near.name}: a pipeline without TX"):
                link.sockets()
        with attach(pipeline(), near.name, bind="zerocopy") as link, link.sockets():
            with pytest.raises(NotSupported, match=f"zero-copy on {near.name}: a pipeline without TX"):
                link.update(pipeline(echo=True))
        with far.capture() as back, attach(pipeline(echo=True), near.name) as link, link.sockets():
            assert link.attachment.bind == "copy"
            assert "not zero-copy (a pipeline without TX" in str(link.attachment)
            ready(near, far)
            feed(link, far, flows(far, near, range(WINDOW), dport=7))
            back.wait(WINDOW, timeout=10)


def test_frames_that_the_nic_would_cut_are_refused_and_auto_copies():
    with wire("igb") as (near, far):
        small = SocketOptions(chunk_size=2048)
        with attach(pipeline(), near.name, bind="zerocopy", options=small) as link:
            with pytest.raises(NotSupported, match="chunk_size 4096, because igb cuts packets after 1024 bytes"):
                link.sockets()
        sent = flows(far, near, range(WINDOW), size=1514)
        with attach(pipeline(), near.name, options=small) as link, link.sockets() as sockets:
            assert link.attachment.bind == "copy"
            ready(near, far)
            feed(link, far, sent)
            assert sorted(f for _, f in received(sockets, WINDOW)) == sorted(sent)


def test_workers_write_every_packet(nics, tmp_path):
    near, far = nics
    sent = flows(far, near, range(3000), size=200)
    with attach(pipeline(), near.name, bind="zerocopy", timestamps=True) as link:
        with link.sockets() as sockets, sockets.write(tmp_path / "out.pcapng"):
            ready(near, far)
            feed(link, far, sent)
    ledger = link.ledger()
    _, packets, _ = capture((tmp_path / "out.pcapng").read_bytes())
    assert (ledger.seen, ledger.written, ledger.lost, ledger.problems()) == (3000, 3000, 0, ())
    assert len(packets) == 3000


def test_transmitted_packets_reach_the_wire_and_every_frame_comes_back(nics):
    near, far = nics
    options = SocketOptions(ring_size=128, tx=True, debug=True)
    with attach(pipeline(), near.name, bind="zerocopy", options=options) as link, link.sockets() as sockets:
        ready(near, far)
        for socket in sockets.xsks:
            packets = frames(near, far, range(600), size=1514)  # more than there are frames
            with far.capture() as out:
                transmit(socket, packets, out)
            assert list(out) == packets


def test_packets_forwarded_in_user_space_cross_two_zero_copy_nics():
    with wire("igb") as (igb, sender), wire("virtio_net") as (virtio, receiver):
        options = TRANSMITTING
        with attach(pipeline(), igb.name, bind="zerocopy", options=options) as link, link.sockets() as sockets:
            with attach(pipeline(), virtio.name, bind="zerocopy", options=options) as out, out.sockets() as outlets:
                ready(igb, sender, virtio, receiver)
                sent = flows(sender, igb, range(1000))
                with netdev.promiscuous(receiver.index), receiver.capture() as arrived:
                    for start in range(0, 1000, 250):
                        feed(link, sender, sent[start : start + 250])
                        with receiver.capture() as some:
                            transmit(outlets.xsks[0], [frame for _, frame in received(sockets, 250)], some)
        assert sorted(arrived) == sorted(sent)
        assert (link.ledger().delivered, link.ledger().problems()) == (1000, ())


# ---- what happens meanwhile ----


def _keep_sending(far, packets, stop):
    while not stop.is_set():
        far.send(packets)


@pytest.mark.parametrize("drained_by", ["workers", "nobody"])
def test_teardown_under_traffic_accounts_for_every_packet_that_was_seen(nics, drained_by):
    near, far = nics
    stop = threading.Event()
    sender = threading.Thread(target=_keep_sending, args=(far, flows(far, near, range(64)), stop))
    ledgers = []
    sender.start()
    try:
        for _ in range(3):
            with attach(pipeline(), near.name, bind="zerocopy") as link, link.sockets() as sockets:
                ready(near)
                if drained_by == "workers":
                    with sockets.count():
                        until(lambda: link.ledger().seen > 300, "packets are seen")
                else:
                    until(lambda: link.ledger().seen > 300, "packets are seen")
            ledgers.append(link.ledger())
    finally:
        stop.set()
        sender.join()
    assert [ledger.problems() for ledger in ledgers] == [()] * 3


def test_sockets_reopened_under_traffic_are_zero_copy_again(nics):
    near, far = nics
    stop = threading.Event()
    sender = threading.Thread(target=_keep_sending, args=(far, flows(far, near, range(64)), stop))
    with attach(pipeline(), near.name, bind="zerocopy") as link:
        ready(near, far)
        sender.start()
        try:
            for _ in range(5):
                with link.sockets() as sockets:
                    assert link.attachment.bind == "zerocopy"
                    received(sockets, 100)
        finally:
            stop.set()
            sender.join()
    assert link.ledger().problems() == ()


def test_packets_flow_again_after_the_link_was_down(nics):
    near, far = nics
    with attach(pipeline(), near.name, bind="zerocopy", options=TRANSMITTING) as link, link.sockets() as sockets:
        ready(near, far)
        for _ in range(3):
            sent = flows(far, near, range(200))
            feed(link, far, sent)
            assert sorted(f for _, f in received(sockets, 200)) == sorted(sent)
            with far.capture() as out:
                transmit(sockets.xsks[0], frames(near, far, range(200)), out)
            set_link(near, state="down")
            set_link(near, state="up")
            ready(near, far)
        assert all(x.zerocopy for x in sockets.xsks)
    assert (link.ledger().delivered, link.ledger().problems()) == (600, ())


def test_queues_with_sockets_cannot_be_taken_away_and_others_can():
    with wire("igb") as (near, _):
        with attach(pipeline(), near.name, bind="zerocopy") as link, link.sockets():
            with pytest.raises(OSError, match=f"set 1 receive and 1 transmit queues on {near.name}") as caught:
                ethtool.set_channels(near.name, rx=1, tx=1)
            assert caught.value.errno == errno.EINVAL
        ethtool.set_channels(near.name, rx=1, tx=1)
        with attach(pipeline(), near.name, bind="zerocopy") as link, link.sockets():
            assert (link.attachment.bind, link.attachment.queues) == ("zerocopy", (0,))
        ethtool.set_channels(near.name, rx=2, tx=2)


def test_packets_of_a_queue_that_came_later_are_named_in_the_ledger():
    with wire("igb") as (near, far):
        ethtool.set_channels(near.name, rx=1, tx=1)
        with attach(pipeline(), near.name, bind="zerocopy") as link, link.sockets() as sockets:
            ethtool.set_channels(near.name, rx=2, tx=2)
            ready(near, far)
            feed(link, far, flows(far, near, range(320)))
            beside = link.ledger().no_socket
            assert 0 < beside < 320
            assert {queue for queue, _ in received(sockets, 320 - beside)} == {0}
        assert link.ledger().problems() == ()


def test_a_starved_nic_goes_on_when_frames_come_back(nics):
    near, far = nics
    options = SocketOptions(ring_size=16, frames=16, debug=True)
    with attach(pipeline(), near.name, bind="zerocopy", options=options) as link, link.sockets() as sockets:
        ready(near, far)
        for _ in range(3):
            far.send(flows(far, near, range(200)))
            until(lambda: any(x.frames()["rx"] == 16 for x in sockets.xsks), "a queue has no frame left")
            read = sum(len(batch) for batch in sockets.batches(timeout=0.2))
            assert read >= 16
            feed(link, far, flows(far, near, range(8)))
            received(sockets, 8)
    assert link.ledger().problems() == ()


# ---- from the shell ----


@pytest.fixture
def igb():
    """One driver is enough for the command, which takes long to start here."""
    with wire("igb") as ports:
        yield ports


def xdpkit_run(near, *options):
    command = [XDPKIT, "run", DNS_FILE, "-i", near.name, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    return process, process.stderr.readline()


def test_run_says_zero_copy_when_it_starts_and_when_it_ends(igb):
    near, far = igb
    process, said = xdpkit_run(near)
    try:
        ready(near, far)
        assert re.search(rf"^xdpkit: .* on {near.name}: native, zero-copy, queue", said)
        far.send(flows(far, near, range(100)))
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0
    assert "native, zero-copy" in out


def test_a_killed_run_leaves_the_device_as_it_was(igb):
    near, far = igb
    process, said = xdpkit_run(near)
    assert "zero-copy" in said
    process.kill()
    process.communicate()
    until(lambda: netdev.xdp_holders(near.index) == (), "the program is gone")
    with near.capture() as stack:
        ready(near, far)
        far.send(flows(far, near, range(50)))
        stack.wait(50, timeout=10)
    with attach(pipeline(), near.name, bind="zerocopy") as link, link.sockets():
        assert link.attachment.bind == "zerocopy"


def test_the_doctor_says_that_the_device_has_zero_copy(igb):
    near, _ = igb
    done = subprocess.run([XDPKIT, "doctor", near.name], capture_output=True, text=True, check=False)
    assert re.search(r"^ok +zero-copy +the driver has AF_XDP zero-copy", done.stdout, re.M)
    assert "problem" not in done.stdout

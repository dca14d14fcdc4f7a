"""The generator against the real kernel: what reaches the peer's XDP hook, to the packet."""

import errno
import os
import signal
import threading
import time
from contextlib import contextmanager

import pytest
from pyroute2 import IPRoute
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from xdpkit import NotSupported
from xdpkit.compiler import compile_pipeline
from xdpkit.device import ethtool
from xdpkit.kernel.core import check, lib
from xdpkit.kernel.program import Program
from xdpkit.lab.generator import udp_frame
from xdpkit.lab.pace import Pace
from xdpkit.language.actions import DROP
from xdpkit.language.headers import udp
from xdpkit.language.pipeline import Pipeline

_NATIVE = 4


def frame_for(port, size=64, **options):
    return udp_frame(size, src_mac=port.mac, dst_mac=port.peer.mac, **options)


@contextmanager
def hook(port, *rules):
    """Rules at the port's native XDP hook, all DROP; yields a function for the packets that each rule took."""
    pipe = Pipeline("hook", default=DROP)
    for number, test in enumerate(rules):
        pipe.rule(test, DROP, name=f"rule{number}")
    with Program(compile_pipeline(pipe)) as program:
        with port.namespace:
            link = check(lib.xk_link_xdp(program.fd, port.index, _NATIVE))
        try:
            yield lambda: [count.packets for count in program.counts()]
        finally:
            os.close(link)


@pytest.mark.parametrize("size", [42, 60, 64, 1514])
def test_a_udp_frame_is_what_scapy_would_build(size):
    made = udp_frame(size, src_mac="02:00:00:00:00:01", dst_mac="02:00:00:00:00:02", sport=7, dport=53)
    ip = IP(src="198.18.0.1", dst="198.19.0.1", ttl=64, id=0) / UDP(sport=7, dport=53, chksum=0) / bytes(size - 42)
    assert made.frame == bytes(Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / ip)
    assert made.frame[made.sport_offset : made.sport_offset + 2] == b"\0\7"
    assert made.frame[made.payload_offset :] == bytes(size - 42)


def test_a_udp_frame_too_short_for_its_headers_is_refused():
    with pytest.raises(ValueError, match="a UDP frame is 42 to 65549 bytes long, not 41"):
        udp_frame(41, src_mac="02:00:00:00:00:01", dst_mac="02:00:00:00:00:02")


@pytest.mark.parametrize("count", [0, 1, 2, 63, 64, 65, 1000, 200_001])
def test_exactly_so_many_frames_reach_the_hook(veth_pair, generator, count):
    left, right = veth_pair
    gen = generator(left, [frame_for(left).frame], cpu=0)
    with hook(right) as taken:
        assert gen.send(count) == count
        gen.settle()
        assert taken() == [count]
    assert (gen.sent, gen.dropped) == (count, 0)


def test_frames_arrive_whole_and_numbered_in_order(veth_pair, generator):
    left, right = veth_pair
    made = frame_for(left, 100)
    gen = generator(left, [made.frame], sequence_offset=made.payload_offset)
    with right.capture() as got:
        gen.send(70)
        gen.send(30)
        got.wait(100)
    head, tail = made.frame[:42], made.frame[50:]
    assert got == [head + n.to_bytes(8, "big") + tail for n in range(100)]


def test_flows_take_turns_from_their_base(veth_pair, generator):
    left, right = veth_pair
    made = frame_for(left)
    gen = generator(left, [made.frame], flow_offset=made.sport_offset, flows=3, flow_base=5000)
    with hook(right, udp.sport == 5000, udp.sport == 5001, udp.sport == 5002) as taken:
        gen.send(100)
        gen.settle()
        assert taken() == [34, 33, 33, 0]


def test_templates_take_turns_after_each_batch(veth_pair, generator):
    left, right = veth_pair
    gen = generator(left, [frame_for(left, sport=n).frame for n in (1, 2, 3)])
    with hook(right, udp.sport == 1, udp.sport == 2, udp.sport == 3) as taken:
        gen.send(3 * 64 + 10)
        gen.settle()
        assert taken() == [74, 64, 64, 0]


def test_scapy_packets_are_templates_too(veth_pair, generator):
    left, right = veth_pair
    packet = Ether(src=left.mac, dst=right.mac) / IP() / UDP(sport=9) / bytes(20)
    with right.capture() as got:
        generator(left, [packet]).send(1)
        got.wait(1)
    assert got == [bytes(packet)]


@pytest.mark.parametrize("cpu", sorted(os.sched_getaffinity(0)))
def test_the_cpu_chooses_the_receive_queue(make_veth, generator, cpu):
    left, right = make_veth(queues=2)
    before = os.sched_getaffinity(0)
    gen = generator(left, [frame_for(left).frame], cpu=cpu)
    gen.send(500)
    gen.settle()
    with right.namespace:
        counters = ethtool.counters(right.name)
    assert counters[f"rx_queue_{cpu % 2}_xdp_packets"] == 500
    assert os.sched_getaffinity(0) == before


def test_what_a_full_ring_refused_is_counted_to_the_packet(veth_pair, generator):
    """Another CPU sends into the same ring of 256 and so polls it, more slowly than the generator fills it."""
    left, right = veth_pair
    gen = generator(left, [frame_for(left, sport=1).frame], cpu=0)
    ended, others = threading.Event(), []

    def disturb():
        os.sched_setaffinity(0, {1})
        while not ended.is_set():
            others.append(left.send([frame_for(left, sport=2).frame] * 100))

    thread = threading.Thread(target=disturb)
    with hook(right, udp.sport == 1, udp.sport == 2) as taken:
        thread.start()
        try:
            while not gen.dropped and gen.sent < 50_000_000:
                gen.send(100_000)
        finally:
            ended.set()
            thread.join()
        expected = [gen.sent - gen.dropped, sum(others), 0]
        deadline = time.monotonic() + 5
        while taken() != expected and time.monotonic() < deadline:
            os.sched_yield()
        assert taken() == expected
    assert gen.dropped > 0
    assert left.stats()["tx_dropped"] >= gen.dropped


def test_drops_beyond_the_device_are_told(veth_pair, generator):
    """The peer goes down under the generator, which could not know."""
    left, right = veth_pair
    gen = generator(left, [frame_for(left).frame])
    gen.send(100)
    with right.namespace, IPRoute() as ip:
        ip.link("set", index=right.index, state="down")
    gen.send(100)
    assert (gen.sent, gen.dropped) == (200, 100)


def test_a_thread_sends_until_it_is_stopped(veth_pair, generator):
    left, right = veth_pair
    gen = generator(left, [frame_for(left).frame], cpu=0)
    with hook(right) as taken:
        gen.start()
        while gen.sent < 100_000:
            os.sched_yield()
        sent = gen.stop()
        gen.settle()
        assert taken() == [sent]
    assert gen.sent == sent >= 100_000
    assert gen.dropped == 0
    assert gen.achieved_pps > 0


def test_a_thread_that_was_given_a_count_sends_it(veth_pair, generator):
    left, _ = veth_pair
    gen = generator(left, [frame_for(left).frame] * 2)
    gen.start(1000, rate_pps=1e6)
    assert gen.wait(timeout=10) == 1000
    assert gen.sent == 1000


def test_a_paced_run_is_never_faster_than_asked(veth_pair, generator):
    """The first chunk of 20 comes at once, and two can be made up."""
    left, _ = veth_pair
    gen = generator(left, [frame_for(left).frame])
    begin = time.monotonic()
    gen.start(50_000, rate_pps=200_000)
    assert gen.wait() == 50_000
    assert time.monotonic() - begin >= (50_000 - 60) / 200_000
    assert gen.achieved_pps <= 50_000 / ((50_000 - 60) / 200_000)


@pytest.mark.parametrize(("burst", "waits"), [(None, 3), (20, 3), (30, 2)])
def test_a_pace_that_was_missed_is_made_up_by_two_chunks_or_a_burst_alone(monkeypatch, burst, waits):
    """After a pause of a second two chunks (or the burst) are due at once, and the next after its time."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    waited = []

    class Stop:
        def wait(self, seconds):
            waited.append(round(seconds, 9))
            now[0] += seconds

    pace = Pace(100_000, 64, burst)
    assert pace.chunk == 10
    for pause in (0, 0, 1, 0, 0, 0, 0):
        now[0] += pause
        pace.wait(Stop())  # type: ignore[arg-type]
        pace.sent(pace.chunk)
    assert [seconds for seconds in waited if seconds] == [1e-4] * waits


@pytest.mark.parametrize(("every", "chunk"), [(100e-6, 50), (1e-3, 500), (1, 4096), (1e-9, 1)])
def test_a_chunk_is_what_is_due_in_its_time(every, chunk):
    assert Pace(500_000, 4096, every=every).chunk == chunk


def test_a_slow_pace_can_be_stopped_at_once(veth_pair, generator):
    left, _ = veth_pair
    gen = generator(left, [frame_for(left).frame])
    gen.start(rate_pps=0.001)
    while gen.sent < 1:
        os.sched_yield()
    assert gen.stop() == 1


def test_a_signal_costs_no_frame(veth_pair, generator):
    """The kernel ends a run early when a signal is pending; what is left is sent after the handler."""
    left, right = veth_pair
    gen = generator(left, [frame_for(left).frame], cpu=0)
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda *_: seen.append(gen.sent))
    main, done = threading.get_ident(), threading.Event()

    def disturb():
        while not done.wait(0.001):
            signal.pthread_kill(main, signal.SIGUSR1)

    thread = threading.Thread(target=disturb)
    try:
        with hook(right) as taken:
            thread.start()
            assert gen.send(1_000_000) == 1_000_000
            done.set()
            thread.join()
            gen.settle()
            assert taken() == [1_000_000]
    finally:
        done.set()
        thread.join()
        signal.signal(signal.SIGUSR1, before)
    assert any(0 < n < 1_000_000 for n in seen)


def test_two_senders_at_once_are_refused(veth_pair, generator):
    left, _ = veth_pair
    gen = generator(left, [frame_for(left).frame])
    gen.start()
    while not gen.sent:
        os.sched_yield()
    with pytest.raises(RuntimeError, match="one thread sends at a time"):
        gen.send(1)
    with pytest.raises(RuntimeError, match="runs already"):
        gen.start()


def test_an_error_in_the_thread_comes_out_of_stop(veth_pair, generator):
    left, _ = veth_pair
    gen = generator(left, [frame_for(left).frame], cpu=4095)
    gen.start()
    with pytest.raises(OSError, match="Invalid argument"):
        gen.stop()


def test_after_the_end_sent_stays_and_nothing_runs(veth_pair):
    left, _ = veth_pair
    with left.generator([frame_for(left).frame]) as gen:
        gen.start()
        while not gen.sent:
            os.sched_yield()
    gen.close()
    assert gen.sent > 0
    assert gen.dropped == 0
    with pytest.raises(OSError, match="the generator is closed"):
        gen.send(1)


def test_no_descriptor_and_no_thread_is_left(veth_pair):
    left, _ = veth_pair

    def left_over():
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    with left.generator([frame_for(left).frame]):
        pass
    before = left_over()
    with left.generator([frame_for(left).frame]) as gen:
        gen.start()
    assert left_over() == before


def test_a_frame_beyond_the_mtu_is_refused(veth_pair):
    left, right = veth_pair
    with right.namespace, IPRoute() as ip:
        ip.link("set", index=right.index, mtu=1400)
    with pytest.raises(OSError, match="left: 1415 bytes is beyond the MTU") as caught:
        left.generator([bytes(60), bytes(1415)])
    assert caught.value.errno == errno.EMSGSIZE
    left.generator([bytes(1414)]).close()


def test_a_frame_that_a_page_cannot_hold_is_refused_by_name(make_veth, generator):
    left, _ = make_veth(mtu=9000)
    with pytest.raises(OSError, match=r"generate 4000 byte frames on left: .*: Invalid argument: the kernel takes"):
        generator(left, [frame_for(left, 4000).frame]).send(1)


def test_ends_without_napi_are_refused(make_veth):
    left, _ = make_veth(napi=False)
    with pytest.raises(NotSupported, match="live frames on left: NAPI there, or they would be lost: turn GRO on"):
        left.generator([bytes(60)])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sequence_offset": 53}, "8 bytes at offset 53 are not in every template: 1 to 52 are"),
        ({"sequence_offset": 0}, "8 bytes at offset 0"),
        ({"flow_offset": 59, "flows": 2}, "2 bytes at offset 59"),
        ({"flows": 0}, "0 flows from 1024 on"),
        ({"flows": 2, "flow_base": 65535}, "2 flows from 65535 on do not fit into 16 bits"),
    ],
)
def test_what_does_not_fit_into_a_template_is_refused(veth_pair, options, said):
    with pytest.raises(ValueError, match=said):
        veth_pair[0].generator([bytes(60), bytes(100)], **options)


def test_a_generator_without_a_template_is_refused(veth_pair):
    with pytest.raises(ValueError, match="at least one template"):
        veth_pair[0].generator([])


def test_a_rate_of_nothing_is_refused(veth_pair, generator):
    with pytest.raises(ValueError, match="a rate is above 0 packets per second, not 0"):
        generator(veth_pair[0], [bytes(60)]).start(rate_pps=0)

"""Pipelines at TC ingress and egress, on veth pairs in namespaces of the test's own."""

import errno
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from pyroute2 import IPRoute
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.utils import rdpcap
from tcx import EGRESS, INGRESS, tcx_programs

from xdpkit import DROP, PASS, REDIRECT, TX, NotSupported, Pipeline, Redirect, SocketOptions, attach, eth, icmp, udp
from xdpkit.kernel import features
from xdpkit.kernel.attachment import Got
from xdpkit.lab import Port
from xdpkit.lab.generator import udp_frame
from xdpkit.sockets.options import Mode

pytestmark = pytest.mark.needs("tcx")

PASSED, DROPPED, TAKEN, ECHOED = 1001, 1002, 1003, 1004
LAST = 1009  # passes: what was sent before it has been judged


def pipeline(**options):
    """A verdict for each of the ports above."""
    pipe = Pipeline("tc", **options)
    pipe.rule(udp.dport == PASSED, PASS, name="passed")
    pipe.rule(udp.dport == DROPPED, DROP, name="dropped")
    pipe.rule(udp.dport == TAKEN, REDIRECT, name="taken")
    return pipe


def with_echo():
    pipe = pipeline()
    pipe.rule(udp.dport == ECHOED, TX, name="echoed")
    return pipe


def everything():
    return Pipeline("everything", default=REDIRECT)


def redirecting(otherwise):
    pipe = Pipeline("fallback")
    pipe.rule(udp.dport == TAKEN, Redirect(otherwise=otherwise), name="taken")
    return pipe


@pytest.fixture
def ports(make_veth):
    """Two ports with addresses 10.0.0.1 and 10.0.0.2 that know each other's MAC address."""
    left, right = make_veth(addresses=("10.0.0.1/24", "10.0.0.2/24"))
    for port, address in ((left, "10.0.0.2"), (right, "10.0.0.1")):
        with port.namespace, IPRoute() as ip:
            ip.neigh("add", dst=address, lladdr=port.peer.mac, ifindex=port.index, state=0x80)
    return left, right


def frame(port, dport, payload=b"hello", vlan=()):
    """A UDP frame from ``port`` to its peer, tagged with ``vlan`` ((tpid, tci), ...)."""
    made = bytes(
        Ether(src=port.mac, dst=port.peer.mac)
        / IP(src="10.0.0.1", dst="10.0.0.2")
        / UDP(sport=4000, dport=dport)
        / payload
    )
    tags = b"".join(struct.pack("!HH", tpid, tci) for tpid, tci in vlan)
    return made[:12] + tags + made[12:]


@contextmanager
def listening(port, *dports):
    """UDP sockets on ``port``; yields a function that sends a last frame and returns the ports that got something."""
    with port.namespace:
        socks = {dport: socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for dport in (*dports, LAST)}
        for dport, sock in socks.items():
            sock.bind(("0.0.0.0", dport))
            sock.settimeout(5)

    def reached(send):
        send(LAST)
        assert socks[LAST].recv(100)
        got = []
        for dport in dports:
            socks[dport].setblocking(False)
            try:
                while socks[dport].recv(100):
                    got.append(dport)
            except BlockingIOError:
                pass
        return got

    try:
        yield reached
    finally:
        for sock in socks.values():
            sock.close()


@contextmanager
def sender(port, to="10.0.0.2"):
    """A function that sends a datagram from the stack of ``port``."""
    with port.namespace:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        yield lambda dport, payload=b"hello": sock.sendto(payload, (to, dport))


def receive(sockets, count, timeout=5.0):
    """``count`` packets as (bytes, rule)."""
    got: list[tuple[bytes, int]] = []
    for batch in sockets.batches(timeout=timeout):
        got += zip(map(bytes, batch.frames), batch.rules.tolist(), strict=True)
        if len(got) >= count:
            return got
    raise AssertionError(f"{len(got)} of {count} packets came")


def until(condition, what, timeout=10.0):
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        os.sched_yield()
    return value


# ---- ingress ----


@pytest.mark.parametrize("tags", [(), ((0x8100, 0x6005),), ((0x88A8, 7), (0x8100, 9)), ((0x8100, 1), (0x8100, 2))])
def test_packets_arrive_whole_with_their_tags_at_every_size(veth_pair, tags):
    left, right = veth_pair
    sizes = [60, 95, 96, 97, 223, 224, 225, 608, 609, 1513, 1514]
    frames = [frame(left, TAKEN, bytes(i % 251 for i in range(size - 42 - 4 * len(tags))), tags) for size in sizes]
    with right.namespace, attach(everything(), "right", mode="tc_ingress") as link, link.sockets() as sockets:
        left.send(frames)
        got = receive(sockets, len(frames))
    assert [data for data, _ in got] == frames
    assert link.ledger().seen_bytes == sum(map(len, frames))


def test_a_batch_tells_rule_and_time_of_each_packet(veth_pair):
    left, right = veth_pair
    pipe = Pipeline("two")
    pipe.rule(udp.dport == 1, REDIRECT)
    pipe.rule(udp.dport == 2, REDIRECT)
    with right.namespace, attach(pipe, "right", mode="tc_ingress") as link, link.sockets() as sockets:
        before = time.time_ns()
        left.send([frame(left, 2), frame(left, 1)])
        rules, times = [], []
        for batch in sockets.batches(timeout=5):
            rules += batch.rules.tolist()
            times += batch.timestamps.tolist()
            if len(rules) == 2:
                break
    assert rules == [1, 0]
    assert before - 1_000_000 < times[0] < times[1] < time.time_ns() + 1_000_000


def test_headers_beyond_the_linear_part_of_a_packet_are_read(make_veth):
    """A packet socket puts all but the Ethernet header of a frame beyond a page into fragments."""
    left, right = make_veth(mtu=9000)
    data = frame(left, TAKEN, bytes(8000), ((0x8100, 3),))
    with (
        left.namespace,
        attach(pipeline(), "left", mode="tc_egress") as out,
        right.namespace,
        attach(pipeline(), "right", mode="tc_ingress") as link,
        link.sockets() as sockets,
    ):
        left.send([data])
        assert receive(sockets, 1) == [(data, 2)]
        assert [rule.packets for rule in out.ledger().rules] == [0, 0, 1, 0]


def test_pass_reaches_the_stack_and_drop_and_redirect_do_not(ports):
    left, right = ports
    with listening(right, PASSED, DROPPED, TAKEN) as reached, sender(left) as send, right.namespace:
        with attach(pipeline(), "right", mode="tc_ingress") as link, link.sockets() as sockets:
            for dport in (PASSED, DROPPED, TAKEN):
                send(dport)
            assert reached(send) == [PASSED]
            assert len(receive(sockets, 1)) == 1
    rules = {rule.name: rule.packets for rule in link.ledger().rules}
    assert rules == {"passed": 1, "dropped": 1, "taken": 1, "default": 1}


@pytest.mark.parametrize("tags", [(), ((0x8100, 5),), ((0x88A8, 7), (0x8100, 9))])
def test_tx_sends_the_packet_back_with_its_addresses_exchanged(veth_pair, tags):
    left, right = veth_pair
    sent = frame(left, ECHOED, vlan=tags)
    with right.namespace, attach(with_echo(), "right", mode="tc_ingress"), left.capture() as back:
        left.send([sent])
        assert back.wait(1) == [sent[6:12] + sent[:6] + sent[12:]]


@pytest.mark.parametrize(("otherwise", "reaches"), [(PASS, [TAKEN]), (DROP, [])])
@pytest.mark.parametrize("mode", ["tc_ingress", "tc_egress"])
def test_redirect_falls_back_as_declared_while_no_socket_is_open(ports, mode, otherwise, reaches):
    left, right = ports
    hook = right if mode == "tc_ingress" else left
    with listening(right, TAKEN) as reached, sender(left) as send, hook.namespace:
        with attach(redirecting(otherwise), hook.name, mode=mode) as link:
            send(TAKEN)
            assert reached(send) == reaches
            with link.sockets() as sockets:
                send(TAKEN)
                assert reached(send) == []
                assert len(receive(sockets, 1)) == 1
            send(TAKEN)
            assert reached(send) == reaches
        ledger = link.ledger()
    assert (ledger.rules[0].packets, ledger.no_socket, ledger.delivered) == (3, 2, 1)
    assert ledger.problems() == ()


def test_a_packet_wakes_a_reader_that_sleeps(veth_pair):
    left, right = veth_pair
    with right.namespace, attach(everything(), "right", mode="tc_ingress") as link:
        with link.sockets() as sockets, sockets.count() as workers:
            for n in range(1, 21):
                until(lambda n=n: workers.stats().waits >= n, "the worker goes to sleep")
                left.send([frame(left, TAKEN)])
                until(lambda n=n: workers.stats().packets == n, "the packet comes")


# ---- the ledger ----


def test_what_finds_no_room_in_the_ring_buffer_is_counted_as_lost(veth_pair, generator):
    left, right = veth_pair
    made = udp_frame(64, src_mac=left.mac, dst_mac=right.mac).frame
    with right.namespace, attach(everything(), "right", mode="tc_ingress", options=SocketOptions(ring_size=8)) as link:
        sender = generator(left, [made])
        with link.sockets() as sockets:
            sender.send(1000)
            until(lambda: link.ledger().seen == 1000, "all packets are judged")
            room = (8 * 2048 - 1) // (8 + 32 + 96)  # one byte stays free
            assert (link.ledger().waiting, link.ledger().rx_ring_full) == (room, 1000 - room)
            assert len(receive(sockets, room)) == room
            sender.send(3)
            assert len(receive(sockets, 3)) == 3
    ledger = link.ledger()
    assert (ledger.redirected, ledger.delivered, ledger.rx_ring_full) == (1003, room + 3, 1000 - room)
    assert ledger.problems() == ()


@pytest.mark.parametrize("ring_size", [2, 2048])
def test_the_ledger_sums_under_a_flood(veth_pair, generator, ring_size):
    left, right = veth_pair
    made = [udp_frame(size, src_mac=left.mac, dst_mac=right.mac).frame for size in (64, 300, 1514)]
    options = SocketOptions(ring_size=ring_size)
    with right.namespace, attach(everything(), "right", mode="tc_ingress", options=options) as link:
        sender = generator(left, made)
        sender.start()
        for _ in range(3):  # opened and closed under traffic
            before = link.ledger().seen
            with link.sockets() as sockets, sockets.count() as workers:
                until(lambda: workers.stats().packets > 2000, "packets flow")
                until(lambda before=before: link.ledger().seen > before + 20_000, "packets flow")
        sender.stop()
        until(lambda: link.ledger().seen == sender.sent - sender.dropped, "all packets are judged")
    ledger = link.ledger()
    assert ledger.problems() == ()
    assert ledger.redirected == ledger.delivered + ledger.rx_ring_full
    assert ledger.delivered == ledger.written > 6000
    if ring_size == 2:
        assert ledger.rx_ring_full > 0


def test_a_capture_is_read_by_tcpdump_and_says_which_way_its_packets_went(ports, tmp_path):
    left, right = ports
    frames = [frame(left, TAKEN, bytes([n]) * 20, tags) for n in range(5) for tags in ((), ((0x8100, 4),))]
    directions: tuple[tuple[Mode, Port, str], ...] = (("tc_ingress", right, "right"), ("tc_egress", left, "left"))
    for mode, port, name in directions:
        file = tmp_path / f"{mode}.pcapng"
        with port.namespace, attach(pipeline(), name, mode=mode) as link:
            with link.sockets() as sockets, sockets.write(file):
                left.send(frames)
                until(lambda link=link: link.ledger().seen == len(frames), "all packets are judged")
        assert link.ledger().written == len(frames)
        text = subprocess.run(["tcpdump", "-nr", file], capture_output=True, text=True, check=True).stdout
        assert text.count("10.0.0.2.1003: UDP, length 20") == len(frames)
        assert [bytes(packet) for packet in rdpcap(str(file))] == frames
        direction = struct.pack("=HHI", 2, 4, 1 if mode == "tc_ingress" else 2)
        verdict = struct.pack("=HHBQ", 7, 9, 1, 7)  # Linux_eBPF_TC, TC_ACT_REDIRECT
        assert [file.read_bytes().count(option) for option in (direction, verdict)] == [len(frames)] * 2


# ---- egress ----


def test_what_leaves_the_host_is_filtered_and_captured(ports):
    left, right = ports
    with listening(right, PASSED, DROPPED, TAKEN) as reached, sender(left) as send, left.namespace:
        with attach(pipeline(), "left", mode="tc_egress") as link, link.sockets() as sockets:
            for dport in (PASSED, DROPPED, TAKEN):
                send(dport, b"out")
            assert reached(send) == [PASSED]
            ((data, _),) = receive(sockets, 1)
    made = Ether(data)
    assert (made.src, made.dst, made[UDP].dport, bytes(made[UDP].payload)) == (left.mac, right.mac, TAKEN, b"out")
    assert link.ledger().problems() == ()


def test_a_sender_is_told_of_a_drop_at_egress_and_not_of_a_redirect(veth_pair):
    left, _ = veth_pair
    with left.namespace, attach(pipeline(), "left", mode="tc_egress") as link, link.sockets() as sockets:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
            sock.bind(("left", 0))
            assert sock.send(frame(left, TAKEN)) == len(frame(left, TAKEN))
            assert receive(sockets, 1) == [(frame(left, TAKEN), 2)]
            with pytest.raises(OSError, match=os.strerror(errno.ENOBUFS)):
                sock.send(frame(left, DROPPED))


def test_ping_from_the_host_is_stopped_at_egress_and_not_at_ingress(ports):
    left, _ = ports
    pipe = Pipeline("ping")
    pipe.rule(icmp.type == 8, DROP, name="requests")

    def answered():
        return left.namespace.run(["ping", "-c1", "-W1", "10.0.0.2"], check=False, capture_output=True).returncode == 0

    with left.namespace:
        with attach(pipe, "left", mode="tc_ingress") as link:
            assert answered()
        assert link.ledger().rules[0].packets == 0
        with attach(pipe, "left", mode="tc_egress") as link:
            assert not answered()
        assert link.ledger().rules[0].packets > 0  # told ENOBUFS, ping tries again
        assert answered()


@pytest.mark.parametrize("offloads", [False, True])
def test_a_checksum_is_left_to_a_device_that_computes_it(make_veth, offloads):
    left, right = make_veth(addresses=("10.0.0.1/24", "10.0.0.2/24"), offloads=offloads)
    with left.namespace, IPRoute() as ip:
        ip.neigh("add", dst="10.0.0.2", lladdr=right.mac, ifindex=left.index, state=0x80)
    with sender(left) as send, left.namespace:
        with attach(pipeline(), "left", mode="tc_egress") as link, link.sockets() as sockets:
            send(TAKEN)
            ((data, _),) = receive(sockets, 1)
    whole = Ether(data)
    found = whole[UDP].chksum
    del whole[UDP].chksum
    right_one = Ether(bytes(whole))[UDP].chksum
    assert (found == right_one) is not offloads


def test_the_programs_behind_this_one_still_get_what_passes(make_veth):
    """The lab's own clsact filter chooses the queue."""
    left, right = make_veth(queues=2)
    with left.namespace, attach(Pipeline("pass"), "left", mode="tc_egress") as out:
        with right.namespace, attach(everything(), "right", mode="native") as link, link.sockets() as sockets:
            for queue in (1, 0, 1):
                left.send([frame(left, 1)], queue=queue)
                batch = next(sockets.batches(timeout=5))
                assert batch.queue == queue
    assert out.ledger().seen == 3


# ---- beside others, and gone with the process ----


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_it_runs_behind_an_xdp_program_on_the_same_device(veth_pair, mode):
    left, right = veth_pair
    first, second = Pipeline("xdp"), everything()
    first.rule(udp.dport == DROPPED, DROP)
    with right.namespace, attach(first, "right", mode=mode) as xdp, attach(second, "right", mode="tc_ingress") as link:
        with link.sockets() as sockets:
            left.send([frame(left, DROPPED), frame(left, TAKEN)])
            assert [data for data, _ in receive(sockets, 1)] == [frame(left, TAKEN)]
    assert (xdp.ledger().seen, link.ledger().seen) == (2, 1)


def test_it_runs_in_front_of_the_programs_that_are_there(ports):
    left, right = ports
    with listening(right, PASSED, DROPPED) as reached, sender(left) as send, right.namespace:
        with attach(Pipeline("old"), "right", mode="tc_ingress") as old:
            with attach(pipeline(), "right", mode="tc_ingress") as new:
                assert tcx_programs(right, INGRESS) == 2
                send(PASSED)
                send(DROPPED)
                assert reached(send) == [PASSED]
            assert (new.ledger().seen, old.ledger().seen) == (3, 2)
            send(DROPPED)
            assert reached(send) == [DROPPED]
        assert (new.ledger().seen, old.ledger().seen) == (3, 4)
    assert tcx_programs(right, INGRESS) == 0


@pytest.mark.parametrize(("mode", "where"), [("tc-ingress", INGRESS), ("tc-egress", EGRESS)])
def test_nothing_is_left_behind_by_a_killed_process(ports, tmp_path, mode, where):
    left, right = ports
    port = right if where == INGRESS else left
    file = tmp_path / "drop.py"
    file.write_text("from xdpkit import *\npipe = Pipeline('drop')\npipe.rule(udp.dport == 1002, DROP)\n")
    command = [sys.executable, "-c", "from xdpkit.cli.main import main; main()", "run", str(file), "-i", port.name]
    child = port.namespace.popen([*command, "--mode", mode], stderr=subprocess.PIPE, text=True)
    assert f"{mode.replace('tc-', 'TC ')}, veth" in child.stderr.readline()
    with listening(right, DROPPED) as reached, sender(left) as send:
        send(DROPPED)
        assert reached(send) == []
        assert tcx_programs(port, where) == 1
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        until(lambda: tcx_programs(port, where) == 0, "the kernel takes the link away")
        send(DROPPED)
        assert reached(send) == [DROPPED]
    child.stderr.close()


# ---- want, require, got ----


class OtherKernel:
    """The C core on a kernel that answers otherwise."""

    def __init__(self, lib, **answers):
        self.lib, self.answers = lib, answers

    def __getattr__(self, name):
        return (lambda *_: self.answers[name]) if name in self.answers else getattr(self.lib, name)


@pytest.fixture
def kernel(monkeypatch):
    """`kernel(xk_link_tcx=-22)`: what these calls return from now on, to attach() and to the probes of features."""

    def answer(**answers):
        for module in (sys.modules["xdpkit.link.attach"], features):
            monkeypatch.setattr(module, "lib", OtherKernel(module.lib, **answers))
        features.has.cache_clear()

    yield answer
    features.has.cache_clear()


NO_XDP = {"xk_link_xdp": -errno.EOPNOTSUPP, "xk_attach_reason": 0}


def test_auto_stops_at_tc_ingress_where_xdp_cannot_attach(ports, kernel):
    kernel(**NO_XDP)
    left, right = ports
    with listening(right, DROPPED) as reached, sender(left) as send, right.namespace:
        with attach(with_echo(), "right") as link, link.sockets():
            send(DROPPED)
            assert reached(send) == []
            refused = "(attach {} XDP to right: Operation not supported)"
            walk = f"not native {refused.format('native')}; not generic {refused.format('generic')}"
            assert str(link.attachment) == f"TC ingress, ring buffer, veth; {walk}"


def test_auto_goes_on_to_af_packet_where_there_is_no_tcx_either(veth_pair, kernel):
    kernel(**NO_XDP, xk_link_tcx=-errno.EINVAL)
    _, right = veth_pair
    with right.namespace:
        with attach(everything(), "right") as link:
            assert link.attachment.mode == "af_packet"
            assert "tc_ingress (tcx, Linux 6.6 or later" in link.attachment.walk[-1]
        with pytest.raises(OSError, match="attach generic XDP to right"):  # it drops, and that AF_PACKET cannot
            attach(pipeline(), "right")


def test_auto_keeps_to_the_queues_that_were_asked_for(make_veth, kernel):
    kernel(**NO_XDP)
    _, right = make_veth(queues=2)
    with right.namespace, pytest.raises(OSError, match="attach generic XDP to right"):
        attach(pipeline(), "right", queues=[1])


def test_a_kernel_without_tcx_is_told_what_it_lacks(veth_pair, kernel):
    kernel(xk_link_tcx=-errno.EINVAL)
    with veth_pair[1].namespace, pytest.raises(NotSupported) as caught:
        attach(pipeline(), "right", mode="tc_ingress")
    assert str(caught.value) == f"tc_ingress on right: tcx, Linux 6.6 or later; this is Linux {os.uname().release}"


REFUSALS = [
    ({"mode": "tc_egress"}, ValueError, r"at egress it comes from this host.* must not transmit .* \(rule 'echoed'\)"),
    ({"mode": "tc_ingress", "queues": [0]}, NotSupported, "a choice of queues at tc_ingress: XDP: the ring buffers"),
    ({"mode": "tc_ingress", "bind": "zerocopy"}, NotSupported, "right: zero-copy: mode native, and this is tc_ingress"),
    ({"mode": "want:tc_egress"}, ValueError, "nothing else would do in its place: ask for tc_egress"),
]


@pytest.mark.parametrize(("options", "error", "match"), REFUSALS, ids=lambda o: str(o)[:30])
def test_what_tc_cannot_do_is_refused_before_anything_is_attached(make_veth, options, error, match):
    _, right = make_veth(queues=2)
    with right.namespace, pytest.raises(error, match=match):
        attach(with_echo(), "right", **options)
    assert tcx_programs(right, INGRESS) == tcx_programs(right, EGRESS) == 0


def test_the_loopback_device_is_filtered_both_ways(lab):
    with lab.namespace():
        for mode in ("tc_ingress", "tc_egress"):
            pipe = Pipeline("lo")
            pipe.rule(eth.type == 0x0800, REDIRECT, name="ip")
            with attach(pipe, "lo", mode=mode) as link, link.sockets() as sockets:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                    sock.sendto(b"x", ("127.0.0.1", 9))
                assert len(receive(sockets, 1)) == 1
            assert link.ledger().problems() == ()


def test_what_was_got_names_the_hook_and_the_way_to_user_space():
    got = Got("eth1", "ixgbe", "tc_egress", "ringbuf", (), True)
    assert str(got) == "TC egress, ring buffer, ixgbe"

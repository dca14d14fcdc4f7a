"""Checksums that senders leave to their device (CHECKSUM_PARTIAL): what goes on at XDP gets them, by forward() and in
the program.  Two hosts with all offloads of veth on, and real TCP and UDP between them."""

import os
import socket
import struct
import threading
from contextlib import ExitStack
from functools import partial
from random import Random

import pytest
from giving import in_vlan, tap
from hypothesis import given, note
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrRouting, PadN
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from strategies import again, examples, make_frame
from traffic import take, until

from xdpkit import DROP, PASS, REDIRECT, TX, Forward, Pipeline, attach, bridge, compile_pipeline, forward, udp
from xdpkit.compiler.built import needs
from xdpkit.device import ethtool
from xdpkit.doctor.device import examine_device
from xdpkit.kernel.core import check, ffi, lib
from xdpkit.kernel.program import Program
from xdpkit.meaning.walk import walk

ADDRESSES = {4: ("10.0.0.1/24", "10.0.0.2/24"), 6: ("fd00::1/64", "fd00::2/64")}


#: Parameters of a test whose packets take several frames.
JUMBO = partial(pytest.param, marks=pytest.mark.needs("AF_XDP multi-buffer"))


@pytest.fixture
def hosts(lab):
    """`hosts(version=4, mtu=1500)`: as `bridge`, with an address on left and on right and all offloads of veth on."""

    def make(version=4, **options):
        middle = lab.namespace("middle")
        here, there = ADDRESSES[version]
        options["offloads"] = True
        left, a = lab.veth(lab.namespace("left"), middle, names=("left", "a"), addresses=(here, None), **options)
        b, right = lab.veth(middle, lab.namespace("right"), names=("b", "right"), addresses=(None, there), **options)
        return left, a, b, right

    return make


def exchange(left, right, version, kind, data):
    """What a server on right sends back of `data` from left: all of it."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    address = (ADDRESSES[version][1].partition("/")[0], 5001)
    with right.namespace:
        server = socket.socket(family, kind)
    with left.namespace:
        client = socket.socket(family, kind)
    with server, client:
        server.settimeout(10)
        client.settimeout(10)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(address)
        if kind == socket.SOCK_DGRAM:
            client.sendto(data, address)
            got, peer = server.recvfrom(65536)
            server.sendto(got, peer)
            return client.recv(65536)
        server.listen()
        client.connect(address)
        accepted, _ = server.accept()
        with accepted:
            accepted.settimeout(10)
            sender = threading.Thread(target=client.sendall, args=(data,))
            sender.start()
            got = read(accepted, len(data))
            sender.join()
            sender = threading.Thread(target=accepted.sendall, args=(got,))
            sender.start()
            back = read(client, len(data))
            sender.join()
            return back


def read(sock, size):
    got = b""
    while len(got) < size and (part := sock.recv(1 << 16)):
        got += part
    return got


def redirects():
    return Pipeline("all", default=REDIRECT)


def wire(to):
    return Pipeline(f"to-{to}", default=Forward(to))


def all_crosses(left, right, version=4):
    """UDP and TCP reach a server on right and come back."""
    data = bytes(range(256)) * 2000
    assert exchange(left, right, version, socket.SOCK_DGRAM, data[:1201]) == data[:1201]
    assert exchange(left, right, version, socket.SOCK_STREAM, data) == data


def completed_and_accounted_for(*links):
    for link in links:
        assert link.ledger().completed > 0
        assert ("checksums completed", link.ledger().completed) in [row[:2] for row in link.ledger().rows()]
        assert link.ledger().problems() == ()


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("mode", "mtu"), [("native", 1500), ("generic", 1500), JUMBO("native", 9000), JUMBO("generic", 9000)]
)
def test_tcp_and_udp_cross_a_forwarder_with_default_offloads(hosts, mode, version, mtu):
    left, a, _, right = hosts(version, mtu=mtu)
    if mode == "generic":
        cut_segments(left, right)
    with a.namespace, attach(redirects(), "a", mode=mode) as one, attach(redirects(), "b", mode=mode) as two:
        with forward(one, two):
            all_crosses(left, right, version)
    completed_and_accounted_for(one, two)


def cut_segments(*ports):
    """As ethtool -K DEV tso off gso off."""
    names = ("tx-tcp-segmentation", "tx-tcp6-segmentation", "tx-tcp-mangleid-segmentation", "tx-generic-segmentation")
    for port in ports:
        with port.namespace:
            ethtool.set_features(port.name, dict.fromkeys(names, False))


def test_in_generic_mode_segments_that_are_too_long_are_counted_and_said_before(hosts):
    left, a, _, right = hosts()
    with a.namespace, attach(redirects(), "a", mode="generic") as one, attach(redirects(), "b", mode="generic") as two:
        with forward(one, two):
            note, tags = one.notes
            assert "a: in generic mode TCP segments arrive merged" in note
            assert "ethtool -K a gro off; where they are sent, ethtool -K DEV tso off gso off" in note
            assert "VLAN tags may arrive beside the frame" in tags
            send_merged(left, right, 5001)
            until(lambda: one.ledger().too_long == 1, "a segment that is too long")
    rows = {row[0].strip(): row[1:] for row in one.ledger().rows()}
    assert rows["longer than a frame"] == (1, "LOST: merged (GRO), not yet cut (TSO), or larger chunk_size")
    assert one.ledger().problems() == ()


def send_merged(left, right, port):
    """40 datagrams of 1,400 bytes, to be cut by the device (UDP_SEGMENT)."""
    with left.namespace:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        left.namespace.run(["ip", "neigh", "replace", "10.0.0.2", "lladdr", right.mac, "dev", "left"])
        sock.setsockopt(socket.SOL_UDP, 103, 1400)
        sock.sendto(b"x" * 56_000, ("10.0.0.2", port))


@pytest.mark.needs("AF_XDP multi-buffer")
def test_sockets_in_generic_mode_take_merged_segments_in_several_frames(hosts):
    left, a, _, right = hosts()
    pipe = Pipeline("dns", default=DROP)
    pipe.rule(udp.dport == 53, REDIRECT, name="dns")
    with a.namespace, attach(pipe, "a", mode="generic") as link, link.sockets() as sockets:
        assert link.got.multi_buffer
        send_merged(left, right, 53)
        (frame,) = take(sockets, 1)
        assert frame[42:] == b"x" * 56_000
    assert (link.ledger().delivered, link.ledger().lost) == (1, 0)


def test_forward_rules_in_generic_mode_say_what_is_lost_and_tcp_crosses_where_that_is_prevented(hosts):
    left, a, _, right = hosts()
    with a.namespace, attach(wire("b"), "a", mode="generic") as one, attach(wire("a"), "b", mode="generic"):
        (note,) = one.notes
        assert "or use FORWARD in mode tc_ingress" in note
        send_merged(left, right, 5001)
        until(lambda: one.ledger().forwarding.too_long == 1, "a segment that is too long")
        cut_segments(left, right)
        all_crosses(left, right)
    assert one.ledger().forwarding.too_long == 1


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("mtu", [1500, JUMBO(9000)])
def test_tcp_and_udp_cross_a_bridge_in_the_kernel_with_default_offloads(hosts, version, mtu):
    left, a, _, right = hosts(version, mtu=mtu)
    with a.namespace, attach(wire("b"), "a") as one, attach(wire("a"), "b") as two:
        all_crosses(left, right, version)
        assert one.notes == two.notes == ()
    completed_and_accounted_for(one, two)


@pytest.mark.needs("tcx", "VLAN kfunc")
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("beside", [True, False], ids=["beside the frame", "in the frame"])
@pytest.mark.parametrize("mode", ["native", "tc_ingress"])
def test_tagged_tcp_crosses_a_bridge_in_the_kernel_and_keeps_its_tag(hosts, mode, beside, version):
    """The driver takes no tag out of the bytes, but veth hands over what the sender has put beside them."""
    left, a, _, right = hosts(version)
    tag_in_frame(left, right, beside=beside)
    with in_vlan(left), in_vlan(right), a.namespace:
        with attach(wire("b"), "a", mode=mode) as one, attach(wire("a"), "b", mode=mode) as two:
            all_crosses(left, right, version)
            assert one.notes == two.notes == ()
    for link in (one, two):
        assert (link.ledger().completed > 0) is (mode == "native")


@pytest.mark.needs("tcx", "VLAN kfunc")
@pytest.mark.parametrize("tagged", [False, True])
@pytest.mark.parametrize("mode", ["native", "tc_ingress"])
def test_tcp_crosses_a_ruleset_between_two_devices_with_default_offloads(hosts, mode, tagged):
    left, a, _, right = hosts()
    pipe = Pipeline("wire", default=PASS)
    pipe.rule(udp.dport == 9, DROP, name="discard")
    with ExitStack() as stack:
        if tagged:
            stack.enter_context(in_vlan(left))
            stack.enter_context(in_vlan(right))
        with a.namespace, bridge(pipe, inside="a", outside="b", mode=mode) as joined:
            all_crosses(left, right)
            joined.update(pipe)
            all_crosses(left, right)
        assert joined.notes == ()
    assert joined.ledger().problems() == ()
    assert (joined.ledger().completed > 0) is (mode == "native")


def tag_in_frame(*ports, beside):
    for port in ports:
        with port.namespace:
            ethtool.set_features(port.name, {"tx-vlan-hw-insert": beside})


def test_checksums_go_on_being_counted_after_an_update(hosts):
    left, a, _, right = hosts()
    with a.namespace, attach(wire("b"), "a") as one, attach(wire("a"), "b"):
        all_crosses(left, right)
        before = one.ledger().completed
        one.update(wire("b"))
        all_crosses(left, right)
        assert one.ledger().completed > before > 0


def test_what_tx_sends_back_has_its_checksum(hosts):
    left, a, _, _ = hosts()
    pipe = Pipeline("echo", default=PASS)
    pipe.rule(udp.dport == 5001, TX, name="echo")
    with left.namespace:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        woken = attach(Pipeline("pass"), "left")  # veth does not wake a peer without XDP program for XDP_TX
    with woken, left.capture() as got, sock, a.namespace, attach(pipe, "a") as link:
        left.namespace.run(["ip", "neigh", "add", "10.0.0.2", "lladdr", a.mac, "dev", "left"])
        sock.sendto(b"x" * 1201, ("10.0.0.2", 5001))
        got.wait(1)
    (packet,) = map(Ether, got)
    assert packet[UDP].chksum == Ether(without_checksum(packet))[UDP].chksum
    assert link.ledger().completed == 1


def without_checksum(packet):
    """The same packet, with the checksum that scapy computes."""
    packet = packet.copy()
    del packet[UDP].chksum
    return bytes(packet)


def test_a_packet_that_a_tap_hands_over_without_its_checksum_is_forwarded_with_it(lab):
    """As a virtual machine sends: with a header that says where the device has to put which checksum (struct
    virtio_net_hdr, VIRTIO_NET_HDR_F_NEEDS_CSUM)."""
    middle = lab.namespace("middle")
    _, right = lab.veth(middle, lab.namespace("right"), names=("b", "right"))
    good = bytes(Ether(src="02:00:00:00:00:01", dst=right.mac) / IP(src="10.0.0.1", dst="10.0.0.2") / UDP() / b"guest")
    partial = with_checksum(good, UDP, pseudo_sum(Ether(good), UDP))
    with tap(middle, offloads=True) as fd, middle, right.capture() as got, attach(wire("b"), "tap0") as link:
        assert link.got.mode == "native"
        os.write(fd, struct.pack("=BBHHHH", 1, 0, 0, 0, 34, 6) + partial)
        got.wait(1)
    assert list(got) == [good]
    assert link.ledger().completed == 1


WIRE = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
L2 = [WIRE, WIRE / Dot1Q(vlan=3, type=0), WIRE / Dot1AD(vlan=3) / Dot1Q(vlan=4, type=0)]
L3 = [
    IP(src="192.0.2.77", dst="198.51.100.3"),
    IPv6(src="fd00::17", dst="fd00::2"),
    IPv6(src="fd00::17", dst="fd00::2") / IPv6ExtHdrDestOpt(options=[PadN(optdata=b"1234")]),
]


def pseudo_sum(packet, layer):
    """What a sender writes into the field that its device will complete."""
    ip = packet[IP] if IP in packet else packet[IPv6]
    size, number = len(packet[layer]), 6 if layer is TCP else 17
    family = socket.AF_INET if IP in packet else socket.AF_INET6
    head = socket.inet_pton(family, ip.src) + socket.inet_pton(family, ip.dst) + struct.pack("!II", size, number)
    return folded(head)


def folded(head):
    """The sum of 16-bit words as one (RFC 1071), not complemented."""
    total = sum(struct.unpack(f"!{len(head) // 2}H", head))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def with_checksum(packet, layer, value):
    """The packet, bytes of Ethernet and IP, with another checksum of its TCP or UDP header."""
    field = len(packet) - len(Ether(packet)[layer]) + (16 if layer is TCP else 6)
    return packet[:field] + struct.pack("!H", value) + packet[field + 2 :]


def by_forwarder(packet):
    """Whether forward() completes the packet, and what becomes of it."""
    data = ffi.new("uint8_t[]", packet)
    return lib.xk_forward_complete(data, len(packet)), bytes(ffi.buffer(data, len(packet)))


@pytest.fixture(scope="module", params=["xdp", "xdp_frags"])
def by_program(request):
    """The same, of a program whose rule is TX, which exchanges the Ethernet addresses too."""
    room, size = ffi.new("uint8_t[]", 1 << 16), ffi.new("uint32_t *")
    verdict, ns = ffi.new("uint32_t *"), ffi.new("uint32_t *")
    with Program(compile_pipeline(Pipeline("tx", default=TX), request.param), completes=True) as program:

        def run(packet):
            before, size[0] = program.completed(), len(room)
            check(lib.xk_test_run(program.fd, packet, len(packet), 1, room, size, verdict, ns))
            out = bytes(ffi.buffer(room, size[0]))
            return program.completed() - before, out[6:12] + out[:6] + out[12:]

        yield run


@pytest.mark.parametrize("l2", L2, ids=["plain", "VLAN", "QinQ"])
@pytest.mark.parametrize("l3", L3, ids=["IPv4", "IPv6", "IPv6 options"])
@pytest.mark.parametrize("layer", [TCP, UDP])
@pytest.mark.parametrize("size", [0, 1, 18, 511, 512, 513, 1399])
def test_only_a_checksum_that_was_left_to_the_device_is_completed(by_program, l2, l3, layer, size):
    head = bytes(l2)
    ethertype = 0x0800 if IP in l3 else 0x86DD
    packet = Ether(head[:-2] + struct.pack("!H", ethertype) + bytes(l3 / layer(sport=7, dport=9) / (b"x" * size)))
    good, padding = bytes(packet), b"\xff" * 3
    value = pseudo_sum(packet, layer)
    partial, wrong = with_checksum(good, layer, value), with_checksum(good, layer, value ^ 1)
    for completed in (by_forwarder, by_program):
        assert completed(partial + padding) == (1, good + padding)
        for other in (good, wrong, partial[:-1], partial[: len(good) - size - 1]):
            assert completed(other) == (0, other)


@pytest.mark.parametrize("layer", [TCP, UDP])
def test_a_fragment_stays_as_it_is(by_program, layer):
    for l3 in (
        IP(src="192.0.2.77", dst="198.51.100.3", flags="MF"),
        IPv6(src="fd00::17", dst="fd00::2") / IPv6ExtHdrFragment(m=1),
        IPv6(src="fd00::17", dst="fd00::2") / IPv6ExtHdrRouting(addresses=["fd00::3"], segleft=1),
    ):
        packet = bytes(WIRE / l3 / layer() / b"1234")
        partial = with_checksum(packet, layer, pseudo_sum(Ether(packet), layer))
        assert by_forwarder(partial) == by_program(partial) == (0, partial)


def left_to_the_device(rng):
    """A random frame; mostly one with TCP or UDP and the checksum of a sender that leaves it to its device."""
    for _ in range(rng.randint(1, 30)):
        frame = make_frame(rng)
        found = walk(frame).starts
        layer = next((name for name in ("tcp", "udp") if name in found), None)
        if layer is not None:
            break
    if layer is None or rng.random() < 0.1:
        return frame
    data, at, number = bytearray(frame), found[layer], {"tcp": 6, "udp": 17}[layer]
    if "ip" in found:
        start, length, addresses = found["ip"], 2, slice(12, 20)
        size = len(frame) - start
        data[start + 6 : start + 8] = rng.choice((b"\0\0", b"\x40\0", b"\x20\0"))
    else:
        start, length, addresses = found["ip6"], 4, slice(8, 40)
        size = len(frame) - start - 40
    data[start + length : start + length + 2] = struct.pack("!H", max(0, size - rng.choice((0, 0, 0, 1, 5, -1))))
    said = int.from_bytes(data[start + length : start + length + 2]) - size + len(frame) - at
    head = bytes(data[start:][addresses]) + struct.pack("!II", max(0, said), number)
    field = at + (16 if layer == "tcp" else 6)
    data[field : field + 2] = struct.pack("!H", folded(head))
    return bytes(data)


@examples(300)
@given(st.randoms(use_true_random=False))
def test_forward_and_the_program_complete_the_same_checksums(by_program, rng):
    note(again("link/test_checksums.py"))
    frame = left_to_the_device(rng)
    note(frame.hex())
    assert by_program(frame) == by_forwarder(frame)


def test_random_frames_have_checksums_to_complete():
    found = [by_forwarder(left_to_the_device(Random(seed)))[0] for seed in range(500)]
    assert sum(found) > 50


def test_the_doctor_says_which_checksums_are_completed_and_which_are_not(hosts):
    _, a, _, _ = hosts()
    with a.namespace:
        (finding,) = [found for found in examine_device("a") if found.topic == "checksums"]
        assert [found for found in examine_device("lo") if found.topic == "checksums"] == []
    assert "do programs in native mode for FORWARD and TX, but not those of SCTP" in finding.text
    assert "ethtool -K DEV tx off" in finding.advice


def test_what_is_built_says_what_completing_checksums_needs_of_the_kernel():
    assert "Linux 5.18: bpf_xdp_load_bytes" in needs(Pipeline("tx", default=TX), "xdp")
    assert "Linux 5.18: bpf_xdp_load_bytes" not in needs(Pipeline("pass"), "xdp")

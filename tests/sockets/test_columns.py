"""What a batch says of its packets as columns: headers, bytes, rule names, Scapy's packets."""

import ipaddress
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from strategies import batches, examples
from traffic import frames, until

from xdpkit import DROP, REDIRECT, FrameError, Mirror, Pipeline, SocketOptions, attach, udp
from xdpkit.meaning.walk import walk
from xdpkit.sockets.copied import CopiedBatch
from xdpkit.sockets.header_columns import header_columns

PORTS = ("tcp", "udp", "sctp")


def columns(packets):
    """The header columns of frames."""
    offsets = np.concatenate(([0], np.cumsum([len(p) for p in packets], dtype=np.int64)))
    return header_columns(np.frombuffer(b"".join(packets), np.uint8), offsets)


def expected(frame):
    """One row, as the header walk of the reference finds it."""
    packet = walk(frame)
    tags = [packet.members[name] for name in ("vlan2_etype", "vlan_etype", "eth_type") if name in packet.members]
    ethertype = tags[0] if tags else 0
    if ethertype in (0x8100, 0x88A8) and not {"vlan", "vlan2"} <= packet.present:
        ethertype = 0  # the tag is cut short
    row: dict[str, Any] = {"ethertype": ethertype, "version": 0, "protocol": 0, "src": 0, "dst": 0, "ports": None}
    if "ip" in packet.starts:
        at = packet.starts["ip"]
        row |= {"version": 4, "protocol": frame[at + 9]}
        row |= {"src": packet.number(at + 12, 4), "dst": packet.number(at + 16, 4)}
    elif "ip6" in packet.starts:
        at = packet.starts["ip6"]
        row |= {"version": 6, "protocol": packet.members["ip6_proto"]}
        row |= {"src": packet.number(at + 8, 16), "dst": packet.number(at + 24, 16)}
    for name in PORTS:
        if name in packet.starts:
            at = packet.starts[name]
            row["ports"] = (packet.number(at, 2), packet.number(at + 2, 2))
    return row


def rows(found):
    """The columns as rows of the same form."""
    for i in range(len(found)):
        six = found.ip_version[i] == 6
        assert not (found.src6[i].any() or found.dst6[i].any()) or six
        assert not (found.src4[i] or found.dst4[i]) or found.ip_version[i] == 4
        yield {
            "ethertype": int(found.ethertype[i]),
            "version": int(found.ip_version[i]),
            "protocol": int(found.protocol[i]),
            "src": int.from_bytes(found.src6[i].tobytes()) if six else int(found.src4[i]),
            "dst": int.from_bytes(found.dst6[i].tobytes()) if six else int(found.dst4[i]),
            "ports": (int(found.sport[i]), int(found.dport[i])) if found.has_ports[i] else None,
        }


@examples(300)
@given(batches(20))
def test_the_columns_say_what_the_header_walk_of_the_reference_finds(packets):
    assert list(rows(columns(packets))) == [expected(packet) for packet in packets]


@pytest.mark.parametrize("size", range(0, 14))
def test_a_frame_without_a_whole_ethernet_header_has_nothing(size):
    assert columns([b"\xff" * size, bytes(60)]).ethertype[0] == 0


def test_no_packets_are_no_rows():
    assert len(columns([])) == 0


def test_the_columns_are_those_that_scapy_made():
    four = Ether() / IP(src="192.0.2.1", dst="198.51.100.9") / TCP(sport=1, dport=65535)
    six = Ether() / Dot1Q(vlan=7) / IPv6(src="2001:db8::1", dst="2001:db8::2") / UDP(sport=53, dport=5353)
    found = columns([bytes(four), bytes(six)])
    assert (found.ethertype.tolist(), found.ip_version.tolist()) == ([0x800, 0x86DD], [4, 6])
    assert str(ipaddress.IPv4Address(int(found.src4[0]))) == "192.0.2.1"
    assert str(ipaddress.IPv6Address(found.dst6[1].tobytes())) == "2001:db8::2"
    assert (found.protocol.tolist(), found.sport.tolist(), found.dport.tolist()) == ([6, 17], [1, 53], [65535, 5353])
    kinds = [getattr(found, name).dtype for name in ("ethertype", "ip_version", "src4", "src6", "has_ports", "sport")]
    assert kinds == [np.uint16, np.uint8, np.uint32, np.uint8, np.bool_, np.uint16]


# ---- of live batches ----


def dns():
    pipe = Pipeline("dns", default=DROP)
    pipe.rule(udp.dport == 54, DROP, name="other")
    pipe.rule(udp.dport == 53, REDIRECT, name="dns")
    return pipe


@pytest.mark.parametrize("mode", ["native", "af_packet", pytest.param("tc_ingress", marks=pytest.mark.needs("tcx"))])
def test_a_batch_has_its_bytes_in_one_array_that_stays(make_veth, mode):
    left, right = make_veth()
    sent = frames(left, right, range(20), size=77)
    pipe = dns()
    if mode == "af_packet":
        pipe = Pipeline("dns")
        pipe.rule(udp.dport == 53, REDIRECT, name="dns")
    with right.namespace, attach(pipe, right.name, mode=mode, timestamps=True) as link, link.sockets() as sockets:
        left.send(sent)
        until(lambda: link.ledger().waiting == 20 or mode != "native", "the packets")
        kept, names, packets = [], [], []
        for batch in sockets.batches(timeout=5):
            kept.append((batch.data, batch.offsets, batch.headers))
            names += batch.rule_names
            packets += batch.to_scapy()
            if len(packets) == 20:
                break
    got = [data[a:b].tobytes() for data, ends, _ in kept for a, b in pairwise(ends)]
    assert got == sent == [bytes(packet) for packet in packets]
    assert packets[0][UDP].dport == 53
    assert names == (["dns"] * 20 if mode != "af_packet" else [""] * 20)
    assert [d for *_, headers in kept for d in headers.dport.tolist()] == [53] * 20


def test_the_bytes_of_packets_in_several_buffers_are_joined(make_veth):
    left, right = make_veth(mtu=9000)
    sent = frames(left, right, range(3), size=7000)
    options = SocketOptions(multi_buffer="on", chunk_size=2048)
    with right.namespace, attach(dns(), right.name, options=options) as link, link.sockets() as sockets:
        left.send(sent)
        until(lambda: link.ledger().waiting == 3, "the packets")
        reader = sockets.batches(timeout=5)
        batch = next(reader)
        assert [len(batch.buffers(i)) > 1 for i in range(3)] == [True] * 3
        assert batch.data.tobytes() == b"".join(sent)
        assert batch.headers.dport.tolist() == [53] * 3


def test_what_was_not_copied_while_the_batch_lasted_cannot_be_had(make_veth):
    left, right = make_veth()
    with right.namespace, attach(dns(), right.name) as link, link.sockets() as sockets:
        left.send(frames(left, right, range(5)))
        until(lambda: link.ledger().waiting == 5, "the packets")
        ended = next(sockets.batches(timeout=5, limit=5))
        for _ in sockets.batches(timeout=0):
            pass
        ended.end()
        for ask in (lambda: ended.data, lambda: ended.headers, ended.to_scapy):
            with pytest.raises(FrameError, match="the batch has ended"):
                ask()


def test_a_batch_of_nothing_known_has_empty_rule_names():
    batch = CopiedBatch(bytes(60), np.array([60], np.uint32), np.array([1], np.uint64))
    assert batch.rule_names == [""]


@pytest.mark.parametrize("mode", ["native", "generic", "tc_ingress"])
def test_copies_have_the_columns_of_other_batches_and_of_packets_that_go_on(make_veth, mode):
    """Also of copies that are cut, and after the batch."""
    left, right = make_veth(queues=2)
    pipe = Pipeline("tap")
    pipe.rule(udp.dport == 53, Mirror(), name="dns")
    pipe.rule(udp.dport == 80, Mirror(60), name="web")
    pipe.rule(udp, DROP, name="end")
    made = frames(left, right, range(3), size=200) + frames(
        left, right, range(3), dport=80, size=200, source="10.0.0.7"
    )
    batches = []
    with right.namespace, attach(pipe, right.name, mode=mode) as link, link.copies() as copies:
        left.send(made, queue=1)
        for batch in copies.batches(timeout=5):
            batches.append(batch)
            if sum(map(len, batches)) == 6:
                break

    def column(get):
        return [value for batch in batches for value in get(batch)]

    assert column(lambda b: b.rule_names) == ["dns"] * 3 + ["web"] * 3
    assert column(lambda b: b.lengths.tolist()) == [200] * 3 + [60] * 3
    assert column(lambda b: b.wire_lengths.tolist()) == [200] * 6
    assert column(lambda b: b.verdicts.tolist()) == [1] * 6
    assert column(lambda b: b.queues.tolist()) == [int(mode == "native")] * 6  # veth without NAPI notes none in skbs
    assert column(lambda b: b.headers.dport.tolist()) == [53] * 3 + [80] * 3
    sources = [int(ipaddress.ip_address("198.51.100.1"))] * 3 + [int(ipaddress.ip_address("10.0.0.7"))] * 3
    assert column(lambda b: b.headers.src4.tolist()) == sources
    assert [(p[IP].src, p[UDP].dport) for p in column(lambda b: b.to_scapy())] == [("198.51.100.1", 53)] * 3 + [
        ("10.0.0.7", 80)
    ] * 3
    assert b"".join(b.data.tobytes() for b in batches) == b"".join(made[:3]) + b"".join(m[:60] for m in made[3:])

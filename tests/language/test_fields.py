"""Every field, by a packet that scapy builds: the table and the walk read what others write."""

from __future__ import annotations

import pytest
from scapy.contrib.geneve import GENEVE
from scapy.contrib.gtp import GTP_U_Header, GTPPDUSessionContainer
from scapy.contrib.mpls import MPLS
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6MLQuery,
    ICMPv6ND_Redirect,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    IPv6ExtHdrSegmentRouting,
)
from scapy.layers.ipsec import AH
from scapy.layers.l2 import ARP, GRE, Dot1AD, Dot1Q, Ether
from scapy.layers.sctp import SCTP
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet as ScapyPacket
from scapy.packet import Raw
from strategies import truncations

from xdpkit.compiler import compile_pipeline
from xdpkit.kernel.program import Program
from xdpkit.language.actions import DROP
from xdpkit.language.errors import PipelineError
from xdpkit.language.expr import as_expr
from xdpkit.language.fields import FIELDS, INNER, METADATA
from xdpkit.language.headers import (
    HEADER_OBJECTS,
    arp,
    field_object,
    gre,
    gtpu,
    icmp,
    icmp6,
    inner,
    ip,
    meta,
    mpls,
    payload,
    tcp,
    udp,
)
from xdpkit.language.metadata import Metadata
from xdpkit.language.pipeline import Pipeline
from xdpkit.meaning.evaluate import evaluate, holds, walk
from xdpkit.meaning.state import State

#: For conditions that remember nothing.
STATE = State(Pipeline("none"))

A, B = "02:00:00:00:00:0a", "02:00:00:00:00:0b"
ETHER = Ether(src=A, dst=B)
TAGGED = ETHER / Dot1AD(vlan=5, prio=3, dei=1) / Dot1Q(vlan=6, prio=4, dei=0) / IP()
ARP4 = ETHER / ARP(op=2, hwsrc=A, psrc="192.0.2.1", hwdst=B, pdst="192.0.2.2")
IP4 = ETHER / IP(
    tos=0xB9, len=40, id=7, flags="DF", ttl=9, proto=253, chksum=0x1234, src="192.0.2.1", dst="192.0.2.2",
    options=[IPOption_NOP()] * 4,
)  # fmt: skip
FRAGMENT4 = ETHER / IP(flags="MF", frag=185, proto=17) / Raw(b"12345678")
IP6 = ETHER / IPv6(tc=0xB9, fl=0x12345, plen=8, nh=17, hlim=9, src="2001:db8::1", dst="2001:db8::2") / UDP()
FRAGMENT6 = ETHER / IPv6() / IPv6ExtHdrFragment(nh=17, offset=185, m=1, id=77) / Raw(b"12345678")
SEGMENT = TCP(
    sport=1, dport=2, seq=3, ack=4, flags="SAUE", window=5, chksum=6, urgptr=7, options=[("NOP", None), ("MSS", 1460)]
)
TCP4 = ETHER / IP() / SEGMENT / Raw(b"GET / HTTP")
UDP4 = ETHER / IP() / UDP(sport=1, dport=2, len=18, chksum=6) / Raw(b"\1\2\3\4\5\6\7\x08\x09\x0a")
ECHO4 = ETHER / IP() / ICMP(type=8, code=1, id=2, seq=3)
ECHO6 = ETHER / IPv6() / ICMPv6EchoRequest(code=1, id=2, seq=3)
TOO_BIG4 = ETHER / IP() / ICMP(type=3, code=4, nexthopmtu=1400) / IP()
REDIRECT4 = ETHER / IP() / ICMP(type=5, code=1, gw="192.0.2.9") / IP()
PROBLEM4 = ETHER / IP() / ICMP(type=12, ptr=20) / IP()
TOO_BIG6 = ETHER / IPv6() / ICMPv6PacketTooBig(mtu=1280) / IPv6()
PROBLEM6 = ETHER / IPv6() / ICMPv6ParamProblem(ptr=40) / IPv6()
QUERY6 = ETHER / IPv6() / ICMPv6MLQuery(mrd=1000)
REDIRECT6 = ETHER / IPv6() / ICMPv6ND_Redirect(tgt="fe80::9", dst="2001:db8::9")
ROUTING6 = ETHER / IPv6() / IPv6ExtHdrSegmentRouting(segleft=1, addresses=["2001:db8::1"]) / UDP()
SCTP4 = ETHER / IP() / SCTP(sport=1, dport=2, tag=3)
INSIDE = ETHER / Dot1Q(vlan=9) / IP(dst="198.51.100.1") / UDP(sport=77, dport=53) / Raw(b"query")
GRE4 = ETHER / IP() / GRE(key_present=1, chksum_present=1, seqnum_present=1, key=99, proto=0x6558) / INSIDE
VXLAN4 = ETHER / IP() / UDP(dport=4789) / VXLAN(vni=0x123456) / INSIDE
GENEVE6 = ETHER / IPv6() / UDP(dport=6081) / GENEVE(vni=0x123456, proto=0x6558) / INSIDE
GTPU4 = ETHER / IP() / UDP(dport=2152) / GTP_U_Header(teid=0x55, gtp_type=255) / INSIDE[IP]
GTPU_EXTENDED = (
    ETHER / IP() / UDP(dport=2152)
    / GTP_U_Header(teid=0x55, gtp_type=255, E=1, next_ex=0x85) / GTPPDUSessionContainer(type=0, QFI=1) / INSIDE[IP]
)  # fmt: skip
MPLS4 = ETHER / MPLS(label=100, cos=5, s=0, ttl=7) / MPLS(label=200, s=1) / INSIDE[IP]

#: Field, packet, value.
EXAMPLES: dict[str, tuple[ScapyPacket, object]] = {
    "eth.dst": (TAGGED, B), "eth.src": (TAGGED, A), "eth.type": (TAGGED, 0x88A8),
    "vlan.id": (TAGGED, 5), "vlan.pcp": (TAGGED, 3), "vlan.dei": (TAGGED, 1), "vlan.etype": (TAGGED, 0x8100),
    "vlan2.id": (TAGGED, 6), "vlan2.pcp": (TAGGED, 4), "vlan2.dei": (TAGGED, 0), "vlan2.etype": (TAGGED, 0x0800),
    "arp.htype": (ARP4, 1), "arp.ptype": (ARP4, 0x0800), "arp.hlen": (ARP4, 6), "arp.plen": (ARP4, 4),
    "arp.op": (ARP4, 2), "arp.sha": (ARP4, A), "arp.spa": (ARP4, "192.0.2.1"),
    "arp.tha": (ARP4, B), "arp.tpa": (ARP4, "192.0.2.2"),
    "ip.ihl": (IP4, 6), "ip.options": (IP4, 6), "ip.tos": (IP4, 0xB9), "ip.dscp": (IP4, 46), "ip.ecn": (IP4, 1),
    "ip.len": (IP4, 40), "ip.id": (IP4, 7), "ip.df": (IP4, 1), "ip.mf": (FRAGMENT4, 1),
    "ip.frag_offset": (FRAGMENT4, 185), "ip.fragment": (FRAGMENT4, 0x2000 | 185), "ip.ttl": (IP4, 9),
    "ip.proto": (IP4, 253), "ip.csum": (IP4, 0x1234), "ip.src": (IP4, "192.0.2.1"), "ip.dst": (IP4, "192.0.2.2"),
    "ip6.tc": (IP6, 0xB9), "ip6.dscp": (IP6, 46), "ip6.ecn": (IP6, 1), "ip6.flow": (IP6, 0x12345),
    "ip6.len": (IP6, 8), "ip6.next": (FRAGMENT6, 44), "ip6.proto": (FRAGMENT6, 17), "ip6.hlim": (IP6, 9),
    "ip6.src": (IP6, "2001:db8::1"), "ip6.dst": (IP6, "2001:db8::2"),
    "routing.next": (ROUTING6, 17), "routing.len": (ROUTING6, 2), "routing.type": (ROUTING6, 4),
    "routing.seg_left": (ROUTING6, 1),
    "frag.next": (FRAGMENT6, 17), "frag.offset": (FRAGMENT6, 185), "frag.mf": (FRAGMENT6, 1),
    "frag.id": (FRAGMENT6, 77),
    "tcp.sport": (TCP4, 1), "tcp.dport": (TCP4, 2), "tcp.seq": (TCP4, 3), "tcp.ackseq": (TCP4, 4), "tcp.off": (TCP4, 7),
    "tcp.flags": (TCP4, "syn|ack|urg|ece"), "tcp.fin": (TCP4, 0), "tcp.syn": (TCP4, 1), "tcp.rst": (TCP4, 0),
    "tcp.psh": (TCP4, 0), "tcp.ack": (TCP4, 1), "tcp.urg": (TCP4, 1), "tcp.ece": (TCP4, 1), "tcp.cwr": (TCP4, 0),
    "tcp.window": (TCP4, 5), "tcp.csum": (TCP4, 6), "tcp.urgptr": (TCP4, 7), "tcp.mss": (TCP4, 1460),
    "udp.sport": (UDP4, 1), "udp.dport": (UDP4, 2), "udp.len": (UDP4, 18), "udp.csum": (UDP4, 6),
    "icmp.type": (ECHO4, 8), "icmp.code": (ECHO4, 1), "icmp.id": (ECHO4, 2), "icmp.seq": (ECHO4, 3),
    "icmp.mtu": (TOO_BIG4, 1400), "icmp.gateway": (REDIRECT4, "192.0.2.9"), "icmp.pointer": (PROBLEM4, 20),
    "icmp6.mtu": (TOO_BIG6, 1280), "icmp6.pointer": (PROBLEM6, 40), "icmp6.max_delay": (QUERY6, 1000),
    "icmp6.target": (REDIRECT6, "fe80::9"), "icmp6.dst": (REDIRECT6, "2001:db8::9"),
    "icmp6.type": (ECHO6, 128), "icmp6.code": (ECHO6, 1), "icmp6.id": (ECHO6, 2), "icmp6.seq": (ECHO6, 3),
    "sctp.sport": (SCTP4, 1), "sctp.dport": (SCTP4, 2), "sctp.vtag": (SCTP4, 3),
    "gre.flags": (GRE4, 0xB000), "gre.proto": (GRE4, 0x6558), "gre.key": (GRE4, 99),
    "vxlan.vni": (VXLAN4, 0x123456), "geneve.vni": (GENEVE6, 0x123456), "geneve.proto": (GENEVE6, 0x6558),
    "gtpu.type": (GTPU4, 255), "gtpu.teid": (GTPU4, 0x55),
    "mpls.label": (MPLS4, 100), "mpls.tc": (MPLS4, 5), "mpls.bos": (MPLS4, 0), "mpls.ttl": (MPLS4, 7),
    "pkt.len": (ARP4, 42), "pkt.queue": (ARP4, 0),
    "meta.mark": (ARP4, 0), "meta.priority": (ARP4, 0), "meta.day": (ARP4, "Thursday"), "meta.hour": (ARP4, "00:00"),
}  # fmt: skip


#: What is known of a packet beside its bytes.
NOTHING = Metadata()


def true(condition: object, packet: ScapyPacket | bytes, metadata: Metadata = NOTHING) -> bool:
    return holds(as_expr(condition), walk(bytes(packet), metadata=metadata), STATE)


@pytest.mark.parametrize(
    "spec", [s for s in FIELDS if not s.name.startswith(INNER) and s.name not in METADATA], ids=lambda s: s.name
)
def test_a_field_holds_what_the_packet_was_built_with(spec):
    packet, value = EXAMPLES[spec.name]
    field = field_object(spec.name)
    assert true(field == value, packet)
    assert not true(~(field == value), packet)
    if spec.header is not None:
        assert not true(field == value, b"")


@pytest.mark.parametrize("name", [s.name for s in FIELDS if s.name.startswith(INNER)])
def test_a_field_inside_a_tunnel_holds_what_the_inner_packet_was_built_with(name: str):
    packet, value = EXAMPLES[name.removeprefix(INNER)]
    tunnelled = ETHER / IP() / UDP(dport=4789) / VXLAN(vni=1) / packet
    assert true(field_object(name) == value, tunnelled)


@pytest.mark.root
@pytest.mark.parametrize(
    "packet",
    [GRE4, VXLAN4, GENEVE6, GTPU4, GTPU_EXTENDED, MPLS4, ETHER / IP() / INSIDE[IP], ETHER / IPv6() / INSIDE[IP]],
    ids=lambda p: p.summary()[:60],
)
def test_every_tunnel_shows_its_inside(packet: ScapyPacket):
    assert true((inner.ip.dst == "198.51.100.1") & (inner.udp.dport == 53) & (inner.payload[0:5] == b"query"), packet)
    assert true(inner.eth, packet) == bool(packet.haslayer(Dot1Q))
    with Program(compile_pipeline(every_header(packet))) as program:
        for frame in truncations(bytes(packet)):
            assert program.judge(frame)[0].name == evaluate(program.pipeline, frame).name, len(frame)


def every_header(packet: ScapyPacket) -> Pipeline:
    """Rules for the headers of ``packet``, the deepest first: each is seen to come with its last byte."""
    pipe = Pipeline("headers")
    pipe.rule(inner.payload[0:5] == b"query", DROP, name="payload")
    found = walk(bytes(packet))
    for name in sorted(found.present & set(HEADER_OBJECTS), key=lambda h: found.starts[h], reverse=True):
        pipe.rule(HEADER_OBJECTS[name], DROP, name=name)
    return pipe


def test_extension_headers_are_headers():
    packet = (
        ETHER / IPv6() / IPv6ExtHdrHopByHop() / IPv6ExtHdrRouting() / IPv6ExtHdrFragment()
        / AH(nh=60, payloadlen=4, icv=bytes(12)) / IPv6ExtHdrDestOpt() / UDP()
    )  # fmt: skip
    assert {"hopopts", "routing", "frag", "ah", "dstopts", "udp"} <= walk(bytes(packet)).present


def test_payload_is_compared_as_bytes_or_as_a_number_and_is_false_when_short():
    assert true((payload[0:4] == b"GET ") & (payload[4] == ord("/")), TCP4)
    assert true((payload[0:2] == 0x0102) & (payload[9] == 10) & (payload[1:3] == b"\2\3\4"), UDP4)
    assert not true(payload[9:2] >= 0, UDP4)
    assert not true(payload[0] >= 0, ECHO4)


def test_a_one_bit_field_stands_alone():
    assert true(tcp.syn & tcp.ack & ~tcp.fin, TCP4)
    assert true(ip.options & ip.df & ~ip.fragment, IP4)
    assert true(ip.fragment & ~ip.options, FRAGMENT4)


def test_masks_and_flag_names_say_what_they_say_in_nft_and_tcpdump():
    assert true((tcp.flags & 0x12) == 0x12, TCP4)
    assert not true((tcp.flags & 0x12) == 0x02, TCP4)
    assert true((tcp.flags & 0x05) == 0, TCP4)
    assert true((tcp.flags & 0x05) != 1, TCP4)
    assert true((tcp.flags & 0x03).isin([1, 2]), TCP4)
    assert true(tcp.flags.has("syn", "ack"), TCP4)
    assert not true(tcp.flags.has("syn", "fin"), TCP4)


@pytest.mark.parametrize("name", METADATA)
def test_metadata_is_what_is_known_beside_the_bytes_and_absent_where_nothing_is(name: str):
    """Also to a negation: absent is not another value."""
    field, known = field_object(name), Metadata(timestamp=7, hash=8, vlan=9)
    value = getattr(known, name.removeprefix("meta."))
    assert true(field == value, b"", known)
    assert not true(field != value, b"", known)
    assert not true(field >= 0, UDP4)
    assert true(~(field == value), UDP4)


def test_a_hash_or_a_time_of_0_is_none_and_a_tag_of_0_is_a_tag():
    known = Metadata(timestamp=0, hash=0, vlan=0)
    assert [name for name in METADATA if true(field_object(name) >= 0, UDP4, known)] == ["meta.vlan"]


def test_metadata_is_no_header_that_could_be_present():
    with pytest.raises(PipelineError, match=r"meta is no header: meta\.hash >= 0 asks whether"):
        meta & udp


def test_a_tunnel_of_another_kind_is_not_looked_into():
    for packet in (
        ETHER / IP() / UDP(dport=4789) / VXLAN(flags=0, vni=1) / INSIDE,
        ETHER / IP() / GRE(version=1, proto=0x0800) / INSIDE[IP],
        ETHER / IP() / UDP(dport=2152) / GTP_U_Header(teid=1, gtp_type=1) / INSIDE[IP],
        ETHER / IP(frag=1, proto=4) / INSIDE[IP],
    ):
        assert not any(name.startswith(INNER) for name in walk(bytes(packet)).present), packet.summary()
    assert true(gre & ~(gre.key >= 0) & ~mpls & ~gtpu & ~udp, ETHER / IP() / GRE(proto=0x0800) / INSIDE[IP])


#: ARP for IPv4 over Infiniband (20 bytes of hardware address; RFC 4391) and with addresses of another protocol.
INFINIBAND = ETHER / Raw(
    bytes.fromhex("0020 0800 14 04 0001") + bytes(20) + bytes([192, 0, 2, 1]) + bytes(20) + bytes([192, 0, 2, 2])
)
INFINIBAND.type = 0x0806
CHAOS = ETHER / Raw(bytes.fromhex("0001 0804 06 02 0001 020000000001 0101 020000000002 0202"))
CHAOS.type = 0x0806


@pytest.mark.root
@pytest.mark.parametrize("hook", ["xdp", "xdp_frags", "tc"])
def test_addresses_of_arp_are_where_its_lengths_say(hook: str):
    pipe = Pipeline("arp")
    pipe.rule((arp.spa == "192.0.2.1") & (arp.tpa == "192.0.2.2") & (arp.hlen == 20), DROP, name="infiniband")
    pipe.rule((arp.sha == "02:00:00:00:00:01") & (arp.tha == "02:00:00:00:00:02"), DROP, name="chaos")
    pipe.rule(arp.spa >= 0, DROP, name="IPv4")
    pipe.rule(arp, DROP, name="arp")
    with Program(compile_pipeline(pipe, hook)) as program:
        for frame in (*truncations(bytes(INFINIBAND)), *truncations(bytes(CHAOS)), *truncations(bytes(ARP4))):
            assert program.judge(frame)[0].name == evaluate(pipe, frame).name, frame.hex()
    assert [evaluate(pipe, bytes(p)).name for p in (INFINIBAND, CHAOS, ARP4)] == ["infiniband", "chaos", "IPv4"]


def test_a_field_of_another_message_is_absent():
    """Also to a negation."""
    assert not true(icmp.mtu != 5, ECHO4)
    assert true(~(icmp.mtu == 5), ECHO4)
    assert not true(icmp6.target >= 0, ECHO6)
    with pytest.raises(PipelineError, match="exclude each other"):
        Pipeline("p").rule((icmp.mtu == 5) & (icmp.type == 8), DROP)

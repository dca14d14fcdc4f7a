"""What a pipeline means, by example.  The engines are held to the same reference in test_engines.py."""

from __future__ import annotations

from itertools import pairwise
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.ipsec import AH
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet as ScapyPacket
from strategies import comparisons, conditions, examples, frames, pipelines, truncations

from xdpkit.language.actions import DROP, PASS, REDIRECT, TX
from xdpkit.language.chains import RETURN
from xdpkit.language.errors import Where
from xdpkit.language.expr import Expr, Test, as_expr
from xdpkit.language.fields import FIELDS, HEADERS, FieldSpec
from xdpkit.language.headers import HEADER_OBJECTS, arp, eth, icmp, icmp6, ip, ip6, pkt, tcp, udp, vlan, vlan2
from xdpkit.language.pipeline import Pipeline
from xdpkit.meaning.evaluate import evaluate, holds, walk
from xdpkit.meaning.state import State
from xdpkit.meaning.walk import MAX_EXTENSIONS

#: For conditions that remember nothing.
STATE = State(Pipeline("none"))

ETHER = Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:02")
#: An IPv6 header that names a destination-options header as next.
BARE_IP6 = bytes(ETHER / IPv6(src="2001:db8::1", dst="2001:db8::2", nh=60))


def true(condition: object, packet: ScapyPacket | bytes) -> bool:
    """Does the condition hold of the packet?"""
    return holds(as_expr(condition), walk(bytes(packet)), STATE)


def chain(*kinds: int, last: int = 17) -> bytes:
    """IPv6 with extension headers of these kinds, 8 bytes each, and then UDP to port 53."""
    numbers = [*kinds, last]
    frame = BARE_IP6[:20] + bytes([numbers[0]]) + BARE_IP6[21:]
    for _, following in pairwise(numbers):
        frame += pack("!BBHI", following, 0, 0, 0)
    return frame + pack("!HHHH", 1000, 53, 8, 0)


# ---- tests and presence ----


def test_every_comparison_with_a_missing_header_is_false():
    packet = ETHER / IP() / TCP(dport=53)
    for test in (udp.dport == 53, udp.dport != 53, udp.dport < 54, udp.dport.isin(range(100)), udp.dport >= 0):
        assert not true(test, packet)


def test_not_equal_asks_for_the_header_and_negated_equality_does_not():
    packet = ETHER / IP() / TCP()
    assert not true(udp.dport != 53, packet)
    assert true(~(udp.dport == 53), packet)
    assert true(udp.dport != 53, ETHER / IP() / UDP(dport=54))


def test_the_same_port_number_of_another_protocol_does_not_match():
    assert true(tcp.dport == 53, ETHER / IP() / TCP(dport=53))
    assert not true(tcp.dport == 53, ETHER / IP() / UDP(dport=53))


def test_the_frame_itself_is_always_there():
    assert true(pkt.len < 14, b"")
    assert true(pkt.queue == 0, b"")
    assert true(pkt.present, b"")
    assert not true(eth.present, b"\0" * 13)
    assert true(eth.present, b"\0" * 14)


def test_the_receive_queue_is_the_one_of_arrival():
    pipe = Pipeline("queues")
    rule = pipe.rule(pkt.queue == 3, DROP)
    assert evaluate(pipe, b"", rx_queue=3) is rule
    assert evaluate(pipe, b"", rx_queue=2).name == "default"


def test_the_first_rule_that_matches_takes_the_frame_and_else_the_default():
    pipe = Pipeline("order", default=TX)
    pipe.rule(udp.dport == 53, REDIRECT, name="dns")
    pipe.rule(udp, DROP, name="udp")
    assert evaluate(pipe, bytes(ETHER / IP() / UDP(dport=53))).name == "dns"
    assert evaluate(pipe, bytes(ETHER / IP() / UDP(dport=54))).name == "udp"
    rule = evaluate(pipe, bytes(ETHER / IP() / TCP()))
    assert (rule.name, rule.action) == ("default", TX)
    assert rule is pipe.outcomes[-1]


def test_a_range_has_both_its_ends_and_a_prefix_its_first_and_last_address():
    for port, inside in ((99, False), (100, True), (200, True), (201, False)):
        assert true(udp.dport.between(100, 200), ETHER / IP() / UDP(dport=port)) == inside
    for host, inside in (("192.0.1.255", False), ("192.0.2.0", True), ("192.0.2.255", True), ("192.0.3.0", False)):
        assert true(ip.src.within("192.0.2.0/24"), ETHER / IP(src=host)) == bool(inside)


def test_ipv6_prefixes_reach_across_the_64_bit_boundary():
    for prefix, inside, outside in (
        ("2001:db8::/63", "2001:db8:0:1:ffff::", "2001:db8:0:2::"),
        ("2001:db8::/65", "2001:db8::7fff:ffff:ffff:ffff", "2001:db8::8000:0:0:0"),
    ):
        assert true(ip6.src.within(prefix), ETHER / IPv6(src=inside))
        assert not true(ip6.src.within(prefix), ETHER / IPv6(src=outside))


# ---- Ethernet and VLAN ----


def test_an_untagged_frame_has_no_vlan():
    packet = ETHER / IP()
    assert not true(vlan.id == 0, packet)
    assert true(eth.type == 0x0800, packet)


def test_one_tag_is_the_outer_one_and_what_follows_is_walked():
    packet = ETHER / Dot1Q(vlan=5, prio=3) / IP() / UDP(dport=53)
    assert true((eth.type == 0x8100) & (vlan.id == 5) & (vlan.pcp == 3) & (vlan.etype == 0x0800), packet)
    assert true((udp.dport == 53) & ~vlan2, packet)


def test_vlan_in_vlan_is_walked_with_either_tpid():
    packet = ETHER / Dot1AD(vlan=7, prio=1) / Dot1Q(vlan=8, prio=6) / IP() / UDP(dport=53)
    assert true((eth.type == 0x88A8) & (vlan.id == 7) & (vlan.pcp == 1) & (vlan.etype == 0x8100), packet)
    assert true((vlan2.id == 8) & (vlan2.pcp == 6) & (vlan2.etype == 0x0800) & (udp.dport == 53), packet)


def test_behind_a_third_tag_nothing_is_seen():
    packet = ETHER / Dot1Q(vlan=1) / Dot1Q(vlan=2) / Dot1Q(vlan=3) / IP() / UDP()
    assert walk(bytes(packet)).present == {"eth", "vlan", "vlan2"}
    assert true(vlan2.etype == 0x8100, packet)


def test_the_drop_eligible_bit_belongs_to_neither_id_nor_priority():
    assert true((vlan.id == 5) & (vlan.pcp == 3), ETHER / Dot1Q(vlan=5, prio=3, dei=1) / IP())


# ---- ARP ----


def test_arp_for_ipv4_over_ethernet_is_read():
    packet = ETHER / ARP(op=2, psrc="192.0.2.1", pdst="192.0.2.2")
    assert true((arp.op == 2) & (arp.spa == "192.0.2.1") & (arp.tpa == "192.0.2.2"), packet)


@pytest.mark.parametrize("odd", [{"hwtype": 6}, {"ptype": 0x86DD}, {"hwlen": 8}, {"plen": 16}])
def test_the_addresses_of_arp_are_absent_where_they_are_not_ipv4_over_ethernet(odd):
    assert true(arp.present & (arp.spa == "192.0.2.1"), ETHER / ARP(psrc="192.0.2.1"))
    frame = bytearray(bytes(ETHER / ARP()))
    place = {"hwtype": (14, "!H"), "ptype": (16, "!H"), "hwlen": (18, "!B"), "plen": (19, "!B")}
    ((name, value),) = odd.items()
    at, form = place[name]
    frame[at : at + len(pack(form, value))] = pack(form, value)
    assert true(arp.present, bytes(frame))
    assert not true(
        (arp.spa == arp.spa.spec.maximum) | (arp.spa != arp.spa.spec.maximum), bytes(frame)
    ) or name.startswith("hw")


# ---- IPv4 ----


def test_ports_are_found_behind_ip_options():
    packet = ETHER / IP(options=[IPOption_NOP()] * 8) / UDP(dport=53)
    assert bytes(packet)[14] == 0x47
    assert true(udp.dport == 53, packet)


@pytest.mark.parametrize("first", [0x44, 0x40, 0x65, 0x05])
def test_ipv4_with_a_wrong_version_or_header_length_is_absent(first):
    frame = bytearray(bytes(ETHER / IP() / UDP()))
    frame[14] = first
    assert walk(bytes(frame)).present == {"eth"}


def test_a_first_fragment_has_ports_and_a_later_one_has_none():
    first = ETHER / IP(flags="MF", frag=0, proto=17) / UDP(dport=53)
    later = ETHER / IP(flags="MF", frag=1, proto=17) / UDP(dport=53)
    last = ETHER / IP(frag=185, proto=17) / UDP(dport=53)
    assert true(udp.dport == 53, first)
    for packet in (later, last):
        assert true((ip.proto == 17) & ~udp, packet)


def test_dont_fragment_and_the_evil_bit_are_no_offset():
    assert true(udp.present, ETHER / IP(flags="DF") / UDP())
    assert true(udp.present, ETHER / IP(flags="evil") / UDP())


def test_the_lengths_that_headers_claim_are_values_and_nothing_more():
    packet = ETHER / IP(len=1) / UDP(len=0, dport=53)
    assert true((ip.len == 1) & (udp.dport == 53), packet)


# ---- IPv6 ----


@pytest.mark.parametrize(
    "extension",
    [
        IPv6ExtHdrHopByHop(),
        IPv6ExtHdrDestOpt(),
        IPv6ExtHdrRouting(addresses=["2001:db8::1", "2001:db8::2"]),
        IPv6ExtHdrFragment(offset=0, m=1),
        AH(nh=17, payloadlen=4, icv=bytes(12)),
        AH(nh=17, payloadlen=6, icv=bytes(20)),
        IPv6ExtHdrRouting() / IPv6ExtHdrFragment() / AH(nh=60, payloadlen=4, icv=bytes(12)) / IPv6ExtHdrDestOpt(),
    ],
    ids=lambda e: e.summary(),
)
def test_ports_are_found_behind_extension_headers(extension):
    packet = ETHER / IPv6() / extension / UDP(dport=53)
    assert true((udp.dport == 53) & (ip6.proto == 17), packet)


def test_a_later_ipv6_fragment_has_no_ports_but_names_its_protocol():
    packet = ETHER / IPv6() / IPv6ExtHdrFragment(offset=1, nh=17) / UDP(dport=53)
    assert true((ip6.proto == 17) & ~udp, packet)


def test_the_reserved_bits_of_a_fragment_header_are_no_offset():
    frame = bytearray(chain(44))
    frame[54 + 1], frame[54 + 3] = 255, 6
    assert true(udp.dport == 53, bytes(frame))


def test_a_chain_as_long_as_the_limit_is_walked_and_one_more_is_not():
    assert MAX_EXTENSIONS == 6
    assert true((udp.dport == 53) & (ip6.proto == 17), chain(*[60] * 6))
    assert true(~udp & ip6 & (ip6.proto == 60), chain(*[60] * 7))


def test_a_number_that_is_no_extension_ends_the_chain():
    frame = chain(60, 59)  # 59: no next header
    assert walk(frame).present == {"eth", "ip6", "dstopts"}
    assert true(ip6.proto == 59, frame)


def test_a_chain_cut_short_names_the_header_that_is_missing():
    whole = chain(0, 43)
    assert true((ip6.proto == 43) & ~udp, whole[: 54 + 8 + 7])
    assert true((ip6.proto == 17) & ~udp, whole[: 54 + 8 + 8])


def test_an_extension_that_claims_more_than_there_is_hides_the_transport_header():
    frame = bytearray(chain(60))
    frame[54 + 1] = 255
    assert true(~udp & (ip6.proto == 17), bytes(frame))


def test_icmp_belongs_to_ipv4_and_icmpv6_to_ipv6():
    assert true((icmp.type == 8) & ~icmp6, ETHER / IP() / ICMP())
    assert true((icmp6.type == 128) & ~icmp, ETHER / IPv6() / ICMPv6EchoRequest())
    assert walk(bytes(ETHER / IPv6(nh=1) / ICMP())).present == {"eth", "ip6"}
    assert walk(bytes(ETHER / IP(proto=58) / ICMPv6EchoRequest())).present == {"eth", "ip"}


def headers(frame: bytes) -> set[str]:
    """The headers outside a tunnel, without the parts of headers."""
    return {name for name in walk(frame).present if "." not in name and name != "payload"}


# ---- truncation ----

#: A frame, and how many bytes each of its headers needs to be there.
CUTS = [
    (ETHER / IP() / TCP(), {"eth": 14, "ip": 34, "tcp": 54}),
    (ETHER / IP() / UDP(), {"eth": 14, "ip": 34, "udp": 42}),
    (ETHER / IP() / ICMP(), {"eth": 14, "ip": 34, "icmp": 42}),
    (ETHER / IP(options=[IPOption_NOP()] * 4) / UDP(), {"eth": 14, "ip": 34, "udp": 46}),
    (ETHER / IPv6() / TCP(), {"eth": 14, "ip6": 54, "tcp": 74}),
    (ETHER / IPv6() / ICMPv6EchoRequest(), {"eth": 14, "ip6": 54, "icmp6": 58}),
    (ETHER / IPv6() / IPv6ExtHdrHopByHop() / UDP(), {"eth": 14, "ip6": 54, "hopopts": 62, "udp": 70}),
    (ETHER / Dot1Q() / Dot1Q() / IP() / UDP(), {"eth": 14, "vlan": 18, "vlan2": 22, "ip": 42, "udp": 50}),
    (ETHER / Dot1AD() / ARP(), {"eth": 14, "vlan": 18, "arp": 26}),
]


@pytest.mark.parametrize(("packet", "needs"), CUTS, ids=lambda p: p.summary() if isinstance(p, ScapyPacket) else "")
def test_a_header_appears_with_its_last_byte(packet, needs):
    for frame in truncations(bytes(packet), 0):
        assert headers(frame) == {name for name, size in needs.items() if size <= len(frame)}, len(frame)


# ---- laws ----


@examples(200)
@given(frames(0))
def test_a_longer_frame_never_loses_a_header(frame: bytes):
    seen: set[str] = set()
    for part in truncations(frame, 0):
        present = walk(part).present
        assert seen <= present
        seen = present


@examples(200)
@given(frames(0))
def test_headers_come_with_all_their_members_and_within_their_width(frame: bytes):
    packet = walk(frame)
    assert packet.present <= set(HEADERS)
    for spec in FIELDS:
        value = packet.value(spec)
        absent = spec.header is not None and spec.header not in packet.present
        assert value is None if absent else (value is not None or spec.only or spec.moved)
        assert value is None or 0 <= value <= spec.maximum


@examples(200)
@given(comparisons(), frames(0))
def test_a_test_holds_or_its_complement_does_or_the_header_is_absent(test: Expr, frame: bytes):
    """The ``!=`` of every operator: the same field, the values left out."""
    assert isinstance(test, Test)
    packet = walk(frame)
    value = packet.value(test.spec)
    inside = sum(low <= value <= high for low, high in test.intervals) if value is not None else 0
    assert inside in (0, 1), "intervals overlap"
    assert holds(test, packet, STATE) == (inside == 1)
    assert holds(~test, packet, STATE) != holds(test, packet, STATE)


@examples(200)
@given(conditions(), conditions(), frames(0))
def test_and_or_and_not_are_those_of_logic(a: Expr, b: Expr, frame: bytes):
    packet = walk(frame)
    x, y = holds(a, packet, STATE), holds(b, packet, STATE)
    assert holds(a & b, packet, STATE) == (x and y)
    assert holds(a | b, packet, STATE) == (x or y)
    assert holds(~(a & b), packet, STATE) == holds(~a | ~b, packet, STATE)


@examples(200)
@given(pipelines(chains=False), frames(0))
def test_every_frame_is_taken_by_the_first_rule_that_matches(pipe: Pipeline, frame: bytes):
    packet = walk(frame)
    first = next(rule for rule in pipe.outcomes if holds(rule.expr, packet, STATE))
    assert evaluate(pipe, frame) is (pipe.outcomes[-1] if first.action is RETURN else first)


# ---- operators against their meaning in integers ----


@examples(300)
@given(st.sampled_from([s for s in FIELDS if s.bits <= 16]), st.data())
def test_operators_mean_what_they_mean_for_integers(spec: FieldSpec, data: st.DataObject):
    header, _, name = spec.name.rpartition(".")
    field = getattr(HEADER_OBJECTS[header], name)
    number = st.integers(0, spec.maximum)
    a, b, x = data.draw(number), data.draw(number), data.draw(number)
    low, high = sorted((a, b))
    meanings = [(field == a, x == a), (field != a, x != a), (field <= a, x <= a), (field >= a, x >= a)]
    meanings += [(field < a, x < a)] if a else []
    meanings += [(field > a, x > a)] if a < spec.maximum else []
    meanings += [(field.between(low, high), low <= x <= high), (field.isin([a, b]), x in (a, b))]
    for test, meaning in meanings:
        assert any(p <= x <= q for p, q in test.intervals) == meaning, test


def test_an_expression_without_a_meaning_is_an_error():
    with pytest.raises(TypeError, match="no meaning for Expr"):
        holds(Expr(where=Where("", 0)), walk(b""), STATE)


def test_pass_is_the_default_of_an_empty_pipeline():
    assert evaluate(Pipeline("empty"), b"").action is PASS

"""Frames of every protocol that pcap-filter(7) names on Ethernet, with the values that
tests/language/data/pcap_filters.txt asks
for, and ways to spoil them."""

from __future__ import annotations

from functools import cache
from random import Random
from struct import pack
from typing import Any

from scapy.compat import raw
from scapy.contrib.geneve import GENEVE
from scapy.contrib.mpls import MPLS
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.ipsec import AH
from scapy.layers.l2 import ARP, GRE, LLC, SNAP, STP, Dot1Q, Dot3, Ether
from scapy.layers.ppp import PPP, PPPoE, PPPoED
from scapy.layers.sctp import SCTP
from scapy.packet import Packet, Raw

A, B, BROADCAST = "02:00:00:00:00:01", "02:00:00:00:00:02", "ff:ff:ff:ff:ff:ff"
HOSTS = ("192.0.2.1", "192.0.2.2", "10.0.0.1", "224.0.0.5", "255.255.255.255", "0.0.0.0")
ETHERTYPES = (
    0x80F3, 0x809B, 0x6001, 0x6002, 0x6003, 0x6004, 0x8137, 0x88CC, 0x9000, 0x05DC, 0x0600, 0xFFFF,
)  # fmt: skip
HOSTS6 = ("2001:db8::1", "2001:db8::2", "2001:db8:0:1::1", "ff02::1")


def ethernet(source: str = A, destination: str = B) -> Ether:
    return Ether(src=source, dst=destination)


def _transports() -> list[Packet]:
    return [
        TCP(sport=443, dport=50000, flags="S"),
        TCP(sport=50000, dport=443, flags="SA", options=[("MSS", 1460)], window=4096),
        TCP(sport=443, dport=443, flags="FPU") / b"GET / HTTP/1.1",
        TCP(sport=80, dport=53, flags="RCE"),
        UDP(sport=53, dport=1024) / b"\0\1\2\3",
        UDP(sport=55, dport=53),
        UDP(sport=68, dport=67) / bytes(40),
        SCTP(sport=443, dport=53),
        ICMP(type=8),
    ]


def _ipv4() -> list[Packet]:
    ip = IP(src="192.0.2.1", dst="192.0.2.2")
    out: list[Packet] = [ip / transport for transport in _transports()]
    out += [
        IP(src=s, dst=d, ttl=t, tos=t) / UDP(sport=53, dport=443)
        for s, d, t in zip(HOSTS, HOSTS[::-1], (1, 2, 5, 64, 128, 255), strict=True)
    ]
    out += [ip / ICMP(type=kind, code=kind % 4) for kind in (0, 3, 4, 5, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18)]
    out += [
        IP(src="192.0.2.1", dst="10.0.0.1", options=b"\1\1\1\0") / TCP(dport=443),
        IP(src="192.0.2.1", dst="10.0.0.1", options=bytes(40)) / UDP(dport=53),
        IP(src="192.0.2.1", dst="10.0.0.1", flags="MF") / UDP(sport=53, dport=53),
        IP(src="192.0.2.1", dst="10.0.0.1", frag=100, proto=17) / UDP(sport=53, dport=53),
        IP(src="192.0.2.1", dst="10.0.0.1", flags="DF") / TCP(dport=22),
        IP(src="192.0.2.1", dst="224.0.0.1", proto=2) / b"\x11\0\0\0\0\0\0\0",
        IP(dst="224.0.0.13", proto=103) / b"\x20\0\0\0",
        IP(proto=112) / bytes(20), IP(proto=9) / bytes(8), IP(proto=50) / bytes(16), IP(proto=255) / b"x",
        ip / AH(nh=6, payloadlen=4, icv=bytes(12)) / TCP(dport=443),
        ip / AH(nh=51, payloadlen=1) / AH(nh=17, payloadlen=1) / UDP(dport=53),
        ip / GRE() / IP(src="10.0.0.1") / TCP(dport=443),
        IP(src="10.0.0.1") / IP(src="192.0.2.1") / TCP(dport=443),
        ip / IPv6() / UDP(dport=53),
    ]  # fmt: skip
    for inner in (IP(src="192.0.2.1", ttl=64) / TCP(dport=443), IPv6() / UDP(dport=53)):
        proto = 0x0800 if isinstance(inner, IP) else 0x86DD
        out.append(ip / UDP(dport=6081) / GENEVE(vni=5) / ethernet() / inner)
        out.append(ip / UDP(dport=6081) / GENEVE(vni=5, proto=proto) / inner)
    out.append(ip / UDP(dport=6081) / GENEVE(vni=0xFFFFFF) / ethernet() / ARP())
    out.append(ip / UDP(dport=6081) / GENEVE(vni=5) / ethernet() / Dot1Q(vlan=5) / IP() / UDP(dport=53))
    return out


def _ipv6() -> list[Packet]:
    ip = IPv6(src="2001:db8::1", dst="2001:db8::2")
    out: list[Packet] = [ip / transport for transport in _transports()]
    out += [IPv6(src=s, dst=d) / UDP(sport=53, dport=443) for s, d in zip(HOSTS6, HOSTS6[::-1], strict=True)]
    out += [ip / ICMPv6EchoRequest(), ip / ICMPv6ND_NS(), ip / ICMPv6ND_RA(), IPv6(dst="ff02::1") / Raw(b"\x81\0\0\0")]
    chains: list[list[Packet]] = [
        [IPv6ExtHdrHopByHop()], [IPv6ExtHdrDestOpt()], [IPv6ExtHdrRouting(addresses=["::1"])], [IPv6ExtHdrFragment()],
        [IPv6ExtHdrFragment(offset=5)], [IPv6ExtHdrHopByHop(), IPv6ExtHdrRouting(), IPv6ExtHdrFragment()],
        [IPv6ExtHdrDestOpt()] * 9,
        [IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt(), IPv6ExtHdrFragment(), IPv6ExtHdrDestOpt()],
    ]  # fmt: skip
    for chain in chains:
        for transport in (TCP(dport=443), UDP(dport=53)):
            packet = ip
            for header in chain:
                packet = packet / header.copy()
            out.append(packet / transport)
    out.append(ip / AH(nh=6, payloadlen=4, icv=bytes(12)) / TCP(dport=443))
    out.append(ip / IPv6ExtHdrHopByHop() / AH(nh=60, payloadlen=1) / IPv6ExtHdrDestOpt() / UDP(dport=53))
    out.append(IPv6(src="2001:db8::1", nh=59))
    out.append(ip / UDP(dport=6081) / GENEVE(vni=5) / ethernet() / IP() / TCP(dport=443))
    return out


def _llc() -> list[bytes]:
    """802.3 frames: LLC of every kind of control field, SNAP, STP, NetBEUI, IPX, and OSI routing."""
    head = bytes.fromhex("0180c2000000") + bytes.fromhex("020000000001")
    out = []
    for dsap, ssap in ((0x42, 0x42), (0xF0, 0xF0), (0xE0, 0xE0), (0xFE, 0xFE), (0xAA, 0xAA), (0xFF, 0xFF), (5, 0x81)):
        for control in (
            b"\0\0",
            b"\1\0",
            b"\5\0",
            b"\x09\0",
            b"\x03",
            b"\x73",
            b"\x43",
            b"\x7f",
            b"\xe3",
            b"\xaf",
            b"\x87",
        ):
            out.append(head + pack("!HBB", 30, dsap, ssap) + control + bytes(27))
    for nlpid in (0x81, 0x82, 0x83):
        for kind in (15, 16, 17, 18, 20, 24, 25, 26, 27):
            body = bytes((nlpid, 27, 1, 0, kind, 1, 0, 0))
            out.append(head + pack("!HBBB", 3 + len(body), 0xFE, 0xFE, 3) + body + bytes(20))
    return out


def _decnet() -> list[bytes]:
    """Routing headers, short and long, with and without padding, from and to node 1.2."""
    here, short, long = pack("<H", 0x0402), b"\x02", b"\x06" + bytes(7)
    return [
        short + here + here + bytes(20),
        b"\x81" + short + here + b"\1\0" + bytes(20),
        long + here + bytes(6) + here + bytes(9),
        b"\x81" + long + b"\1\0" + bytes(6) + here + bytes(9),
    ]


def _others() -> list[Packet | bytes]:
    addresses: dict[str, Any] = {"psrc": "192.0.2.1", "pdst": "192.0.2.2"}
    e = bytes.fromhex("020000000002020000000001")
    return [
        ethernet(A, BROADCAST) / ARP(op=1, **addresses), ethernet() / ARP(op=2, **addresses),
        Ether(src=A, dst=BROADCAST, type=0x8035) / ARP(op=3, **addresses),
        Dot3(src=A, dst="01:80:c2:00:00:00") / LLC() / STP(),
        Dot3(src=A, dst=B) / LLC() / SNAP(code=0x80F3, OUI=0) / bytes(20),
        Dot3(src=A, dst=B) / LLC() / SNAP(code=0x809B, OUI=0x080007) / bytes(20),
        Dot3(src=A, dst=B) / (b"\xff\xff" + bytes(30)),
        Dot3(src=A, dst=B) / LLC() / SNAP(code=0x8137, OUI=0) / bytes(20),
        *(e + pack("!H", kind) + bytes(range(40)) for kind in ETHERTYPES),
        *(e + pack("!HH", 0x6003, 0x1400) + body for body in _decnet()),
        ethernet() / PPPoED(sessionid=0) / bytes(20),
        *(ethernet() / PPPoE(sessionid=session) / PPP(proto=proto) / body for session, proto, body in (
            (1, 0x21, IP(src="192.0.2.1") / TCP(flags="S")), (2, 0x57, IPv6(src="2001:db8::1") / UDP(dport=53)),
            (65535, 0x21, IP() / UDP(dport=53)), (1, 0xC021, b"\1\1\0\4"))),
    ]  # fmt: skip


def _encapsulated() -> list[Packet]:
    inner = [
        IP(src="192.0.2.1") / TCP(dport=443),
        IP(ttl=5) / UDP(dport=53),
        IP() / ICMP(),
        IPv6() / TCP(dport=443),
        IPv6() / UDP(dport=53),
        ARP(),
    ]
    out: list[Packet] = []
    for packet in inner:
        out += [
            ethernet() / Dot1Q(vlan=5) / packet,
            ethernet() / Dot1Q(vlan=5) / Dot1Q(vlan=6) / packet,
            Ether(src=A, dst=B, type=0x88A8) / Dot1Q(vlan=4095) / Dot1Q(vlan=5) / packet,
            Ether(src=A, dst=B, type=0x9100) / Dot1Q(vlan=0) / packet,
            ethernet() / Dot1Q(vlan=5) / Dot1Q(vlan=6) / Dot1Q(vlan=7) / packet,
        ]
        if not isinstance(packet, ARP):
            out += [
                ethernet() / MPLS(label=100, s=1) / packet,
                ethernet() / MPLS(label=100, s=0) / MPLS(label=200, s=1) / packet,
                ethernet() / MPLS(label=1023, s=0) / MPLS(label=0, s=1) / packet,
                ethernet() / Dot1Q(vlan=5) / MPLS(label=100, s=1) / packet,
                ethernet() / Dot1Q(vlan=5) / PPPoE(sessionid=1) / PPP() / packet,
            ]
    return out


@cache
def samples() -> tuple[bytes, ...]:
    """A few hundred frames, all different."""
    packets = [ethernet() / p for p in (*_ipv4(), *_ipv6())] + _encapsulated() + _others()
    packets += [
        ethernet(A, "01:00:5e:00:00:05") / IP(dst="224.0.0.5") / UDP(),
        ethernet(A, BROADCAST) / IP(dst="255.255.255.255") / UDP(dport=67),
    ]
    frames = [*(p if isinstance(p, bytes) else raw(p) for p in packets), *_llc()]
    frames += [bytes(14), bytes(60), b"\xff" * 60, bytes(range(256)), raw(ethernet() / IP() / UDP() / bytes(1458))]
    return tuple(dict.fromkeys(frames))


def spoiled(rng: Random, frame: bytes) -> bytes:
    """``frame`` cut short, lengthened, or with bytes changed, mostly in the headers."""
    out = bytearray(frame)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(min(len(out), rng.choice((20, 60, 2000))))
        out[at] = rng.choice(
            (0, 1, 5, 6, 17, 43, 44, 51, 60, 0x3B, 0x40, 0x45, 0x4F, 0x60, 0x80, 0xFF, rng.randrange(256))
        )
    match rng.randrange(4):
        case 0:
            del out[rng.randrange(len(out)) :]
        case 1:
            out += rng.randbytes(rng.randrange(20))
    return bytes(out)

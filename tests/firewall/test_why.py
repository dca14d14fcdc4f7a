"""``xdpkit firewall why``: packets as people write them, and explanations that agree with what happens."""

from __future__ import annotations

import json
import re
from random import Random
from typing import Any

import pytest
from commands import xdpkit
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from strategies import make_frame
from traffic import until

from xdpkit import (
    COUNT,
    DROP,
    PASS,
    REJECT,
    RETURN,
    Pipeline,
    attach,
    ct,
    icmp,
    ip,
    ip6,
    limit,
    pkt,
    quota,
    src,
    tcp,
    udp,
)  # fmt: skip
from xdpkit.firewall.notation import packet_of
from xdpkit.firewall.why import why

# ---- packets as people write them ----

ETHER = Ether(dst="02:00:00:00:00:02", src="02:00:00:00:00:01")
FOUR, SIX = IP(src="198.51.100.7", dst="203.0.113.5"), IPv6(src="2001:db8::1", dst="2001:db8::2")
WRITTEN = {
    "198.51.100.7:4000 > 203.0.113.5:443 tcp syn": FOUR / TCP(sport=4000, dport=443, flags="S"),
    "198.51.100.7:4000 -> 203.0.113.5:443 syn,ack": FOUR / TCP(sport=4000, dport=443, flags="SA"),
    "198.51.100.7:4000 > 203.0.113.5:443 tcp ack seq=7 ack=9 ttl=3": IP(src=FOUR.src, dst=FOUR.dst, ttl=3)
    / TCP(sport=4000, dport=443, flags="A", seq=7, ack=9),
    "198.51.100.7:53 > 203.0.113.5:53 udp bytes=3": FOUR / UDP(sport=53, dport=53) / bytes(3),
    "[2001:db8::1]:4000 > [2001:db8::2]:22 tcp": SIX / TCP(sport=4000, dport=22, flags=0),
    "198.51.100.7 > 203.0.113.5 icmp": FOUR / ICMP(type=8),
    "198.51.100.7 > 203.0.113.5 icmp type=3 code=1": FOUR / ICMP(type=3, code=1),
    "2001:db8::1 > 2001:db8::2 icmp echo-request": SIX / ICMPv6EchoRequest(),
    "198.51.100.7 > 203.0.113.5 proto=47": IP(src=FOUR.src, dst=FOUR.dst, proto=47),
    "198.51.100.7:1 > 203.0.113.5:2 udp vlan=5": Dot1Q(vlan=5) / FOUR / UDP(sport=1, dport=2),
    "arp 198.51.100.7 > 203.0.113.5": ARP(op=1, hwsrc=ETHER.src, psrc=FOUR.src, pdst=FOUR.dst),
}


@pytest.mark.parametrize("text", WRITTEN)
def test_a_packet_is_what_is_written(text: str):
    assert packet_of(text) == bytes(ETHER / WRITTEN[text])


def test_a_frame_may_be_given_in_hexadecimal_digits():
    frame = bytes(ETHER / FOUR / UDP())
    assert packet_of(frame.hex()) == packet_of(frame.hex(":")) == frame
    assert packet_of("198.51.100.7 > 203.0.113.5 icmp src=02:00:00:00:00:07")[6:12] == bytes.fromhex("020000000007")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nonsense", "write it as '198.51.100.7:4000 > 203.0.113.5:443 tcp syn'"),
        ("1.2.3.4:80 > 1.2.3.4:80", "ports, and which protocol?"),
        ("1.2.3.4 > 1.2.3.4", "which protocol?"),
        ("1.2.3.4:80 > 1.2.3.4:80 tcp foo", "'foo' says nothing here; known behind tcp: fin, syn"),
        ("1.2.3.4 > ::1 icmp", "one address is IPv4 and the other IPv6"),
        ("1.2.3.4 > 1.2.3.4 udp", "udp has ports"),
        ("1.2.3.4:99999 > 1.1.1.1:2 udp", "port 99999: 0 to 65535"),
        ("1.2.3.4 > 1.1.1.1 icmp ttl=256", "ttl=256: a number of 0 to 255"),
        ("1.2.3.4 > 1.1.1.1 icmp speed=1", "speed=1: options are ttl"),
        ("1.2.3 > 1.1.1.1 icmp", "'1.2.3' is no address"),
        ("1.2.3.4 > 1.1.1.1 icmp src=02:00", "'02:00' is no MAC address"),
        ("1.2.3.4:1 > 1.1.1.1:1 tcp udp", "tcp and udp: one protocol"),
        ("1.2.3.4 > 1.1.1.1 icmp neighbour-solicitation", "is a message of IPv6"),
    ],
)
def test_what_is_no_packet_is_refused_in_one_line(text: str, said: str):
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        packet_of(text)
    assert len(str(caught.value).splitlines()) == 1


# ---- in force ----


def rules() -> Pipeline:
    """Chains, sets that packets fill, limits that run out, connections and answers."""
    pipe = Pipeline("edge", default=PASS)
    pipe.track(capacity=1000)
    seen = pipe.set("seen", src, intervals=False, timeouts=True, capacity=5000)
    nets = pipe.set("nets", src, members=["192.0.2.0/25", "10.0.0.1", "2001:db8:0:1::/64"])
    web, slow = pipe.chain("web"), pipe.chain("slow")
    ports = pipe.vmap(
        "ports",
        tcp.dport,
        actions=[web.jump, web.goto, RETURN, DROP],
        members={53: web.jump, 443: web.goto, 22: RETURN, 255: DROP},
    )
    pipe.rule(ct.invalid, COUNT, name="invalid")
    pipe.rule(ct.established & tcp.ack, COUNT, name="established")
    pipe.rule(nets, COUNT, name="nets")
    pipe.apply(ports)
    pipe.rule(udp & limit("40/day", burst=40, per=src), seen.add(timeout=3600), slow.jump, name="udp")
    pipe.rule(seen & (ip.ttl < 64), DROP, name="seen")
    pipe.rule(~limit("200/day", burst=200), slow.goto, name="many")
    pipe.rule(ip6, REJECT, name="six")
    web.rule(limit("30/day", burst=30), PASS, name="few")
    web.rule(nets & tcp.syn, DROP, name="nets")
    web.rule(pkt, COUNT, name="end")
    slow.rule(quota("20 kbytes"), PASS, name="quota")
    slow.rule(icmp | ct.new, RETURN, name="new")
    slow.rule(pkt, DROP, name="rest")
    return pipe


def counts(link) -> dict[str, int]:
    return {rule.name: rule.packets for rule in link.ledger().rules}


def traffic(rng: Random) -> list[bytes]:
    """Frames that the rules are about, and random ones; sent again and again, they meet what they have left."""
    ends = [("10.0.0.1", "192.0.2.1"), ("192.0.2.1", "10.0.0.1"), ("198.51.100.7", "203.0.113.5"),
            ("203.0.113.5", "198.51.100.7")]  # fmt: skip
    found: list[Any] = [IP(src=a, dst=b, ttl=9) / TCP(sport=x, dport=y, flags=flags, seq=7, ack=8)
             for a, b in ends for x, y in ((22, 443), (443, 22), (53, 255)) for flags in ("S", "SA", "A")]  # fmt: skip
    found += [IP(src=a, dst=b, ttl=9) / UDP(sport=x, dport=53) for a, b in ends for x in (53, 99)]
    found += [IP(src=a, dst=b, id=7, flags="MF") / UDP(sport=53, dport=53) / bytes(8) for a, b in ends]
    found += [IP(src=a, dst=b, id=7, frag=2, proto=17) / bytes(8) for a, b in ends]
    found += [IP(src=a, dst=b) / ICMP(type=kind, id=3) for a, b in ends for kind in (8, 0)]
    found += [IPv6(src="2001:db8::1", dst="2001:db8::2") / ICMPv6EchoRequest(), ARP()]
    frames = [bytes(ETHER / net) for net in found] + [make_frame(rng) for _ in range(100)]
    return [f for f in frames if f[12:14] not in (b"\x81\x00", b"\x88\xa8") or len(f) >= 20]  # the kernel drops those


@pytest.mark.root
def test_why_agrees_with_what_happens_to_a_thousand_packets(veth_pair):
    left, right = veth_pair
    rng = Random(1)
    with right.namespace, attach(rules(), right.name, mode="native") as link:
        before, frames = counts(link), traffic(rng)
        for number in range(1000):
            frame = rng.choice(frames)
            found = why(link, frame)
            left.send([frame])
            expected = before | {}
            for rule in (*found.passed, found.rule):
                expected[rule.name] += 1
            _wait(link, sum(expected.values()))
            before = counts(link)
            assert before == expected, f"packet {number}, {frame.hex()}:\n{found}"
        assert [name for name, count in before.items() if not count] == ["flow table full"]


def _wait(link, total: int) -> None:
    until(lambda: sum(counts(link).values()) >= total, "the packet is judged")


@pytest.mark.root
def test_the_command_explains_a_packet_to_a_firewall_in_force(veth_pair, tmp_path):
    _, right = veth_pair
    path = tmp_path / "edge.py"
    path.write_text(
        'from xdpkit import *\npipe = Pipeline("edge")\nbans = pipe.bans()\n'
        'web = pipe.chain("web")\npipe.rule(tcp.dport == 443, web.jump, name="https")\n'
        'web.rule(bans, DROP, name="banned")\n'
    )
    packet = "198.51.100.7:4000 > 203.0.113.5:443 tcp syn"
    assert xdpkit(right, "firewall", "apply", path, "-i", right.name).returncode == 0
    try:
        told = xdpkit(right, "firewall", "why", packet)
        assert (told.returncode, told.stdout.splitlines()[1]) == (0, f"PASS by the default ({path}:2)")
        assert xdpkit(right, "firewall", "ban", "198.51.100.0/24").returncode == 0
        told = xdpkit(right, "firewall", "why", packet)
        assert told.stdout.splitlines()[1:] == [
            f"DROP by rule 'web/banned' ({path}:6)",
            f"  https: tcp.dport == 443 (tcp.dport is 443) -> JUMP web   {path}:5",
            f"  web/banned: src in bans (member 198.51.100.0/24) -> DROP   {path}:6",
        ]
        found = json.loads(xdpkit(right, "firewall", "why", packet, "--json").stdout)
        assert (found["verdict"], found["rule"], found["chain"], found["line"]) == ("DROP", "web/banned", "web", 6)
    finally:
        xdpkit(right, "firewall", "detach")


@pytest.mark.root
def test_rules_in_a_file_can_be_asked(veth_pair, tmp_path):
    _, right = veth_pair
    path = tmp_path / "edge.py"
    path.write_text('from xdpkit import *\npipe = Pipeline("edge")\npipe.rule(udp, DROP, name="udp")\n')
    told = xdpkit(right, "firewall", "why", "198.51.100.7:53 > 203.0.113.5:53 udp", "--rules", path)
    assert told.stdout.splitlines()[1] == f"DROP by rule 'udp' ({path}:3)"
    wrong = xdpkit(right, "firewall", "why", "nonsense", "--rules", path)
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr

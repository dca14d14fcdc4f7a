"""nftables judges the same packets behind xdpkit, and each rule counts the same; where they differ by design, a test
says how.  What is compared is the page that users read: docs/nftables.md."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, note
from hypothesis import strategies as st
from nft import Both, Nft, beside, counted, mended, pairs, plain_frames, rows, table
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.layers.ipsec import AH
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.layers.sctp import SCTP
from strategies import again, examples
from traffic import until

import xdpkit
from xdpkit import COUNT, DROP, PASS, Pipeline, PipelineError, PipelineWarning, attach, ip, limit, tcp, udp
from xdpkit.actions import Add
from xdpkit.lab import Lab

PAGE = "docs/nftables.md"
MODES = ("native", "generic", "tc_ingress")
modes = pytest.mark.parametrize("mode", MODES)
SCOPE = {name: getattr(xdpkit, name) for name in xdpkit.__all__}
CONDITIONS = [(nft, python) for nft, python in rows(PAGE, "Conditions")]

pytestmark = pytest.mark.filterwarnings("ignore::xdpkit.PipelineWarning")


def known_frames() -> list[bytes]:
    """Frames that the rules of the page are about, several of each, well-formed."""
    four = [IP(src=src, dst=dst) for src in ("10.0.0.1", "192.0.2.1", "192.0.2.129", "198.51.100.9", "203.0.113.5")
            for dst in ("192.0.2.1", "192.0.2.2", "198.51.100.10")]  # fmt: skip
    six = [IPv6(src=src, dst="2001:db8::9", fl=1, tc=4) for src in ("2001:db8::1", "2001:db8:0:1::1", "fe80::1")]
    above = [UDP(sport=53, dport=port) / b"0123456789AB" for port in (22, 23, 53)]
    above += [TCP(dport=port, flags="S", options=[("MSS", 1460)]) for port in (53, 443, 1024)]
    found = [net / up for net in (*four, *six) for up in above]
    found += [net / ICMP(type=8, id=53) for net in four] + [net / ICMPv6EchoRequest() for net in six]
    found += [four[0] / SCTP(dport=53), ARP(psrc="10.0.0.1"), IP(flags="MF") / UDP(dport=53)]
    found += [four[0] / UDP(dport=53, chksum=0), four[0] / TCP(dport=53, window=53)]
    found += [IP(options=IPOption_NOP()) / UDP(dport=53), IP(src="192.0.2.1", tos=0) / UDP() / b"1"]
    found += [Dot1Q(vlan=5, prio=1) / four[0] / above[0], Dot1Q(vlan=6) / six[0] / above[3]]
    found += [IPv6() / IPv6ExtHdrHopByHop() / IPv6ExtHdrFragment(m=1) / above[0]]
    macs = ("02:00:00:00:00:01", "02:00:00:00:00:02")
    return [bytes(Ether(src=macs[n % 7 == 0], dst="02:00:00:00:00:09") / net) for n, net in enumerate(found)]


KNOWN = known_frames()


@pytest.fixture(scope="module", params=MODES)
def translated(request) -> Iterator[Both]:
    """Every row of the table as a rule that counts, by its number."""
    pipe = Pipeline("translated")
    for number, (_, python) in enumerate(CONDITIONS):
        pipe.rule(eval(python, dict(SCOPE)), COUNT, name=str(number))
    rules = "\n".join(f'{nft} counter comment "{number}"' for number, (nft, _) in enumerate(CONDITIONS))
    with Lab.pair() as (left, right), beside(left, right, pipe, request.param, table(rules)) as both:
        yield both


def differing(both: Both) -> dict[str, tuple[int, int]]:
    """Rows of the table whose counts differ: ours, theirs."""
    ours, theirs = both.counts()
    return {CONDITIONS[int(n)][0]: (ours[n], theirs[n]) for n in ours if ours[n] != theirs[n]}


def test_every_condition_of_the_page_counts_what_its_translation_counts(translated: Both):
    translated.send(KNOWN)
    ours, _ = translated.counts()
    assert differing(translated) == {}
    assert [CONDITIONS[int(n)][0] for n, count in ours.items() if not count] == []


@examples(4)
@given(st.integers(0, 2**32 - 1))
def test_conditions_and_translations_agree_on_random_frames(translated: Both, seed: int):
    note(again("test_nft_peer.py"))
    translated.send(plain_frames(seed, 3000))
    assert differing(translated) == {}


# ---- whole rulesets ----

PAIRS = pairs(PAGE)


def declared(python: str) -> Pipeline:
    """The pipeline of a Python block."""
    scope: dict[str, object] = {}
    exec(compile(python, PAGE, "exec"), scope)
    assert isinstance(scope["pipe"], Pipeline)
    return scope["pipe"]


def acting(pipe: Pipeline) -> Pipeline:
    """The same rules so that every packet gets to nftables: those that fill sets must act, others are tried."""
    if not any(isinstance(step, Add) for rule in pipe.rules for step in rule.steps):
        return pipe.shadow()
    assert pipe.verdicts == {"PASS"}
    return pipe


@modes
@pytest.mark.parametrize(("nft", "python"), [p[1:] for p in PAIRS], ids=[p[0] for p in PAIRS])
def test_a_ruleset_of_the_page_counts_what_its_translation_counts(veth_pair, nft: str, python: str, mode: str):
    with beside(*veth_pair, acting(declared(python)), mode, nft) as both:
        for seed in range(3):
            both.send(KNOWN + plain_frames(seed, 700))
        ours, theirs = both.counts()
    assert ours == theirs
    assert [name for name, count in ours.items() if not count] == []


#: Name, what stands beside the chain, its rules, and the declaration of the same: ``pipe`` and all of xdpkit are there.
RULESETS = [
    (
        "addresses",
        "set hosts { type ipv4_addr; elements = { 10.0.0.1, 192.0.2.255 }; }",
        'ip saddr @hosts counter accept comment "from"; ip daddr @hosts counter accept comment "to"',
        """
hosts = pipe.set("hosts", ip.src, intervals=False, members=["10.0.0.1", "192.0.2.255"])
pipe.rule(hosts, PASS, name="from")
pipe.rule(ip.dst.isin(hosts), PASS, name="to")
""",
    ),
    (
        "prefixes that overlap, merged by nftables",
        """set nets { type ipv4_addr; flags interval; auto-merge
            elements = { 192.0.2.0/24, 192.0.2.128/25, 192.0.2.200-192.0.3.5, 10.0.0.0/8 }
        }""",
        'ip saddr @nets counter drop comment "in"; ip daddr != @nets counter drop comment "not in"',
        """
nets = pipe.set("nets", ip.src, members=["192.0.2.0/24", "192.0.2.128/25", "192.0.2.200-192.0.3.5", "10.0.0.0/8"])
pipe.rule(nets, DROP, name="in")
pipe.rule(ip & ~ip.dst.isin(nets), DROP, name="not in")
""",
    ),
    (
        "ranges of ports",
        "set ports { type inet_service; flags interval; elements = { 0-52, 54-443, 65535 }; }",
        'tcp dport @ports counter drop comment "tcp"; udp dport @ports counter drop comment "udp"',
        """
ports = pipe.set("ports", tcp.dport, intervals=True, members=["0-52", "54-443", 65535])
pipe.rule(ports, DROP, name="tcp")
pipe.rule(udp.dport.isin(ports), DROP, name="udp")
""",
    ),
    (
        "hardware addresses, protocols and VLANs",
        """set macs { type ether_addr . ether_addr; elements = { 02:00:00:00:00:01 . 02:00:00:00:00:02,
            ff:ff:ff:ff:ff:ff . 00:00:00:00:00:00, 02:00:00:00:00:01 . 02:00:00:00:00:09 }; }
        set protos { type inet_proto; elements = { tcp, udp, 41 }; }
        set tags { typeof vlan id; elements = { 1, 5, 4095 }; }""",
        """ether saddr . ether daddr @macs counter comment "macs"; ip protocol @protos counter comment "protos"
        vlan id @tags counter comment "tags" """,
        """
macs = pipe.set("macs", eth.src, eth.dst, members=[
    "02:00:00:00:00:01 . 02:00:00:00:00:02", "ff:ff:ff:ff:ff:ff . 00:00:00:00:00:00",
    "02:00:00:00:00:01 . 02:00:00:00:00:09"])
protos, tags = pipe.set("protos", ip.proto, members=[6, 17, 41]), pipe.set("tags", vlan.id, members=[1, 5, 4095])
pipe.rule(macs, COUNT, name="macs")
pipe.rule(protos, COUNT, name="protos")
pipe.rule(tags, COUNT, name="tags")
""",
    ),
    (
        "concatenations",
        """set flows { type ipv4_addr . ipv4_addr . inet_service; elements = { 10.0.0.1 . 192.0.2.1 . 53,
            192.0.2.1 . 192.0.2.2 . 23, 192.0.2.0 . 192.0.2.1 . 65535 }; }
        set nets { type inet_service . ipv4_addr; flags interval; elements = { 53 . 192.0.2.0/24, 22 . 0.0.0.0/1 }; }
        set six { type ipv6_addr . inet_service; flags interval; elements = { 2001:db8::1 . 0-1000 }; }""",
        """ip saddr . ip daddr . udp dport @flows counter comment "flows"
        udp dport . ip saddr @nets counter comment "nets"; ip6 saddr . tcp dport @six counter comment "six" """,
        """
flows = pipe.set("flows", ip.src, ip.dst, udp.dport, members=[
    "10.0.0.1 . 192.0.2.1 . 53", ("192.0.2.1", "192.0.2.2", 23), ("192.0.2.0", "192.0.2.1", 65535)])
nets = pipe.set("nets", udp.dport, ip.src, intervals=True, members=["53 . 192.0.2.0/24", "22 . 0.0.0.0/1"])
six = pipe.set("six", ip6.src, tcp.dport, intervals=True, members=["2001:db8::1 . 0-1000"])
pipe.rule(flows, COUNT, name="flows")
pipe.rule(nets, COUNT, name="nets")
pipe.rule(six, COUNT, name="six")
""",
    ),
    (
        "verdict maps of prefixes and of concatenations",
        """map v4 { type ipv4_addr : verdict; flags interval; elements = { 192.0.2.0/25 : goto no, 10.0.0.1 : goto yes }; }
        map v6 { type ipv6_addr . inet_service : verdict; elements = { 2001:db8::1 . 53 : goto no6 }; }
        chain yes { counter accept comment "v4:PASS"; }
        chain no { counter drop comment "v4:DROP"; }
        chain no6 { counter drop comment "v6:DROP"; }""",
        'udp dport > 22 ip saddr vmap @v4; ip6 saddr . tcp dport vmap @v6; counter comment "others"',
        """
v4 = pipe.vmap("v4", ip.src, members={"192.0.2.0/25": DROP, "10.0.0.1": PASS})
v6 = pipe.vmap("v6", ip6.src, tcp.dport, actions=[DROP], members={"2001:db8::1 . 53": DROP})
pipe.apply(v4, when=udp.dport > 22)
pipe.apply(v6)
pipe.rule(pkt.present, COUNT, name="others")
""",
    ),
    (
        "limits that come late",
        "",
        """ip6 hoplimit > 1 tcp dport 53 limit rate 2/day counter accept comment "few"
        limit rate over 1/day burst 40 packets udp dport 53 counter drop comment "many" """,
        """
pipe.rule((ip6.hlim > 1) & (tcp.dport == 53) & limit("2/day", burst=5), PASS, name="few")
pipe.rule(~limit("1/day", burst=40) & (udp.dport == 53), DROP, name="many")
""",
    ),
]


@modes
@pytest.mark.parametrize(("outside", "rules", "python"), [r[1:] for r in RULESETS], ids=[r[0] for r in RULESETS])
def test_sets_maps_and_limits_of_every_kind_count_alike(veth_pair, outside: str, rules: str, python: str, mode: str):
    pipe = Pipeline("peer")
    exec(compile(python, "declaration", "exec"), SCOPE | {"pipe": pipe})
    with beside(*veth_pair, acting(pipe), mode, table(rules, outside)) as both:
        both.send(KNOWN + plain_frames(1, 3000))
        ours, theirs = both.counts()
    assert ours == theirs
    assert [name for name, count in ours.items() if not count] == []

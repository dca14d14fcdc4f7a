"""nftables judges the same packets behind xdpkit, and each rule counts the same; where they differ by design, a test
says how.  What is compared is the page that users read: docs/nftables.md."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from operator import truediv
from random import Random
from typing import Any

import pytest
from hypothesis import given, note
from hypothesis import strategies as st
from nft import Both, Nft, pairs, plain_frames, rows, table, with_nftables
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6MLQuery,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrSegmentRouting,
)
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Packet
from strategies import again, examples, listing
from traffic import until

import xdpkit
from xdpkit import COUNT, DROP, PASS, RETURN, Limit, Pipeline, PipelineError, ip, limit, udp
from xdpkit.lab import Lab
from xdpkit.language.sets import Add
from xdpkit.meaning.evaluate import evaluate
from xdpkit.sockets.options import Mode

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
    above: list[Packet] = [UDP(sport=53, dport=port) / b"0123456789AB" for port in (22, 23, 53)]
    above += [TCP(dport=port, flags="S", options=[("MSS", 1460)]) for port in (53, 443, 1024)]
    found = [net / up for net in (*four, *six) for up in above]
    found += [net / ICMP(type=8, id=53) for net in four] + [net / ICMPv6EchoRequest() for net in six]
    found += [four[0] / SCTP(dport=53), ARP(psrc="10.0.0.1"), IP(flags="MF") / UDP(dport=53)]
    found += [four[0] / UDP(dport=53, chksum=0), four[0] / TCP(dport=53, window=53)]
    found += [IP(options=IPOption_NOP()) / UDP(dport=53), IP(src="192.0.2.1", tos=0) / UDP() / b"1"]
    found += [Dot1Q(vlan=5, prio=1) / four[0] / above[0], Dot1Q(vlan=6) / six[0] / above[3]]
    found += [IPv6() / IPv6ExtHdrHopByHop() / IPv6ExtHdrFragment(m=1) / above[0]]
    found += [IPv6() / IPv6ExtHdrSegmentRouting(segleft=1, addresses=["2001:db8::1"]) / above[0]]
    found += [
        four[0] / ICMP(type=3, code=4, nexthopmtu=1400) / four[0],
        four[0] / ICMP(type=5, gw="192.0.2.9") / four[0],
    ]
    found += [six[0] / kind / six[0] for kind in (ICMPv6PacketTooBig(mtu=1280), ICMPv6ParamProblem(ptr=40))]
    found += [six[0] / ICMPv6MLQuery(mrd=1000)]
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
    with Lab.pair() as (left, right), with_nftables(left, right, pipe, request.param, table(rules)) as both:
        yield both


def differing(both: Both) -> dict[str, tuple[int, int]]:
    """Rows of the table whose counts differ: ours, theirs."""
    ours, theirs = both.counts()
    return {CONDITIONS[int(n)][0]: (ours[n], theirs[n]) for n in ours if ours[n] != theirs[n]}


@pytest.mark.root
def test_every_condition_of_the_page_counts_what_its_translation_counts(translated: Both):
    translated.send(KNOWN)
    ours, _ = translated.counts()
    assert differing(translated) == {}
    assert [CONDITIONS[int(n)][0] for n, count in ours.items() if not count] == []


@pytest.mark.root
@examples(4)
@given(st.integers(0, 2**32 - 1))
def test_conditions_and_translations_agree_on_random_frames(translated: Both, seed: int):
    note(again("meaning/test_nft_peer.py"))
    translated.send(plain_frames(seed, 3000))
    found = differing(translated)
    found.pop("tcp option maxseg size 1460", None)  # most random options are malformed, see the differences
    assert found == {}


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


@pytest.mark.root
@modes
@pytest.mark.parametrize(("nft", "python"), [p[1:] for p in PAIRS], ids=[p[0] for p in PAIRS])
def test_a_ruleset_of_the_page_counts_what_its_translation_counts(veth_pair, nft: str, python: str, mode: Mode):
    with with_nftables(*veth_pair, acting(declared(python)), mode, nft) as both:
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
        """map v4 { type ipv4_addr : verdict; flags interval
            elements = { 192.0.2.0/25 : goto no, 10.0.0.1 : goto yes }
        }
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


@pytest.mark.root
@modes
@pytest.mark.parametrize(("outside", "rules", "python"), [r[1:] for r in RULESETS], ids=[r[0] for r in RULESETS])
def test_sets_maps_and_limits_of_every_kind_count_alike(veth_pair, outside: str, rules: str, python: str, mode: Mode):
    pipe = Pipeline("peer")
    exec(compile(python, "declaration", "exec"), SCOPE | {"pipe": pipe})
    with with_nftables(*veth_pair, acting(pipe), mode, table(rules, outside)) as both:
        both.send(KNOWN + plain_frames(1, 3000))
        ours, theirs = both.counts()
    assert ours == theirs
    assert [name for name, count in ours.items() if not count] == []


# ---- chains ----


def branching(seed: int) -> tuple[Pipeline, str]:
    """Up to five chains of up to five rules each, whose conditions are rows of the page; the same for nftables.
    Without those of TCP options, of which most random ones are malformed."""
    rng, pipe = Random(seed), Pipeline("branching")
    chains: list[Any] = [pipe, *(pipe.chain(f"c{n}") for n in range(rng.randint(1, 5)))]
    lines: list[list[str]] = [[] for _ in chains]
    for at, chain in enumerate(chains):
        for _ in range(rng.randint(1, 5)):
            nft, python = rng.choice([*(c for c in CONDITIONS if "maxseg" not in c[0]), *[("", "pkt.present")] * 20])
            kind = rng.choice(("", "accept", "drop", "return", *["jump", "goto", "jump"] * (at + 1 < len(chains))))
            to = rng.randrange(at, len(chains) - 1) if kind in ("jump", "goto") else 0
            lower = chains[to + 1]
            then = {"": COUNT, "accept": PASS, "drop": DROP, "return": RETURN}.get(kind) or getattr(lower, kind)
            rule = chain.rule(eval(python, dict(SCOPE)), then)
            where = f"{kind} c{to}" if kind in ("jump", "goto") else kind
            lines[at].append(f'{nft} counter {where} comment "{rule.name}"')
    outside = "\n".join(f"chain c{n} {{\n{chr(10).join(rules)}\n}}" for n, rules in enumerate(lines[1:]))
    return pipe, table("\n".join(lines[0]), outside)


@pytest.mark.root
@modes
@examples(10)
@given(seed=st.integers(0, 2**32 - 1))
def test_jumps_gotos_and_returns_at_random_count_as_those_of_nftables(mode: Mode, seed: int):
    note(again("meaning/test_nft_peer.py"))
    pipe, ruleset = branching(seed)
    note(f"{listing(pipe)}\n{ruleset}")
    with Lab.pair() as (left, right), with_nftables(left, right, pipe.shadow(), mode, ruleset) as both:
        both.send(KNOWN + plain_frames(seed, 300))
        ours, theirs = both.counts()
    assert ours == theirs


@pytest.mark.root
def test_a_chain_is_refused_where_nftables_refuses_it(veth_pair):
    """Circles, and chains that are too deep."""
    _, right = veth_pair
    circle = "chain a { counter jump b; }\nchain b { counter goto a; }"
    assert refused(right, "jump a", circle)
    deep = "\n".join(f"chain c{n} {{ {f'jump c{n + 1};' if n < 15 else 'counter;'} }}" for n in range(16))
    assert "Too many links" in refused(right, "jump c0", deep)
    Nft(right, table("jump c1", deep))


# ---- differences ----


def ether(net, **options) -> bytes:
    return bytes(Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:09", **options) / net)


FOUR, SIX, DNS = IP(src="10.0.0.1", dst="192.0.2.1"), IPv6(src="2001:db8::1", dst="2001:db8::9"), UDP(dport=53)
#: Hardware addresses of 8 bytes: what nftables takes for the sender's IPv4 address is the end of its hardware address.
LONG_ARP = bytes.fromhex("0001 0800 08 04 0001  0000 0000 0000 0a00  0001 0000") + bytes(12)
TWO_FRAGMENT_HEADERS = IPv6ExtHdrFragment(id=1) / IPv6ExtHdrDestOpt() / IPv6ExtHdrFragment(id=2)
#: By the name in the page's table: a frame, a rule of nftables and if it holds, the condition here and if that holds.
JUDGED = {
    "Two VLAN tags": (ether(Dot1Q(vlan=5) / Dot1Q(vlan=6) / FOUR / DNS), "ip saddr 10.0.0.1", 0,
                      'ip.src == "10.0.0.1"', 1),
    "802.1ad tags": (ether(Dot1AD(vlan=5) / FOUR / DNS), "vlan id 5", 0, "vlan.id == 5", 1),
    "Length": (ether(Dot1Q(vlan=5) / FOUR / UDP() / bytes(32)), "meta length 60", 1, "pkt.len == 74", 0),
    "Headers cut short": (ether(FOUR / DNS)[:24], "meta protocol ip", 1, "ip", 0),
    "Transport header cut short": (ether(IP(src="10.0.0.1", proto=6) / b"\0\x35\0\x35"), "tcp dport 53", 1,
                                   "tcp.dport == 53", 0),
    "IP version": (ether(IP(src="10.0.0.1", version=5) / DNS), "ip saddr 10.0.0.1", 1, 'ip.src == "10.0.0.1"', 0),
    "IP length": (ether(IP(src="10.0.0.1", len=60) / DNS), "udp dport 53", 0, "udp.dport == 53", 1),
    "Later fragments": (ether(IP(src="10.0.0.1", proto=17, frag=100) / b"\0\x35\0\x35"), "udp dport 53", 1,
                        "udp.dport == 53", 0),
    "AH in IPv6": (ether(IPv6(nh=51) / (b"\x11\1" + bytes(10)) / DNS), "udp dport 53", 0, "udp.dport == 53", 1),
    "Repeated extension headers": (ether(SIX / TWO_FRAGMENT_HEADERS / DNS), "frag id 1", 1, "frag.id == 1", 0),
    "Many extension headers": (ether(reduce(truediv, [SIX, *[IPv6ExtHdrDestOpt()] * 7, DNS])), "udp dport 53", 1,
                               "udp.dport == 53", 0),
    "ICMP over the other IP": (ether(IPv6(src="2001:db8::1", nh=1) / ICMP()), "meta l4proto icmp", 1, "icmp", 0),
    "ARP of other networks": (ether(LONG_ARP, type=0x0806), "arp saddr ip 10.0.0.1", 1, 'arp.spa == "10.0.0.1"', 0),
    "th": (ether(IP(src="10.0.0.1", proto=47) / b"\0\0\0\x35" / bytes(8)), "th dport 53", 1,
             "(tcp.dport == 53) | (udp.dport == 53)", 0),
    "TCP options": (ether(FOUR / TCP(options=[("EOL", None), ("MSS", 1460)])), "tcp option maxseg size 1460", 1,
                    "tcp.mss == 1460", 0),
}  # fmt: skip
PINNED = [row[0] for row in rows(PAGE, "What is different")]


@pytest.mark.root
@modes
@pytest.mark.parametrize("name", JUDGED)
def test_a_packet_that_both_judge_differently_is_one_that_the_page_names(veth_pair, name: str, mode: Mode):
    frame, nft, theirs, python, ours = JUDGED[name]
    pipe = Pipeline("differs")
    pipe.rule(eval(python, dict(SCOPE)), COUNT, name="rule")
    with with_nftables(*veth_pair, pipe, mode, table(f'{nft} counter comment "rule"')) as both:
        both.send([frame])
        assert both.counts() == ({"rule": ours}, {"rule": theirs})
    assert name in PINNED


def refused(right, rules: str, outside: str) -> str:
    """What nft says about a ruleset that it does not take."""
    with pytest.raises(AssertionError) as caught:
        Nft(right, table(rules, outside))
    return str(caught.value)


@pytest.mark.root
def test_overlapping_prefixes(veth_pair):
    _, right = veth_pair
    kinds = "type ipv4_addr; flags interval; elements ="
    assert "conflicting intervals" in refused(right, "", f"set s {{ {kinds} {{ 10.0.0.0/8, 10.1.0.0/16 }}; }}")
    said = refused(right, "", f"map m {{ type ipv4_addr : verdict; flags interval; elements = {{ {VERDICTS} }}; }}")
    assert "conflicting intervals" in said
    pipe = Pipeline("overlap")
    nets = pipe.vmap("nets", ip.src, members={"10.0.0.0/8": DROP, "10.1.0.0/16": PASS})
    pipe.apply(nets)
    assert evaluate(pipe, ether(IP(src="10.1.0.1") / DNS)).name == "nets:PASS"
    assert "Overlapping prefixes" in PINNED


VERDICTS = "10.0.0.0/8 : drop, 10.1.0.0/16 : accept"


@pytest.mark.root
def test_prefixes_in_any_field_of_a_concatenation(veth_pair):
    _, right = veth_pair
    elements = "elements = { 10.0.0.0/8 . 53 }"
    Nft(right, table("", f"set s {{ type ipv4_addr . inet_service; flags interval; {elements}; }}"))
    with pytest.raises(PipelineError, match=r"intervals=True for prefixes and ranges of the last field"):
        Pipeline("p").set("s", ip.src, udp.dport, intervals=True, members=["10.0.0.0/8 . 53"])
    assert "Prefixes in concatenations" in PINNED


def sources(count: int, each: int = 1) -> list[bytes]:
    """``each`` DNS packets of ``count`` sources."""
    return [ether(IP(src=f"10.0.{n >> 8}.{n & 255}") / DNS) for n in range(count) for _ in range(each)]


@pytest.mark.root
@modes
def test_a_full_set_ends_the_rule_of_nftables_and_is_counted_here(veth_pair, mode: Mode):
    pipe = Pipeline("full")
    seen = pipe.set("seen", ip.src, intervals=False, capacity=4)
    pipe.rule(udp, seen.add(), COUNT, name="noted")
    outside = "set seen { type ipv4_addr; size 4; flags dynamic; }"
    with with_nftables(
        *veth_pair, pipe, mode, table('udp dport 53 add @seen { ip saddr } counter comment "noted"', outside)
    ) as b:
        b.send(sources(10))
        assert b.counts() == ({"noted": 10}, {"noted": 4})
        assert next(r.failed for r in b.link.ledger().rules if r.name == "noted") == 6
    assert "A full set" in PINNED


@pytest.mark.root
@modes
def test_a_full_meter_forgets_a_source_here_and_takes_no_new_one_there(veth_pair, mode: Mode):
    """With room for all, both let one packet of each source pass."""
    pipe = Pipeline("meter")
    pipe.rule((udp.dport == 53) & limit("1/day", burst=1, per=ip.src, capacity=64), COUNT, name="first")
    outside = "set m { type ipv4_addr; size 64; flags dynamic; }"
    rule = 'udp dport 53 add @m { ip saddr limit rate 1/day burst 1 packets } counter comment "first"'
    with with_nftables(*veth_pair, pipe, mode, table(rule, outside)) as both:
        both.send(sources(16, each=3))
        assert both.counts() == ({"first": 16}, {"first": 16})
        both.send(sources(2048, each=1)[16:])
        assert both.counts() == ({"first": 2048}, {"first": 64})
    assert "A full meter" in PINNED


@pytest.mark.root
@modes
def test_a_member_that_packets_added_ends_by_itself_in_both(veth_pair, mode: Mode):
    pipe = Pipeline("ends")
    seen = pipe.set("seen", ip.src, intervals=False, timeouts=True)
    pipe.rule(seen, COUNT, name="known")
    pipe.rule(udp, seen.add(timeout=0.7), name="noted")
    rules = """ip saddr @seen counter comment "known"
        udp dport 53 update @seen { ip saddr timeout 700ms } counter comment "noted" """
    with with_nftables(
        *veth_pair, pipe, mode, table(rules, "set seen { type ipv4_addr; size 99; flags dynamic,timeout; }")
    ) as b:
        b.send(sources(3))
        until(lambda: len(b.link.sets["seen"]) == b.nft.set_size("seen") == 0, "every member is over")
        b.send(sources(3))
        ours, theirs = b.counts()
    assert ours == theirs == {"known": 0, "noted": 6}


@pytest.mark.root
@modes
def test_adding_a_member_that_is_there_starts_its_time_out_anew_here_and_only_with_update_there(veth_pair, mode: Mode):
    pipe = Pipeline("anew")
    seen = pipe.set("seen", ip.src, intervals=False, timeouts=True)
    pipe.rule(udp, seen.add(timeout=3600), name="first")
    pipe.rule(udp, seen.add(timeout=7200), name="again")
    rules = """udp dport 53 add @seen { ip saddr timeout 1h } counter comment "first"
        udp dport 53 add @seen { ip saddr timeout 2h } counter comment "again" """
    with with_nftables(
        *veth_pair, pipe, mode, table(rules, "set seen { type ipv4_addr; size 99; flags dynamic,timeout; }")
    ) as b:
        b.send(sources(1))
        (ours,) = b.link.sets["seen"].members()
        (theirs,) = next(s["elem"] for s in b.nft.listed("set") if s["name"] == "seen")
    assert ours.timeout > 3600 >= theirs["elem"]["expires"]
    assert "Adding to a set" in PINNED


@pytest.mark.root
@modes
def test_a_limit_in_bytes_holds_a_burst_here_and_a_unit_of_the_rate_more_there(veth_pair, mode: Mode):
    """Also: nftables measures the packet without its Ethernet header."""
    pipe = Pipeline("bytes")
    pipe.rule(limit("100 bytes/minute", burst=1000), COUNT, name="within")
    frame = ether(FOUR / UDP() / bytes(72))
    assert len(frame) == 114
    with with_nftables(
        *veth_pair, pipe, mode, table('limit rate 100 bytes/minute burst 1000 bytes counter comment "within"')
    ) as b:
        b.send([frame] * 20)
        assert b.counts() == ({"within": 1000 // 114}, {"within": 1100 // 100})
    assert "Limits in bytes" in PINNED


@pytest.mark.root
@modes
def test_limits_let_the_same_number_of_packets_through_as_time_goes_on(veth_pair, mode: Mode):
    """The two look at the clock a little after one another: a packet at the edge may be on this side or that."""
    left, right = veth_pair
    pipe = Pipeline("rates")
    pipe.rule(limit("500/second", burst=20), COUNT, name="within")
    pipe.rule(~limit("9000/minute", burst=1), COUNT, name="over")
    rules = """limit rate 500/second burst 20 packets counter comment "within"
        limit rate over 9000/minute burst 1 packets counter comment "over" """
    frame = ether(FOUR / DNS).ljust(64, b"\0")
    with left.generator([frame]) as generator, with_nftables(left, right, pipe, mode, table(rules)) as both:
        generator.start(4000, rate_pps=8000)
        both.sent = generator.wait()
        generator.settle()
        both.settle()
        ours, theirs = both.counts()
    assert generator.dropped == 0
    assert {name for name in ours if abs(ours[name] - theirs[name]) > 3} == set()
    assert ours["within"] > 20
    assert 0 < ours["over"] < 4000


def test_what_is_different_is_all_held_to_a_test():
    tested = {*JUDGED, "Overlapping prefixes", "Prefixes in concatenations", "A full set", "A full meter",
              "Adding to a set", "Limits in bytes", "Bytes of counters", "Default bursts"}  # fmt: skip
    assert set(PINNED) == tested


@pytest.mark.root
@modes
def test_counters_have_the_bytes_of_the_frame_here_and_those_of_the_packet_there(veth_pair, mode: Mode):
    pipe = Pipeline("bytes")
    pipe.rule(udp, COUNT, name="udp")
    with with_nftables(*veth_pair, pipe, mode, table('udp dport 53 counter comment "udp"')) as both:
        both.send([ether(FOUR / DNS / bytes(30))])
        ours = next(r.bytes for r in both.link.ledger().rules if r.name == "udp")
        assert (ours, both.nft.counts("bytes")["udp"]) == (72, 58)
    assert "Bytes of counters" in PINNED


@pytest.mark.root
def test_bursts_that_are_not_said(veth_pair):
    pipe = Pipeline("bursts")
    pipe.rule(limit("1000/second") & limit("1/day"), COUNT, name="packets")
    assert [made.burst for made in pipe.limits if isinstance(made, Limit)] == [100, 5]
    nft = Nft(veth_pair[1], table("limit rate 1000/second counter; limit rate 100 bytes/second counter"))
    assert [b["limit"].get("burst") for b in nft.statements("limit")] == [5, 0]
    assert "Default bursts" in PINNED

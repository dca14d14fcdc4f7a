"""Rulesets of nftables become pipeline files: what they read like, what share of them is imported, what is refused."""

from __future__ import annotations

import json
import subprocess
import warnings
from pathlib import Path
from random import Random
from uuid import uuid4

import pytest
from commands import XDPKIT
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet
from scapy.utils import wrpcap

from xdpkit import Pipeline, load_file
from xdpkit.device.netns import Namespace
from xdpkit.files.reader import CapturedPacket
from xdpkit.firewall.nft import Imported, NftError, read, translate
from xdpkit.firewall.nft_prove import prove
from xdpkit.language.check import PipelineWarning
from xdpkit.meaning.evaluate import State, run

CORPUS = sorted((Path(__file__).parent / "rulesets").glob("*.nft"))
BRIDGES = {"router": ("wan", "br-lan"), "home": ("ppp0", "eth1"), "legacy": ("eth0", "docker0")}
ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:09")


def as_json(rules: str) -> str:
    """The ruleset as nft prints it."""
    namespace = Namespace("nft")
    try:
        namespace.run(["ip", "link", "add", "eth1", "type", "veth", "peer", "name", "far"], check=True)
        namespace.run(["nft", "-f", "-"], input=rules, text=True, check=True)
        return str(namespace.run(["nft", "-j", "list", "ruleset"], capture_output=True, text=True, check=True).stdout)
    finally:
        namespace.close()


def imported(rules: str, **options) -> Imported:
    return translate(read(as_json(rules)), **options)


def declared(done: Imported, tmp_path: Path) -> Pipeline:
    path = tmp_path / f"{uuid4().hex}.py"
    path.write_text(done.python)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PipelineWarning)
        return load_file(path)


def xdpkit(*args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([XDPKIT, *args], input=stdin, capture_output=True, text=True, check=False, timeout=60)


def inet(rules: str, *, policy: str = "accept", outside: str = "", hook: str = "input") -> str:
    head = f"type filter hook {hook} priority 0; policy {policy};"
    return f"table inet t {{\n{outside}\nchain c {{ {head}\n{rules}\n}}\n}}\n"


@pytest.mark.root
def test_most_rules_of_the_corpus_are_imported_and_the_rest_is_named(tmp_path: Path):
    """All but NAT, changes of packets, owners of sockets and questions about routes."""
    rules, done = 0, 0
    for path in CORPUS:
        result = imported(path.read_text(), bridge=BRIDGES.get(path.stem))
        declared(result, tmp_path)
        rules += len(result.outcomes)
        done += len(result.outcomes) - len(result.refused)
        for outcome in result.refused:
            assert any(word in outcome.reason for word in ("NAT", "changes the packet", "owner", "routing table")), (
                outcome
            )
    assert rules > 120
    assert done / rules >= 0.9


@pytest.mark.root
@pytest.mark.parametrize("path", CORPUS, ids=lambda p: p.stem)
@pytest.mark.parametrize("hook", ["input", "forward", "output", "ingress"])
def test_a_file_is_written_for_every_hook_that_a_ruleset_has(path: Path, hook: str, tmp_path: Path):
    try:
        result = imported(path.read_text(), hook=hook, bridge=BRIDGES.get(path.stem))
    except NftError:
        assert f"filter hook {hook} " not in path.read_text()
        return
    pipe = declared(result, tmp_path)
    assert pipe.name == hook
    named = {rule.name for rule in pipe.every_rule}
    assert all(len(name) < 120 for name in named)


@pytest.mark.root
def test_a_file_reads_like_one_that_somebody_wrote(tmp_path: Path):
    rules = inet(
        """ct state { established, related } accept comment "answers"
           iifname "lo" accept
           tcp dport { 22, 443 } ip saddr @trusted accept comment "services"
           meta l4proto { tcp, udp } th dport 53 limit rate 10/second log prefix "dns: " reject""",
        policy="drop",
        outside="set trusted { type ipv4_addr; flags interval; elements = { 192.0.2.0/28 } }",
    )
    assert imported(rules).python == (
        '''"""Imported from nftables: inet t c.

Attach it to the device that packets come from.
"""

from xdpkit import DROP, PASS, Pipeline, REJECT, ct, dev, ip, ip6, limit, log, tcp, udp

pipe = Pipeline("input", default=DROP)
pipe.track(loose=True)  # as Linux tracks: a connection may be picked up in its middle

trusted = pipe.set("trusted", ip.src, members=["192.0.2.0/28"])

# ---- inet t: chain c, hook input, policy drop
# tables of the family inet see no other packets
pipe.rule(~(ip | ip6), PASS, name="not inet")
# ct state { established, related } accept
pipe.rule(ct.established | ct.related, PASS, name="answers")
# iifname lo accept
pipe.rule(dev.name == "lo", PASS, name="c 2")
# tcp dport { 22, 443 } ip saddr @trusted accept
pipe.rule(tcp.dport.isin([22, 443]) & trusted, PASS, name="services")
# meta l4proto { tcp, udp } th dport 53 limit rate 10/second burst 5 packets log prefix 'dns: ' reject with icmpx port-unreachable
pipe.rule(
    (tcp | udp) & ((tcp.dport == 53) | (udp.dport == 53)) & limit("10/second", burst=5),
    log(),
    REJECT,
    name="dns",
)
'''  # noqa: E501
    )


def verdicts(pipe: Pipeline, *packets) -> list[str]:
    state = State(pipe)
    return [run(pipe, bytes(ETHER / packet), state).rule.action.verdict.name for packet in packets]


FOUR = IP(src="192.0.2.1", dst="192.0.2.2")


@pytest.mark.root
def test_chains_policies_and_returns_mean_what_they_mean_in_nftables(tmp_path: Path):
    rules = """table inet t {
        chain web { tcp dport 80 return; tcp dport 443 accept; }
        chain last { drop; }
        chain early { type filter hook prerouting priority -300; policy accept;
            udp dport 1 accept; udp dport 2 drop; jump web; }
        chain c { type filter hook input priority 0; policy accept;
            udp dport 1 drop; jump web; tcp dport 80 drop; tcp dport 81 goto last; tcp dport 443 drop
            udp dport 3 return; udp dport 3 drop; }
    }"""
    pipe = declared(imported(rules), tmp_path)
    packets = [FOUR / UDP(dport=n) for n in (1, 2, 3, 4)] + [FOUR / TCP(dport=n) for n in (80, 81, 443, 444)]
    assert verdicts(pipe, *packets) == ["DROP", "DROP", "PASS", "PASS", "DROP", "DROP", "PASS", "PASS"]


@pytest.mark.root
def test_maps_sets_and_protocols_are_asked_as_nftables_asks_them(tmp_path: Path):
    rules = inet(
        """tcp dport vmap @ports
           ip saddr . udp dport @pairs drop
           ip protocol . th dport vmap { tcp . 90 : drop, udp . 91 : drop }
           ip6 saddr != 2001:db8::/32 icmpv6 type echo-request drop
           icmp type echo-request limit rate over 1/hour burst 2 packets drop
           udp dport 7 add @seen { ip saddr } accept
           ip saddr @seen drop""",
        outside="""map ports { type inet_service : verdict; flags interval; elements = { 80 : accept, 100-200 : drop } }
           set pairs { type ipv4_addr . inet_service; elements = { 192.0.2.1 . 53 } }
           set seen { type ipv4_addr; flags dynamic; size 100; }""",
    )
    done = imported(rules)
    assert done.refused == ()
    pipe = declared(done, tmp_path)
    packets: list[Packet] = []
    packets += [FOUR / TCP(dport=n) for n in (80, 100, 150, 200, 201, 90, 91)] + [
        FOUR / UDP(dport=n) for n in (53, 90, 91)
    ]
    packets += [IPv6(src=s, dst="2001:db8::9") / ICMPv6EchoRequest() for s in ("2001:db8::1", "2001:db9::1")]
    packets += [FOUR / ICMP()] * 3 + [FOUR / UDP(dport=7), FOUR / TCP(dport=1)]
    assert "".join(v[0] for v in verdicts(pipe, *packets)) == "PDDDPDPDPDPDPPDPD"


@pytest.mark.root
@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ("meta skuid 0 drop", "the socket's owner is not known"),
        ("fib daddr type local accept", "routing table"),
        ("ct mark 5 drop", "ct mark is not tracked here"),
        ("meta mark set 5", "it changes the packet or its mark"),
        ('oifname "eth0" accept', "--bridge OUTSIDE,INSIDE"),
        ('iifname "eth*" accept', "a name with a wildcard"),
        ("@th,160,16 22 drop", "raw bytes"),
        ("limit rate 1/week drop", "a limit per week"),
        ("ct state untracked accept", "every packet is tracked here"),
        ("notrack", "every packet is tracked here"),
        ("ip option rr exists drop", "not known here"),
        ("dccp dport 5 drop", "dccp is not read here"),
        ("limit rate 1/second jump nowhere", ""),
    ],
)
def test_what_cannot_be_said_here_is_refused_with_its_reason(rule: str, reason: str, tmp_path: Path):
    done = imported(inet(f"{rule}\ntcp dport 22 accept", outside="chain nowhere { }"))
    pipe = declared(done, tmp_path)
    if not reason:
        assert done.refused == ()
        return
    (outcome,) = done.refused
    assert reason in outcome.reason
    assert "NOT IMPORTED" in done.python
    assert len(pipe.rules) == 2


@pytest.mark.root
def test_on_a_bridge_the_device_by_which_a_packet_leaves_is_known(tmp_path: Path):
    rules = inet('iifname "wan" oifname "lan" tcp dport 22 accept\noifname { "wan", "wan6" } accept', hook="forward")
    assert len(imported(rules).refused) == 2
    done = imported(rules, bridge=("wan", "lan"))
    assert done.refused == ()
    assert "dev.outside & dev.outside & (tcp.dport == 22)" in done.python
    assert "pipe.rule(dev.inside, PASS" in done.python


@pytest.mark.root
def test_the_command_writes_the_file_and_its_exit_status_says_if_everything_is_in_it(tmp_path: Path):
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(as_json(inet("tcp dport 22 accept", policy="drop")))
    bad.write_text(as_json(inet("tcp dport 22 accept\nmeta skuid 0 drop")))
    out = tmp_path / "edge.py"
    done = xdpkit("firewall", "import", "nft", str(good), "-o", str(out))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "1 of 1 rules imported (input)\n")
    assert xdpkit("show", str(out), "--rules").returncode == 0
    done = xdpkit("firewall", "import", "nft", "-", stdin=bad.read_text())
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "not imported: inet t c: meta skuid 0 drop: the socket's owner is not known at XDP and TC",
        "1 of 2 rules imported (input), 1 cannot be imported",
    ]
    assert "NOT IMPORTED" in done.stdout


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("table inet t { }", "it is no JSON"),
        ("{}", "no ruleset of nftables"),
        ('{"nftables": [3]}', "no ruleset of nftables"),
        (json.dumps({"nftables": []}), "has no filter chain at a hook"),
    ],
)
def test_what_is_no_ruleset_is_refused_in_one_line(text: str, said: str):
    with pytest.raises(NftError, match=said) as caught:
        translate(read(text))
    assert "\n" not in str(caught.value)
    done = xdpkit("firewall", "import", "nft", "-", stdin=text)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)


def test_wrong_options_are_wrong_usage():
    for options in (["--hook", "nowhere"], ["--bridge", "one"], ["--bridge", "a,a"]):
        assert xdpkit("firewall", "import", "nft", "-", *options, stdin="{}").returncode in (1, 2)
    assert xdpkit("firewall", "import", "nft", "-", "--hook", "nowhere", stdin="{}").returncode == 2


def traffic(count: int) -> list[bytes]:
    """Connections and single packets, as the rulesets of the corpus are about."""
    rng, found = Random(7), list[bytes]()
    sources = ["192.0.2.1", "10.66.0.5", "10.1.2.3", "198.51.100.3", "203.0.113.7", "192.168.1.5", "172.16.5.5"]
    for n in range(count):
        four = IP(src=rng.choice(sources), dst="192.0.2.200", ttl=rng.choice([1, 64]))
        six = IPv6(src=rng.choice(["2001:db8:1::5", "fe80::1", "2001:db8:2::1"]), dst="2001:db8::9")
        port = rng.choice([22, 25, 80, 443, 53, 8085, 111, 179, 3306, 9999])
        syn = TCP(sport=1024 + n % 60000, dport=port, flags="S", options=[("MSS", rng.choice([100, 1460]))])
        above = rng.choice(
            [syn, UDP(sport=rng.choice([19, 53, 67, 5353]), dport=rng.choice([53, 68, 123, 33440, 161]))]
        )
        net = six if rng.random() < 0.3 else four
        if rng.random() < 0.15:
            above = ICMPv6EchoRequest(id=n & 0xFFFF) if net is six else ICMP(id=n & 0xFFFF)
        found.append(bytes(ETHER / net / above))
    return found


@pytest.mark.root
@pytest.mark.parametrize("path", [p for p in CORPUS if p.stem not in ("home", "router")], ids=lambda p: p.stem)
def test_nftables_and_the_file_judge_the_same_packets_alike(path: Path, tmp_path: Path):
    """But for the edges of limits, where the two have other clocks, and chance."""
    lines = path.read_text().splitlines()
    rules = "\n".join(line for line in lines if "limit rate " not in line and "numgen" not in line)
    ruleset, capture = tmp_path / "rules.json", tmp_path / "traffic.pcap"
    ruleset.write_text(as_json(rules))
    wrpcap(str(capture), [Ether(frame) for frame in traffic(1500)])
    done = xdpkit("firewall", "import", "nft", str(ruleset), "-o", str(tmp_path / "p.py"), "--prove", str(capture))
    said = done.stderr.splitlines()
    assert said[-1].startswith("1500 of 1500 packets are judged alike"), done.stderr
    assert " 0 of them pass" not in said[-1]


@pytest.mark.root
def test_a_difference_is_shown_packet_by_packet(tmp_path: Path):
    """A table that this test changes behind the import's back: what one passes the other drops."""
    text = as_json(inet("udp dport 53 drop"))
    ruleset = read(text)
    (tmp_path / "other.py").write_text(translate(read(text.replace("53", "54"))).python)
    frames = [bytes(ETHER / IP(src="192.0.2.1", dst="192.0.2.2") / UDP(dport=port)) for port in (53, 54, 55)]
    packets = [CapturedPacket("x", n, 10**18, frame, len(frame)) for n, frame in enumerate(frames, 1)]
    proof = prove(ruleset, translate(ruleset), load_file(tmp_path / "other.py"), packets)
    assert [(d.number, d.passes) for d in proof.differences] == [(1, "pipeline"), (2, "nftables")]
    assert str(proof) == "1 of 3 packets are judged alike, 1 of them pass"

"""What neighbours say to each other passes or not, as declared."""

from typing import Any

import pytest
from scapy.contrib.lldp import LLDPDUChassisID, LLDPDUEndOfLLDPDU, LLDPDUPortID, LLDPDUTimeToLive
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6ND_NS, ICMPv6ND_RA, IPv6
from scapy.layers.l2 import ARP, LLC, STP, Dot1Q, Dot3, Ether

from xdpkit import DROP, PASS, Pipeline, PipelineError
from xdpkit.meaning.evaluate import evaluate

MAC: dict[str, Any] = {"src": "02:00:00:00:00:01"}
LLDP = (
    LLDPDUChassisID(subtype=4, id=b"\2\0\0\0\0\1")
    / LLDPDUPortID(subtype=5, id=b"eth1")
    / LLDPDUTimeToLive(ttl=120)
    / LLDPDUEndOfLLDPDU()
)
FRAMES = {
    "arp": Ether(**MAC) / ARP(),
    "arp in a VLAN": Ether(**MAC) / Dot1Q(vlan=5) / ARP(),
    "nd": Ether(**MAC) / IPv6(hlim=255) / ICMPv6ND_NS(),
    "nd: a router": Ether(**MAC) / IPv6(hlim=255) / ICMPv6ND_RA(),
    "lldp": Ether(**MAC, dst="01:80:c2:00:00:0e", type=0x88CC) / LLDP,
    "stp": Dot3(**MAC, dst="01:80:c2:00:00:00") / LLC(dsap=0x42, ssap=0x42, ctrl=3) / STP(),
    "multicast": Ether(**MAC) / IP(dst="224.0.0.251") / UDP(),
    "multicast: IPv6": Ether(**MAC) / IPv6(dst="ff02::fb") / UDP(),
}
OTHERS = [
    Ether(**MAC) / IP(dst="192.0.2.1") / ICMP(),
    Ether(**MAC) / IPv6(hlim=64, dst="2001:db8::1") / ICMPv6ND_NS(),  # from beyond a router
]


def rule(pipe, frame):
    return evaluate(pipe, bytes(frame))


@pytest.mark.parametrize("passes", [True, False])
def test_each_protocol_passes_or_not_as_declared(passes):
    pipe = Pipeline("wire", default=DROP if passes else PASS)
    pipe.neighbours(**dict.fromkeys(("arp", "nd", "lldp", "stp", "multicast"), passes))
    for name, frame in FRAMES.items():
        taken = rule(pipe, frame)
        assert taken.name == f"neighbours-{name.partition(' ')[0].rstrip(':')}"
        assert taken.action == (PASS if passes else DROP)
    assert {rule(pipe, frame).name for frame in OTHERS} == {"default"}


def test_without_a_word_arp_and_discovery_pass_and_switches_do_not_hear_of_each_other():
    pipe = Pipeline("wire", default=DROP)
    rules = pipe.neighbours()
    assert {r.name: str(r.action) for r in rules} == {
        "neighbours-arp": "PASS", "neighbours-nd": "PASS", "neighbours-lldp": "DROP", "neighbours-stp": "DROP",
    }  # fmt: skip
    assert rule(pipe, FRAMES["multicast"]).name == "default"


def test_what_is_neither_is_refused():
    with pytest.raises(PipelineError, match="stp is True, False or None"):
        Pipeline("wire").neighbours(stp="yes")  # type: ignore[arg-type]

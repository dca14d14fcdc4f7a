"""Ready declarations: what they take, on both families."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from xdpkit import DROP, PASS, Pipeline, PipelineError
from xdpkit.firewall.defence import BOGONS, ban_scanners, bogons, own_sources
from xdpkit.meaning.evaluate import State, evaluate

ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")


def packet(source: str, layer=None) -> bytes:
    kind, target = (IPv6, "2600::1") if ":" in source else (IP, "8.8.8.8")
    return bytes(ETHER / kind(src=source, dst=target) / (layer or UDP(dport=9)))


def test_bogons_are_what_the_registries_say():
    pipe = Pipeline("edge")
    pipe.rule(bogons(), DROP, name="bogons")
    for prefix in BOGONS:
        network = ip_network(prefix)
        for address in {str(network[0]), str(network[-1])} - {"::"}:
            assert evaluate(pipe, packet(address)).name == "bogons", address
    for address in ("8.8.8.8", "100.63.255.255", "172.32.0.1", "2600::1", "fe80::1", "::", "64:ff9b::1"):
        assert evaluate(pipe, packet(address)).name == "default", address


def test_some_bogons_may_be_wanted():
    pipe = Pipeline("edge")
    pipe.rule(bogons(allow=["10.0.0.0/8", "fc00::/7"]), DROP, name="bogons")
    assert evaluate(pipe, packet("10.1.2.3")).name == evaluate(pipe, packet("fd00::1")).name == "default"
    with pytest.raises(PipelineError, match=r"'10.0.0.0/9' is not in the list"):
        bogons(allow=["10.0.0.0/9"])


def test_own_sources():
    pipe = Pipeline("edge")
    pipe.rule(own_sources("8.8.0.0/16", "2600::/32"), DROP, name="spoofed")
    assert evaluate(pipe, packet("8.8.1.1")).name == evaluate(pipe, packet("2600::9")).name == "spoofed"
    assert evaluate(pipe, packet("8.9.1.1")).name == "default"
    with pytest.raises(PipelineError):
        own_sources()


@pytest.mark.parametrize("source", ["8.8.8.9", "2600::9"])
def test_scanners_are_banned_for_a_time(source):
    pipe = Pipeline("edge")
    pipe.rule(own_sources("9.9.9.9/32"), PASS, name="friends")
    ban_scanners(pipe, pipe.bans(), services=(80, 443), rate="30/minute", timeout=600)
    state = State(pipe)

    def names(count: int, dport: int, flags: str = "S") -> list[str]:
        return [evaluate(pipe, packet(source, TCP(dport=dport, flags=flags)), state=state).name for _ in range(count)]

    assert names(50, 80) == ["default"] * 50
    assert names(50, 22, "A") == ["default"] * 50
    assert names(7, 22) == ["default"] * 5 + ["scanners", "banned"]
    assert names(1, 80) == ["banned"]
    state.now_ns += int(601e9)
    assert names(1, 80) == ["default"]
    with pytest.raises(PipelineError):
        ban_scanners(Pipeline("other"), Pipeline("other").bans(), services=())

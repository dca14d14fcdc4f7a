"""Addresses of either family: one set and one limit for IPv4 and IPv6; and a warning where a key may be lacking."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether

from xdpkit import (
    DROP,
    PASS,
    Pipeline,
    PipelineError,
    PipelineWarning,
    dst,
    icmp,
    ip,
    ip6,
    limit,
    load_file,
    src,
    tcp,
    udp,
)
from xdpkit.compiler.built import as_built, build, read, write
from xdpkit.link.ruleset import Ruleset
from xdpkit.meaning.evaluate import evaluate
from xdpkit.meaning.state import State

PIPELINES = Path(__file__).parents[2] / "pipelines"
TAGS = {"untagged": [], "tagged": [Dot1Q(vlan=5)], "double": [Dot1AD(vlan=5), Dot1Q(vlan=6)]}


def frame(source: str, *layers, tags=()) -> bytes:
    network = IPv6(src=source, dst="2001:db8::53") if ":" in source else IP(src=source, dst="192.0.2.53")
    packet = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    for layer in (*tags, network, *layers):
        packet /= layer.copy()
    return bytes(packet)


def judged(pipe: Pipeline, frames: list[bytes], hook: str = "xdp") -> list[str]:
    """The rules that take ``frames``, one after the other, by the reference and by a program that agrees with it."""
    state = State(pipe)
    named = [evaluate(pipe, data, state=state).name for data in frames]
    if not pipe.remembers:
        with Ruleset(as_built(pipe), hook, explain=True) as ruleset:
            assert [ruleset.program.judge(data)[0].name for data in frames] == named
    return named


@pytest.mark.root
@pytest.mark.parametrize("hook", ["xdp", "xdp_frags", "tc"])
def test_a_set_of_either_family_finds_members_of_both(hook):
    pipe = Pipeline("either")
    listed = pipe.set("listed", src, members=["192.0.2.0/24", "2001:db8::/64", "198.51.100.1-198.51.100.3"])
    pipe.rule(listed, DROP, name="in")
    pipe.rule(dst.isin(listed), DROP, name="to")
    sources = ["192.0.2.9", "192.0.3.9", "2001:db8::9", "2001:db8:0:1::9", "198.51.100.3", "::ffff:192.0.2.9"]
    found = judged(pipe, [*(frame(s, UDP()) for s in sources), bytes(Ether() / ARP())], hook)
    # the IPv6 address ::ffff:192.0.2.9 is what an IPv4 address is mapped to: nobody else may send from it
    assert found == ["in", "to", "in", "to", "in", "in", "default"]


def test_members_of_either_family_are_written_as_people_write_them():
    spec = Pipeline("p").set("s", src).spec
    for text in ("192.0.2.0/24", "192.0.2.1", "2001:db8::/32", "::1"):
        (entry,) = spec.entries(text)
        assert spec.text(entry) == text


def test_a_limit_per_source_of_either_family_counts_each_by_itself():
    pipe = Pipeline("limited")
    pipe.rule(udp & ~limit("1/hour", burst=2, per=src), DROP, name="over")
    four, six = frame("192.0.2.1", UDP()), frame("2001:db8::1", UDP())
    others = [frame("192.0.2.2", UDP()), frame("2001:db8::2", UDP())]
    assert judged(pipe, [four, four, four, six, six, six, *others]) == [
        "default", "default", "over", "default", "default", "over", "default", "default",
    ]  # fmt: skip


def test_a_packet_of_either_family_is_added_to_a_set():
    pipe = Pipeline("added")
    seen = pipe.set("seen", src, intervals=False)
    pipe.rule(seen, DROP, name="again")
    pipe.rule(udp, seen.add(), PASS, name="first")
    frames = [frame(s, UDP()) for s in ("192.0.2.1", "2001:db8::1", "192.0.2.1", "2001:db8::1")]
    assert judged(pipe, frames) == ["first", "first", "again", "again"]


@pytest.mark.root
def test_conditions_on_either_family_mean_the_one_or_the_other():
    pipe = Pipeline("conditions")
    pipe.rule(src == "192.0.2.1", DROP, name="one")
    pipe.rule(src.within("198.51.100.0/24", "2001:db8::/64"), DROP, name="net")
    pipe.rule(dst.isin(["192.0.2.53", "2001:db8::53"]) & tcp, DROP, name="to")
    sources = ["192.0.2.1", "198.51.100.7", "2001:db8::7", "203.0.113.1"]
    assert judged(pipe, [frame(s, TCP()) for s in sources]) == ["one", "net", "net", "to"]
    with pytest.raises(PipelineError, match="has no order"):
        _ = src < "192.0.2.1"


def test_a_built_file_keeps_keys_of_either_family(tmp_path):
    pipe = Pipeline("built")
    listed = pipe.set("listed", src, members=["192.0.2.1", "2001:db8::1"])
    pipe.rule(udp & listed & limit("1/second", per=(src, dst)), DROP, name="in")
    write(build(pipe), tmp_path / "built.xdp")
    again = read(tmp_path / "built.xdp")
    assert [str(r) for r in again.pipeline.rules] == [str(r) for r in pipe.rules]


@pytest.mark.root
def test_a_verdict_map_of_either_family_acts_on_both():
    pipe = Pipeline("map")
    verdicts = pipe.vmap("verdicts", src, members={"192.0.2.1": DROP, "2001:db8::1": DROP, "2001:db8::2": PASS})
    pipe.apply(verdicts)
    sources = ["192.0.2.1", "2001:db8::1", "2001:db8::2", "192.0.2.2"]
    assert judged(pipe, [frame(s, UDP()) for s in sources]) == [
        "verdicts:DROP", "verdicts:DROP", "verdicts:PASS", "default",
    ]  # fmt: skip


# ---- where a key is lacking ----


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        (lambda p: tcp.syn & ~limit("1/second", per=ip.src), "without ip,.*add `ip &` in front .or key it by src"),
        (lambda p: udp & ~limit("1/second", per=(ip.src, udp.dport)), "without ip,"),
        (lambda p: ~limit("1/second", per=src), r"without \(ip \| ip6\), .*add `\(ip \| ip6\) &` in front$"),
        (lambda p: ~p.set("s", ip.src).condition(), "without ip,"),
        (lambda p: ~p.set("s", src).condition(), r"without \(ip \| ip6\),"),
        (lambda p: ip & ~limit("1/second", per=tcp.dport), "without tcp,"),
    ],
)
def test_a_negated_limit_or_set_whose_key_may_be_lacking_is_warned_of(condition, words):
    pipe = Pipeline("warned")
    with pytest.warns(PipelineWarning, match=words) as caught:
        pipe.rule(condition(pipe), DROP, name="r")
    assert len(caught) == 1
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    "condition",
    [
        lambda p: ip & tcp.syn & ~limit("1/second", per=ip.src),
        lambda p: icmp & ~limit("1/second", per=ip.src),
        lambda p: udp & ~limit("1/second", per=src),
        lambda p: ~limit("1/second"),
        lambda p: (ip | ip6) & ~p.set("s", src).condition(),
        lambda p: limit("1/second", per=ip.src),
    ],
)
def test_no_warning_where_the_key_is_always_there(condition):
    pipe = Pipeline("quiet")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe.rule(condition(pipe), DROP)


# ---- the pipelines that ship ----


@pytest.mark.parametrize("path", sorted(PIPELINES.glob("*.py")), ids=lambda path: path.stem)
def test_a_pipeline_that_ships_is_declared_without_a_warning(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_file(path)


@pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS)
@pytest.mark.parametrize("source", ["203.0.113.9", "2001:db8:9::9"])
class TestWhatShips:
    """Each pipeline does what its text says for IPv4 and IPv6, tagged and not."""

    def verdicts(self, name: str, frames: list[bytes]) -> list[str]:
        pipe = load_file(PIPELINES / f"{name}.py")
        state = State(pipe)
        return [evaluate(pipe, data, state=state).name for data in frames]

    def test_floods_are_cut_and_what_is_below_the_rate_passes(self, source, tags):
        new = frame(source, TCP(flags="S"), tags=tags)
        found = self.verdicts("floods", [new] * 150)
        assert found[:100] == ["default"] * 100
        assert found[100:] == ["syn-flood"] + ["banned"] * 49
        small = [frame(source, UDP(), tags=tags)] * 10
        ping = ICMPv6EchoRequest() if ":" in source else ICMP()
        assert self.verdicts("floods", [*small, frame(source, ping, tags=tags)]) == ["default"] * 11
        assert "ping-flood" in self.verdicts("floods", [frame(source, ping, tags=tags)] * 50)

    def test_dns_takes_queries_and_answers(self, source, tags):
        frames = [frame(source, UDP(sport=1000, dport=port), tags=tags) for port in (53, 54)]
        assert [name == "default" for name in self.verdicts("dns", frames)] == [False, True]

    def test_the_firewall_passes_the_web_and_drops_what_is_not_named(self, source, tags):
        source = source if ":" in source else "198.51.100.9"
        dropped = "no-ipv6" if ":" in source else "default"
        frames = [frame(source, TCP(dport=port, flags="S"), tags=tags) for port in (80, 443, 22, 25)]
        assert self.verdicts("firewall", frames) == ["web", "web", dropped, dropped]
        bogus = frame("10.0.0.1", TCP(dport=80, flags="S"), tags=tags)
        managing = frame("192.0.2.5", TCP(dport=22, flags="S"), tags=tags)
        assert self.verdicts("firewall", [bogus, managing]) == ["bogons", "management"]

    def test_the_reflector_returns_test_traffic_of_its_prefix_alone(self, source, tags):
        other = frame(source, UDP(sport=1000, dport=7), tags=tags)
        packet = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
        for layer in (*tags, IP(src="198.18.0.1", dst="198.19.0.1"), UDP()):
            packet /= layer.copy()
        assert self.verdicts("reflect", [other, bytes(packet)]) == ["default", "test-traffic"]

    def test_the_tap_and_an_empty_block_list_let_every_packet_go_on(self, source, tags):
        frames = [frame(source, UDP(dport=53), tags=tags), frame(source, TCP(flags="S"), tags=tags)]
        assert self.verdicts("tap", frames) == self.verdicts("blocklist", frames) == ["default", "default"]

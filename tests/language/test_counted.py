"""quota() and numgen(): what they count, how they are written, and that nftables counts the same."""

from __future__ import annotations

import pytest
from nft import table, with_nftables
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether

from xdpkit import COUNT, DROP, PASS, Pipeline, PipelineError, ip, numgen, quota, src, tcp, udp
from xdpkit.meaning.evaluate import State, run
from xdpkit.sockets.options import Mode

FRAME = bytes(Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:09") / IP(src="192.0.2.1") / UDP() / bytes(58))
OTHER = bytes(Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:09") / IP(src="192.0.2.2") / TCP() / bytes(46))
assert len(FRAME) == len(OTHER) == 100


def taken(pipe: Pipeline, frames: list[bytes]) -> list[str]:
    state = State(pipe)
    return [run(pipe, frame, state).rule.name for frame in frames]


def test_a_quota_is_true_until_its_bytes_have_come_and_its_opposite_from_then_on():
    pipe = Pipeline("q")
    pipe.rule(udp & quota("300 B"), PASS, name="within")
    pipe.rule(udp & ~quota("500 bytes"), DROP, name="over")
    assert taken(pipe, [FRAME, OTHER, FRAME, FRAME]) == ["within", "default", "within", "within"]
    assert taken(pipe, [FRAME] * 9) == ["within"] * 3 + ["default"] * 5 + ["over"]


def test_quotas_of_one_name_are_one_and_with_per_each_source_has_its_own():
    pipe = Pipeline("q")
    pipe.rule(udp & ~quota("250 B", name="all"), DROP, name="udp")
    pipe.rule(tcp & ~quota("250 B", name="all"), DROP, name="tcp")
    assert taken(pipe, [FRAME, OTHER, FRAME, OTHER]) == ["default", "default", "udp", "tcp"]
    pipe = Pipeline("q")
    pipe.rule(~quota("150 B", per=ip.src) & ip, DROP, name="over")
    pipe.rule(quota("1 GB", per=src), PASS, name="either")
    assert taken(pipe, [FRAME, OTHER, FRAME, OTHER]) == ["either", "either", "over", "over"]


def test_numgen_counts_packets_from_0_on():
    pipe = Pipeline("n")
    pipe.rule(numgen("inc", 3) == 1, DROP, name="second")
    pipe.rule(numgen("inc", 2) < 1, DROP, name="half")
    assert taken(pipe, [FRAME] * 6) == ["half", "second", "default", "half", "second", "default"]


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda: quota("10"), 'quota \'10\': a size is written "10 GB" or "500 mbytes"'),
        (lambda: quota("10 parsecs"), "a size is written"),
        (lambda: quota("10 GB", per=[7]), "7 is no field"),  # type: ignore[list-item]
        (lambda: numgen("up", 2), 'the kind is "inc" or "random"'),
        (lambda: numgen("inc", 0), "mod is a whole number of 1"),
        (lambda: numgen("inc", 2) == 2, "can never match: the numbers are 0 to 1"),
        (lambda: numgen("inc", 2) < "1", "compares with a whole number of 0 to 1"),
        (lambda: bool(numgen("inc", 2)), "is no condition: compare it"),
    ],
)
def test_what_cannot_be_counted_is_refused(write, said: str):
    with pytest.raises(PipelineError, match=said):
        write()


@pytest.mark.root
@pytest.mark.parametrize("mode", ["native", "tc_ingress"])
def test_nftables_counts_the_same(veth_pair, mode: Mode):
    """nftables' bytes have no Ethernet header: 86 of 100."""
    pipe = Pipeline("counted")
    pipe.rule(numgen("inc", 3) == 0, COUNT, name="third")
    pipe.rule(udp & (numgen("inc", 4) >= 2), COUNT, name="half")
    pipe.rule(quota("1000 bytes"), COUNT, name="quota")
    pipe.rule(~quota("1000 bytes"), COUNT, name="over")
    rules = """numgen inc mod 3 0 counter comment "third"
        meta l4proto udp numgen inc mod 4 >= 2 counter comment "half"
        quota 860 bytes counter comment "quota"
        quota over 860 bytes counter comment "over" """
    left, right = veth_pair
    with with_nftables(left, right, pipe, mode, table(rules)) as both:
        both.send([FRAME, OTHER] * 20)
        ours, theirs = both.counts()
    assert ours == theirs == {"third": 14, "half": 10, "quota": 10, "over": 30}

"""Conditions on the device, on devices: at every hook, across an update, and where they mean nothing."""

import subprocess
from contextlib import ExitStack

import pytest
from traffic import frames, until

from xdpkit import COUNT, DROP, PASS, REDIRECT, Pipeline, PipelineError, attach, dev, pcap, udp


def by_device(verdict=DROP):
    pipe = Pipeline("devices", default=PASS)
    pipe.rule(udp & (dev.name == "right"), verdict, name="right")
    pipe.rule(udp & (dev.name == "other"), verdict, name="other")
    return pipe


@pytest.mark.parametrize("mode", ["native", "generic", "tc_ingress", "af_packet"])
def test_packets_are_judged_by_the_device_that_they_arrive_on(make_veth, mode):
    left, right = make_veth(names=("left", "right"))
    pipe = by_device(REDIRECT if mode == "af_packet" else DROP)
    with right.namespace, attach(pipe, "right", mode=mode) as link:
        if mode == "af_packet":
            link.sockets()
        left.send(frames(left, right, range(5)))
        until(lambda: link.ledger().seen >= 5, "five packets are seen")
        assert {r.name: r.packets for r in link.ledger().rules} == {"right": 5, "other": 0, "default": 0}
        assert any("dev.name 'other' never match" in note for note in link.notes)


def test_packets_are_judged_by_the_device_that_they_leave_by(make_veth):
    left, right = make_veth(names=("left", "right"))
    with right.namespace, attach(by_device(PASS), "right", mode="tc_egress") as link:
        right.send(frames(right, left, range(5)))
        until(lambda: {r.name: r.packets for r in link.ledger().rules}["right"] == 5, "five packets are counted")


def test_an_update_knows_the_device_too(make_veth):
    left, right = make_veth(names=("left", "right"))
    with right.namespace, attach(Pipeline("empty"), "right") as link:
        link.update(by_device())
        left.send(frames(left, right, range(5)))
        until(lambda: {r.name: r.packets for r in link.ledger().rules}["right"] == 5, "five packets are counted")


def test_a_side_is_refused_where_there_is_no_bridge(make_veth):
    left, right = make_veth(names=("left", "right"))
    pipe = Pipeline("sides", default=PASS)
    pipe.rule(udp & dev.inside, DROP, name="inside")
    with right.namespace:
        with pytest.raises(PipelineError, match=r"dev\.inside has a meaning on a bridge only"):
            attach(pipe, "right")
        with attach(Pipeline("empty"), "right") as link:
            with pytest.raises(PipelineError, match="on a bridge only"):
                link.update(pipe)
            left.send(frames(left, right, range(5)))
            until(lambda: link.ledger().seen >= 5, "the old rules run on")


ASKED = {
    "inbound": "inbound and udp", "outbound": "outbound and udp", "here": "udp and ifname right",
    "there": "udp and on other", "loops": "ip protochain 17 and not outbound and ifname right",
}  # fmt: skip


@pytest.mark.parametrize("mode", ["native", "generic", "tc_ingress", "tc_egress", "af_packet"])
def test_tcpdump_strings_know_the_direction_and_the_device(make_veth, mode):
    left, right = make_veth(names=("left", "right"))
    pipe = Pipeline("direction", default=PASS)
    for name, text in ASKED.items():
        pipe.rule(pcap(text), COUNT, name=name)
    pipe.rule(udp, REDIRECT if mode == "af_packet" else PASS, name="all")
    with right.namespace, attach(pipe, "right", mode=mode) as link:
        if mode == "af_packet":
            link.sockets()
        left.send(frames(left, right, range(5)))
        right.send(frames(right, left, range(3)))
        seen = 3 if mode == "tc_egress" else 5
        until(lambda: {r.name: r.packets for r in link.ledger().rules}["all"] == seen, "the packets are counted")
        counts = {r.name: r.packets for r in link.ledger().rules}
        inbound = 0 if mode == "tc_egress" else 5
        assert counts["inbound"] == counts["loops"] == inbound
        assert (counts["outbound"], counts["here"], counts["there"]) == (seen - inbound, seen, 0)
        assert any("seen at tc_egress" in note for note in link.notes) is (mode != "tc_egress")


def test_the_direction_is_the_one_that_tcpdump_tells(make_veth):
    """The same strings in tcpdump, on the same device and the same packets."""
    left, right = make_veth(names=("left", "right"))
    with right.namespace, ExitStack() as stack:
        peers = {}
        for word in ("inbound", "outbound"):
            command = ["tcpdump", "-i", "right", "-w", "/dev/null", f"{word} and udp port 53"]
            peers[word] = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
            stack.callback(peers[word].wait)
            stack.callback(peers[word].terminate)
            while "listening on" not in (line := peers[word].stderr.readline()):  # type: ignore[union-attr]
                assert line
        counts = {}
        with ExitStack() as links:
            for mode in ("tc_ingress", "tc_egress"):
                pipe = Pipeline(mode, default=PASS)
                for word in peers:
                    pipe.rule(pcap(f"{word} and udp port 53"), COUNT, name=word)
                counts[mode] = links.enter_context(attach(pipe, "right", mode=mode))
            left.send(frames(left, right, range(5)))
            right.send(frames(right, left, range(3)))

            def counted(word):
                return sum(r.packets for link in counts.values() for r in link.ledger().rules if r.name == word)

            until(lambda: (counted("inbound"), counted("outbound")) == (5, 3), "the packets are counted")
        for word, expected in (("inbound", 5), ("outbound", 3)):
            peers[word].terminate()
            assert f"{expected} packets received by filter" in peers[word].communicate(timeout=10)[1]

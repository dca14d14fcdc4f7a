"""Conditions on the device, on devices: at every hook, across an update, and where they mean nothing."""

import pytest
from traffic import frames, until

from xdpkit import DROP, PASS, REDIRECT, Pipeline, PipelineError, attach, dev, udp


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

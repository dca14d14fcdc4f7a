"""Devices that are not what a pipeline can judge: without Ethernet, without a queue; and names that are long."""

import pytest
from pyroute2 import IPRoute

from xdpkit import REDIRECT, Forward, NotSupported, Pipeline, attach, udp
from xdpkit.device import netdev
from xdpkit.doctor.device import examine_device
from xdpkit.link.attach import MODES


def redirecting():
    pipe = Pipeline("dns")
    pipe.rule(udp.dport == 53, REDIRECT, name="dns")
    return pipe


@pytest.fixture
def tun(lab):
    """A device whose packets start with their IP header, in a namespace that the test is in."""
    with lab.namespace(), IPRoute() as ip:
        ip.link("add", ifname="tun0", kind="tuntap", mode="tun")
        yield "tun0"


@pytest.mark.parametrize("mode", ["auto", *MODES, "want:native", "want:tc_ingress"])
def test_a_device_whose_packets_have_no_ethernet_header_is_refused_in_every_mode(tun, mode):
    with pytest.raises(NotSupported, match=r"pipelines on tun0: .* without an Ethernet header \(raw IP\).*a tap in pl"):
        attach(redirecting(), tun, mode=mode)
    assert netdev.xdp_holders(netdev.device(tun).index) == ()


def test_a_packet_is_not_forwarded_to_a_device_without_ethernet_headers(tun, lab):
    pipe = Pipeline("on")
    pipe.rule(udp.dport == 53, Forward(tun), name="on")
    with pytest.raises(NotSupported, match="FORWARD tun0: packets there start without an Ethernet header"):
        attach(pipe, "lo")


def test_a_device_to_forward_to_that_is_not_there_is_named_with_the_rule(lab):
    pipe = Pipeline("on")
    pipe.rule(udp.dport == 53, Forward("eth9"), name="on")
    with lab.namespace(), pytest.raises(OSError, match="FORWARD eth9: no network device 'eth9'"):
        attach(pipe, "lo")


def test_the_doctor_says_that_a_device_has_no_ethernet_header(tun):
    (finding,) = [f for f in examine_device(tun) if f.topic == "Ethernet"]
    assert finding.status == "problem"
    assert "(raw IP): pipelines are refused" in finding.text


def test_loopback_and_taps_are_ethernet(lab):
    with lab.namespace(), IPRoute() as ip:
        ip.link("add", ifname="tap0", kind="tuntap", mode="tap")
        assert netdev.device("tap0").is_ethernet
        assert netdev.device("lo").is_ethernet

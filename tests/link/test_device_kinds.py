"""Devices that are not what a pipeline can judge: without Ethernet, without a queue; and names that are long."""

import errno
import signal

import pytest
from commands import DNS, FIREWALL, fails, misused, process, start, stop, xdpkit
from pyroute2 import IPRoute

from xdpkit import REDIRECT, Forward, NotSupported, Pipeline, attach, udp
from xdpkit.device import netdev
from xdpkit.doctor.device import examine_device
from xdpkit.lab import Port
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


# ---- a tap that no program has opened ----


@pytest.fixture
def tap(lab):
    """As libvirt makes it before the virtual machine runs: there, and without a queue."""
    with lab.namespace() as namespace, IPRoute() as ip:
        ip.link("add", ifname="tap0", kind="tuntap", mode="tap")
        yield Port(namespace, "tap0", 0, "", 0)


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_a_tap_without_a_queue_cannot_have_sockets_and_is_said_to_be_unopened(tap, mode):
    with pytest.raises(OSError, match="tap0 has no queue for a socket, because no program has opened it yet") as caught:
        attach(redirecting(), "tap0", mode=mode)
    assert caught.value.errno == errno.ENXIO
    assert netdev.xdp_holders(netdev.device("tap0").index) == ()


@pytest.mark.needs("tcx")
def test_auto_goes_on_to_tc_ingress_on_a_tap_without_a_queue(tap):
    with attach(redirecting(), "tap0") as link, link.sockets():
        assert link.attachment.mode == "tc_ingress"
        assert "native (tap0 has no queue" in link.attachment.walk[0]


def test_a_pipeline_without_sockets_runs_on_a_tap_without_a_queue(tap):
    with attach(Pipeline("pass"), "tap0") as link:
        assert link.attachment.mode in ("native", "generic")
        link.check()


def test_the_command_says_that_a_tap_is_not_open(tap):
    fails(xdpkit(tap, "run", DNS, "-i", "tap0", "--mode", "native"), "no program has opened it yet")
    misused(xdpkit(tap, "run", DNS, "-i", "tap0", "--queues", "0"), "queue 0 is out of range: tap0 has no queue")


# ---- promiscuous mode ----


def promiscuity(port):
    with port.namespace, IPRoute() as ip:
        return ip.link("get", index=port.index)[0].get_attr("IFLA_PROMISCUITY")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_promisc_lasts_as_long_as_the_run_however_it_ends(veth_pair, number):
    _, right = veth_pair
    child = start(right, DNS, "--promisc", "--mode", "native")
    assert promiscuity(right) == 1
    stop(child, number)
    assert promiscuity(right) == 0


def test_promiscuous_mode_without_the_capability_names_it(veth_pair):
    done = process(
        veth_pair[1], "run", FIREWALL, "-i", "right", "--promisc", before=("setpriv", "--bounding-set=-net_raw")
    )
    assert done.returncode == 1
    assert "promiscuous mode" in done.stderr
    assert "CAP_NET_RAW" in done.stderr

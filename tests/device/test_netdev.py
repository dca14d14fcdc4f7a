"""Device facts against the real kernel, on veth pairs in namespaces of the test's own."""

import asyncio
import ctypes
import errno
import os
import socket
import struct
from threading import Thread

import pytest
from pyroute2 import IPRoute

from xdpkit.device import ethtool, netdev
from xdpkit.lab import Lab


def test_a_missing_device_names_the_ones_that_exist(veth_pair):
    with veth_pair[0].namespace, pytest.raises(OSError, match="no network device") as caught:
        netdev.device("eth9")
    assert caught.value.errno == errno.ENODEV
    assert caught.value.strerror == "no network device 'eth9'; this namespace has: left, lo"


def test_a_veth_is_described_as_it_was_made(make_veth):
    left, right = make_veth(queues=4, mtu=2000)
    device = right.device
    assert (device.name, device.index, device.mac) == ("right", right.index, right.mac)
    assert (device.mtu, device.peer_mtu) == (2000, 2000)
    assert (device.driver, device.kind, device.lower) == ("veth", "veth", ())
    assert (device.up, device.carrier) == (True, True)
    assert (device.rx_queues, device.tx_queues, device.max_rx_queues) == (4, 4, 4)
    assert left.mac != right.mac


def test_the_xdp_features_of_veth_are_named(veth_pair):
    for port in veth_pair:
        device = port.device
        assert device.xdp_features == {"basic", "redirect", "ndo-xmit", "rx-sg", "ndo-xmit-sg"}
        assert device.rx_metadata == {"timestamp", "hash", "vlan-tag"}
        assert (device.xsk_features, device.xdp_zc_max_segs) == (frozenset(), 0)


def test_without_napi_a_veth_takes_no_redirected_frames(make_veth):
    for port in make_veth(napi=False):
        assert "ndo-xmit" not in port.device.xdp_features


def test_a_peer_with_another_mtu_is_seen_across_namespaces(veth_pair):
    left, right = veth_pair
    with right.namespace, IPRoute() as ip:
        ip.link("set", index=right.index, mtu=1400)
    assert (left.device.mtu, left.device.peer_mtu) == (1500, 1400)


def test_loopback_has_no_driver_and_one_queue(lab):
    with lab.namespace():
        device = netdev.device("lo")
    assert (device.driver, device.rx_queues, device.peer_mtu) == (None, 1, None)


def test_a_device_on_top_of_another_names_it(veth_pair):
    left, _ = veth_pair
    with left.namespace, IPRoute() as ip:
        ip.link("add", ifname="top", kind="macvlan", link=left.index)
        assert netdev.device("top").lower == ("left",)


def test_a_bridge_names_its_ports(lab):
    a = lab.namespace()
    ports = [lab.veth(a, lab.namespace(), names=(name, "far"))[0] for name in ("p2", "p1")]
    with a, IPRoute() as ip:
        ip.link("add", ifname="br", kind="bridge")
        for port in ports:
            ip.link("set", index=port.index, master=socket.if_nametoindex("br"))
        assert netdev.device("br").lower == ("p1", "p2")


def test_answers_are_about_the_calling_threads_namespace(veth_pair):
    """Two threads of one process, each in its own namespace, at the same time."""
    found = {}

    def look(port):
        with port.namespace:
            found[port.name] = netdev.device(port.name).mac

    threads = [Thread(target=look, args=(port,)) for port in veth_pair]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {port.name: port.mac for port in veth_pair}


def test_it_works_inside_a_running_asyncio_loop():
    async def build_and_look():
        with Lab.pair() as (left, right):
            return left.device.peer_mtu, right.stats()["rx_packets"]

    assert asyncio.run(build_and_look()) == (1500, 0)


def test_no_holder_where_no_program_is_attached(veth_pair):
    with veth_pair[0].namespace:
        assert netdev.xdp_holders(veth_pair[0].index) == ()


@pytest.mark.parametrize(("flag", "mode"), [(1 << 2, "native"), (1 << 1, "generic")])
def test_the_holder_of_a_device_is_told_with_its_mode(veth_pair, flag, mode):
    left, _ = veth_pair
    program = load_xdp_pass()
    with left.namespace, IPRoute() as ip:
        xdp = {"attrs": [["IFLA_XDP_FD", program], ["IFLA_XDP_FLAGS", flag]]}
        ip.link("set", index=left.index, IFLA_XDP=xdp)
        (holder,) = netdev.xdp_holders(left.index)
    os.close(program)
    assert (holder.mode, holder.prog_id > 0) == (mode, True)


def test_stats_count_what_arrived(veth_pair):
    left, right = veth_pair
    with right.capture() as got:
        left.send([b"\xff" * 60] * 3)
        got.wait(3)
    assert (left.stats()["tx_packets"], right.stats()["rx_packets"]) == (3, 3)


def test_promiscuous_mode_is_taken_back(veth_pair):
    left, _ = veth_pair

    def promiscuity():
        with IPRoute() as ip:
            return ip.link("get", index=left.index)[0].get_attr("IFLA_PROMISCUITY")

    with left.namespace:
        with netdev.promiscuous(left.index):
            assert promiscuity() == 1
        assert promiscuity() == 0


def test_channels_can_be_changed_and_read_back(make_veth):
    left, _ = make_veth(queues=4)
    with left.namespace:
        ethtool.set_channels("left", rx=3, tx=2)
        assert ethtool.channels("left") == (3, 2, 4)


def test_too_many_channels_are_refused_by_name(veth_pair):
    with veth_pair[0].namespace, pytest.raises(OSError, match="set 9 receive and 9 transmit queues on left"):
        ethtool.set_channels("left", rx=9, tx=9)


def test_features_can_be_switched_and_unknown_ones_are_refused(veth_pair):
    with veth_pair[0].namespace:
        ethtool.set_features("left", {"rx-gro": False})
        assert not ethtool.feature("left", "rx-gro")
        with pytest.raises(OSError, match="no device feature warp-drive"):
            ethtool.set_features("left", {"warp-drive": True})


def load_xdp_pass() -> int:
    code = ctypes.create_string_buffer(struct.pack("=BBhiBBhi", 0xB7, 0, 0, 2, 0x95, 0, 0, 0), 16)
    licence = ctypes.create_string_buffer(b"GPL")
    where = ctypes.addressof(code), ctypes.addressof(licence)
    attributes = struct.pack("IIQQ", 6, 2, *where).ljust(128, b"\0")
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(321, 5, attributes, 128)
    assert fd >= 0, os.strerror(ctypes.get_errno())
    return fd


@pytest.mark.parametrize("name", ["uplink", "the-uplink-in-rack-12-port-3"])
def test_a_device_is_found_by_an_alternative_name_and_called_by_its_own(veth_pair, name):
    left, _ = veth_pair
    left.namespace.run(["ip", "link", "property", "add", "dev", "left", "altname", name])
    with left.namespace:
        assert (netdev.device(name).name, netdev.device(name).index) == ("left", left.index)

"""Facts about network devices, from the kernel through netlink.

This module does not read sysfs, because after setns(2) sysfs still shows the namespace that it was mounted in, and it
runs no command. It opens a socket for each question, so each answer is about the *calling thread's* network namespace
at that moment. No privilege is needed. Settings of a driver are in `ethtool`.

Sources: linux/if_link.h, linux/netdev.h (generic netlink family `netdev`,
Documentation/netlink/specs/netdev.yaml), packet(7).
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pyroute2.netlink import NETLINK_ROUTE, NLM_F_ACK, NLM_F_DUMP, genlmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from . import ethtool
from .netlink import NetlinkError, ask, ask_family, oserror

T = TypeVar("T")

XDP_FEATURES = ("basic", "redirect", "ndo-xmit", "xsk-zerocopy", "hw-offload", "rx-sg", "ndo-xmit-sg")
RX_METADATA = ("timestamp", "hash", "vlan-tag")
XSK_FEATURES = ("tx-timestamp", "tx-checksum", "tx-launch-time-fifo")

#: ARPHRD_* of devices whose frames start with an Ethernet header (linux/if_arp.h): Ethernet, loopback.
ETHERNET_TYPES = (1, 772)
_TYPE_NAMES = {
    32: "InfiniBand", 512: "PPP", 519: "raw IP", 768: "IP over IP", 769: "IP over IPv6", 776: "IPv6 over IP",
    778: "GRE over IP", 803: "802.11 monitor", 823: "GRE over IPv6", 0xFFFE: "raw IP",
}  # fmt: skip

_IFF_UP, _IFF_PROMISC = 0x1, 0x100
_RTM_NEWLINK, _RTM_GETLINK, _NETDEV_CMD_DEV_GET = 16, 18, 1
_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, _PACKET_MR_PROMISC = 263, 1, 1


@dataclass(frozen=True, slots=True)
class Device:
    """One network device as it was at the time of the look-up. Queue counts are those in use, not those allocated; a
    tap that no program has opened has no queue.

    `name` is the kernel's name, also where the device was looked up by an alternative name; `link_type` is ARPHRD_*.
    `xdp_features` is None where the kernel does not report them (before Linux 6.3, which brought the generic netlink
    family `netdev`). `xdp_zc_max_segs` is the most buffers of one zero-copy packet (0: not reported). `lower` names the
    devices below this one: one for a VLAN or macvlan, the ports for a bond, team or bridge. `mtu` and a veth's
    `peer_mtu` are in bytes; `peer_mtu` is None where the peer cannot be looked up.
    """

    name: str
    index: int
    mtu: int
    mac: str
    driver: str | None
    kind: str | None
    up: bool
    carrier: bool
    rx_queues: int
    tx_queues: int
    max_rx_queues: int
    xdp_features: frozenset[str] | None
    rx_metadata: frozenset[str]
    xsk_features: frozenset[str]
    xdp_zc_max_segs: int
    lower: tuple[str, ...]
    peer_mtu: int | None
    link_type: int = 1

    @property
    def is_ethernet(self) -> bool:
        """Whether frames of the device start with an Ethernet header."""
        return self.link_type in ETHERNET_TYPES

    @property
    def link_type_name(self) -> str:
        """The name of the link type, for messages."""
        return _TYPE_NAMES.get(self.link_type, f"link type {self.link_type}")


@dataclass(frozen=True, slots=True)
class Holder:
    """An XDP program attached to a device. One device can carry a native and an offloaded one at once."""

    mode: Literal["native", "generic", "offload"]
    prog_id: int


@dataclass(frozen=True, slots=True)
class State:
    """What may change while a device is used: its `name`, its `mtu` in bytes, the `rx_packets` received since it was
    made, the XDP programs on it, whether it is `up` and whether it has `carrier`."""

    name: str
    mtu: int
    rx_packets: int
    holders: tuple[Holder, ...]
    up: bool
    carrier: bool


class _DevGet(genlmsg):  # type: ignore[misc]
    """NETDEV_CMD_DEV_GET, request and answer."""

    nla_map = (
        ("NETDEV_A_DEV_UNSPEC", "none"),
        ("NETDEV_A_DEV_IFINDEX", "uint32"),
        ("NETDEV_A_DEV_PAD", "none"),
        ("NETDEV_A_DEV_XDP_FEATURES", "uint64"),
        ("NETDEV_A_DEV_XDP_ZC_MAX_SEGS", "uint32"),
        ("NETDEV_A_DEV_XDP_RX_METADATA_FEATURES", "uint64"),
        ("NETDEV_A_DEV_XSK_FEATURES", "uint64"),
    )


def device(name: str) -> Device:
    """Look up `name`, which may be an alternative name, in this thread's network namespace.  OSError(ENODEV) names the
    devices that are there; ValueError for a name that is not UTF-8 text."""
    return _device(_index(name))


def xdp_holders(index: int) -> tuple[Holder, ...]:
    """The XDP programs attached to the device, one for each attach mode in use; empty if there is none."""
    return _holders(_link(index))


def state(index: int) -> State:
    """The state of the device now, in one netlink request; OSError(ENODEV) when it is not in this namespace."""
    link = _link(index)
    counters = link.get_attr("IFLA_STATS64")
    return State(
        link.get_attr("IFLA_IFNAME"),
        link.get_attr("IFLA_MTU"),
        counters["rx_packets"],
        _holders(link),
        up=bool(link["flags"] & _IFF_UP),
        carrier=bool(link.get_attr("IFLA_CARRIER")),
    )


def _holders(link: Any) -> tuple[Holder, ...]:
    xdp = link.get_attr("IFLA_XDP")
    modes: tuple[tuple[Literal["native", "generic", "offload"], str], ...] = (
        ("native", "IFLA_XDP_DRV_PROG_ID"),
        ("generic", "IFLA_XDP_SKB_PROG_ID"),
        ("offload", "IFLA_XDP_HW_PROG_ID"),
    )
    found = ((mode, xdp.get_attr(attribute) if xdp else None) for mode, attribute in modes)
    return tuple(Holder(mode, prog_id) for mode, prog_id in found if prog_id)


def stats(index: int) -> dict[str, int]:
    """The device's counters since it was made (struct rtnl_link_stats64): rx_packets, rx_dropped ..."""
    return dict(_link(index).get_attr("IFLA_STATS64"))


@contextmanager
def promiscuous(index: int) -> Iterator[None]:
    """Receive frames for every MAC address while the block runs; needs CAP_NET_RAW. The kernel counts the
    users of promiscuous mode and takes this one back with the socket, so a killed process leaves nothing."""
    with ExitStack() as stack:
        with oserror(f"set promiscuous mode on network device {index} (needs CAP_NET_RAW)"):
            sock = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
            membership = struct.pack("iHH8x", index, _PACKET_MR_PROMISC, 0)
            sock.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, membership)
        yield


def set_up(index: int, on: bool) -> None:
    """Raise the device or take it down; it stays so when the process ends. Needs CAP_NET_ADMIN."""
    _set_flags(index, _IFF_UP, on, "raise" if on else "take down")


def set_promiscuous(index: int, on: bool) -> None:
    """The same as `promiscuous`, but as a setting that stays when the process ends. Needs CAP_NET_ADMIN."""
    _set_flags(index, _IFF_PROMISC, on, "set promiscuous mode on")


def _set_flags(index: int, flag: int, on: bool, doing: str) -> None:
    request = ifinfmsg()
    request["index"], request["flags"], request["change"] = index, flag if on else 0, flag
    with oserror(f"{doing} network device {index} (needs CAP_NET_ADMIN)"):
        ask(request, _RTM_NEWLINK, protocol=NETLINK_ROUTE, flags=NLM_F_ACK)


def _link(index: int) -> Any:
    """RTM_GETLINK of one device."""
    with oserror(f"look up network device {index}"):
        return _links(index=index)[0]


def _links(*, index: int = 0, flags: int = 0, **attributes: Any) -> list[Any]:
    request = ifinfmsg()
    request["index"], request["attrs"] = index, list(attributes.items())
    return ask(request, _RTM_GETLINK, protocol=NETLINK_ROUTE, flags=flags)


def _index(name: str) -> int:
    """The index of a device.  The ioctl behind if_nametoindex() takes 15 characters; alternative names may have 127."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"no network device can have the name {name!r}: it is not UTF-8 text") from None
    try:
        return socket.if_nametoindex(name)
    except OSError:
        with suppress(NetlinkError, IndexError):
            if len(name.encode()) < 128:
                return int(_links(IFLA_ALT_IFNAME=name)[0]["index"])
    here = ", ".join(sorted(other for _, other in socket.if_nameindex())) or "none"
    raise OSError(errno.ENODEV, f"no network device {name!r}; this namespace has: {here}")


def _device(index: int) -> Device:
    with oserror(f"look up network device {index}"):
        link = _links(index=index)[0]
        name = link.get_attr("IFLA_IFNAME")
        info = link.get_attr("IFLA_LINKINFO")
        kind = info.get_attr("IFLA_INFO_KIND") if info else None
        peer_mtu = _peer_mtu(link) if kind == "veth" else None
        lower = _lower(link) if kind != "veth" else ()
    counts = link.get_attr("IFLA_NUM_RX_QUEUES", 1), link.get_attr("IFLA_NUM_TX_QUEUES", 1)
    rx, tx, max_rx = _if_told(lambda: ethtool.channels(name)) or (*counts, counts[0])
    xdp = _netdev_family(index)
    return Device(
        name=name,
        index=index,
        mtu=link.get_attr("IFLA_MTU"),
        mac=link.get_attr("IFLA_ADDRESS") or "",
        driver=_if_told(lambda: ethtool.driver(name)) or kind,
        kind=kind,
        up=bool(link["flags"] & _IFF_UP),
        carrier=bool(link.get_attr("IFLA_CARRIER")),
        rx_queues=rx,
        tx_queues=tx,
        max_rx_queues=max_rx,
        xdp_features=None if xdp is None else _names(xdp.get_attr("NETDEV_A_DEV_XDP_FEATURES"), XDP_FEATURES),
        rx_metadata=_names(xdp and xdp.get_attr("NETDEV_A_DEV_XDP_RX_METADATA_FEATURES"), RX_METADATA),
        xsk_features=_names(xdp and xdp.get_attr("NETDEV_A_DEV_XSK_FEATURES"), XSK_FEATURES),
        xdp_zc_max_segs=(xdp and xdp.get_attr("NETDEV_A_DEV_XDP_ZC_MAX_SEGS")) or 0,
        lower=lower,
        peer_mtu=peer_mtu,
        link_type=link["ifi_type"],
    )


def _if_told(ask: Callable[[], T]) -> T | None:
    """The result of `ask`; None where the driver has no ethtool operations, as for lo."""
    try:
        return ask()
    except OSError:
        return None


def _names(bits: int | None, names: tuple[str, ...]) -> frozenset[str]:
    return frozenset(name for bit, name in enumerate(names) if (bits or 0) >> bit & 1)


def _peer_mtu(link: Any) -> int | None:
    """The MTU of the other end of a veth. The other end may be in another namespace, if that has an id here and this
    process may look into it."""
    there = link.get_attr("IFLA_LINK_NETNSID")
    target = {} if there is None else {"IFLA_IF_NETNSID": there}
    try:
        mtu: int = _links(index=link.get_attr("IFLA_LINK"), **target)[0].get_attr("IFLA_MTU")
        return mtu
    except NetlinkError:
        return None


def _lower(link: Any) -> tuple[str, ...]:
    """The devices below: IFLA_LINK names the only one; the ports of a bond, team or bridge name it as IFLA_MASTER."""
    below = link.get_attr("IFLA_LINK")
    if below and below != link["index"] and link.get_attr("IFLA_LINK_NETNSID") is None:
        return (_links(index=below)[0].get_attr("IFLA_IFNAME"),)
    ports = (other for other in _links(flags=NLM_F_DUMP) if other.get_attr("IFLA_MASTER") == link["index"])
    return tuple(sorted(port.get_attr("IFLA_IFNAME") for port in ports))


def _netdev_family(index: int) -> Any | None:
    """The answer to NETDEV_CMD_DEV_GET; None where the kernel has no such family or does not know the device."""
    return ask_family("netdev", _DevGet(), _NETDEV_CMD_DEV_GET, {"NETDEV_A_DEV_IFINDEX": index})

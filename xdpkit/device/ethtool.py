"""Settings and counters of a driver, through the ethtool ioctl (linux/ethtool.h): queues, offloads, counters.

Each call looks in the network namespace of the calling thread. Setting needs CAP_NET_ADMIN. An OSError names the
request and the device; EOPNOTSUPP means that the driver does not have it.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pyroute2.ethtool.ioctl import IoctlEthtool

from .netlink import oserror

_GDRVINFO, _GLINK = 0x3, 0xA


def driver(name: str) -> str:
    """The name of the driver (ETHTOOL_GDRVINFO)."""
    with _ethtool(name, "ask the driver of") as ioctl:  # struct ethtool_drvinfo: cmd, driver[32] ...
        return _ask(ioctl, _GDRVINFO, 196)[4:36].split(b"\0")[0].decode()


def bus(name: str) -> str:
    """Where the device is on its bus, as a PCI address; empty for one without."""
    with _ethtool(name, "ask for the bus of") as ioctl:
        return _ask(ioctl, _GDRVINFO, 196)[100:132].split(b"\0")[0].decode()


def channels(name: str) -> tuple[int, int, int]:
    """(receive, transmit, most receive) queues; a combined channel counts as one of each."""
    with _ethtool(name, "ask for the queues of") as ioctl:
        c = ioctl.get_channels()
    rx, tx = c["combined_count"] + c["rx_count"], c["combined_count"] + c["tx_count"]
    return rx, tx, c["max_combined"] + c["max_rx"]


def counters(name: str) -> dict[str, int]:
    """The driver's own counters (`ethtool -S`), such as veth's rx_queue_0_xdp_packets."""
    with _ethtool(name, "read the driver's counters of") as ioctl:
        return dict(ioctl.get_statistics())


def carrier(name: str) -> bool:
    """True if the link is up. Also waits until the kernel can transmit: link state changes run in a kernel
    worker, and until it has run a device with carrier still drops what is sent (ETHTOOL_GLINK flushes it)."""
    with _ethtool(name, "read the link state of") as ioctl:
        return bool(struct.unpack_from("II", _ask(ioctl, _GLINK, 8))[1])


def set_channels(name: str, *, rx: int, tx: int) -> None:
    """Set the number of queues in use; where the driver has combined channels, rx must equal tx."""
    with _ethtool(name, f"set {rx} receive and {tx} transmit queues on") as ioctl:
        channels = ioctl.get_channels()
        if channels["max_combined"]:
            if rx != tx:
                raise OSError(errno.EINVAL, f"{name} has combined channels: ask for as many rx as tx queues")
            channels["combined_count"] = rx
        else:
            channels["rx_count"], channels["tx_count"] = rx, tx
        ioctl.set_channels(channels)


def set_features(name: str, features: Mapping[str, bool]) -> None:
    """Turn offloads on or off by their `ethtool -k` kernel names ("rx-gro", "tx-checksum-ip-generic" ...)."""
    with _ethtool(name, f"set {', '.join(features)} on") as ioctl:
        state = ioctl.get_features()
        unknown = [feature for feature in features if feature not in state]
        if unknown:
            raise OSError(errno.EINVAL, f"this kernel knows no device feature {', '.join(unknown)}")
        for feature, on in features.items():
            if state[feature] != on:
                state[feature] = on
        ioctl.set_features(state)


def feature(name: str, feature: str) -> bool:
    """True if the offload is on."""
    with _ethtool(name, "read the features of") as ioctl:
        return bool(ioctl.get_features()[feature])


def _ask(ioctl: Any, command: int, size: int) -> bytes:
    """Send an ethtool command that pyroute2 does not know, as `size` bytes of which the first four are its number."""
    buffer = ctypes.create_string_buffer(struct.pack("I", command), size)
    ioctl.ifreq.gstrings = ctypes.cast(buffer, ctypes.POINTER(None))
    ioctl.ioctl()
    return buffer.raw


@contextmanager
def _ethtool(name: str, doing: str) -> Iterator[Any]:
    with oserror(f"{doing} {name}"):
        ioctl = IoctlEthtool(name)
        try:
            yield ioctl
        finally:
            ioctl.close()

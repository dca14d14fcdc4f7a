"""What offloads of a device, and of those that send to it, make packets lose on their way through a bridge.

Said when forwarding starts, with the command that prevents it: none of it can be seen in a packet afterwards.
"""

from __future__ import annotations

from contextlib import suppress

from ..device import ethtool
from ..device.netdev import Device

__all__ = ["merged", "tags_lost"]


def merged(device: Device) -> str:
    """In generic mode, packets come as the stack has them: what is forwarded may be too long for the other device."""
    return (
        f"{device.name}: in generic mode TCP segments arrive merged (GRO) or not yet cut by their sender (TSO, GSO), "
        "and those longer than the other device's MTU are lost: turn that off "
        f"(ethtool -K {device.name} gro off; where they are sent, ethtool -K DEV tso off gso off), "
        "or use FORWARD in mode tc_ingress, which takes them as they are"
    )


def tags_lost(device: Device) -> str | None:
    """forward() sends on what AF_XDP sockets receive, without the VLAN tags that the driver has taken out; None where
    it takes out none."""
    with suppress(OSError, KeyError):
        if ethtool.feature(device.name, "rx-vlan-hw-parse"):
            where = "DEV txvlan off, where they are sent" if device.kind == "veth" else f"{device.name} rxvlan off"
            return (
                f"{device.name}: VLAN tags may arrive beside the frame, and forward() loses those: turn that off "
                f"(ethtool -K {where}), or use FORWARD, which keeps them"
            )
    return None

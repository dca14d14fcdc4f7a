"""The emulated NICs of the guest as silent ports of the lab."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from traffic import until

from xdpkit.device import ethtool, netdev
from xdpkit.device.netlink import iproute
from xdpkit.lab import Port

DRIVERS = ("igb", "virtio_net")


def set_link(port: Port, **options: Any) -> None:
    """Change the device through netlink."""
    with iproute(f"change {port.name}") as ip:
        ip.link("set", index=port.index, **options)


def ready(*ports: Port) -> None:
    """Wait for the carrier: igb resets, and drops its link for a moment, when a program comes or goes."""
    for port in ports:
        until(lambda: ethtool.carrier(port.name), f"carrier on {port.name}")  # noqa: B023  (called here)


@contextmanager
def wire(driver: str) -> Iterator[tuple[Port, Port]]:
    """(near, far): the two joined NICs of a driver, up.  Afterwards no program may be left on either."""
    names = [name for name in sorted(os.listdir("/sys/class/net")) if netdev.device(name).driver == driver]
    assert len(names) == 2, f"{len(names)} devices of {driver}, not 2"
    near, far = map(_port, names)
    yield near, far
    for port in (near, far):
        assert netdev.xdp_holders(port.index) == (), f"a program is left on {port.name}"


def _port(name: str) -> Port:
    Path("/proc/sys/net/ipv6/conf", name, "disable_ipv6").write_text("1")  # it would send on its own account
    device = netdev.device(name)
    if device.driver == "igb" and device.rx_queues < 2:
        ethtool.set_channels(name, rx=2, tx=2)
        device = netdev.device(name)
    port = Port(nullcontext(), name, device.index, device.mac, device.rx_queues)  # type: ignore[arg-type]
    set_link(port, state="up")
    ready(port)
    return port

"""Where workers run and where UMEM lies: near the device.

A worker gets a CPU of the device's NUMA node that serves no interrupt of these queues, since the driver and the reader
of a queue work at the same time; where there is none, CPUs take turns.  Facts come from netlink (the queue's NAPI and
its interrupt, Linux 6.8), /proc/irq, and sysfs by PCI address: nothing there depends on a network namespace.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from . import ethtool, napi
from .netdev import Device

__all__ = ["choose", "device_node", "parse_list", "place"]


def place(device: Device, queues: Sequence[int]) -> tuple[int, ...]:
    """A CPU for each of ``queues``, of those that this thread may use."""
    allowed = os.sched_getaffinity(0)
    node = device_node(device)
    near = _read_list(f"/sys/devices/system/node/node{node}/cpulist") if node is not None else allowed
    irqs = (napi.of_queue(device.index, queue) for queue in dict.fromkeys(queues))
    busy = {
        cpu for n in irqs if n and n.irq is not None for cpu in _read_list(f"/proc/irq/{n.irq}/effective_affinity_list")
    }
    return choose(len(queues), allowed, near, busy)


def choose(workers: int, allowed: Iterable[int], near: Iterable[int], busy: Iterable[int]) -> tuple[int, ...]:
    """CPUs for ``workers``: those ``allowed``, first those ``near`` that are not ``busy`` with interrupts, then near,
    then the others; all of the best kind take turns."""
    allowed, near, busy = set(allowed), set(near), set(busy)
    pool = sorted((near - busy) & allowed) or sorted(allowed - busy) or sorted(near & allowed) or sorted(allowed)
    return tuple(pool[n % len(pool)] for n in range(workers))


def device_node(device: Device) -> int | None:
    """The NUMA node of a PCI device, None for one without."""
    try:
        address = ethtool.bus(device.name)
        node = int(Path("/sys/bus/pci/devices", address, "numa_node").read_text()) if address else -1
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None


def _read_list(path: str) -> set[int]:
    try:
        return parse_list(Path(path).read_text())
    except OSError:
        return set()


def parse_list(text: str) -> set[int]:
    """CPUs from the kernel's list format, as in 0-3,8."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        low, _, high = part.partition("-")
        if low:
            cpus.update(range(int(low), int(high or low) + 1))
    return cpus

"""Which CPUs workers run on, and which NUMA node UMEM lies in: those near the device.

A worker runs on a CPU of the device's NUMA node that serves no interrupt of these queues, because the driver and the
reader of a queue work at the same time.  Where there are not enough such CPUs, workers share them.  The facts come from
netlink (the NAPI of a queue and its interrupt, Linux 6.8), from /proc/irq, and from sysfs by PCI address.  None of
these depends on a network namespace, except netlink, which looks in that of the calling thread."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from . import ethtool, napi
from .netdev import Device

__all__ = ["choose", "device_node", "online_cpus", "parse_list", "place"]


def place(device: Device, queues: Sequence[int]) -> tuple[int, ...]:
    """A CPU for the worker of each of ``queues``, of the CPUs that this thread may use."""
    allowed = os.sched_getaffinity(0)
    node = device_node(device)
    near = _read_list(f"/sys/devices/system/node/node{node}/cpulist") if node is not None else allowed
    irqs = (napi.of_queue(device.index, queue) for queue in dict.fromkeys(queues))
    busy = {
        cpu for n in irqs if n and n.irq is not None for cpu in _read_list(f"/proc/irq/{n.irq}/effective_affinity_list")
    }
    return choose(len(queues), allowed, near, busy)


def choose(workers: int, allowed: Iterable[int], near: Iterable[int], busy: Iterable[int]) -> tuple[int, ...]:
    """A CPU for each of ``workers``, out of ``allowed``.  The best kind that exists is used, and its CPUs take turns:
    first ``near`` and not ``busy`` with interrupts, then not ``busy``, then ``near``, then any."""
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


def online_cpus() -> set[int]:
    """The CPUs that run now; those that this thread may use where the kernel does not say it."""
    return _read_list("/sys/devices/system/cpu/online") or os.sched_getaffinity(0)


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

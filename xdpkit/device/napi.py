"""The NAPI instance that serves a receive queue, from the kernel through generic netlink.

The family is ``netdev`` (Documentation/netlink/specs/netdev.yaml): queue-get is of Linux 6.8, the settings of a NAPI
are of Linux 6.13.  A driver that does not report which NAPI serves which queue (veth does not) is no error here."""

from __future__ import annotations

from dataclasses import dataclass

from pyroute2.netlink import genlmsg

from .netlink import ask_family

__all__ = ["Napi", "of_queue"]

_QUEUE_GET, _NAPI_GET = 10, 11
_RX = 0


@dataclass(frozen=True, slots=True)
class Napi:
    """A NAPI instance.  ``irq``: the number of its interrupt.  ``defer_hard_irqs``: how many polls may find nothing
    before its interrupts are switched on again.  ``gro_flush_timeout_ns``: the time in ns between these polls.  Each is
    None where the kernel does not report it."""

    id: int
    irq: int | None
    defer_hard_irqs: int | None
    gro_flush_timeout_ns: int | None


class _Queue(genlmsg):  # type: ignore[misc]
    nla_map = (
        ("NETDEV_A_QUEUE_UNSPEC", "none"),
        ("NETDEV_A_QUEUE_ID", "uint32"),
        ("NETDEV_A_QUEUE_IFINDEX", "uint32"),
        ("NETDEV_A_QUEUE_TYPE", "uint32"),
        ("NETDEV_A_QUEUE_NAPI_ID", "uint32"),
    )


class _Napi(genlmsg):  # type: ignore[misc]
    nla_map = (
        ("NETDEV_A_NAPI_UNSPEC", "none"),
        ("NETDEV_A_NAPI_IFINDEX", "uint32"),
        ("NETDEV_A_NAPI_ID", "uint32"),
        ("NETDEV_A_NAPI_IRQ", "uint32"),
        ("NETDEV_A_NAPI_PID", "uint32"),
        ("NETDEV_A_NAPI_DEFER_HARD_IRQS", "uint32"),
        ("NETDEV_A_NAPI_GRO_FLUSH_TIMEOUT", "uint32"),
    )


def of_queue(index: int, queue: int) -> Napi | None:
    """The NAPI of receive queue ``queue`` of the device; None where kernel or driver do not report it."""
    names = {"NETDEV_A_QUEUE_ID": queue, "NETDEV_A_QUEUE_IFINDEX": index, "NETDEV_A_QUEUE_TYPE": _RX}
    found = ask_family("netdev", _Queue(), _QUEUE_GET, names)
    napi_id = found and found.get_attr("NETDEV_A_QUEUE_NAPI_ID")
    if not napi_id:
        return None
    napi = ask_family("netdev", _Napi(), _NAPI_GET, {"NETDEV_A_NAPI_ID": napi_id})

    def value(name: str) -> int | None:
        number: int | None = napi.get_attr(f"NETDEV_A_NAPI_{name}") if napi else None
        return number

    return Napi(int(napi_id), value("IRQ"), value("DEFER_HARD_IRQS"), value("GRO_FLUSH_TIMEOUT"))

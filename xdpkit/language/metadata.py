"""Metadata, that is what the kernel may know of a packet besides its bytes: ``meta.timestamp``, ``meta.hash``,
``meta.vlan``.  This module is pure.

Each field is present or absent by itself, packet by packet, and a test on an absent field is false.  At XDP the driver
has the values (Documentation/networking/xdp-rx-metadata.rst), and only a program that is bound to its device can read
them; at TC and in the socket filter they are in the skb.  A time of 0 and a hash of 0 mean that there is none, as in
the kernel's own skb.

Readers of sockets receive the same values with each packet if they request them (``SocketOptions.rx_metadata``); see
:func:`choose_reader_metadata`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .errors import NotSupported, Where
from .expr import Expr, Present, Test
from .fields import METADATA
from .limits import Bucket
from .rule import Rule
from .sets import Add, Member

__all__ = [
    "READER_METADATA",
    "Metadata",
    "absent_at",
    "choose_reader_metadata",
    "kernel_needs",
    "metadata_fields",
    "offered_names",
    "refuse_generic",
]

#: The metadata that readers of sockets may request, in the order of the bits in bpf/xdp_meta.h.
READER_METADATA = ("timestamp", "hash", "vlan")

#: The kernel that brought each to XDP, and what the generic netlink family `netdev` calls it.
_SINCE = {"meta.timestamp": "6.3", "meta.hash": "6.3", "meta.vlan": "6.8"}
#: What is in the skb alone.
_OF_SKB = ("meta.mark", "meta.priority")
_FEATURES = {"meta.timestamp": "timestamp", "meta.hash": "hash", "meta.vlan": "vlan-tag"}


@dataclass(frozen=True, slots=True)
class Metadata:
    """What is known of one packet, for the reference evaluator; None is absent.  ``timestamp``: ns, 64 bits; ``hash``:
    32 bits; ``vlan``: the identifier of the tag (12 bits).  A timestamp or hash of 0 is absent too.  ``mark`` and
    ``priority`` of the skb (32 bits) are never absent: 0 is what they are where nobody has set them."""

    timestamp: int | None = None
    hash: int | None = None
    vlan: int | None = None
    mark: int = 0
    priority: int = 0

    def present(self) -> dict[str, int]:
        """The values that are there, by field."""
        values = {"meta.timestamp": self.timestamp or None, "meta.hash": self.hash or None, "meta.vlan": self.vlan}
        return {name: value for name, value in values.items() if value is not None}


def metadata_fields(rules: Iterable[Rule]) -> dict[str, Where]:
    """The metadata fields that ``rules`` read, each with the first line that does."""
    found: dict[str, Where] = {}
    for rule in rules:
        for node in rule.nodes():
            for name in _headers(node):
                found.setdefault(name, node.where)
        for step in rule.steps:
            if isinstance(step, Add):
                for spec in step.fields:
                    found.setdefault(spec.header or "", rule.where)
    return {name: where for name, where in found.items() if name in METADATA}


def _headers(node: Expr) -> Iterator[str]:
    match node:
        case Present():
            yield node.header
        case Test():
            yield node.spec.header or ""
        case Member():
            yield from (spec.header or "" for spec in node.fields)
        case Bucket():
            yield from (spec.header or "" for spec in node.per)


def absent_at(mode: str, offered: frozenset[str], fields: Iterable[str]) -> tuple[str, ...]:
    """Those of ``fields`` that no packet can have in attach mode ``mode`` on a device whose driver has the
    ``offered`` functions (``Device.rx_metadata``)."""
    missing = {name for name, feature in _FEATURES.items() if mode == "native" and feature not in offered}
    missing |= set(_OF_SKB) if mode in ("native", "generic") else set()
    missing |= {"meta.timestamp"} if mode == "af_packet" else set()
    return tuple(name for name in dict.fromkeys(fields) if name in missing)


def refuse_generic(fields: dict[str, Where], mode: str, device: str) -> None:
    """NotSupported where ``fields`` are tested in generic mode: no device-bound program can be attached there."""
    if mode == "generic" and fields:
        feature = f"{next(iter(fields.values()))}: {', '.join(fields)} in generic mode on {device}"
        raise NotSupported(feature, "a device-bound program, native mode only; mode tc_ingress reads the skb instead")


def offered_names(offered: frozenset[str]) -> list[str]:
    """The fields for which a driver has a function."""
    return [name for name in METADATA if _FEATURES[name] in offered]


def kernel_needs(fields: Iterable[str]) -> str:
    """What the kernel must have for these fields at XDP, as text."""
    late = [name for name in fields if _SINCE[name] != "6.3"]
    later = "".join(f", Linux {_SINCE[name]} for {name}" for name in late)
    return f"a device-bound program in native mode (Linux 6.3{later})"


def choose_reader_metadata(
    wanted: tuple[str, ...], required: bool, mode: str, offered: frozenset[str], device: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Which of the ``wanted`` names of READER_METADATA readers get in attach mode ``mode`` from a driver with the
    ``offered`` functions, and why they do not get the others.  NotSupported where one is ``required`` and cannot be."""
    there = [name for name in READER_METADATA if _FEATURES[f"meta.{name}"] in offered]
    offers = f"the driver offers {', '.join(there) or 'none'}"
    if mode == "native":
        found, why, needs = tuple(name for name in wanted if name in there), offers, f"a driver that has it: {offers}"
    else:
        found, why, needs = (), f"none in mode {mode}", f"native mode, where {offers}; this is {mode}"
    missing = ", ".join(name for name in wanted if name not in found)
    if missing and required:
        raise NotSupported(f"rx_metadata {missing} on {device}", needs)
    return found, (f"RX metadata {missing} ({why})",) if missing else ()

"""A network laboratory on one machine: namespaces joined by multi-queue veth pairs, for tests and trials.

    with Lab() as lab:
        left, right = lab.veth(lab.namespace("client"), lab.namespace("server"), queues=4)
        with right.capture() as got:
            left.send([Ether() / IP() / UDP()], queue=2)
            got.wait(1)

The ports are silent: nothing travels but what is sent (an IPv6 address is the exception: it makes its port
send MLD reports). Everything goes when the block ends or the process dies, by any signal. Needs root.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..device import ethtool, netdev
from ..device.netlink import iproute, outside_loop
from ..device.netns import Namespace
from .port import Capture, Port

__all__ = ["Capture", "Lab", "Namespace", "Port"]

# Offloads that a network card would carry out, and a veth does not.  With them a capture would show frames that no wire
# carries: partial checksums, segments beyond the MTU, VLAN tags that are not in the frame.
_OFFLOADS = (
    "tx-checksum-ip-generic",
    "tx-checksum-sctp",
    "tx-generic-segmentation",
    "tx-tcp-segmentation",
    "tx-tcp-ecn-segmentation",
    "tx-tcp-mangleid-segmentation",
    "tx-tcp6-segmentation",
    "tx-udp-segmentation",
    "tx-vlan-hw-insert",
    "tx-vlan-stag-hw-insert",
)


class Lab:
    """Makes namespaces and veth pairs, and closes the namespaces when the block ends."""

    def __init__(self) -> None:
        self._namespaces: list[Namespace] = []

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every namespace, newest first; again is harmless."""
        while self._namespaces:
            self._namespaces.pop().close()

    @classmethod
    @contextmanager
    def pair(cls, **options: Any) -> Iterator[tuple[Port, Port]]:
        """Two namespaces ("left", "right") and one veth pair between them; `options` as for `veth`."""
        with cls() as lab:
            yield lab.veth(lab.namespace("left"), lab.namespace("right"), **options)

    def namespace(self, label: str = "") -> Namespace:
        """A new namespace without IPv6, `lo` up. The label is for messages."""
        namespace = Namespace(label)
        self._namespaces.append(namespace)
        return namespace

    def veth(
        self,
        a: Namespace,
        b: Namespace,
        *,
        queues: int = 1,
        mtu: int = 1500,
        names: tuple[str, str] = ("left", "right"),
        addresses: tuple[str | None, str | None] = (None, None),
        napi: bool = True,
        offloads: bool = False,
    ) -> tuple[Port, Port]:
        """Join `a` and `b`: two ports, up, with carrier, ready to transmit, each with `queues` receive and
        transmit queues. `mtu` in bytes. `addresses` are like "10.0.0.1/24".

        `napi` turns GRO on (and its merging off, so frames stay as they were), because only a veth end with
        NAPI can take frames that XDP redirects or transmits into it. Without `offloads` the ports compute
        checksums, segment and tag in software, so that every frame is what a wire would carry.
        """
        if queues < 1:
            raise ValueError(f"a port needs at least one queue, not {queues}")
        outside_loop(lambda: _make(a, b, queues, mtu, names))
        features = {} if offloads else dict.fromkeys(_OFFLOADS, False)
        # both before either is raised: a veth decides when raised, by its peer's GRO, if it takes redirects
        for namespace, name in zip((a, b), names, strict=True):
            with namespace:
                ethtool.set_features(name, features | {"rx-gro": napi})
        left, right = ports = tuple(
            _port(namespace, name, address) for namespace, name, address in zip((a, b), names, addresses, strict=True)
        )
        left._peer.append(right)
        right._peer.append(left)
        for port in ports:
            with port.namespace:
                if not ethtool.carrier(port.name):
                    raise OSError(errno.ENETDOWN, f"{port.name} has no carrier although both ends are up")
        return left, right


def _make(a: Namespace, b: Namespace, queues: int, mtu: int, names: tuple[str, str]) -> None:
    # gro_max_size 1: GRO, which gives NAPI, finds every packet too large once merged, so it merges nothing
    end = {"num_rx_queues": queues, "num_tx_queues": queues, "mtu": mtu, "gro_max_size": 1}
    with a, iproute(f"make the veth pair {names[0]}, {names[1]}") as ip:
        peer = {"ifname": names[1], "net_ns_fd": b.fd, **end}
        ip.link("add", ifname=names[0], kind="veth", peer=peer, **end)


def _port(namespace: Namespace, name: str, address: str | None) -> Port:
    """Give the port its address and raise it."""

    def raise_() -> None:
        with iproute(f"raise {name}") as ip:
            if address and ":" in address:
                Path("/proc/sys/net/ipv6/conf", name, "disable_ipv6").write_text("0")
                Path("/proc/sys/net/ipv6/conf", name, "accept_ra").write_text("0")
                ip.link("set", index=index, IFLA_AF_SPEC={"attrs": [["AF_INET6", _no_link_local()]]})
            if address:
                host, _, length = address.partition("/")
                nodad = {"flags": 0x02} if ":" in host else {}
                ip.addr("add", index=index, address=host, prefixlen=int(length), **nodad)
            ip.link("set", index=index, state="up")

    with namespace:
        index = socket.if_nametoindex(name)
        outside_loop(raise_)
        facts = netdev.device(name)
    return Port(namespace, name, index, facts.mac, facts.rx_queues)


def _no_link_local() -> dict[str, Any]:
    return {"attrs": [["IFLA_INET6_ADDR_GEN_MODE", 1]]}

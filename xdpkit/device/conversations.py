"""The connections of this host's sockets (sock_diag(7)), and which of its addresses are in a VLAN of a device."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pyroute2.netlink import NETLINK_ROUTE, NLM_F_DUMP
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from .netlink import ask, oserror

__all__ = ["Conversation", "conversations", "vlans"]

_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY = 4, 20
_RTM_GETLINK, _RTM_GETADDR = 18, 22
#: ``struct nlmsghdr``; ``struct inet_diag_req_v2`` up to the ids; ``struct inet_diag_msg`` up to the addresses.
_HEADER, _REQUEST = struct.Struct("=IHHII"), struct.Struct("=BBBxI48x")
_ANSWER = struct.Struct("=BBBB2s2s16s16s")
_MAPPED = bytes(10) + b"\xff\xff"
_ESTABLISHED, _TIME_WAIT, _CLOSE, _LISTEN = 1, 6, 7, 10
#: States of include/net/tcp_states.h in which this side has sent a FIN, and in which the other has.
_SENT_FIN, _GOT_FIN = (4, 5, 9, 11), (8, 9, 11)
_STATES = {socket.IPPROTO_TCP: 0xFFF & ~(1 << _TIME_WAIT | 1 << _CLOSE), socket.IPPROTO_UDP: 1 << _ESTABLISHED}


@dataclass(frozen=True, slots=True)
class Conversation:
    """A connected socket: addresses of 4 or 16 bytes, ports, the protocol's number.  ``accepted``: the other side
    opened the connection, as far as a socket that listens on the port tells.  ``fins``: this side, the other side has
    sent a FIN."""

    proto: int
    local: bytes
    local_port: int
    remote: bytes
    remote_port: int
    accepted: bool
    fins: tuple[bool, bool]


class _Diag:
    """A request or an answer of sock_diag, read without a class for each attribute: a host may have 100,000 sockets."""

    def __init__(self, data: bytes = b""):
        self.data = data
        self.header: dict[str, int] = {}
        self.fields: tuple[Any, ...] = ()

    def __getitem__(self, name: str) -> dict[str, int]:
        return self.header

    def encode(self) -> None:
        size = _HEADER.size + len(self.data)
        self.data = _HEADER.pack(size, self.header["type"], self.header["flags"], 1, 0) + self.data

    def decode(self) -> None:
        self.fields = _ANSWER.unpack_from(self.data, _HEADER.size)


def conversations() -> Iterator[Conversation]:
    """The TCP and connected UDP sockets of the calling thread's network namespace, but for those of loopback addresses.
    OSError where the kernel does not say."""
    found: list[tuple[int, tuple[Any, ...]]] = []
    with oserror("connections of this host"):
        for proto, states in _STATES.items():
            for family in (socket.AF_INET, socket.AF_INET6):
                request = _Diag(_REQUEST.pack(family, proto, 0, states))
                answers = ask(request, _SOCK_DIAG_BY_FAMILY, protocol=_NETLINK_SOCK_DIAG, flags=NLM_F_DUMP)
                found += [(proto, answer.fields) for answer in answers]
    listening = {(proto, fields[4]) for proto, fields in found if fields[1] == _LISTEN}
    for proto, (family, state, _, _, local_port, remote_port, local, remote) in found:
        ends = _address(family, local), _address(family, remote)
        if state == _LISTEN or remote_port == b"\0\0" or any(map(_is_loopback, ends)):
            continue
        yield Conversation(
            proto, ends[0], int.from_bytes(local_port), ends[1], int.from_bytes(remote_port),
            (proto, local_port) in listening, (state in _SENT_FIN, state in _GOT_FIN),
        )  # fmt: skip


def _address(family: int, data: bytes) -> bytes:
    """As it is on the wire: a socket of both families has IPv4 addresses as IPv4-mapped ones."""
    if family == socket.AF_INET:
        return data[:4]
    return data[12:] if data.startswith(_MAPPED) else data


def _is_loopback(address: bytes) -> bool:
    return address[0] == 127 if len(address) == 4 else address == bytes(15) + b"\1"


def vlans(index: int) -> dict[bytes, int]:
    """The addresses of VLAN devices on the device of that index: address to VLAN identifier.  OSError where the kernel
    does not say."""
    with oserror("VLAN devices of this host"):
        links = ask(ifinfmsg(), _RTM_GETLINK, protocol=NETLINK_ROUTE, flags=NLM_F_DUMP)
        tags: dict[int, int] = {}
        for link in links:
            info = link.get_attr("IFLA_LINKINFO")
            data = info.get_attr("IFLA_INFO_DATA") if info and info.get_attr("IFLA_INFO_KIND") == "vlan" else None
            if data is not None and link.get_attr("IFLA_LINK") == index:
                tags[link["index"]] = data.get_attr("IFLA_VLAN_ID")
        if not tags:
            return {}
        addresses = ask(ifaddrmsg(), _RTM_GETADDR, protocol=NETLINK_ROUTE, flags=NLM_F_DUMP)
        return {
            socket.inet_pton(address["family"], address.get_attr("IFA_LOCAL") or address.get_attr("IFA_ADDRESS")): tags[
                address["index"]
            ]
            for address in addresses
            if address["index"] in tags
        }

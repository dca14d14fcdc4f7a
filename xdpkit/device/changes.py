"""Notices of the kernel that a device has changed: its state, MTU, name or place (rtnetlink), its queues (ethtool).

Sources: rtnetlink(7); Documentation/networking/ethtool-netlink.rst, whose notices come also for changes that are made
by the ioctl.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection
from functools import cache

from .netlink import family_groups

__all__ = ["Changes"]

_ROUTE, _GENERIC, _RTMGRP_LINK = 0, 16, 1
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_NEWLINK, _DELLINK = 16, 17


class Changes:
    """Notices about the devices of the network namespace that the calling thread is in now; close it."""

    def __init__(self, indexes: Collection[int]):
        """``indexes``: of the devices.  OSError if the kernel gives no sockets."""
        self._indexes, self._sockets = frozenset(indexes), [_netlink(_ROUTE)]
        try:
            self._sockets[0].bind((0, _RTMGRP_LINK))
            if (group := _ethtool_group()) is not None:
                self._sockets.append(_netlink(_GENERIC))
                self._sockets[1].bind((0, 0))  # no notice reaches a socket without a number
                self._sockets[1].setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        except BaseException:
            self.close()
            raise

    @property
    def fds(self) -> list[int]:
        """File descriptors; one is readable when there may be a notice."""
        return [sock.fileno() for sock in self._sockets]

    def take(self) -> bool:
        """Whether there was a notice since the last call: about one of the devices, or of ethtool about any.
        Never waits."""
        found = False
        for number, sock in enumerate(self._sockets):
            while (notices := _received(sock)) is not None:
                found |= bool(number) or not notices or self._concerns(notices)
        return found

    def _concerns(self, notices: bytes) -> bool:
        at = 0
        while at + 24 <= len(notices):
            size, kind = struct.unpack_from("IH", notices, at)
            if kind in (_NEWLINK, _DELLINK) and struct.unpack_from("i", notices, at + 20)[0] in self._indexes:
                return True
            at += max(16, (size + 3) & ~3)
        return False

    def close(self) -> None:
        """Idempotent."""
        while self._sockets:
            self._sockets.pop().close()


def _received(sock: socket.socket) -> bytes | None:
    """The next notices; None where there are none, empty where some were lost because too many came (ENOBUFS)."""
    try:
        return sock.recv(1 << 16)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def _netlink(protocol: int) -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)


@cache
def _ethtool_group() -> int | None:
    """Number of the multicast group of ethtool's notices; None before Linux 5.6."""
    for group in family_groups("ethtool"):
        if group.get_attr("CTRL_ATTR_MCAST_GRP_NAME") == "monitor":
            return int(group.get_attr("CTRL_ATTR_MCAST_GRP_ID"))
    return None

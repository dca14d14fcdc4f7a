"""How all modules call pyroute2: its errors become OSError with a message, and it runs outside a running asyncio loop.

Questions are pyroute2's messages on a plain socket (``ask``): they cost a millisecond.  Changes go through its IPRoute,
which brings asyncio and a loop of its own, and is imported when it is first used.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from pyroute2.ethtool.ioctl import EthtoolError, NoSuchDevice
from pyroute2.netlink import (
    NETLINK_GENERIC,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    ctrlmsg,
)
from pyroute2.netlink.exceptions import NetlinkError

__all__ = ["NetlinkError", "ask", "ask_family", "family_groups", "iproute", "oserror", "outside_loop"]

T = TypeVar("T")

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port (linux/netlink.h)
_NLM_F_MULTI, _NLM_F_DUMP_INTR = 0x2, 0x10
_GENL_ID_CTRL, _CTRL_CMD_GETFAMILY = 16, 3


def ask(message: Any, kind: int, *, protocol: int, flags: int = 0) -> list[Any]:
    """The messages that answer ``message``, of its class.  ``kind``: the type of the request; ``protocol``: NETLINK_*;
    ``flags``: NLM_F_*, beside NLM_F_REQUEST.  About the calling thread's network namespace.  NetlinkError is the
    kernel's refusal, OSError that of the socket."""
    message["header"]["type"], message["header"]["flags"] = kind, NLM_F_REQUEST | flags
    message.encode()
    interrupted = True
    while interrupted:  # what is listed changed meanwhile
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol) as sock:
            sock.send(message.data)
            answers, interrupted = _answers(sock, type(message))
    return answers


def _answers(sock: socket.socket, form: type[Any]) -> tuple[list[Any], bool]:
    """The messages up to the end of the answer, and whether the kernel reports that they are inconsistent (a change
    while it listed them)."""
    found: list[Any] = []
    more, interrupted = True, False
    while more:
        data = sock.recv(1 << 16)  # the kernel's messages are at most half of that
        more, at = False, 0
        while at < len(data):
            length, kind, flags, _, _ = _HEADER.unpack_from(data, at)
            if kind in (NLMSG_ERROR, NLMSG_DONE):
                (code,) = struct.unpack_from("=i", data, at + _HEADER.size)
                if code:
                    raise NetlinkError(-code)
                return found, interrupted
            answer = form(data[at : at + length])
            answer.decode()
            found.append(answer)
            interrupted |= bool(flags & _NLM_F_DUMP_INTR)
            more = bool(flags & _NLM_F_MULTI)
            at += (length + 3) & ~3
    return found, interrupted


def ask_family(family: str, message: Any, command: int, attributes: dict[str, int]) -> Any | None:
    """The first message of a generic netlink family's answer; None where the kernel has no such family or command, or
    does not know the object."""
    message["cmd"], message["version"], message["attrs"] = command, 1, list(attributes.items())
    try:
        number = _family(family).get_attr("CTRL_ATTR_FAMILY_ID")
        return ask(message, number, protocol=NETLINK_GENERIC)[0]
    except (NetlinkError, IndexError):
        return None


def family_groups(family: str) -> list[Any]:
    """The multicast groups of a generic netlink family; none where the kernel has no such family."""
    try:
        return _family(family).get_attr("CTRL_ATTR_MCAST_GROUPS") or []
    except (NetlinkError, IndexError):
        return []


def _family(family: str) -> Any:
    control = ctrlmsg()
    control["cmd"], control["version"] = _CTRL_CMD_GETFAMILY, 1
    control["attrs"] = [("CTRL_ATTR_FAMILY_NAME", family)]
    return ask(control, _GENL_ID_CTRL, protocol=NETLINK_GENERIC)[0]


def outside_loop(call: Callable[[], T]) -> T:
    """Run `call`, which uses pyroute2, also where an asyncio loop is running (Jupyter, an async application).

    pyroute2's IPRoute runs a loop of its own, and a thread can run only one. Where a loop is running already, the call
    is made in a new thread, which inherits the network namespace of the calling thread.
    """
    asyncio = sys.modules.get("asyncio")  # without it no loop is running
    if asyncio is None or asyncio._get_running_loop() is None:
        return call()
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


@contextmanager
def oserror(doing: str) -> Iterator[None]:
    """Turn pyroute2's exceptions, and an OSError without a message, into an OSError that says what failed."""
    try:
        yield
    except NetlinkError as error:
        raise OSError(error.code, f"{doing}: {os.strerror(error.code)}") from error
    except EthtoolError as error:
        code = errno.ENODEV if isinstance(error, NoSuchDevice) else errno.EOPNOTSUPP
        raise OSError(code, f"{doing}: {os.strerror(code)}") from error
    except OSError as error:
        if error.errno is None or error.strerror != os.strerror(error.errno):
            raise
        raise OSError(error.errno, f"{doing}: {error.strerror}") from error


@contextmanager
def iproute(doing: str) -> Iterator[Any]:
    """An IPRoute in this thread's namespace, with its errors as OSError; to be used in `outside_loop`."""
    from pyroute2.iproute.linux import IPRoute

    with oserror(doing), IPRoute() as ip:
        yield ip

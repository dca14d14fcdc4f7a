"""Packets that carry metadata: a port gives each frame the hash and the VLAN tag that a socket asks for."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

from xdpkit.kernel.core import check, lib
from xdpkit.lab import Port
from xdpkit.language.metadata import Metadata

SYS_BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
PROG_LOAD, PROG_TEST_RUN, SCHED_CLS = 5, 10, 3
SO_PRIORITY, SO_MARK = 12, 36
#: In SO_PRIORITY, over the 16 bits of a tag: there is one.
TAGGED = 1 << 16
# struct __sk_buff: mark at 8, priority at 32.  Helpers: bpf_skb_vlan_push 18, bpf_set_hash 48.
GIVE = struct.pack(
    "=" + "BBhi" * 13,
    *(0xBF, 0x16, 0, 0),  # r6 = r1
    *(0x61, 0x63, 32, 0),  # r3 = skb->priority
    *(0x15, 0x03, 4, 0),  # if r3 == 0 skip 4
    *(0xBF, 0x61, 0, 0),  # r1 = r6
    *(0xB7, 0x02, 0, socket.htons(0x8100)),
    *(0x57, 0x03, 0, 0xFFFF),
    *(0x85, 0x00, 0, 18),
    *(0x61, 0x62, 8, 0),  # r2 = skb->mark
    *(0x15, 0x02, 2, 0),  # if r2 == 0 skip 2
    *(0xBF, 0x61, 0, 0),
    *(0x85, 0x00, 0, 48),
    *(0xB7, 0x00, 0, -1),  # TCX_NEXT
    *(0x95, 0x00, 0, 0),
)


# vlan_tci at 24; bpf_skb_vlan_pop 19.
TAG = struct.pack(
    "=" + "BBhi" * 5,
    *(0xB7, 0x02, 0, socket.htons(0x8100)),
    *(0xB7, 0x03, 0, 7),
    *(0x85, 0x00, 0, 18),
    *(0xB7, 0x00, 0, -1),  # TCX_NEXT
    *(0x95, 0x00, 0, 0),
)
UNTAG = struct.pack(
    "=" + "BBhi" * 6,
    *(0x61, 0x12, 24, 0),  # r2 = skb->vlan_tci
    *(0xB7, 0x00, 0, 2),  # TCX_DROP
    *(0x55, 0x02, 2, 7),  # if r2 != 7 skip 2
    *(0x85, 0x00, 0, 19),
    *(0xB7, 0x00, 0, -1),
    *(0x95, 0x00, 0, 0),
)


def bpf(command: int, attributes: bytes) -> tuple[int, bytes]:
    """bpf(2): its result and what became of the attributes."""
    room = ctypes.create_string_buffer(attributes.ljust(128, b"\0"), 128)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    result = libc.syscall(SYS_BPF, command, room, len(room))
    assert result >= 0, os.strerror(ctypes.get_errno())
    return result, room.raw


@contextmanager
def at_tc(port: Port, instructions: bytes, *, egress: bool) -> Iterator[None]:
    """A program on ``port`` that is not xdpkit's."""
    code, licence = ctypes.create_string_buffer(instructions), ctypes.create_string_buffer(b"GPL")
    pointers = ctypes.addressof(code), ctypes.addressof(licence)
    program, _ = bpf(PROG_LOAD, struct.pack("IIQQ", SCHED_CLS, len(instructions) // 8, *pointers))
    with port.namespace:
        link = check(lib.xk_link_tcx(program, port.index, egress))
    try:
        yield
    finally:
        os.close(link)
        os.close(program)


def giving(port: Port) -> AbstractContextManager[None]:
    """What is sent from ``port`` has the metadata that its socket says."""
    return at_tc(port, GIVE, egress=True)


@contextmanager
def in_vlan(port: Port) -> Iterator[None]:
    """The host on ``port`` is in VLAN 7: what it sends has the tag, beside the frame; what comes without is dropped."""
    with at_tc(port, TAG, egress=True), at_tc(port, UNTAG, egress=False):
        yield


Sent = tuple[bytes, Metadata]


def send(port: Port, batch: Iterable[Sent]) -> None:
    with port.namespace, socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.bind((port.name, 0))
        for frame, known in batch:
            priority = 0 if known.vlan is None else known.vlan | TAGGED
            sock.setsockopt(socket.SOL_SOCKET, SO_PRIORITY, priority)
            sock.setsockopt(socket.SOL_SOCKET, SO_MARK, struct.pack("I", known.hash or 0))
            sock.send(frame)


@contextmanager
def tap(namespace, offloads: bool = False) -> Iterator[int]:
    """A TAP device "tap0" that is up: native XDP without metadata functions; what is written to it arrives there.
    With ``offloads``, a struct virtio_net_hdr of 10 bytes stands before each packet."""
    with namespace:
        fd = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(
            fd, 0x400454CA, struct.pack("16sH22x", b"tap0", 0x1002 | 0x4000 * offloads)
        )  # TUNSETIFF: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
    try:
        namespace.run(["ip", "link", "set", "tap0", "up"], check=True)
        yield fd
    finally:
        os.close(fd)

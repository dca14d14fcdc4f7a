"""One end of a veth pair: send frames from it, see what its stack receives.

Which receive queue a frame reaches: veth delivers what is sent on transmit queue N to receive queue N of the
peer. Without `queue=` the kernel picks N by flow hash. With it, the sending socket marks the packet (SO_MARK
N + 1) and a BPF program of five instructions on the port's clsact egress hook turns the mark into
`skb->queue_mapping`; the first such send attaches it. The mark does not leave the namespace.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import select
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, SupportsBytes

from ..device import netdev
from ..device.netlink import NetlinkError, iproute, outside_loop
from ..device.netns import Namespace

if TYPE_CHECKING:
    from .generator import Generator

_ETH_P_ALL = 3
_SOL_PACKET, _PACKET_STATISTICS, _PACKET_AUXDATA, _PACKET_IGNORE_OUTGOING = 263, 6, 8, 23
_SO_RCVBUFFORCE, _SO_MARK = 33, 36
_TP_STATUS_VLAN_VALID, _TP_STATUS_VLAN_TPID_VALID = 1 << 4, 1 << 6
_AUXDATA = struct.Struct("IIIHHHH")  # struct tpacket_auxdata: status len snaplen mac net vlan_tci vlan_tpid
_CLSACT_EGRESS = 0xFFFFFFF3
_BPF_PROG_LOAD, _BPF_PROG_TYPE_SCHED_CLS = 5, 3
_SYS_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "s390x": 351, "ppc64le": 361}

# r2 = skb->mark; if r2 == 0 goto out; skb->queue_mapping = r2; out: r0 = TC_ACT_UNSPEC; exit
# (queue_mapping holds the recorded receive queue + 1 there, and the kernel transmits on that queue)
_STEER = struct.pack(
    "=" + "BBhi" * 5,
    *(0x61, 0x12, 8, 0),
    *(0x15, 0x02, 1, 0),
    *(0x63, 0x21, 12, 0),
    *(0xB7, 0x00, 0, -1),
    *(0x95, 0x00, 0, 0),
)


class Capture(list[bytes]):
    """The frames that reached a port's stack, oldest first, as they were on the wire (VLAN tags in place).

    Filled by `wait`, and by the end of the `port.capture()` block with what has arrived until then.
    """

    def __init__(self, sock: socket.socket, port: str) -> None:
        super().__init__()
        self._sock: socket.socket | None = sock
        self._port = port

    def wait(self, count: int, timeout: float = 2.0) -> Capture:
        """Until `count` frames are here in all; TimeoutError after `timeout` seconds says how many came."""
        deadline = time.monotonic() + timeout
        while len(self) < count:
            if self._sock is None or not self._receive(deadline - time.monotonic()):
                raise TimeoutError(f"{len(self)} of {count} frames reached {self._port} within {timeout:g} s")
        return self

    def _receive(self, timeout: float) -> bool:
        assert self._sock is not None
        if not select.select([self._sock], [], [], max(timeout, 0))[0]:
            return False
        data, ancillary, _, _ = self._sock.recvmsg(1 << 18, socket.CMSG_SPACE(_AUXDATA.size))
        self.append(_retag(data, ancillary))
        return True

    def _finish(self) -> None:
        assert self._sock is not None
        while self._receive(0):
            pass
        _, dropped = struct.unpack("II", self._sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        self._sock = None
        if dropped:
            raise OSError(errno.ENOBUFS, f"capture on {self._port} lost {dropped} frames: wait() more often")


@dataclass(frozen=True, slots=True, eq=False)
class Port:
    """One end of a veth pair, up and with carrier, with `queues` receive and as many transmit queues."""

    namespace: Namespace
    name: str
    index: int
    mac: str
    queues: int
    _peer: list[Port] = field(repr=False, default_factory=list)
    _steered: list[bool] = field(repr=False, default_factory=list)

    @property
    def peer(self) -> Port:
        """The other end."""
        return self._peer[0]

    @property
    def device(self) -> netdev.Device:
        """The port as the kernel describes it now."""
        with self.namespace:
            return netdev.device(self.name)

    def stats(self) -> dict[str, int]:
        """The port's counters (`netdev.stats`)."""
        with self.namespace:
            return netdev.stats(self.index)

    def send(self, packets: Iterable[SupportsBytes], *, queue: int | None = None) -> int:
        """Send whole frames (scapy packets or bytes) in order, as they are; returns how many.

        `queue` names the receive queue of the peer that they arrive on; by default the flow decides. Nothing is lost
        on the way: while a buffer is full it blocks. OSError(EMSGSIZE) for a frame beyond the MTU.
        """
        if queue is not None and not 0 <= queue < self.queues:
            raise ValueError(f"{self.name} has queues 0 to {self.queues - 1}, not {queue}")
        sent = 0
        with self._socket(0) as sock:
            if queue is not None and self.queues > 1:
                self._steer()
                sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, queue + 1)
            for packet in packets:
                _send(sock, bytes(packet), self.name)
                sent += 1
        return sent

    def generator(self, templates: Sequence[SupportsBytes], **options: Any) -> Generator:
        """A fast sender of copies of `templates` out of this port; options as for `xdpkit.lab.generator.Generator`."""
        from .generator import Generator

        return Generator(self, templates, **options)

    @contextmanager
    def capture(self) -> Iterator[Capture]:
        """Collect the frames that reach this port's stack (XDP has let them pass); not what it sends."""
        with self._socket(_ETH_P_ALL) as sock:
            got = Capture(sock, self.name)
            yield got
            got._finish()

    def _socket(self, protocol: int) -> socket.socket:
        """Bound to this port; protocol 0 receives nothing. Options come first, so no frame escapes them."""
        with self.namespace:
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        try:
            if protocol:
                sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 27)
                sock.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
                sock.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
            sock.bind((self.name, protocol))
        except BaseException:
            sock.close()
            raise
        return sock

    def _steer(self) -> None:
        if self._steered:
            return
        program = _load_steer()
        try:
            with self.namespace:
                outside_loop(lambda: self._attach(program))
        finally:
            os.close(program)
        self._steered.append(True)

    def _attach(self, program: int) -> None:
        with iproute(f"attach queue steering to {self.name}") as ip:
            try:
                ip.tc("add", "clsact", self.index)
            except NetlinkError as error:
                if error.code != errno.EEXIST:
                    raise
            hook = {"parent": _CLSACT_EGRESS, "prio": 1, "classid": 1, "direct_action": True}
            ip.tc("add-filter", "bpf", self.index, fd=program, name="xdpkit_steer", **hook)


def _send(sock: socket.socket, frame: bytes, port: str) -> None:
    """Until sent. ENOBUFS: the peer's ring of 256 was full, and veth dropped and said so (since 6.6)."""
    while True:
        try:
            sock.send(frame)
            return
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                raise OSError(error.errno, f"{port}: {len(frame)} bytes is beyond the MTU") from error
            if error.errno != errno.ENOBUFS:
                raise
            select.select([], [sock], [])


def _retag(frame: bytes, ancillary: list[tuple[int, int, bytes]]) -> bytes:
    """Put back the outer VLAN tag, which the kernel moved from the frame into the auxiliary data."""
    for level, kind, data in ancillary:
        if (level, kind) == (_SOL_PACKET, _PACKET_AUXDATA) and len(data) >= _AUXDATA.size:
            status, _, _, _, _, tci, tpid = _AUXDATA.unpack_from(data)
            if status & _TP_STATUS_VLAN_VALID:
                tag = struct.pack("!HH", tpid if status & _TP_STATUS_VLAN_TPID_VALID else 0x8100, tci)
                return frame[:12] + tag + frame[12:]
    return frame


def _load_steer() -> int:
    """bpf(BPF_PROG_LOAD) of _STEER; the new program's descriptor. Needs CAP_BPF and CAP_NET_ADMIN."""
    number = _SYS_BPF.get(platform.machine())
    if number is None:
        raise NotImplementedError(f"sending to a chosen queue is not known to work on {platform.machine()}")
    code, licence = ctypes.create_string_buffer(_STEER), ctypes.create_string_buffer(b"GPL")
    addresses = ctypes.addressof(code), ctypes.addressof(licence)
    attributes = struct.pack("IIQQ", _BPF_PROG_TYPE_SCHED_CLS, len(_STEER) // 8, *addresses).ljust(128, b"\0")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    fd: int = libc.syscall(number, _BPF_PROG_LOAD, attributes, len(attributes))
    if fd < 0:
        failed = ctypes.get_errno()
        raise OSError(failed, f"load the queue steering program: {os.strerror(failed)}")
    return fd

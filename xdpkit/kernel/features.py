"""The features of the kernel that xdpkit can use.  They are tried, not derived from the version number.

:func:`has` tries a feature once per process, and touches no device: it loads programs of two instructions and closes
them, and binds sockets to a device that does not exist.  :data:`FEATURES` says which Linux brought each feature, so
that a kernel which should have a feature and lacks it can be distinguished from an old kernel.  A probe needs the
privilege that the feature needs; without it the result is False.

Sources: linux/bpf.h, linux/if_xdp.h, Documentation/networking/af_xdp.rst and xdp-rx-metadata.rst.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import re
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..device import netdev
from ..language.errors import NotSupported
from .core import lib

__all__ = ["FEATURES", "Feature", "has", "kernel_version", "require"]

_SYS_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "s390x": 351, "ppc64le": 361}
_MAP_CREATE, _PROG_LOAD, _PROG_TEST_RUN = 0, 5, 10
_SCHED_CLS, _XDP = 3, 6
_RINGBUF = 27
_XDP_PASS = 2
_HAS_FRAGS, _LIVE_FRAMES = 1 << 5, 1 << 1
_LOOP_HELPER = 181
_AF_XDP, _SOL_XDP, _XDP_USE_SG = 44, 283, 1 << 4
_XDP_UMEM_REG, _UMEM_TX_METADATA_LEN = 4, 1 << 2
_NO_DEVICE = 0x7FFFFFFF

_RETURN = struct.pack("<BBhiBBhi", 0xB7, 0, 0, _XDP_PASS, 0x95, 0, 0, 0)  # r0 = XDP_PASS; exit


@dataclass(frozen=True, slots=True)
class Feature:
    """A feature of the kernel.  ``since``: the Linux version that brought it.  ``use``: what xdpkit uses it for."""

    name: str
    since: tuple[int, int]
    use: str
    probe: Callable[[], bool]

    @property
    def version(self) -> str:
        """The Linux version that brought it, such as "6.6"."""
        return f"{self.since[0]}.{self.since[1]}"


def kernel_version() -> tuple[int, int]:
    """(major, minor) of the running Linux."""
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


@cache
def has(name: str) -> bool:
    """Whether this kernel has the feature ``name``, a key of FEATURES.  It is tried once."""
    try:
        return FEATURES[name].probe()
    except OSError:
        return False


def require(name: str, what: str) -> None:
    """Raise NotSupported about ``what`` unless this kernel has the feature ``name``."""
    if not has(name):
        version = FEATURES[name].version
        raise NotSupported(what, f"{name}, Linux {version} or later; this is Linux {os.uname().release}")


def _bpf(command: int, attributes: bytes) -> int:
    number = _SYS_BPF.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"bpf(2) has no known number on {platform.machine()}")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    result: int = libc.syscall(number, command, attributes.ljust(160, b"\0"), 160)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _load(kind: int, code: bytes = _RETURN, flags: int = 0) -> int:
    """A loaded program's descriptor."""
    room, licence = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
    addresses = ctypes.addressof(room), ctypes.addressof(licence)
    return _bpf(_PROG_LOAD, struct.pack("IIQQIIQII", kind, len(code) // 8, *addresses, 0, 0, 0, 0, flags))


def _loads(kind: int, code: bytes = _RETURN, flags: int = 0) -> bool:
    os.close(_load(kind, code, flags))
    return True


def _ring_buffer() -> bool:
    os.close(_bpf(_MAP_CREATE, struct.pack("IIII", _RINGBUF, 0, 0, os.sysconf("SC_PAGE_SIZE"))))
    return True


def _loop() -> bool:
    """Whether the helper is known: for an unknown one the verifier returns EINVAL, before it checks the arguments
    (EACCES)."""
    code = struct.pack("<BBhi", 0x85, 0, 0, _LOOP_HELPER) + _RETURN
    try:
        return _loads(_XDP, code)
    except OSError as error:
        return error.errno == errno.EACCES


def _live_frames() -> bool:
    program, packet = _load(_XDP), ctypes.create_string_buffer(64)
    try:  # prog_fd retval data_size_in data_size_out data_in data_out repeat duration ctx_size_in/out ctx_in/out flags
        fields = (program, 0, 64, 0, ctypes.addressof(packet), 0, 1, 0, 0, 0, 0, 0, _LIVE_FRAMES)
        _bpf(_PROG_TEST_RUN, struct.pack("IIIIQQIIIIQQI", *fields))
    finally:
        os.close(program)
    return True


def _tcx() -> bool:
    program = _load(_SCHED_CLS)
    try:
        return bool(lib.xk_link_tcx(program, _NO_DEVICE, False) == -errno.ENODEV)
    finally:
        os.close(program)


def _multi_buffer() -> bool:
    """Whether the kernel knows the flag of bind(2), which it checks before the device."""
    with socket.socket(_AF_XDP, socket.SOCK_RAW, 0) as sock:
        address = struct.pack("HHIII", _AF_XDP, _XDP_USE_SG, _NO_DEVICE, 0, 0)
        libc = ctypes.CDLL(None, use_errno=True)
        libc.bind(sock.fileno(), address, len(address))
        return ctypes.get_errno() == errno.ENODEV


def _tx_metadata() -> bool:
    """Whether the kernel knows the flag of a UMEM with TX metadata."""
    size = os.sysconf("SC_PAGE_SIZE")
    with socket.socket(_AF_XDP, socket.SOCK_RAW, 0) as sock, mmap.mmap(-1, size) as memory:
        view = ctypes.c_char.from_buffer(memory)
        umem = struct.pack("QQIIII", ctypes.addressof(view), size, size, 0, _UMEM_TX_METADATA_LEN, 24)
        try:
            sock.setsockopt(_SOL_XDP, _XDP_UMEM_REG, umem)
        finally:
            del view
    return True


def _netdev_features() -> bool:
    return netdev.device("lo").xdp_features is not None


def _kernel_function(name: str) -> Callable[[], bool]:
    return lambda: b"\0" + name.encode() + b"\0" in Path("/sys/kernel/btf/vmlinux").read_bytes()


FEATURES = {
    feature.name: feature
    for feature in (
        Feature("ring buffer", (5, 8), "REDIRECT at TC", _ring_buffer),
        Feature("bpf_loop", (5, 17), "limits, tcpdump strings that loop", _loop),
        Feature("live frames", (5, 18), "the lab's generator", _live_frames),
        Feature("XDP fragments", (5, 18), "packets of more than a page", lambda: _loads(_XDP, flags=_HAS_FRAGS)),
        Feature("netdev features", (6, 3), "the doctor's word on a driver", _netdev_features),
        Feature("metadata kfuncs", (6, 3), "meta.hash, meta.timestamp", _kernel_function("bpf_xdp_metadata_rx_hash")),
        Feature("AF_XDP multi-buffer", (6, 6), "packets of several frames", _multi_buffer),
        Feature("tcx", (6, 6), "the TC modes", _tcx),
        Feature("TX metadata", (6, 8), "TX timestamps and checksums of AF_XDP", _tx_metadata),
        Feature("VLAN kfunc", (6, 8), "meta.vlan", _kernel_function("bpf_xdp_metadata_rx_vlan_tag")),
    )
}

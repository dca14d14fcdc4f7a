"""Programs at the TCX hooks of a port."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from xdpkit.lab import Port

INGRESS, EGRESS = 46, 47  # BPF_TCX_INGRESS, BPF_TCX_EGRESS


def tcx_programs(port: Port, where: int) -> int:
    """How many programs are at a TCX hook: BPF_PROG_QUERY."""
    query = ctypes.create_string_buffer(struct.pack("IIIIQI", port.index, where, 0, 0, 0, 0).ljust(128, b"\0"), 128)
    libc = ctypes.CDLL(None, use_errno=True)
    with port.namespace:
        if libc.syscall(321, 16, query, 128) < 0:
            assert ctypes.get_errno() == errno.ENOENT, os.strerror(ctypes.get_errno())
            return 0
    return int(struct.unpack_from("I", query, 24)[0])

"""What became of forwarded packets: how many the other devices took, and how many they dropped.

A program that forwards knows that the packet is on its way; whether the driver then had room for it the kernel tells on
a tracepoint (``xdp:xdp_devmap_xmit``), where a small program counts (``bpf/forwarded.bpf.c``)."""

from __future__ import annotations

import os

from ..compiler.bitcode import shipped
from ..kernel.core import check, ffi, lib, text

__all__ = ["Forwarded"]


class Forwarded:
    """Counts packets that XDP programs forward from one device, from now on; ``close()`` is idempotent."""

    def __init__(self, device: str, ifindex: int, namespace: int):
        """``ifindex`` of the device, in the network ``namespace`` of that inode number.  OSError names the call."""
        code = shipped("forwarded.o")
        out, log = ffi.new("struct xk_program **"), ffi.new("char[]", 1 << 16)
        check(lib.xk_program_open(code, len(code), b"forwarded", out), device)
        self._program, self._link = out[0], -1
        try:
            check(lib.xk_program_set_u32(self._program, b"from_ifindex", ifindex), device)
            check(lib.xk_program_set_u32(self._program, b"from_namespace", namespace), device)
            check(
                lib.xk_program_load(self._program, log, len(log)), f"{device}: counting forwarded packets: {text(log)}"
            )
            self._link = check(lib.xk_link_trace(lib.xk_program_fd(self._program)), device)
        except BaseException:
            self.close()
            raise

    def counts(self) -> tuple[int, int]:
        """Packets that the other devices took, and packets that they dropped."""
        out = ffi.new("uint64_t[2]")
        fd = check(lib.xk_program_map(self._program, b"forwarded"), "forwarded")
        check(lib.xk_counters(fd, 1, 2, out), "forwarded")
        return int(out[0]), int(out[1])

    def close(self) -> None:
        """Stop counting."""
        if self._link >= 0:
            os.close(self._link)
            self._link = -1
        if self._program is not None:
            lib.xk_program_close(self._program)
            self._program = None

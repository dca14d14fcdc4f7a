"""The counts of forwarded packets: how many the other devices took, and why they did not take the rest.

A program that forwards only says where a packet shall go.  The kernel reports what comes of it on two tracepoints,
``xdp:xdp_devmap_xmit`` and ``xdp:xdp_redirect_err``, where two small programs count (``bpf/redirects.bpf.c``)."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path

from ..compiler.bitcode import shipped
from ..kernel.bpfmap import map_id
from ..kernel.core import check, ffi, lib, text
from .tally import Forwarding

__all__ = ["RedirectCounter"]

_TRACEPOINT_PROGRAMS = (b"devmap_xmit", b"redirect_err")
_COUNTED = [field.name for field in fields(Forwarding) if field.name != "counts_sent"]


class RedirectCounter:
    """Counts the packets that XDP programs forward from one device, by result.  ``close()`` is idempotent.

    Make it before the program is attached: packets that are forwarded before are in no count."""

    def __init__(self, device: str, ifindex: int, namespace: int, *, native: bool):
        """``ifindex`` of the device, in the network ``namespace`` of that inode number; ``native``: the programs run in
        the driver, so that the kernel reports what was sent.  OSError names the call."""
        code = shipped("redirects.o")
        out, log = ffi.new("struct xk_program **"), ffi.new("char[]", 1 << 16)
        self._native = native
        self._links: list[int] = []
        check(lib.xk_program_open(code, len(code), b"redirects", out), device)
        self._program = out[0]
        try:
            check(lib.xk_program_set_u32(self._program, b"from_ifindex", ifindex), device)
            check(lib.xk_program_set_u32(self._program, b"from_namespace", namespace), device)
            loaded = lib.xk_program_load(self._program, log, len(log))
            check(loaded, f"{device}: counting forwarded packets: {text(log)}")
            for name in _TRACEPOINT_PROGRAMS:
                fd = check(lib.xk_program_fd_of(self._program, name), device)
                self._links.append(check(lib.xk_link_trace(fd), device))
            self._counted: int = check(lib.xk_program_map(self._program, b"forwarding"), "forwarding")
        except BaseException:
            self.close()
            raise

    @classmethod
    def opened(cls, folder: Path, map_id: int, *, native: bool) -> RedirectCounter:
        """The counter that was pinned in ``folder`` and counts in the map of that id.  OSError where it is gone."""
        counter = cls.__new__(cls)
        counter._native, counter._links, counter._program = native, [], None
        try:
            counter._counted = check(lib.xk_map_by_id(map_id), "forwarding")
            counter._links.append(counter._counted)
            for name in _TRACEPOINT_PROGRAMS:
                path = folder / name.decode()
                counter._links.append(check(lib.xk_map_open(str(path).encode()), str(path)))
        except BaseException:
            counter.close()
            raise
        return counter

    def pin(self, folder: Path) -> int:
        """Go on counting when this process has ended; the id of the map of the counts."""
        for name, fd in zip(_TRACEPOINT_PROGRAMS, self._links, strict=True):
            path = str(folder / name.decode())
            check(lib.xk_map_pin(fd, path.encode()), path)
        return map_id(self._counted)

    def counts(self) -> Forwarding:
        """The counts so far."""
        out = ffi.new("uint64_t[]", len(_COUNTED))
        check(lib.xk_counters(self._counted, 1, len(_COUNTED), out), "forwarding")
        counts = {name: int(n) for name, n in zip(_COUNTED, out, strict=True)}
        return Forwarding(counts_sent=self._native, **counts)

    def close(self) -> None:
        """Stop counting."""
        while self._links:
            os.close(self._links.pop())
        if self._program is not None:
            lib.xk_program_close(self._program)
            self._program = None

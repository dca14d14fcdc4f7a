"""UMEM: the memory that sockets share with the kernel, and the pools that own its frames.

The head of csrc/xdpkit.h says who owns a frame.  A UMEM is unmapped when its last view is gone, not before, so that
Python can still read the packets that it has views of.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

from ..kernel.core import check, ffi, lib
from ..language.errors import FrameError, NotSupported
from .options import SocketOptions

__all__ = ["TX_METADATA_BYTES", "Pool", "Umem"]

#: struct xsk_tx_metadata (linux/if_xdp.h).
TX_METADATA_BYTES = 24
_OWNERS = ("free", "fill", "rx", "held", "tx", "completion")


class Umem:
    """Memory for ``frames`` frames of ``chunk_size`` bytes.  ``unaligned``: frames may lie at any address, so that the
    size need not be a power of two.  ``huge``: use huge pages; NotSupported if too few are reserved.  ``node``: the
    NUMA node to prefer; None for the node that touches the memory first.  ``software_checksum``: the kernel computes
    the checksums that are requested, which it can in copy mode.  ``tx_metadata``: room for struct xsk_tx_metadata
    before each packet to transmit.  OSError where the memory cannot be mapped or registered."""

    def __init__(
        self, frames: int, chunk_size: int, options: SocketOptions, *, unaligned: bool = False, huge: bool = False,
        node: int | None = None, software_checksum: bool = True, tx_metadata: bool = False,
    ):  # fmt: skip
        self.frames: int = frames
        self.chunk_size: int = chunk_size
        self.unaligned: bool = unaligned
        self.debug: bool = bool(os.environ.get("XDPKIT_DEBUG")) if options.debug is None else options.debug
        config = {
            "frames": frames,
            "chunk_size": chunk_size,
            "headroom": options.headroom,
            "tx_metadata": TX_METADATA_BYTES if tx_metadata else 0,
            "software_checksum": options.checksum and software_checksum,
            "node": -1 if node is None else node,
            "huge": huge,
            "unaligned": unaligned,
            "check": self.debug,
        }
        out = ffi.new("struct xk_umem **")
        result = lib.xk_umem_open(ffi.new("struct xk_umem_config *", config), out)
        if huge and result == -errno.ENOMEM:
            raise NotSupported("UMEM in huge pages", _huge_pages_needed(frames * chunk_size))
        check(result, f"UMEM of {frames} frames")
        self.handle: Any = out[0]
        size = ffi.new("size_t *")
        self.memory: Any = lib.xk_umem_memory(self.handle, size)
        self.views: int = 0
        self._closed = False

    @property
    def page_size(self) -> int:
        """Bytes of a page of the memory: KernelPageSize in /proc/self/smaps (proc_pid_smaps(5))."""
        address = int(ffi.cast("uintptr_t", self.memory))
        inside = False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
                inside = int(found[1], 16) <= address < int(found[2], 16)
            elif inside and line.startswith("KernelPageSize:"):
                return int(line.split()[1]) * 1024
        raise FrameError("the UMEM is not mapped")

    @property
    def node(self) -> int | None:
        """The NUMA node that the memory is on; None where the kernel does not report it."""
        node = int(lib.xk_umem_node(self.handle))
        return node if node >= 0 else None

    def close(self) -> None:
        """Unmap the memory as soon as no view is left; idempotent.  Close its sockets and pools before."""
        if not self._closed:
            self._closed = True
            self.unview(0)

    def unview(self, views: int = 1) -> None:
        """Note that ``views`` views are gone."""
        self.views -= views
        if self._closed and not self.views and self.handle is not None:
            lib.xk_umem_close(self.handle)
            self.handle = None


def _huge_pages_needed(size: int) -> str:
    with open("/proc/meminfo") as file:
        meminfo = dict(line.split(":") for line in file)
    page = int(meminfo["Hugepagesize"].split()[0]) * 1024
    free = meminfo.get("HugePages_Free", "0").strip()
    need = -(-size // page)
    return f"{need} free huge pages of {page >> 20} MiB, and {free} are: raise /proc/sys/vm/nr_hugepages by {need}"


class Pool:
    """The owner of ``frames`` frames of a UMEM.  Sockets take frames from it and return them to it."""

    def __init__(self, umem: Umem, frames: int, name: str):
        self.umem: Umem = umem
        self.name: str = name
        out = ffi.new("struct xk_pool **")
        check(lib.xk_pool_open(umem.handle, frames, out), name)
        self.handle: Any = out[0]

    def frames(self) -> dict[str, int]:
        """How many frames are where: free, fill, rx, held, tx, completion.  FrameError if they do not sum to
        ``frames``."""
        if self.handle is None:
            raise FrameError(f"{self.name}: the frames are gone")
        raw = ffi.new("struct xk_frames *")
        lib.xk_pool_frames(self.handle, raw)
        where = {name: int(getattr(raw, name)) for name in _OWNERS}
        if sum(where.values()) != raw.frames:
            raise FrameError(f"{self.name}: {where} do not sum to {raw.frames} frames")
        return {**where, "frames": int(raw.frames)}

    def close(self) -> None:
        """Release the frames; idempotent.  Close its sockets before."""
        if self.handle is not None:
            lib.xk_pool_close(self.handle)
            self.handle = None

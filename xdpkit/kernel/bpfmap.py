"""BPF maps as numpy sees them: keys and values are rows, read and written many at a time with the GIL released."""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .core import check, ffi, lib, text

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["VALUE", "VALUE_BYTES", "Bytes", "Info", "Map", "Values", "map_id", "mount_bpffs"]

Bytes: TypeAlias = "npt.NDArray[np.uint8]"
Values: TypeAlias = "npt.NDArray[Any]"
#: ``struct xk_member`` of csrc/xdpkit.h, ``struct member`` of bpf/set.bpf.c.
VALUE = [("expires_ns", "u8"), ("action", "u4"), ("mark", "u4")]
VALUE_BYTES: int = ffi.sizeof("struct xk_member")

#: enum bpf_map_type and flags of linux/bpf.h.
HASH, ARRAY, LPM_TRIE, ARRAY_OF_MAPS = 1, 2, 11, 12
NO_PREALLOC = 1
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Info:
    """``struct bpf_map_info``: what the kernel reports about a map."""

    type: int
    id: int
    key_bytes: int
    value_bytes: int
    capacity: int
    flags: int
    name: str


class Map:
    """One map, by a file descriptor that this object owns.  Close it, or use it as a context manager."""

    def __init__(self, fd: int):
        self.fd: int = fd
        self.info: Info = self._info()

    def _info(self) -> Info:
        out = ffi.new("struct xk_map_info *")
        check(lib.xk_map_info(self.fd, out), "map info")
        sizes = (out.type, out.id, out.key_size, out.value_size, out.max_entries, out.flags)
        return Info(*sizes, text(out.name))

    @classmethod
    def create(
        cls, kind: int, name: str, key_bytes: int, value_bytes: int, capacity: int, *, flags: int = 0,
        inner: Map | None = None,
    ) -> Map:  # fmt: skip
        """A new map; its name is cut to 15 characters.  OSError: EPERM without CAP_BPF, ENOMEM."""
        inner_fd = inner.fd if inner else -1
        fd = lib.xk_map_create(kind, name.encode()[:15], key_bytes, value_bytes, capacity, flags, inner_fd)
        return cls(check(fd, f"map {name}", "making one needs CAP_BPF: run as root" if fd == -1 else ""))

    @classmethod
    def open(cls, path: str) -> Map:
        """The map that is pinned at ``path``."""
        return cls(check(lib.xk_map_open(path.encode()), path))

    @classmethod
    def by_id(cls, number: int) -> Map:
        """The map of that id."""
        return cls(check(lib.xk_map_by_id(number), f"map {number}"))

    def pin(self, path: str) -> None:
        """Pin the map at ``path`` in a bpffs.  OSError."""
        check(lib.xk_map_pin(self.fd, path.encode()), path)

    def get(self, key: bytes) -> bytes | None:
        """The value of ``key``; None if the map does not have it."""
        out = ffi.new("uint8_t[]", self.info.value_bytes)
        return bytes(out) if lib.xk_map_lookup(self.fd, key, out) == 0 else None

    def put(self, key: bytes, value: bytes) -> None:
        """Write one element; in a map of maps, ``value`` is a file descriptor, and no program uses the old map when
        this returns (the kernel waits for an RCU grace period)."""
        check(lib.xk_map_update(self.fd, key, value, 0), f"map {self.info.name}")

    def write(self, keys: Bytes, values: Values) -> tuple[int, int]:
        """Write elements in order.  Returns how many were written, and the errno that ended it (0: all were
        written)."""
        done = ffi.new("uint32_t *")
        keys, values = np.ascontiguousarray(keys), np.ascontiguousarray(values)
        result = lib.xk_map_update_many(
            self.fd, self.info.key_bytes, self.info.value_bytes, _rows(keys), _rows(values), len(keys), done
        )
        return done[0], -result

    def remove(self, keys: Bytes) -> int:
        """Delete ``keys``.  Returns how many of them were there."""
        removed = ffi.new("uint32_t *")
        keys = np.ascontiguousarray(keys)
        result = lib.xk_map_delete_many(self.fd, self.info.key_bytes, _rows(keys), len(keys), removed)
        check(result, f"map {self.info.name}")
        return int(removed[0])

    def expire(self, keys: Bytes, now_ns: int) -> int:
        """Delete those of ``keys`` whose ``expires_ns`` is over at ``now_ns``.  Returns how many were deleted."""
        removed = ffi.new("uint32_t *")
        keys = np.ascontiguousarray(keys)
        result = lib.xk_map_expire_many(self.fd, self.info.key_bytes, _rows(keys), len(keys), now_ns, removed)
        check(result, f"map {self.info.name}")
        return int(removed[0])

    def find(self, keys: Bytes) -> tuple[Values, npt.NDArray[np.bool_]]:
        """The values that the kernel finds for ``keys``, and bool[n]: which keys have one.  A trie finds the longest
        prefix."""
        keys = np.ascontiguousarray(keys)
        values, found = np.zeros(len(keys), VALUE), np.zeros(len(keys), np.bool_)
        result = lib.xk_map_find_many(
            self.fd, self.info.key_bytes, self.info.value_bytes, _rows(keys), len(keys), _rows(values), _rows(found)
        )
        check(result, f"map {self.info.name}")
        return values, found

    def read(self, kind: Any = None) -> tuple[Bytes, Values]:
        """Every element: keys (n, key_bytes) of uint8 and values (n,) of the dtype ``kind`` (default: VALUE), in the
        kernel's order."""
        cursor, chunk = ffi.new("struct xk_map_cursor *"), _CHUNK
        keys: list[Bytes] = []
        values: list[Values] = []
        while not cursor.end:
            k, v = np.empty((chunk, self.info.key_bytes), np.uint8), np.empty(chunk, kind or VALUE)
            n = lib.xk_map_read(self.fd, k.shape[1], v.itemsize, cursor, _rows(k), _rows(v), chunk)
            if n == -28 and chunk < self.info.capacity:  # ENOSPC: a bucket that is larger than the chunk
                chunk *= 4
                continue
            check(n, f"map {self.info.name}")
            keys.append(k[:n].copy() if n < chunk // 2 else k[:n])
            values.append(v[:n].copy() if n < chunk // 2 else v[:n])
        return np.concatenate(keys), np.concatenate(values)

    def close(self) -> None:
        """Close the descriptor; idempotent.  The kernel removes the map with its last user."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Map:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def map_id(fd: int) -> int:
    """The kernel's number of a map."""
    out = ffi.new("struct xk_map_info *")
    check(lib.xk_map_info(fd, out), "map info")
    return int(out.id)


def mount_bpffs(path: str) -> None:
    """Mount a bpffs at ``path`` unless there is one.  OSError: EPERM without CAP_SYS_ADMIN, ENOENT."""
    hint = f"mount it: mount -t bpf bpf {path}"
    check(lib.xk_bpffs(path.encode()), path, hint)


def _rows(array: npt.NDArray[Any]) -> Any:
    """A C pointer to the first row."""
    return ffi.cast("uint8_t *", ffi.from_buffer(array)) if array.size else ffi.NULL

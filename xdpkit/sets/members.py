"""The inner map of a set, which holds the members in the kernel.  Members are read and written as columns, and a change
is done whole or not at all.

Values are ``struct xk_member``: the time when the member expires (CLOCK_MONOTONIC), the action, and a mark.  User space
writes 1 + the bits of the key as the mark; a member that a packet added has the mark 0.  So the mark also shows whether
the prefix that a trie finds is the prefix that was looked up.
"""

from __future__ import annotations

import errno
import os
import time
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from ..kernel.bpfmap import HASH, LPM_TRIE, NO_PREALLOC, VALUE, VALUE_BYTES, Bytes, Map, Values
from ..language.sets import SetSpec
from .columns import Columns

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Change", "Found", "Table", "lives"]

_FULL = (errno.ENOSPC, errno.E2BIG)


@dataclass(frozen=True, slots=True)
class Change:
    """How a set was changed, in entries (a range may be several entries).  ``changed``: entries with another action or
    time-out than before.  ``kept``: entries that were as wanted, or that were left alone."""

    added: int = 0
    removed: int = 0
    changed: int = 0
    kept: int = 0

    def __str__(self) -> str:
        return f"{self.added:,} added, {self.removed:,} removed, {self.changed:,} changed, {self.kept:,} kept"


@dataclass(frozen=True, slots=True)
class Found:
    """The result of looking keys up.  ``values``: the value for each key.  ``exact``: whether the key itself is an
    entry.  ``live``: whether a member matches the key."""

    values: Values
    exact: npt.NDArray[np.bool_]
    live: npt.NDArray[np.bool_]

    def take(self, rows: npt.NDArray[np.bool_]) -> Found:
        """The results that a mask selects."""
        return Found(self.values[rows], self.exact[rows], self.live[rows])


class Table:
    """The inner map of one set, which this object owns.  Close it, or use it as a context manager."""

    def __init__(self, spec: SetSpec, map: Map):
        self.spec, self.map = spec, map

    @classmethod
    def create(cls, spec: SetSpec) -> Table:
        """A new, empty map for ``spec.capacity`` entries; memory is allocated as entries are added."""
        kind, size = (LPM_TRIE, spec.key_bytes + 4) if spec.intervals else (HASH, spec.key_bytes)
        name = f"set_{spec.name}"
        return cls(spec, Map.create(kind, name, size, VALUE_BYTES, spec.capacity, flags=NO_PREALLOC))

    @property
    def capacity(self) -> int:
        """Most entries that the map can hold."""
        return self.map.info.capacity

    def keys(self, columns: Columns) -> Bytes:
        """The keys of the map for the rows of ``columns``; a key of a trie starts with the prefix length in bits."""
        if not self.spec.intervals:
            return columns.keys
        return np.hstack([columns.bits.view(np.uint8).reshape(-1, 4), columns.keys])

    def values(self, columns: Columns, now: int) -> Values:
        """The values of the map for the rows of ``columns``; time-outs count from ``now``, ns of CLOCK_MONOTONIC."""
        values = np.zeros(len(columns), VALUE)
        ends = now + np.round(columns.timeout * 1e9).astype(np.uint64)
        values["expires_ns"] = np.where(columns.timeout > 0, ends, 0)
        values["action"] = columns.action
        values["mark"] = columns.bits + 1
        return values

    def dump(self) -> tuple[Columns, Values]:
        """All entries, in the order of Columns.once(), also those that have timed out; ``timeout``: the seconds
        left."""
        raw, values = self.map.read()
        if self.spec.intervals:
            bits = np.ascontiguousarray(raw[:, :4]).view(np.uint32)[:, 0]
            keys = np.ascontiguousarray(raw[:, 4:])
        else:
            bits, keys = np.full(len(raw), self.spec.key_bits, np.uint32), raw
        ends = values["expires_ns"]
        left = (ends.astype(np.int64) - time.monotonic_ns()) / 1e9
        columns = Columns(keys, bits, np.ascontiguousarray(values["action"]), np.where(ends > 0, left, 0.0))
        rows = columns.distinct()
        return columns.take(rows), values[rows]

    def find(self, columns: Columns, now: int) -> Found:
        """Look up each key."""
        values, found = self.map.find(self.keys(columns))
        length = np.where(values["mark"] > 0, values["mark"].astype(np.int64) - 1, self.spec.key_bits)
        return Found(values, found & (length == columns.bits), found & lives(values, now))

    def apply(self, wanted: Columns, before: Found, gone: tuple[Columns, Values], now: int) -> Change:
        """Write the members ``wanted``, then remove the members ``gone``; both are done, or nothing.

        ``before``: what the set held of ``wanted``.  The new members are written first, so that no packet misses a
        member while others replace it."""
        keys, old = self.keys(wanted), self.keys(gone[0])
        live = before.exact & lives(before.values, now)
        same = live & (before.values == self.values(wanted, now))
        try:
            self.fill(wanted, now, old)
            self.map.remove(old)
        except BaseException:
            self.map.remove(keys[~before.exact])
            self.map.write(keys[before.exact], before.values[before.exact])
            self.map.write(old, gone[1])
            raise
        return Change(
            added=int((~live).sum()),
            removed=int(lives(gone[1], now).sum()),
            changed=int((live & ~same).sum()),
            kept=int(same.sum()),
        )

    def fill(self, wanted: Columns, now: int, gone: Bytes | None = None) -> None:
        """Write ``wanted``.  If the map is full, entries that have timed out are deleted, and then ``gone``."""
        keys, values = self.keys(wanted), self.values(wanted, now)
        done, error = self.map.write(keys, values)
        if error in _FULL and self.sweep() + (self.map.remove(gone) if gone is not None else 0):
            more, error = self.map.write(keys[done:], values[done:])
            done += more
        self._check(done, error, wanted)

    def copy(self, other: Table) -> None:
        """Write every entry of ``other``, with its mark and time-out."""
        self.write(*other.dump())

    def write(self, columns: Columns, values: Values) -> None:
        """Write entries with the values as they are.  OSError says what to do."""
        self._check(*self.map.write(self.keys(columns), values), columns)

    def _check(self, done: int, error: int, wanted: Columns) -> None:
        """OSError that says what to do unless all ``wanted`` were written."""
        if not error:
            return
        at = f" at {self.spec.text(wanted.entry(done))}" if done < len(wanted) else ""
        if error in _FULL:
            said = f"the set is full{at}: it has room for {self.capacity:,} entries: declare it with a larger capacity="
        elif error == errno.ENOMEM:
            said = f"no memory{at}"
        else:
            said = f"{os.strerror(error)}{at}"
        raise OSError(error, f"set {self.spec.name!r}: {said}")

    def sweep(self) -> int:
        """Delete the entries that have timed out and return their number.  Each is checked again just before, because a
        packet may have prolonged it."""
        keys, values = self.map.read()
        now = time.monotonic_ns()
        return self.map.expire(keys[~lives(values, now)], now)

    def close(self) -> None:
        """Close the map; idempotent."""
        self.map.close()

    def __enter__(self) -> Table:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def lives(values: Values, now: int) -> npt.NDArray[np.bool_]:
    """bool[n]: which of ``values`` have not timed out at ``now``, ns of CLOCK_MONOTONIC."""
    lives: npt.NDArray[np.bool_] = (values["expires_ns"] == 0) | (values["expires_ns"] > now)
    return lives

"""Sets in the kernel: made, filled, changed and read while programs look packets up in them.

A set is a map of one entry, whose value is the map of the members: a hash, or with ``intervals`` a prefix trie.  A
program re-uses the outer map, so :meth:`LiveSet.replace` fills a new inner one at leisure and switches: no packet sees
half of it.  Values are ``struct xk_member``: when it expires (CLOCK_MONOTONIC), the action, and a mark that user space
leaves: 1 + the bits of the key that count.  It tells members that packets added (mark 0), and whether what a trie finds
is the very prefix that was asked for.

Neither map sets its memory aside beforehand: a capacity of a million costs nothing until there are members.

Every change is all or nothing: members are read and checked before the kernel is asked for anything, and what was done
is undone when it refuses in the middle.  Threads take turns, and so do processes that share a pinned set.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import RLock
from types import TracebackType

import numpy as np
import numpy.typing as npt

from .actions import Action
from .bpfmap import ARRAY_OF_MAPS, HASH, LPM_TRIE, NO_PREALLOC, VALUE, Bytes, Map, Values
from .columns import Columns, Source, read
from .errors import PipelineError
from .pins import Pin
from .sets import Entry, SetSpec

__all__ = ["Change", "LiveMember", "LiveSet"]

_FULL = (errno.ENOSPC, errno.E2BIG)
_KEY0 = bytes(4)


@dataclass(frozen=True, slots=True)
class Change:
    """What became of a set, in entries (a range may be several): ``changed`` got another action or time-out, ``kept``
    were there as wanted, or are left alone."""

    added: int = 0
    removed: int = 0
    changed: int = 0
    kept: int = 0

    def __str__(self) -> str:
        return f"{self.added:,} added, {self.removed:,} removed, {self.changed:,} changed, {self.kept:,} kept"


@dataclass(frozen=True, slots=True)
class LiveMember:
    """A member as people write it, the seconds it has left (0: for ever), its action in a verdict map, and whether a
    packet added it."""

    member: str
    timeout: float
    action: Action | None
    by_packet: bool


class LiveSet:
    """A set in the kernel (CAP_BPF; to share or read one, CAP_SYS_ADMIN).  Close it, or use it as a context manager.

    ``fd`` is the outer map's.  A set that is not pinned goes with the last of this object and the programs that use it.
    """

    def __init__(self, spec: SetSpec, *, folder: str | Path = ""):
        """Make the set, or open the pinned one of that name, and load the members that ``spec`` declares and those in
        ``spec.source``, a file in ``folder``.  A pinned set that is there already gets the declared members added; with
        a source it is synced to both.  Raises PipelineError for members that are none and for a pinned set of another
        kind, OSError where the kernel refuses."""
        self._lock, self._closing, self.spec = RLock(), ExitStack(), spec
        wanted = declared(spec, folder)
        self._fits(wanted)
        self._pin: Pin | None = None
        self._depth = 0  # of _locked() in the thread that has the lock
        try:
            while not self._open(wanted):
                pass  # somebody removed the pin's folder between its making and our turn
        except BaseException:
            self.close()
            raise

    @property
    def name(self) -> str:
        """The name it was declared by."""
        return self.spec.name

    @property
    def fd(self) -> int:
        """File descriptor of the outer map, owned by this object; it stays the same whatever the members."""
        return self._outer.fd

    @property
    def capacity(self) -> int:
        """Entries that there is room for."""
        with self._inner() as inner:
            return inner.info.capacity

    @property
    def used(self) -> int:
        """Entries that take room: members, and those whose time is over until they are swept."""
        with self._inner() as inner:
            return len(inner.read()[1])

    def update(self, add: Source | Columns = (), remove: Source = (), *, timeout: float = 0) -> Change:
        """Remove members, then add some (those that say no time-out of their own get ``timeout`` seconds, 0: for ever).
        One that is there gets its action and time-out anew; one to remove that is not there is no error."""
        wanted = add if isinstance(add, Columns) else read(self.spec, add, timeout=timeout)
        unwanted = read(replace(self.spec, actions=()), remove)
        with self._locked(), self._inner() as inner:
            now = time.monotonic_ns()
            gone = self._find(inner, unwanted, now)
            return self._apply(inner, wanted, unwanted.take(gone.exact), now)

    def replace(self, members: Source | Columns) -> int:
        """Make ``members`` all there is, at once: no packet sees a mixture.  How many entries there are.  What packets
        added is gone too."""
        wanted = members if isinstance(members, Columns) else read(self.spec, members)
        self._fits(wanted)
        with self._locked(), self._new_inner() as fresh:
            self._fill(fresh, wanted, time.monotonic_ns())
            self._outer.put(_KEY0, fresh.fd.to_bytes(4, "little"))
        return len(wanted)

    def sync(self, source: Source | Columns, *, everything: bool = False) -> Change:
        """Come to what ``source`` says by the fewest changes.  Members with a time-out, and those that packets added,
        end by themselves: they are left alone (kept) unless ``source`` has them too, or with ``everything``."""
        wanted = source if isinstance(source, Columns) else read(self.spec, source)
        self._fits(wanted)
        with self._locked(), self._inner() as inner:
            now = time.monotonic_ns()
            have, values = self._dump(inner)
            where = have.among(wanted)
            fixed = (values["mark"] != 0) & (values["expires_ns"] == 0)
            unwanted = (where < 0) & (fixed | everything)
            at = wanted.among(have)
            same = at >= 0
            same[same] &= fixed[at[same]] & (have.action[at[same]] == wanted.action[same]) & (wanted.timeout[same] == 0)
            left = int(((where < 0) & ~unwanted & _lives(values, now)).sum())
            done = self._apply(inner, wanted.take(~same), have.take(unwanted), now)
            return replace(done, kept=int(same.sum()) + left)

    def flush(self) -> int:
        """Remove every member, at once; how many entries there were."""
        with self._locked():
            before = self.used
            self.replace(())
            return before

    def sweep(self) -> int:
        """Give the room of members whose time is over back; how many.  They match no packet as it is, and an addition
        that finds the set full sweeps first."""
        with self._locked(), self._inner() as inner:
            return _sweep(inner)

    def entries(self) -> Columns:
        """The members as columns, ``timeout`` being the seconds left: a million in a moment."""
        with self._inner() as inner:
            have, values = self._dump(inner)
        return have.take(_lives(values, time.monotonic_ns()))

    def members(self) -> list[LiveMember]:
        """The members as people write them, in the order of their keys."""
        with self._inner() as inner:
            have, values = self._dump(inner)
        rows = np.flatnonzero(_lives(values, time.monotonic_ns()))
        order = sorted((have.keys[r].tobytes(), int(have.bits[r]), int(r)) for r in rows)
        actions = self.spec.actions
        return [
            LiveMember(
                self.spec.text(Entry(key, bits)),
                float(have.timeout[r]),
                actions[have.action[r]] if actions else None,
                bool(values["mark"][r] == 0),
            )
            for key, bits, r in order
        ]

    def __len__(self) -> int:
        return len(self.entries())

    def __bool__(self) -> bool:
        return True

    def __contains__(self, member: object) -> bool:
        """Whether a packet with these values is in the set; of a prefix or range: whether each prefix of it lies in one
        member."""
        asked = read(replace(self.spec, actions=()), [member])
        with self._inner() as inner:
            return bool(self._find(inner, asked, time.monotonic_ns()).live.all())

    def fork(self, spec: SetSpec, before: Columns, after: Columns) -> Fork:
        """A copy for another ruleset, which declares the set with ``spec``: the same members, but for what the
        declarations differ in (``before`` and ``after``).  OSError or PipelineError leave this set as it is."""
        with self._locked(), self._inner() as inner:
            have, values = self._dump(inner)
            mine, now = values["mark"] != 0, time.monotonic_ns()
            gone = (have.among(before) >= 0) & (have.among(after) < 0) & mine
            fresh = after.take(after.among(before) < 0)
            kept = ~gone & (have.among(fresh) < 0)
            twin = LiveSet(replace(spec, members=(), source=None, pinned=False))
            try:
                with twin._inner() as room:
                    keys = np.concatenate([twin._keys(have)[kept], twin._keys(fresh)])
                    filled = np.concatenate([values[kept], twin._values(fresh, now)])
                    twin._check(*room.write(keys, filled), have.take(kept).with_(fresh))
            except BaseException:
                twin.close()
                raise
            return Fork(self, twin, spec)

    def unpin(self) -> None:
        """Take a pinned set's pin away: it then goes with the last program and process that use it."""
        if self._pin:
            with self._locked():
                self._pin.remove()

    def close(self) -> None:
        """Let go of the set; idempotent.  A pinned one stays, and so does what a program uses."""
        self._closing.close()

    def __enter__(self) -> LiveSet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # The maps.

    def _open(self, wanted: Columns) -> bool:
        spec = self.spec
        self._pin = self._closing.enter_context(Pin(spec.name)) if spec.pinned else None
        with self._locked():
            if self._pin and not self._pin.stands():
                return False
            there = self._pin.open(spec) if self._pin else None
            self._outer = there or self._make()
            self._closing.callback(self._outer.close)
            if there is None:
                self.replace(wanted)
            else:
                self._grow()
                self.sync(wanted) if spec.source is not None else self.update(wanted)
            if self._pin and there is None:
                self._pin.keep(spec, self._outer)
        return True

    def _make(self) -> Map:
        with self._new_inner() as inner:
            outer = Map.create(ARRAY_OF_MAPS, f"set_{self.name}", 4, 4, 1, inner=inner)
            outer.put(_KEY0, inner.fd.to_bytes(4, "little"))
            return outer

    def _new_inner(self) -> Map:
        kind, size = (LPM_TRIE, self.spec.key_bytes + 4) if self.spec.intervals else (HASH, self.spec.key_bytes)
        capacity = self.spec.capacity
        return Map.create(kind, f"set_{self.name}", size, VALUE.itemsize, capacity, flags=NO_PREALLOC)

    def _inner(self) -> Map:
        """The map of the members as of now: another process may have switched it."""
        number = self._outer.get(_KEY0)
        assert number is not None
        return Map.by_id(int.from_bytes(number, "little"))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock, self._pin.locked() if self._pin and not self._depth else ExitStack():
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1

    def _grow(self) -> None:
        """A pinned set that is smaller than declared gets the room."""
        with self._inner() as inner:
            if inner.info.capacity >= self.spec.capacity:
                self.spec = replace(self.spec, capacity=inner.info.capacity)
                return
            keys, values = inner.read()
            with self._new_inner() as larger:
                self._check(*larger.write(keys, values), Columns.of([], self.spec.key_bytes))
                self._outer.put(_KEY0, larger.fd.to_bytes(4, "little"))

    # Entries in and out.

    def _keys(self, columns: Columns) -> Bytes:
        """Rows as the map has its keys: a trie's start with the length in bits."""
        if not self.spec.intervals:
            return columns.keys
        return np.hstack([columns.bits.view(np.uint8).reshape(-1, 4), columns.keys])

    def _values(self, columns: Columns, now: int) -> Values:
        values = np.zeros(len(columns), VALUE)
        ends = now + np.round(columns.timeout * 1e9).astype(np.uint64)
        values["expires_ns"] = np.where(columns.timeout > 0, ends, 0)
        values["action"] = columns.action
        values["mark"] = columns.bits + 1
        return values

    def _dump(self, inner: Map) -> tuple[Columns, Values]:
        """All there is, each key once, those whose time is over too."""
        rows, values = inner.read()
        if self.spec.intervals:
            bits, keys = (
                np.ascontiguousarray(rows[:, :4]).view(np.uint32)[:, 0].copy(),
                np.ascontiguousarray(rows[:, 4:]),
            )
        else:
            bits, keys = np.full(len(rows), self.spec.key_bits, np.uint32), rows
        ends = values["expires_ns"]
        left = (ends.astype(np.int64) - time.monotonic_ns()) / 1e9
        columns = Columns(keys, bits, np.ascontiguousarray(values["action"]), np.where(ends > 0, left, 0.0))
        once = columns.among(columns) == np.arange(len(columns))
        return (columns, values) if once.all() else (columns.take(once), values[once])

    def _find(self, inner: Map, columns: Columns, now: int) -> _Found:
        values, found = inner.find(self._keys(columns))
        length = np.where(values["mark"] > 0, values["mark"].astype(np.int64) - 1, self.spec.key_bits)
        return _Found(values, found & (length == columns.bits), found & _lives(values, now))

    def _apply(self, inner: Map, wanted: Columns, unwanted: Columns, now: int) -> Change:
        """Write, then remove; both or nothing.  In this order no packet misses a member that others replace."""
        unwanted = unwanted.take(unwanted.among(wanted) < 0)
        before, removed = self._find(inner, wanted, now), self._find(inner, unwanted, now)
        keys, gone = self._keys(wanted), self._keys(unwanted)
        live = before.exact & _lives(before.values, now)
        same = live & (before.values == self._values(wanted, now))
        try:
            self._fill(inner, wanted, now, gone)
            inner.remove(gone)
        except BaseException:
            inner.remove(keys[~before.exact])
            inner.write(keys[before.exact], before.values[before.exact])
            inner.write(gone[removed.exact], removed.values[removed.exact])
            raise
        return Change(
            added=int((~live).sum()),
            removed=int((removed.exact & _lives(removed.values, now)).sum()),
            changed=int((live & ~same).sum()),
            kept=int(same.sum()),
        )

    def _fill(self, inner: Map, wanted: Columns, now: int, gone: Bytes | None = None) -> None:
        """Write ``wanted``; where there is no room, what is over and then ``gone`` make it."""
        keys, values = self._keys(wanted), self._values(wanted, now)
        done, error = inner.write(keys, values)
        if error in _FULL and _sweep(inner) + (inner.remove(gone) if gone is not None else 0):
            more, error = inner.write(keys[done:], values[done:])
            done += more
        self._check(done, error, wanted)

    def _check(self, done: int, error: int, wanted: Columns) -> None:
        if not error:
            return
        at = f" at {self.spec.text(wanted.entry(done))}" if done < len(wanted) else ""
        if error in _FULL:
            with self._inner() as inner:
                room = inner.info.capacity
            said = f"the set is full{at}: it has room for {room:,} entries: declare it with a larger capacity="
        elif error == errno.ENOMEM:
            said = f"no memory{at}"
        else:
            said = f"{os.strerror(error)}{at}"
        raise OSError(error, f"set {self.name!r}: {said}")

    def _fits(self, wanted: Columns) -> None:
        if len(wanted) > self.spec.capacity:
            said = f"{len(wanted):,} members, declared with capacity={self.spec.capacity}: raise it"
            raise PipelineError(f"set {self.name!r}: {said}", self.spec.where)


def declared(spec: SetSpec, folder: str | Path = "") -> Columns:
    """The members that ``spec`` declares and those in its source, a file in ``folder``."""
    wanted = read(spec, spec.members)
    if spec.source is None:
        return wanted
    return wanted.with_(read(spec, spec.source, folder=Path(folder))).once()


class Fork:
    """A set that another ruleset uses already, and that the LiveSet it came from becomes, or does not."""

    def __init__(self, origin: LiveSet, twin: LiveSet, spec: SetSpec):
        self._origin, self._twin, self._spec = origin, twin, spec

    @property
    def fd(self) -> int:
        """File descriptor of the outer map."""
        return self._twin.fd

    def commit(self) -> None:
        """Make the LiveSet this one.  Nothing looks packets up in the old maps any more: what packets have added to
        them since the fork is added here."""
        origin, twin = self._origin, self._twin
        with origin._locked(), origin._inner() as old, twin._inner() as new:
            have, values = origin._dump(old)
            missing = (values["mark"] == 0) & ~new.find(twin._keys(have))[1]
            new.write(twin._keys(have)[missing], values[missing])  # where there is no room they are lost
            origin._outer, twin._outer = twin._outer, origin._outer
            origin._closing, twin._closing = twin._closing, origin._closing
            origin.spec = self._spec
        twin.close()

    def close(self) -> None:
        """Forget it."""
        self._twin.close()


@dataclass(frozen=True, slots=True)
class _Found:
    """Of keys that were looked up: what was found, whether it is that very member, whether it is one that matches."""

    values: Values
    exact: npt.NDArray[np.bool_]
    live: npt.NDArray[np.bool_]


def _lives(values: Values, now: int) -> npt.NDArray[np.bool_]:
    lives: npt.NDArray[np.bool_] = (values["expires_ns"] == 0) | (values["expires_ns"] > now)
    return lives


def _sweep(inner: Map) -> int:
    """Members whose time is over, deleted; each is looked at again just before, in case a packet prolonged it."""
    keys, values = inner.read()
    now = time.monotonic_ns()
    return inner.expire(keys[~_lives(values, now)], now)

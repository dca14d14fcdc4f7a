"""Sets in the kernel: they are filled, changed and read while programs look packets up in them.

A set is an outer map of one entry, whose value is the inner map with the members: a hash, or with ``intervals`` a
prefix trie.  Programs keep the outer map, so :meth:`LiveSet.replace` can fill a new inner map and then switch to it: no
look-up meets a mixture of old and new members.  Memory is allocated as members are added, so a large capacity costs
nothing by itself.  The layout of the inner map is in :mod:`xdpkit.sets.members`.

Every change is all or nothing: members are read and checked before the first system call, and if the kernel refuses one
in the middle, the change is undone.  Threads take turns, and so do processes that share a pinned set.
"""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import RLock
from types import TracebackType
from typing import Protocol

import numpy as np

from ..kernel.bpfmap import ARRAY_OF_MAPS, Map
from ..language.actions import Action
from ..language.errors import PipelineError
from ..language.sets import Entry, SetSpec
from .columns import Columns, Source, read
from .members import Change, Found, Table, lives
from .pins import Pin

__all__ = ["Change", "Fork", "LiveMember", "LiveSet", "declared"]

_KEY0 = bytes(4)
_TRIES = 64


class Shared(Protocol):
    """The lock that processes share which have opened the set of a pinned link."""

    def locked(self) -> AbstractContextManager[None]:
        """Context manager: no other process changes the set while the block runs."""
        ...

    def map_id(self, name: str) -> int | None:
        """The id of the outer map of the set ``name`` at this moment; None if it is not known."""
        ...


@dataclass(frozen=True, slots=True)
class LiveMember:
    """A member of a set.  ``member``: as people write it.  ``timeout``: the seconds that are left; 0 is for ever.
    ``action``: its action in a verdict map.  ``by_packet``: whether a packet added it."""

    member: str
    timeout: float
    action: Action | None
    by_packet: bool


class LiveSet:
    """A set in the kernel.  Close it, or use it as a context manager.  It needs CAP_BPF, and CAP_SYS_ADMIN to read the
    members or to share a set.

    The kernel removes a set that is not pinned when this object is closed and no program uses the set any more.

    Every method that reads or changes the set raises OSError where the kernel refuses: EBADF where the set is closed,
    EPERM without the capability, EAGAIN where other processes replace it faster than it can be read."""

    def __init__(self, spec: SetSpec, *, folder: str | Path = ""):
        """Make the set, or open the pinned set of that name.  Load the members that ``spec`` declares and those in
        ``spec.source``, a file in ``folder``.  If a pinned set is there already, these members are added to it; with a
        source the set is synced to them.  Raises PipelineError for wrong members and for a pinned set of another kind,
        OSError where the kernel refuses or the file cannot be read."""
        self._prepare(spec)
        wanted = declared(spec, folder)
        try:
            while not self._open(wanted):
                pass
        except BaseException:
            self.close()
            raise

    def _prepare(self, spec: SetSpec) -> None:
        self._lock, self._closing = RLock(), ExitStack()
        self.spec: SetSpec = spec
        self._pin: Pin | None = None
        self._shared: Shared | None = None
        self._outer: Map
        self._depth = 0  # of locked() in the thread that has the lock

    @classmethod
    def _opened(cls, spec: SetSpec, map_id: int, shared: Shared) -> LiveSet:
        """Open the set of a pinned link, whose outer map has the id ``map_id``; its members stay as they are.  OSError:
        ENOENT where the map is gone, EPERM without CAP_SYS_ADMIN."""
        live = cls.__new__(cls)
        live._prepare(spec)
        try:
            live._pin = live._closing.enter_context(Pin(spec.name)) if spec.pinned else None
            live._outer = live._closing.enter_context(Map.by_id(map_id))
        except BaseException:
            live.close()
            raise
        live._share(shared)
        return live

    def _share(self, shared: Shared) -> None:
        """Lock against the processes that open this set by the pin of a link."""
        self._shared = shared

    def __repr__(self) -> str:
        fields = ", ".join(field.name for field in self.spec.fields)
        pinned = ", pinned" if self.spec.pinned else ""
        return f"<LiveSet {self.name} of {fields}: room for {self.spec.capacity}{pinned}>"

    @property
    def name(self) -> str:
        """The name of the set."""
        return self.spec.name

    @property
    def fd(self) -> int:
        """File descriptor of the outer map, owned by this object.  It stays the same when the members are replaced."""
        return self._outer.fd

    @property
    def capacity(self) -> int:
        """Most entries that the set can hold."""
        with self._table() as table:
            return table.capacity

    @property
    def used(self) -> int:
        """Entries that take room: the members, and those that have timed out and are not swept yet."""
        with self._table() as table:
            return len(table.map.read()[1])

    def update(self, add: Source | Columns = (), remove: Source = (), *, timeout: float = 0) -> Change:
        """Remove members, then add members.  ``timeout``: the seconds that added members stay if they have no time-out
        of their own; 0 is for ever.  A member that is there already takes the new action and time-out.  It is no error
        to remove a member that is not there.  Raises PipelineError for wrong members, and OSError (ENOSPC: the set is
        full); the set is then unchanged."""
        wanted = add if isinstance(add, Columns) else read(self.spec, add, timeout=timeout)
        unwanted = read(replace(self.spec, actions=()), remove)
        with self.locked(), self._table() as table:
            now = time.monotonic_ns()
            unwanted = unwanted.take(unwanted.among(wanted) < 0)
            there = table.find(unwanted, now)
            gone = unwanted.take(there.exact), there.values[there.exact]
            return table.apply(wanted, table.find(wanted, now), gone, now)

    def replace(self, members: Source | Columns) -> int:
        """Replace all members by ``members``, at once: no look-up meets a mixture.  Members that packets added are
        removed too.  Returns the number of entries.  Raises PipelineError for wrong members and for more than the
        capacity, OSError where the kernel refuses; the set is then unchanged."""
        wanted = members if isinstance(members, Columns) else read(self.spec, members)
        with self.locked():
            capacity = self.capacity
            self._fits(wanted, capacity)
            with Table.create(replace(self.spec, capacity=capacity)) as fresh:
                fresh.fill(wanted, time.monotonic_ns())
                self._switch(fresh)
        return len(wanted)

    def sync(self, source: Source | Columns, *, everything: bool = False) -> Change:
        """Make the members those of ``source``, with the fewest changes.  Members with a time-out and members that
        packets added are kept, because they end by themselves; ``everything=True`` removes them too.  Raises
        PipelineError for wrong members and for more than the capacity, OSError where the kernel refuses; the set is
        then unchanged."""
        wanted = source if isinstance(source, Columns) else read(self.spec, source)
        with self.locked(), self._table() as table:
            self._fits(wanted, table.capacity)
            now = time.monotonic_ns()
            have, values = table.dump()
            where = have.among(wanted)
            fixed = (values["mark"] != 0) & (values["expires_ns"] == 0)
            unwanted = (where < 0) & (fixed | everything)
            at = wanted.among(have)
            found = Found(values[at] if len(values) else table.values(wanted, 0), at >= 0, at >= 0)
            same = found.exact & (found.values == table.values(wanted, 0))
            left = int(((where < 0) & ~unwanted & lives(values, now)).sum())
            gone = have.take(unwanted), values[unwanted]
            done = table.apply(wanted.take(~same), found.take(~same), gone, now)
            return replace(done, kept=int(same.sum()) + left)

    def flush(self) -> int:
        """Remove all members, at once.  Returns the number of entries before.  Raises OSError."""
        with self.locked():
            before = self.used
            self.replace(())
            return before

    def sweep(self) -> int:
        """Delete the entries that have timed out, to make room.  Returns their number.  Such entries match no packet in
        any case, and an addition to a full set sweeps it first.  Raises OSError."""
        with self.locked(), self._table() as table:
            return table.sweep()

    def entries(self) -> Columns:
        """The members as columns, which is fast for millions; ``timeout`` is the seconds that are left.  Raises
        OSError."""
        with self._table() as table:
            have, values = table.dump()
        return have.take(lives(values, time.monotonic_ns()))

    def members(self) -> list[LiveMember]:
        """The members as people write them, in the order of their keys.  Raises OSError."""
        with self._table() as table:
            have, values = table.dump()
        rows = np.flatnonzero(lives(values, time.monotonic_ns()))
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
        """Whether a packet with these values is in the set.  A prefix or range is in the set if each prefix that covers
        it lies in one member.  Raises PipelineError where ``member`` is written wrong, and OSError."""
        wanted = read(replace(self.spec, actions=()), [member])
        with self._table() as table:
            return bool(table.find(wanted, time.monotonic_ns()).live.all())

    def match(self, key: bytes) -> Entry | None:
        """The member that a packet whose fields have this ``key`` (:attr:`Entry.key`) meets, with the seconds that are
        left as its ``timeout``; None where there is none.  Raises OSError."""
        now, bits = time.monotonic_ns(), self.spec.key_bits
        wanted = Columns(
            np.frombuffer(key, np.uint8).reshape(1, -1),
            np.array([bits], np.uint32),
            np.zeros(1, np.uint32),
            np.zeros(1),
        )
        with self._table() as table:
            found = table.find(wanted, now)
        if not found.live[0]:
            return None
        value = found.values[0]
        if value["mark"]:
            bits = int(value["mark"]) - 1
        free = 8 * len(key) - bits
        head = (int.from_bytes(key) >> free << free).to_bytes(len(key))
        left = (int(value["expires_ns"]) - now) / 1e9 if value["expires_ns"] else 0
        return Entry(head, bits, int(value["action"]), left)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Context manager: no other thread changes the set while the block runs, and if the set is pinned no other
        process.  Use it to read the set and then change it.  It nests.  Raises OSError."""
        with self._lock, ExitStack() as turn:
            if not self._depth:
                self._take_turn(turn)
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1

    def _take_turn(self, turn: ExitStack) -> None:
        """Lock the set against other processes until ``turn`` is closed.  If a ruleset that was attached meanwhile has
        brought another outer map, open that one."""
        if self._pin:
            turn.enter_context(self._pin.locked())
        elif self._shared:
            turn.enter_context(self._shared.locked())
            now = self._shared.map_id(self.spec.name)
            if now is not None and now != self._outer.info.id:
                self._outer.close()
                self._outer = self._closing.enter_context(Map.by_id(now))

    def _fork(self, spec: SetSpec, before: Columns, after: Columns) -> Fork:
        """A copy of the set for another ruleset, which declares the set with ``spec``.  The copy has the same members,
        changed by the difference of the two declarations (``before`` and ``after``).  On OSError or PipelineError this
        set is unchanged."""
        with self.locked(), self._table() as table:
            have, values = table.dump()
            gone = (have.among(before) >= 0) & (have.among(after) < 0) & (values["mark"] != 0)
            at = after.among(before)
            fresh = after.take((at < 0) | (before.action[at] != after.action) if len(before) else at < 0)
            kept = ~gone & (have.among(fresh) < 0)
            twin = LiveSet(replace(spec, members=(), source=None, pinned=False))
            try:
                with twin._table() as room:
                    new = room.values(fresh, time.monotonic_ns())
                    room.write(have.take(kept).with_(fresh), np.concatenate([values[kept], new]))
            except BaseException:
                twin.close()
                raise
            return Fork(self, twin, spec)

    def _become(self, twin: LiveSet, spec: SetSpec) -> None:
        """Exchange the maps with those of ``twin``, after adding to ``twin`` what packets have added here meanwhile."""
        with self.locked(), self._table() as old, twin._table() as new:
            have, values = old.dump()
            missing = (values["mark"] == 0) & ~new.find(have, 0).exact
            new.map.write(new.keys(have.take(missing)), values[missing])  # members that find no room are lost
            self._outer, twin._outer = twin._outer, self._outer
            self._closing, twin._closing = twin._closing, self._closing
            self.spec = spec
        twin.close()

    def unpin(self) -> None:
        """Remove the pin of a pinned set.  The kernel then removes the set with the last program and process that use
        it.  Raises OSError."""
        if self._pin:
            with self.locked():
                self._pin.remove()

    def close(self) -> None:
        """Close the set; idempotent.  A pinned set stays in the kernel, and so does one that a program uses."""
        self._closing.close()

    def __enter__(self) -> LiveSet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # The maps.

    def _open(self, wanted: Columns) -> bool:
        """Make or find the set and load ``wanted``; False if another process removed the folder of the pin before this
        one had the lock."""
        spec = self.spec
        self._pin = pin = self._closing.enter_context(Pin(spec.name)) if spec.pinned else None
        with self.locked():
            if pin and not pin.stands():
                return False
            there = pin.open(spec) if pin else None
            if there:
                self._outer = self._closing.enter_context(there)
                self._grow()
                self.sync(wanted) if spec.source is not None else self.update(wanted)
                return True
            self._fits(wanted, spec.capacity)
            try:
                self._make(wanted)
                if pin:
                    pin.keep(spec, self._outer)
            except BaseException:
                if pin:
                    pin.remove()
                raise
        return True

    def _make(self, wanted: Columns) -> None:
        with Table.create(self.spec) as table:
            table.fill(wanted, time.monotonic_ns())
            outer = Map.create(ARRAY_OF_MAPS, f"set_{self.name}", 4, 4, 1, inner=table.map)
            self._outer = self._closing.enter_context(outer)
            self._switch(table)

    def _table(self) -> Table:
        """The inner map at this moment; another process may have switched it since the last call."""
        for _ in range(_TRIES):
            number = self._outer.get(_KEY0)
            if number is None:
                raise OSError(errno.EBADF, f"set {self.name!r} is closed")
            try:
                return Table(self.spec, Map.by_id(int.from_bytes(number, sys.byteorder)))
            except FileNotFoundError:  # another process switched it between the two calls
                continue
        raise OSError(errno.EAGAIN, f"set {self.name!r}: it is replaced faster than it can be read")

    def _switch(self, table: Table) -> None:
        self._outer.put(_KEY0, table.map.fd.to_bytes(4, sys.byteorder))

    def _grow(self) -> None:
        """Enlarge a pinned set that is smaller than it is declared now."""
        with self._table() as table:
            if table.capacity >= self.spec.capacity:
                return
            with Table.create(self.spec) as larger:
                larger.copy(table)
                self._switch(larger)

    def _fits(self, wanted: Columns, capacity: int) -> None:
        if len(wanted) > capacity:
            said = f"{len(wanted):,} members, declared with capacity={capacity}: raise it"
            raise PipelineError(f"set {self.name!r}: {said}", self.spec.where)


def declared(spec: SetSpec, folder: str | Path = "") -> Columns:
    """The members that ``spec`` declares, and those in its source, a file in ``folder``.  Raises PipelineError and
    OSError."""
    wanted = read(spec, spec.members)
    if spec.source is None:
        return wanted
    return wanted.with_(read(spec, spec.source, folder=Path(folder))).once()


class Fork:
    """A copy of a LiveSet for the next ruleset of a link.  :meth:`commit` makes it the content of the LiveSet;
    :meth:`close` without commit drops it."""

    def __init__(self, origin: LiveSet, twin: LiveSet, spec: SetSpec):
        self._origin, self._twin, self._spec = origin, twin, spec
        self._held = ExitStack()
        self._held.enter_context(origin.locked())

    @property
    def fd(self) -> int:
        """File descriptor of the outer map."""
        return self._twin.fd

    def commit(self) -> None:
        """Make this copy the content of the LiveSet.  Call it when no program looks packets up in the old maps any
        more: members that packets have added to them since the fork are added to the copy."""
        with self._held:
            self._origin._become(self._twin, self._spec)

    def close(self) -> None:
        """Drop the copy, unless it was committed; idempotent."""
        with self._held:
            self._twin.close()

"""Sets in the kernel: made, filled, changed and read while programs look packets up in them.

A set is a map of one entry, whose value is the map of the members: a hash, or with ``intervals`` a prefix trie.  A
program re-uses the outer map, so :meth:`LiveSet.replace` fills a new inner one at leisure and switches: no look-up
sees half of it.  Members take memory as they come: a capacity of a million costs nothing by itself.  The layout of the
inner map is in :mod:`xdpkit.sets.members`.

Every change is all or nothing: members are read and checked before the kernel is asked for anything, and what was done
is undone when it refuses in the middle.  Threads take turns, and so do processes that share a pinned set.
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
    """How the processes take turns that have opened the set of a pinned link."""

    def locked(self) -> AbstractContextManager[None]:
        """Alone among processes."""
        ...

    def map_id(self, name: str) -> int | None:
        """The outer map of the set of that name as of now; None if it is not known."""
        ...


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
        """The set of a pinned link, whose outer map has this id; its members stay as they are.  OSError: ENOENT where
        it is gone, EPERM without CAP_SYS_ADMIN."""
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
        """Take turns with the processes that open this set by the pin of a link."""
        self._shared = shared

    def __repr__(self) -> str:
        fields = ", ".join(field.name for field in self.spec.fields)
        pinned = ", pinned" if self.spec.pinned else ""
        return f"<LiveSet {self.name} of {fields}: room for {self.spec.capacity}{pinned}>"

    @property
    def name(self) -> str:
        """The name it was declared by."""
        return self.spec.name

    @property
    def fd(self) -> int:
        """File descriptor of the outer map, owned by this object; whatever the members, it stays the same."""
        return self._outer.fd

    @property
    def capacity(self) -> int:
        """Entries that there is room for."""
        with self._table() as table:
            return table.capacity

    @property
    def used(self) -> int:
        """Entries that take room: members, and those whose time is over until they are swept."""
        with self._table() as table:
            return len(table.map.read()[1])

    def update(self, add: Source | Columns = (), remove: Source = (), *, timeout: float = 0) -> Change:
        """Remove members, then add some (those that say no time-out of their own get ``timeout`` seconds, 0: for ever).
        One that is there gets its action and time-out anew; one to remove that is not there is no error."""
        wanted = add if isinstance(add, Columns) else read(self.spec, add, timeout=timeout)
        unwanted = read(replace(self.spec, actions=()), remove)
        with self.locked(), self._table() as table:
            now = time.monotonic_ns()
            unwanted = unwanted.take(unwanted.among(wanted) < 0)
            there = table.find(unwanted, now)
            gone = unwanted.take(there.exact), there.values[there.exact]
            return table.apply(wanted, table.find(wanted, now), gone, now)

    def replace(self, members: Source | Columns) -> int:
        """Make ``members`` all there is, at once: no look-up sees a mixture.  How many entries there are.  What packets
        added is gone too."""
        wanted = members if isinstance(members, Columns) else read(self.spec, members)
        with self.locked():
            capacity = self.capacity
            self._fits(wanted, capacity)
            with Table.create(replace(self.spec, capacity=capacity)) as fresh:
                fresh.fill(wanted, time.monotonic_ns())
                self._switch(fresh)
        return len(wanted)

    def sync(self, source: Source | Columns, *, everything: bool = False) -> Change:
        """Come to what ``source`` says by the fewest changes.  Members with a time-out, and those that packets added,
        end by themselves: they are left alone (kept) unless ``source`` has them too, or with ``everything``."""
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
        """Remove every member, at once; how many entries there were."""
        with self.locked():
            before = self.used
            self.replace(())
            return before

    def sweep(self) -> int:
        """Give the room of members whose time is over back; how many.  They match no packet as it is, and an addition
        that finds the set full sweeps first."""
        with self.locked(), self._table() as table:
            return table.sweep()

    def entries(self) -> Columns:
        """The members as columns, ``timeout`` being the seconds left: a million in a moment."""
        with self._table() as table:
            have, values = table.dump()
        return have.take(lives(values, time.monotonic_ns()))

    def members(self) -> list[LiveMember]:
        """The members as people write them, in the order of their keys."""
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
        """Whether a packet with these values is in the set; of a prefix or range: whether each prefix of it lies in one
        member."""
        asked = read(replace(self.spec, actions=()), [member])
        with self._table() as table:
            return bool(table.find(asked, time.monotonic_ns()).live.all())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Alone with the set, among threads and, if it is pinned, processes: to read and then change it.  Nests."""
        with self._lock, ExitStack() as turn:
            if not self._depth:
                self._take_turn(turn)
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1

    def _take_turn(self, turn: ExitStack) -> None:
        """Wait until no other process changes the set, until ``turn`` ends; look it up again where a ruleset that came
        meanwhile has brought another map."""
        if self._pin:
            turn.enter_context(self._pin.locked())
        elif self._shared:
            turn.enter_context(self._shared.locked())
            now = self._shared.map_id(self.spec.name)
            if now is not None and now != self._outer.info.id:
                self._outer.close()
                self._outer = self._closing.enter_context(Map.by_id(now))

    def _fork(self, spec: SetSpec, before: Columns, after: Columns) -> Fork:
        """A copy for another ruleset, which declares the set with ``spec``: the same members, but for what the
        declarations differ in (``before`` and ``after``).  OSError or PipelineError leave this set as it is."""
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
        """Change places with ``twin``, with what packets have added here meanwhile."""
        with self.locked(), self._table() as old, twin._table() as new:
            have, values = old.dump()
            missing = (values["mark"] == 0) & ~new.find(have, 0).exact
            new.map.write(new.keys(have.take(missing)), values[missing])  # where there is no room they are lost
            self._outer, twin._outer = twin._outer, self._outer
            self._closing, twin._closing = twin._closing, self._closing
            self.spec = spec
        twin.close()

    def unpin(self) -> None:
        """Take a pinned set's pin away: it then goes with the last program and process that use it."""
        if self._pin:
            with self.locked():
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
        """Make or find the set and load ``wanted``; False if somebody removed the pin's folder before our turn."""
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
        """The map of the members as of now: another process may have switched it."""
        for _ in range(_TRIES):
            number = self._outer.get(_KEY0)
            if number is None:
                raise OSError(errno.EBADF, f"set {self.name!r} is closed")
            try:
                return Table(self.spec, Map.by_id(int.from_bytes(number, sys.byteorder)))
            except FileNotFoundError:  # switched, and gone, in between
                continue
        raise OSError(errno.EAGAIN, f"set {self.name!r}: it is replaced faster than it can be read")

    def _switch(self, table: Table) -> None:
        self._outer.put(_KEY0, table.map.fd.to_bytes(4, sys.byteorder))

    def _grow(self) -> None:
        """A pinned set that is smaller than declared gets the room."""
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
    """The members that ``spec`` declares and those in its source, a file in ``folder``."""
    wanted = read(spec, spec.members)
    if spec.source is None:
        return wanted
    return wanted.with_(read(spec, spec.source, folder=Path(folder))).once()


class Fork:
    """A set that another ruleset uses already, and that the LiveSet it came from becomes, or does not; until then
    nobody else changes that one."""

    def __init__(self, origin: LiveSet, twin: LiveSet, spec: SetSpec):
        self._origin, self._twin, self._spec = origin, twin, spec
        self._held = ExitStack()
        self._held.enter_context(origin.locked())

    @property
    def fd(self) -> int:
        """File descriptor of the outer map."""
        return self._twin.fd

    def commit(self) -> None:
        """Make the LiveSet this one.  Nothing looks packets up in the old maps any more: what packets have added to
        them since the fork is added here."""
        with self._held:
            self._origin._become(self._twin, self._spec)

    def close(self) -> None:
        """Forget it."""
        with self._held:
            self._twin.close()

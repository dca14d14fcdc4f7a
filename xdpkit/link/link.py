"""A pipeline on a device: its sockets, its sets, its ledger, and the next pipeline in its place."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, replace
from threading import RLock
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING

from ..compiler import Compiled
from ..compiler.built import Built, as_built
from ..device import netdev
from ..device.netdev import Device, State
from ..kernel.attachment import Attachment, completes_checksums, ranges
from ..kernel.bpfmap import map_id
from ..kernel.core import check, lib
from ..kernel.loaded import LoadedProgram, PinnedProgram
from ..kernel.program import restores_tags
from ..language.actions import Mark
from ..language.devices import OUTBOUND
from ..language.errors import XdpkitError
from ..language.metadata import absent_at, refuse_generic
from ..language.pipeline import Pipeline
from ..language.rule import Rule
from ..language.sets import Add
from ..logs import logger
from ..sets.live import LiveSet
from ..sockets.attached import Attached
from ..sockets.options import SocketOptions
from ..sockets.queues import Queues
from ..sockets.sockets import Copies, Sockets
from ..sockets.xsk import SocketStats
from ..sockets.zerocopy import check_zerocopy
from . import offloads
from .events import Event, Events, handled
from .ledger import Ledger, LedgerRule, ShadowLedger
from .pin import LinkPin, Record, Turns, link_program
from .presence import Presence, Unseen, namespace_id
from .redirects import RedirectCounter
from .ruleset import Ruleset, refuse_sides
from .sweeper import Sweeper
from .tally import Forwarding, RuleTotal, Tally, totals
from .watcher import Watcher

if TYPE_CHECKING:
    from .flows import Flows
    from .tracker import Tracker

__all__ = ["Link", "Update", "open_link", "redirect_counter"]

#: Seconds between two looks at the device.
CHECK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Update:
    """What a change of rulesets took, in nanoseconds: ``compile_ns`` (0 for one that was built ahead), ``load_ns``
    (program, sets, devices), ``swap_ns`` (the exchange: packets meet the new rules from here on), ``settle_ns`` (until
    no packet is with the old program, and its counts are final)."""

    compile_ns: int
    load_ns: int
    swap_ns: int
    settle_ns: int

    def __str__(self) -> str:
        parts = (
            ("compile", self.compile_ns), ("load", self.load_ns), ("swap", self.swap_ns), ("settle", self.settle_ns),
        )  # fmt: skip
        return ", ".join(f"{name} {ns / 1e6:.1f} ms" for name, ns in parts)


@dataclass(slots=True)
class Side:
    """A link as one side of a bridge.  ``names``: the indexes of both devices by all their names, the sides' among
    them, and of the other one as OTHER.  ``twin``: the ruleset on the other device, with which this one shares what
    rules remember; None for the side that has it by itself.  ``update``: puts the next pipeline on both.  ``lock``: of
    both, because each may put the pipeline again on both, from a thread of its own."""

    names: Mapping[str, int]
    twin: Ruleset | None
    update: Callable[[Built], object]
    lock: RLock


def names_of(device: Device, side: Side | None, mode: str) -> Mapping[str, int]:
    """Device indexes by the names that conditions know them by, where a program is attached in ``mode``."""
    names = side.names if side is not None else {device.name: device.index}
    return {**names, OUTBOUND: device.index} if mode == "tc_egress" else names


def tracker_for(ruleset: Ruleset, device: Device, mode: str, side: Side | None, learn: float) -> Tracker | None:
    """What tracks the connections of ``ruleset``, started; None where it tracks none, or the other side of the bridge
    does for both."""
    if ruleset.tables is None or ruleset.is_twin:
        return None
    from .tracker import Tracker

    return Tracker.start(ruleset.tables, device, mode, learn, is_bridge=side is not None)


class Link:
    """A pipeline on a device.  Context manager; ``close()`` detaches and is idempotent, and the ledger stays."""

    def __init__(
        self, ruleset: Ruleset, device: Device, fd: int, attachment: Attachment, binds: tuple[str, ...],
        options: SocketOptions, redirects: RedirectCounter | None = None, side: Side | None = None,
        tracker: Tracker | None = None,
    ):  # fmt: skip
        self._side = side
        self._pin: LinkPin | None = None
        self._redirects_id: int | None = None
        self._earlier = 0
        self._tracker: Tracker | None = tracker
        self._next_tracker: Tracker | None = tracker
        self._ruleset = ruleset
        self.device: Device = device
        self.options: SocketOptions = options
        self._attached = Attached(device, ruleset.program, attachment, binds, options, self.check)
        self._fd = fd
        self._lock = (
            side.lock if side is not None else RLock()
        )  # around what counts: an update moves counts from program to tally
        self._tally, self._updates = Tally(), 0
        self._redirects = redirects
        self._presence = Presence(device, attachment.mode, fd)
        self._namespace = self._presence.namespace
        self._unseen, self._said_unseen = Unseen(), False
        self._lost: OSError | None = None
        self._notes: tuple[str, ...] = ()
        self._next_check = time.monotonic() + CHECK_SECONDS
        self._sockets: Sockets | None = None
        self._copies: Copies | None = None
        self._mirrored = SocketStats()
        self._past = SocketStats()
        self._sink, self._read = ("none", 0, 0), 0
        self._completed: list[Callable[[], int]] = []  # checksums, one for each forward()
        self._dropped_before = self._device_dropped()
        self._start = time.monotonic()
        self._final: Ledger | None = None
        self._sweeper: Sweeper | None = None
        self._watcher: Watcher | None = None
        here = not isinstance(ruleset.program, PinnedProgram)  # who attached it looks after it
        if here and attachment.mode == "native" and device.driver == "veth":  # new queues have no program there
            self._watcher = Watcher([device.index], self._look)
        try:
            self._sweeps()
        except BaseException:
            self._end_threads()
            raise
        if attachment.mode == "generic" and "FORWARD" in self.pipeline.verdicts:
            self._note(offloads.merged(device))
        self._warn_of_other_devices()

    def _warn_of_other_devices(self) -> None:
        """A name in a condition that is none of this link's devices is probably a typing error."""
        own = self._device_indexes()
        others = [repr(name) for name in self.pipeline.devices if name not in own and name != OUTBOUND]
        if others:
            self._note(f"{self.device.name}: rules that ask for dev.name {', '.join(others)} never match here")
        if OUTBOUND in self.pipeline.devices and OUTBOUND not in own:
            self._note(f"{self.device.name}: all packets are inbound here; those that leave are seen at tc_egress")

    def _device_indexes(self) -> Mapping[str, int]:
        """The devices where the program runs, by the names that conditions know them by."""
        return names_of(self.device, self._side, self.attachment.mode)

    def __repr__(self) -> str:
        state = "closed" if self._final is not None else "open" if self._lost is None else "lost"
        return f"<Link {self.pipeline.name} on {self.device.name}: {self.attachment.mode}, {state}>"

    @property
    def attachment(self) -> Attachment:
        """What the kernel gave of what was requested."""
        return self._attached.attachment

    @property
    def got(self) -> Attachment:
        """An older name of :attr:`attachment`."""
        return self._attached.attachment

    @property
    def program(self) -> LoadedProgram:
        """The program that runs now."""
        return self._ruleset.program

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline that runs now; its ``shadowed`` is what is tried beside it."""
        return self._ruleset.pipeline

    @property
    def built(self) -> Built:
        """The pipeline that runs now, with the programs that were built ahead and the folder of its files."""
        return self._ruleset.built

    @property
    def sets(self) -> Mapping[str, LiveSet]:
        """The sets and verdict maps of the pipeline, by name: change them while packets are looked up in them."""
        return MappingProxyType(self._ruleset.sets)

    @property
    def lost(self) -> str | None:
        """Why the pipeline is no longer on its device, None while it is: the device was deleted or moved to another
        network namespace, the link was detached by force, or another program put in its place.  Looks now."""
        with self._lock:
            if self._lost is None and self._final is None:
                self._lost = self._presence.lost(self.program)
                if self._lost is not None:
                    self._note(str(self._lost.strerror))
            return None if self._lost is None else str(self._lost.strerror)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be known of this link from the start, and what :meth:`check` found, a line each; also in the
        ledger."""
        return self._notes

    def _note(self, text: str) -> None:
        self._notes += (text,)
        logger.warning("%s on %s: %s", self.pipeline.name, self.device.name, text.removeprefix(f"{self.device.name}: "))

    def check(self) -> None:
        """Look whether the pipeline is still on its device, and if the device has changed: other numbers of receive
        queues, a larger MTU, packets that arrive and are not seen.  Where queues were added that the program does not
        run on, it is put on the device again.  What was found is in :attr:`notes`.

        Raises OSError when the pipeline is no longer on the device (:attr:`lost`): ENODEV where the device is gone or
        moved, ENOLINK where the link was detached or its program replaced.  Readers of packets call it by themselves; a
        program that only filters should, every second or so.  Cheap to call often: it looks twice a second at most.

        In native mode on veth, a thread looks whenever the kernel says that the device has changed."""
        if self._lost is not None:
            raise OSError(self._lost.errno, self._lost.strerror)
        if time.monotonic() < self._next_check or not self._lock.acquire(blocking=False):
            return
        try:
            self._look()
        finally:
            self._lock.release()
        if self._lost is not None:
            raise OSError(self._lost.errno, self._lost.strerror)

    def _look(self) -> None:
        """What :meth:`check` does, now, and without an error: what is lost is in ``_lost``."""
        with self._lock:
            self._next_check = time.monotonic() + CHECK_SECONDS
            if self._final is None and self.lost is None:
                state = self._presence.state(self.program)
                if isinstance(state, OSError):
                    self._lost = state
                    self._note(str(state.strerror))
                elif state is not None:
                    self._follow(state)

    def _follow(self, state: State) -> None:
        """Say what of the device has changed, and put the program on queues that it is not on."""
        before, queues = self.device, self._presence.queues(state)
        if (queues, state.mtu) != (before.rx_queues, before.mtu):
            self.device = self._attached.device = self._presence.device = replace(
                before, rx_queues=queues, mtu=state.mtu
            )
        if queues != before.rx_queues:
            self._note(self._follow_queues(before.rx_queues, queues))
        if state.mtu > before.mtu:
            self._note(self._follow_mtu(before.mtu, state.mtu))
        if self.attachment.mode != "tc_egress":
            unseen = self._unseen.look(self._seen(), state.rx_packets)
            if unseen and not self._said_unseen:
                self._said_unseen = True
                self._note(
                    f"{before.name}: {unseen} packets arrived that the pipeline did not see, and it sees none: "
                    "another program in front of it takes them, or the driver lost it (attach again)"
                )

    def _seen(self) -> int:
        return self._tally.totals.seen + totals(self.program.counts()).seen

    def _follow_queues(self, before: int, now: int) -> str:
        note = f"{self.device.name}: {before} receive queues became {now}"
        if now < before or self.attachment.mode not in ("native", "generic"):
            return note
        if self.attachment.mode == "native":
            try:
                self._put_again()
                note += ": the pipeline was put on the device again, so that it runs on the new ones too"
            except (XdpkitError, OSError, ValueError) as error:
                note += f": packets of the new ones pass the pipeline by, and it cannot be put there again: {error}"
        if "REDIRECT" in self.pipeline.verdicts:
            note += f"; queues {ranges(range(before, now))} have no socket, REDIRECT falls back there: start again"
        return note

    def _follow_mtu(self, before: int, now: int) -> str:
        note = f"{self.device.name}: the MTU was {before} and is {now}"
        redirects = "REDIRECT" in self.pipeline.verdicts and self.attachment.mode in ("native", "generic")
        if redirects and not self.program.frags:
            note += ": packets that are longer than a frame are lost: start again"
        return note

    def update(
        self, pipeline: Pipeline | Compiled | Built, *, shadow: Pipeline | None = None, learn: float = 0.0
    ) -> Update:  # fmt: skip
        """Put another pipeline in the place of this one.  Each packet meets either the old rules or the new ones.
        ``shadow``: rules that only count, as in :func:`xdpkit.attach`.

        Rules of the same name go on counting.  Sets keep their members, except where they are declared differently now;
        a limit that is the same in a rule of the same name keeps its bucket.  Connections stay, in tables of the size
        that they have.  Where the pipeline is the first here to track, those of this host's sockets are known from the
        start, and ``learn`` is as in :func:`xdpkit.attach`.  Sockets stay open.  If the update is refused
        (PipelineError, VerifierError, OSError, NotSupported, or ValueError for a closed link, one side of a bridge, and
        rules that the link cannot run), the old pipeline stays in place and nothing has changed.  A batch's ``rules``
        are numbers of the pipeline that the packet met: for packets that were under way, the old one."""
        if self._side is not None:
            raise ValueError(f"{self.device.name} is one side of a bridge: update the bridge")
        with self._lock:
            start = time.perf_counter_ns()
            built = self._next(as_built(pipeline, shadow))
            compiled = time.perf_counter_ns()
            old, new = self._ruleset, self._load_next(built, learn=learn)
            loaded = time.perf_counter_ns()
            try:
                self._swap(new)
            except BaseException:
                self._withdraw(new)
                raise
            swapped = time.perf_counter_ns()
            self._settle(new)
            took = Update(compiled - start, loaded - compiled, swapped - loaded, time.perf_counter_ns() - swapped)
            logger.info("%s replaces %s on %s: %s", new.pipeline.name, old.pipeline.name, self.device.name, took)
            return took

    def _put_again(self) -> None:
        """Load the same pipeline anew, which runs on the queues that there are by now."""
        if self._side is not None:
            self._side.update(self._ruleset.built)
        else:
            self.update(self._ruleset.built)

    def _next(self, built: Built) -> Built:
        """``built`` with all that this link needs of it.  It raises what :meth:`update` does."""
        if self._final is not None:
            raise ValueError("the link is closed")
        if self._pin is not None:
            self._pin.own()
        self._may_follow(built.pipeline)
        return built.with_reader_metadata(self._ruleset.program.hook, self.attachment.rx_metadata)

    def _load_next(self, built: Built, twin: Ruleset | None = None, learn: float = 0.0) -> Ruleset:
        """The ruleset that is to follow, loaded, with the sockets in its reach; where it is refused, nothing stays."""
        old = self._ruleset
        new = Ruleset(
            built, old.program.hook, queues=self.device.rx_queues, metadata=self.attachment.timestamps, before=old,
            device=self.device if self.attachment.mode == "native" else None,
            spread=old.program.spread, devices=self._device_indexes(), twin=twin,
            completes=completes_checksums(self.attachment.mode, self.device.driver),
        )  # fmt: skip
        try:
            self._next_tracker = self._tracker_of(new, learn)
            if self._sockets is not None:
                self._sockets._reach(new.program)
            if self._redirects is None:
                self._redirects = redirect_counter(new.pipeline, self.device, self.attachment.mode)
            if self._pin is not None:
                self._pin_redirects(self._pin)
                self._pin.announce(self._record(self._pin, new), new, old.program.map_fd("counters"))
        except BaseException:
            self._withdraw(new)
            raise
        return new

    def _withdraw(self, new: Ruleset) -> None:
        """``new`` will not follow after all."""
        if self._next_tracker is not None and self._next_tracker is not self._tracker:
            self._next_tracker.close()
        self._next_tracker = self._tracker
        new.abandon(self._ruleset)
        if self._pin is not None:
            self._pin.withdraw()

    def _swap(self, new: Ruleset) -> None:
        """Packets meet ``new`` from here on.  OSError where the kernel refuses that."""
        if self._fd >= 0:
            check(lib.xk_link_update(self._fd, new.program.fd), f"{self.device.name}: update")
        elif self._sockets is not None:
            self._sockets._refilter(new.program)

    def _settle(self, new: Ruleset) -> None:
        """Close the ruleset that ``new`` follows, and keep what it has counted."""
        old, self._ruleset = self._ruleset, new
        self._attached.program = new.program
        fields = (*new.pipeline.metadata, *sorted(new.pipeline.headerless_fields))
        absent = absent_at(self.attachment.mode, self.device.rx_metadata, fields)
        self._attached.attachment = replace(self.attachment, absent=absent)
        check(lib.xk_quiesce())  # no packet is with the old program any more: its counts are final
        self._tally.keep(old.program.counts(), old.program.completed())
        self._updates += 1
        if self._pin is not None:
            self._pin.write(self._record(self._pin, new), new)
            new.share(Turns(self._pin))
        self._track(new)
        new.commit(old)
        self._sweeps()
        self._warn_of_other_devices()

    def _tracker_of(self, new: Ruleset, learn: float) -> Tracker | None:
        """What tracks the connections of ``new``: started before its rules act, if nothing does yet."""
        if new.tables is None or self._tracker is not None:
            if self._tracker is not None and learn:
                self._tracker.learn(learn)
            return self._tracker
        tracker = tracker_for(new, self.device, self.attachment.mode, self._side, learn)
        if tracker is not None and self._pin is not None:
            tracker.pin(self._pin.pins)
        return tracker

    def _track(self, ruleset: Ruleset) -> None:
        """Another ruleset runs: what tracks connections follows it, or ends."""
        spec, tables, self._tracker = ruleset.pipeline.tracking, ruleset.tables, self._next_tracker
        if self._tracker is None:
            return
        if spec is None or tables is None:
            self._tracker.close()
            self._tracker = self._next_tracker = None
            return
        if (tables.spec.capacity, tables.spec.half_open) != (spec.capacity, spec.half_open):
            sizes = f"{tables.flows.info.capacity} flows and {tables.half_open.info.capacity} half-open ones"
            self._note(f"{self.device.name}: the tables of connections keep their room for {sizes}: attach again")
        self._tracker.follow(tables, spec)

    def flows(self) -> Flows:
        """The connections that the pipeline tracks, as they are now.  ValueError if it tracks none."""
        return self._tracking().flows()

    def forget(self, flows: Flows) -> int:
        """Forget ``flows``, which :meth:`flows` or its ``where()`` gave: their next packets are judged as those of
        unknown connections.  Returns how many were still there.  ValueError if the pipeline tracks none."""
        return self._tracking().forget(flows)

    def learn(self, seconds: float) -> None:
        """For ``seconds`` from now, take packets in the middle of unknown connections for established; 0 ends it.
        ValueError if the pipeline tracks none."""
        self._tracking().learn(seconds)

    def _tracking(self) -> Tracker:
        if self._tracker is None or self._final is not None:
            closed = "the link is closed" if self._final is not None else "call pipe.track()"
            raise ValueError(f"{self.device.name}: pipeline {self.pipeline.name!r} tracks no connections: {closed}")
        return self._tracker

    @property
    def pinned(self) -> str | None:
        """The name that the link is pinned under, None if it is not."""
        return self._pin.name if self._pin is not None else None

    def pin(self, name: str) -> None:
        """Let the pipeline stay on the device when this process ends, however it ends: the link is pinned in the bpffs
        under ``name``, and :func:`open_link` finds it there.  From now on :meth:`close` lets go of the link and
        :meth:`detach` takes the pipeline off.  ValueError for a name that is no file's name, and where the link is
        closed, pinned already or at AF_PACKET; OSError: EEXIST where another link has the name, EBUSY where another
        process owns it, EPERM without CAP_SYS_ADMIN."""
        with self._lock:
            if self._final is not None:
                raise ValueError("the link is closed")
            if self._pin is not None:
                raise ValueError(f"the link is pinned already, as {self._pin.name!r}")
            if self._fd < 0:
                raise ValueError(f"{self.device.name}: a packet socket cannot be pinned: attach at XDP or TC")
            pin = LinkPin(name)
            if pin.exists:
                raise OSError(errno.EEXIST, f"a link is pinned as {name!r} already: open it with open_link({name!r})")
            pin.own()
            try:
                pin.pin(self._fd, self._record(pin, self._ruleset), self._ruleset)
                self._pin_redirects(pin)
                if self._tracker is not None:
                    self._tracker.pin(pin.pins)
                pin.write(self._record(pin, self._ruleset), self._ruleset)
            except BaseException:
                pin.remove()
                pin.disown()
                raise
            self._ruleset.share(Turns(pin))
            self._pin = pin

    def _pin_redirects(self, pin: LinkPin) -> None:
        """Let the counts of forwarded packets go on too."""
        if self._redirects is not None and self._redirects_id is None:
            self._redirects_id = self._redirects.pin(pin.pins)

    def _record(self, pin: LinkPin, ruleset: Ruleset) -> Record:
        program = ruleset.program
        return Record(
            name=pin.name,
            device=self.device.name,
            ifindex=self.device.index,
            namespace=self._namespace,
            attachment=self.attachment,
            hook=program.hook,
            queues=program.queues,
            spread=program.spread,
            prog_id=program.info()["id"],
            maps={name: map_id(fd) for name, fd in program.maps().items()},
            sets=ruleset.set_ids,
            folder=str(ruleset.folder.absolute()),
            start=self._start,
            device_dropped=self._dropped_before,
            updates=self._updates,
            tally=self._tally,
            redirects=self._redirects_id,
            shadow=ruleset.pipeline.shadowed is not None,
        )

    @classmethod
    def _opened(cls, pin: LinkPin) -> Link:
        """The link that is pinned; what it does goes on, this object only looks and changes sets until it updates."""
        with ExitStack() as stack:
            fd = pin.open_link()
            stack.callback(os.close, fd)
            index, prog_id = link_program(fd)
            record, built = pin.read(prog_id)
            device = _device_of(record, index)
            program = PinnedProgram(
                built.pipeline, record.hook, prog_id, record.maps, queues=record.queues, spread=record.spread
            )
            ruleset = Ruleset.opened(built, program, record.sets, pin.sources(record), Turns(pin))
            stack.callback(ruleset.close)
            redirects = None
            if record.redirects is not None:
                native = record.attachment.mode == "native"
                redirects = RedirectCounter.opened(pin.pins, record.redirects, native=native)
                stack.callback(redirects.close)
            attachment = replace(record.attachment, bind=None)
            tracker = None
            if ruleset.tables is not None:
                from .tracker import Tracker

                tracker = Tracker.opened(ruleset.tables, pin.pins)
                stack.callback(tracker.close, stays=True)
            binds = ("zerocopy", "copy")
            link = cls(ruleset, device, fd, attachment, binds, SocketOptions(), redirects, tracker=tracker)
            link._pin, link._redirects_id = pin, record.redirects
            link._tally, link._updates = record.tally, record.updates
            link._start, link._dropped_before = record.start, record.device_dropped
            link._earlier = link._tally.totals.redirected + totals(program.counts()).redirected
            stack.pop_all()
            return link

    def _take_over(
        self, built: Built, attachment: Attachment, binds: tuple[str, ...], options: SocketOptions
    ) -> None:  # fmt: skip
        """Put a program of this process in the place of the one that another has loaded."""
        self.options = options
        self._attached.options = options
        self._attached.binds, self._attached.attachment = binds, attachment
        self.update(built)

    def _may_follow(self, pipe: Pipeline) -> None:
        """What this link cannot do, said before anything is loaded."""
        if self.attachment.mode == "tc_egress" and "TX" in pipe.verdicts:
            raise ValueError(f"{self.device.name}: TX at egress would send packets where they come from")
        if Mark in pipe.steps and "REDIRECT" in pipe.verdicts and not self.attachment.timestamps and self._fd >= 0:
            raise ValueError(f"{self.device.name}: marks reach sockets of a link attached with timestamps=True only")
        if self._side is None:
            refuse_sides(pipe)
        refuse_generic(pipe.metadata, self.attachment.mode, self.device.name)
        if self.attachment.bind == "zerocopy":
            check_zerocopy(self.device, pipe)
        binds = pipe.metadata or self.attachment.rx_metadata or restores_tags(pipe, self.device)
        if binds and self.attachment.mode == "native" and namespace_id() != self._namespace:
            raise OSError(errno.ENODEV, f"{self.device.name}: to bind a program to it, enter its network namespace")

    def _sweeps(self) -> None:
        """Keep sets that packets add to from filling up with members whose time is over."""
        if self._ruleset.is_twin:
            return  # the other side of the bridge does it
        adds = Add in self.pipeline.steps and any(s.timeouts for s in self.pipeline.sets)
        if self._sweeper is None and (adds or self._tracker is not None):
            self._sweeper = Sweeper(self._sweep)

    def _end_threads(self) -> None:
        for helper in (self._watcher, self._sweeper):
            if helper is not None:
                helper.close()

    def _sweep(self) -> None:
        with self._lock:
            for live in self.sets.values() if self._final is None else ():
                if live.spec.timeouts:
                    live.sweep()
            if self._tracker is not None and self._final is None:
                self._tracker.sweep()

    def sockets(self) -> Sockets:
        """Open the sockets of all queues, fill their FILL rings and let REDIRECT find them: a context manager.  One at
        a time.  OSError names call, device and queue, NotSupported what it needs; nothing stays open then.  ValueError
        when the link is closed or its sockets are open already."""
        return self._open_sockets(None)

    def _open_sockets(self, queues: Queues | None) -> Sockets:
        """``queues``: AF_XDP sockets that are open already, those of a forwarder."""
        if self._final is not None:
            raise ValueError("the link is closed")
        if namespace_id() != self._namespace:
            raise OSError(errno.ENODEV, f"{self.device.name}: the link was made in another network namespace")
        with self._lock:
            if self._pin is not None:
                self._pin.own()
            if self._sockets is not None:
                raise ValueError(f"{self.device.name}: the sockets of this link are already open")
            self._sockets = Sockets(self._attached, queues, closed=self._keep_counts)
            return self._sockets

    def copies(self) -> Copies:
        """Read the copies of packets that rules mirror, from now on: a context manager like :meth:`sockets`, whose
        batches also have ``marks``, ``verdicts``, ``queues`` and ``wire_lengths``, and whose files tell each packet's
        verdict.
        ValueError if no rule mirrors."""
        if self._final is not None:
            raise ValueError("the link is closed")
        with self._lock:
            if self._pin is not None:
                self._pin.own()
            if self._copies is not None:
                raise ValueError(f"{self.device.name}: the copies of this link are already being read")
            self._copies = Copies(self._attached, closed=self._keep_counts)
            return self._copies

    def events(self, *, timeout: float | None = None) -> Iterator[Event]:
        """What rules log, from now on, until ``timeout`` seconds (None: for ever) pass without an event.  One reader at
        a time.  ValueError if no rule logs."""
        reader = Events(self._attached)

        def run() -> Iterator[Event]:
            with reader:
                yield from reader.read(timeout)

        return run()

    def handle_events(self, handle: Callable[[Event], None]) -> AbstractContextManager[None]:
        """Call ``handle`` with each packet that a rule logs, in a thread of its own, while the block runs.  One reader
        at a time.  ValueError if no rule logs."""
        return handled(self._attached, handle)

    def _counts_completed(self, count: Callable[[], int]) -> None:
        """``count`` says how many checksums of this link's packets forward() has completed."""
        self._completed.append(count)

    def _keep_counts(self, sockets: Sockets) -> None:
        """Sockets have closed: keep what they counted."""
        if self._copies is sockets:
            self._mirrored += sockets.stats()
            self._copies = None
        if self._sockets is sockets:
            self._past += sockets.stats()
            self._read += sockets.read
            name, written, refused = sockets._sink
            if name != "none":
                self._sink = (name, self._sink[1] + written, self._sink[2] + refused)
            self._sockets = None

    def ledger(self) -> Ledger:
        """Where every packet went so far; after close() the final one."""
        with self._lock:
            return self._final or self._count(final=False)

    def _count(self, *, final: bool) -> Ledger:
        stats, (sink, written, refused) = self._past, self._sink
        if self._sockets is not None:  # sockets before rules: what moves meanwhile shows as in flight, never below 0
            stats += self._sockets.stats()
            name, now_written, now_refused = self._sockets._live_sink()
            if name != "none":
                sink, written, refused = name, written + now_written, refused + now_refused
        counts = self.program.counts()
        rules = tuple(_ledger_rule(c.rule, self._tally.with_(c)) for c in counts)
        mirrored = self._mirrored
        if self._copies is not None:
            mirrored += self._copies.stats()
        fill_empty = min(stats.fill_empty, stats.rx_dropped)
        dropped = missed = 0  # at egress: what the device drops on arrival is not on its way out
        if self.attachment.mode != "tc_egress" and namespace_id() == self._namespace:
            with suppress(OSError):  # the device is gone
                now, before = self._device_dropped(), self._dropped_before
                dropped, missed = now[0] - before[0], now[1] - before[1]
        return Ledger(
            pipeline=self.program.pipeline.name,
            device=self.device.name,
            attachment=self.attachment,
            seconds=time.monotonic() - self._start,
            rules=rules,
            totals=self._tally.totals + totals(counts),
            updates=self._updates,
            completed=self._tally.completed + self.program.completed() + sum(count() for count in self._completed),
            mirrored=mirrored.received + mirrored.unread,
            mirror_full=mirrored.rx_ring_full,
            forwarding=self._redirects.counts() if self._redirects is not None else Forwarding(),
            fill_empty=fill_empty,
            rx_ring_full=stats.rx_ring_full,
            too_long=stats.rx_dropped - fill_empty,
            waiting=stats.unread,
            delivered=stats.received,
            written=written,
            refused=refused,
            sink=sink,
            read=self._read + (self._sockets.read if self._sockets is not None else 0),
            device_dropped=max(0, dropped),
            device_missed=max(0, missed),
            final=final,
            earlier=self._earlier,
            shadow=self._shadow_ledger(),
            flows=None if self._tracker is None else self._tracker.counts(),
            notes=self._notes,
            mirror_full_on=mirrored.lost_on,
            ring_full_on=stats.lost_on,
        )

    def _shadow_ledger(self) -> ShadowLedger | None:
        shadow = self.pipeline.shadowed
        if shadow is None:
            return None
        counts, pairs = self.program.shadow_counts()
        rules = tuple(_ledger_rule(c.rule, RuleTotal(c.packets, c.bytes)) for c in counts)
        other = [(mine.name, theirs.name, n) for (mine, theirs), n in pairs.items() if mine != theirs]
        return ShadowLedger(shadow.name, rules, tuple(sorted(other, key=lambda row: -row[2])))

    def _device_dropped(self) -> tuple[int, int]:
        """rx_dropped and rx_missed_errors (see Ledger), but for veth: it counts as dropped what its XDP program dropped
        or failed to redirect, and misses nothing, because a full ring there is the sender's tx_dropped."""
        if self.device.driver == "veth":
            return 0, 0
        counts = netdev.stats(self.device.index)
        return counts.get("rx_dropped", 0), counts.get("rx_missed_errors", 0)

    def detach(self) -> None:
        """Take the pipeline off the device, also where it is pinned: the pin goes too.  Then the link is closed.
        OSError: EBUSY where another process owns the pinned link."""
        if self._pin is not None and self._final is None:
            self._pin.own()
            self._pin.remove()
            self._pin.disown()
            self._pin = None
        self.close()

    def close(self) -> None:
        """Close the sockets, detach, take the final ledger, let go of program and sets.  A pinned link stays on its
        device; its ledger is not final then."""
        if self._final is not None:
            return
        self._end_threads()
        try:
            for sockets in (self._copies, self._sockets):
                if sockets is not None:
                    sockets.close()
        finally:  # whatever a sink says: detach
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
            lib.xk_quiesce()
            with self._lock:
                self._final = self._count(final=self._pin is None)
            if self._pin is not None:
                self._pin.disown()
            if self._redirects is not None:
                self._redirects.close()
            if self._tracker is not None:
                self._tracker.close(stays=self._pin is not None)
            self._ruleset.close()
            what = "detached from" if self._pin is None else f"stays, pinned as {self._pin.name}, on"
            logger.info("%s %s %s: %d packets seen", self.pipeline.name, what, self.device.name, self._final.seen)
            for problem in self._final.problems():
                logger.warning("%s on %s: the ledger does not sum: %s", self.pipeline.name, self.device.name, problem)

    def __enter__(self) -> Link:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _device_of(record: Record, index: int) -> Device:
    """The device of a pinned link.  OSError: ENODEV where it is in another namespace, or the link has none any more."""
    if not index:
        raise OSError(
            errno.ENODEV, f"pinned link {record.name!r}: {record.device} was deleted, or the link detached by force"
        )
    with suppress(OSError):
        device = netdev.device(record.device if record.namespace == namespace_id() else "")
        if device.index == index:
            return device
    with suppress(OSError):
        if record.namespace == namespace_id():
            return netdev.device(socket.if_indextoname(index))  # it has another name by now
    raise OSError(
        errno.ENODEV,
        f"pinned link {record.name!r}: {record.device} is in another network namespace: go there (nsenter --net=...)",
    )


def open_link(name: str) -> Link:
    """The link that is pinned as ``name``, by this process or one that has ended: its ledger, its sets, and updates.
    A context manager, like every link; closing it changes nothing on the device.

    What goes on is the program that runs.  Its packets are read after an :meth:`Link.update` here, or after
    ``attach(..., pin=name)``, which takes over.  OSError: ENOENT names the links that there are, ENODEV where its
    device is not here, EPERM without CAP_SYS_ADMIN; ValueError for a name that is no file's name."""
    return Link._opened(LinkPin(name))


def redirect_counter(pipe: Pipeline, device: Device, mode: str) -> RedirectCounter | None:
    """What counts the packets that ``pipe`` will forward, if it forwards any at XDP."""
    if mode not in ("native", "generic") or "FORWARD" not in pipe.verdicts:
        return None
    return RedirectCounter(device.name, device.index, namespace_id(), native=mode == "native")


def _ledger_rule(rule: Rule, total: RuleTotal) -> LedgerRule:
    counted = (total.packets, total.bytes, total.no_socket, total.failed)
    return LedgerRule(rule.name, rule.then, rule.action.verdict.name, *counted, goes_on=rule.goes_on, chain=rule.chain)

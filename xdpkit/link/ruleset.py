"""The ruleset that runs on a link: a pipeline's program with its sets and buckets, and how the next one takes over.

A ruleset is complete before it acts: its program is loaded, its sets are filled, its devices are found.  A ruleset that
follows another takes over its sets and buckets by name, so members that were added and tokens that were taken are kept.
A set whose declaration has changed is forked: the new program uses a copy with the changes, so that no packet meets new
rules with old members.  :meth:`Ruleset.commit` then makes the copy the content of the set that users hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, TracebackType

import numpy as np

from ..compiler.built import Built
from ..compiler.names import limit_symbol, set_symbol
from ..device import netdev
from ..device.netdev import Device
from ..kernel.bpfmap import map_id
from ..kernel.core import check, ffi, lib
from ..kernel.flowmaps import FlowMaps
from ..kernel.loaded import LoadedProgram, PinnedProgram
from ..kernel.program import Program
from ..language.actions import OTHER, Forward, Inspect
from ..language.devices import SIDES, OnDevice
from ..language.errors import NotSupported, PipelineError
from ..language.pipeline import Pipeline
from ..language.sets import SetSpec
from ..sets.columns import Columns
from ..sets.live import Fork, LiveSet, Shared, declared

__all__ = ["Ruleset", "folder_of", "lasting", "refuse_sides"]


#: The maps that a program has for its own device; programs on the two devices of a bridge share all others.
OWN_MAPS = frozenset({"counters", "xsks", "devices", "completed", "inspecting"})


class Ruleset:
    """A loaded pipeline.  Closing it closes the program, and the sets that no later ruleset has taken over."""

    program: LoadedProgram
    is_twin: bool

    def __init__(
        self, built: Built, hook: str, *, queues: int = 1, metadata: bool = False, explain: bool = False,
        before: Ruleset | None = None, device: Device | None = None, spread: int = 1,
        devices: Mapping[str, int] = MappingProxyType({}), tables: FlowMaps | None = None,
        twin: Ruleset | None = None, completes: bool = False,
    ):  # fmt: skip
        """``before``: the ruleset that this one will follow, of the same hook.  ``device``, ``spread``, ``devices``,
        ``completes``: as for Program.  ``tables``: those of another ruleset, which closes them, to share its
        connections.  ``twin``: the ruleset of the same pipeline on the other device of a bridge, with which this one
        shares all that rules remember; close this one first.  Raises what Program raises, PipelineError for members and
        sets that do not fit, OSError for a device to forward to that is not there, NotSupported for one without
        Ethernet."""
        compiled = built.compiled(hook)
        built = replace(built, programs={**built.programs, hook: compiled})  # to put it in place again
        self._prepare(built, explain)
        try:
            specs = (
                replace(s, pinned=s.pinned and not explain) for s in self.pipeline.sets
            )  # to try is to touch nothing
            if twin is not None:
                self.is_twin = True
                self.sets.update(twin.sets)
                self._declared.update(twin._declared)
                reuse = {name: fd for name, fd in twin.program.maps().items() if name not in OWN_MAPS}
                reuse |= self._flows(None, twin.tables)
            else:
                reuse = {set_symbol(s.name): self._set(s, before) for s in specs}
                if before is not None:
                    reuse |= self._buckets(before) | before.rings()
                reuse |= self._flows(before, tables)
            if before is not None and before.program.has_map("inspecting"):
                reuse["inspecting"] = before.program.map_fd("inspecting")
            targets = [devices[OTHER] if name == OTHER else _device(name) for name in self.pipeline.targets(Forward)]
            self.program = Program(
                compiled,
                queues=queues,
                metadata=metadata,
                explain=explain,
                maps=reuse,
                device=device,
                spread=spread,
                devices=devices,
                completes=completes,
            )
            self._closing.callback(self.program.close)
            for number, ifindex in enumerate(targets if hook != "socket" else ()):  # a filter forwards nothing
                key, value = ffi.new("uint32_t *", number), ffi.new("uint32_t *", ifindex)
                name = self.pipeline.targets(Forward)[number]
                check(lib.xk_map_update(self.program.map_fd("devices"), key, value, 0), f"FORWARD to {name}")
        except BaseException:
            self.abandon(before)
            raise

    def _prepare(self, built: Built, explain: bool) -> None:
        self.built: Built = built
        self.pipeline: Pipeline = built.pipeline
        self.folder: Path = folder_of(built)
        self._explain = explain
        self.sets: dict[str, LiveSet] = {}
        self._declared: dict[str, Columns] = {}
        self._forks: list[Fork] = []
        #: The tables of connections; None where the pipeline does not track.
        self.tables: FlowMaps | None = None
        self._owns_tables = False
        self.is_twin = False
        self._closing = ExitStack()

    @classmethod
    def opened(
        cls, built: Built, program: PinnedProgram, sets: Mapping[str, int], sources: Mapping[str, Columns],
        turns: Shared,
    ) -> Ruleset:  # fmt: skip
        """The ruleset of a pinned link, which another process has loaded: ``program`` becomes this object's, ``sets``
        are the ids of the sets' maps by their names, ``sources`` what the files of members held at that time.  The
        members stay as they are; a set that no rule looks up is made anew.  OSError where a set is gone."""
        ruleset = cls.__new__(cls)
        ruleset._prepare(built, False)
        ruleset.program = program
        ruleset._closing.callback(program.close)
        try:
            if built.pipeline.tracking is not None:
                ruleset.tables = FlowMaps.opened(built.pipeline.tracking, program.maps())
                ruleset._owns_tables = True
            for spec in built.pipeline.sets:
                there = sets.get(spec.name)
                ruleset.sets[spec.name] = (
                    LiveSet._opened(spec, there, turns) if there is not None else LiveSet(spec, folder=ruleset.folder)
                )
                found = sources.get(spec.name)
                ruleset._declared[spec.name] = declared(spec, ruleset.folder) if found is None else found
        except BaseException:
            ruleset.close()
            raise
        return ruleset

    def _set(self, spec: SetSpec, before: Ruleset | None) -> int:
        """The map of a set: a new one, or the map of the ruleset before, which is forked if the declarations differ."""
        wanted = self._declared[spec.name] = declared(spec, self.folder)
        live = before.sets.get(spec.name) if before is not None else None
        if live is None or before is None:
            if self._explain:
                self.sets[spec.name] = live = LiveSet(replace(spec, members=(), source=None))
                live.replace(lasting(wanted))
            else:
                self.sets[spec.name] = live = LiveSet(spec, folder=self.folder)
            return live.fd
        if live.spec.kind != spec.kind:
            raise PipelineError(
                f"set {spec.name!r} is {live.spec.kind} on the device, and {spec.kind} here: give it another name",
                spec.where,
            )
        self.sets[spec.name] = live
        had = before._declared[spec.name]
        if (_alike(had, wanted) and live.capacity >= spec.capacity) or spec.pinned:
            return live.fd
        fork = live._fork(spec, had, wanted)
        self._forks.append(fork)
        return fork.fd

    def _flows(self, before: Ruleset | None, tables: FlowMaps | None) -> dict[str, int]:
        """The tables of connections: those that were handed in, or of the ruleset before, or new ones."""
        spec = self.pipeline.tracking
        if spec is None:
            return {}
        had = before.tables if before is not None else None
        self.tables = tables or had
        if self.tables is None:
            self.tables, self._owns_tables = FlowMaps(spec), True
        elif self.tables.spec.count != spec.count:
            raise PipelineError(
                "track: count cannot change while connections are tracked, because it is part of each of them: attach "
                "the pipeline again",
                spec.where,
            )
        return self.tables.fds

    def _buckets(self, before: Ruleset) -> dict[str, int]:
        """The maps of limits that both rulesets have: the same limit at the same place of the rule of the same name."""
        old = {(limit.bucket, str(limit), limit.capacity): n for n, limit in enumerate(before.pipeline.limits)}
        found = {}
        for number, limit in enumerate(self.pipeline.limits):
            had = old.get((limit.bucket, str(limit), limit.capacity))
            if had is not None:
                found[limit_symbol(number)] = before.program.map_fd(limit_symbol(had))
        return found

    def share(self, turns: Shared) -> None:
        """Take turns with other processes when members of sets change."""
        for live in self.sets.values():
            live._share(turns)

    @property
    def set_ids(self) -> dict[str, int]:
        """The ids of the sets' outer maps by the sets' names, as far as rules look them up."""
        looked_up = self.program.maps()
        return {
            s.name: map_id(looked_up[set_symbol(s.name)]) for s in self.pipeline.sets if set_symbol(s.name) in looked_up
        }

    @property
    def sources(self) -> dict[str, Columns]:
        """What the declarations and files of members held when they were read, by the names of sets with a file."""
        return {s.name: self._declared[s.name] for s in self.pipeline.sets if s.source is not None}

    def rings(self) -> dict[str, int]:
        """The ring buffers through which copies of packets go to user space, and which a reader has open."""
        return self.program.rings()

    def commit(self, before: Ruleset) -> None:
        """Call it when ``before`` runs no more: take over what its packets have added meanwhile, and close it."""
        for fork in self._forks:
            fork.commit()
        self._forks = []
        gone = {name: live for name, live in before.sets.items() if name not in self.sets}
        before.sets = gone
        if before.tables is self.tables and before._owns_tables:
            self._owns_tables, before._owns_tables = True, False
        before.close()

    def abandon(self, before: Ruleset | None) -> None:
        """Close what was made for this ruleset, which will not follow ``before`` after all."""
        for fork in self._forks:
            fork.close()
        shared = set(before.sets.values()) if before is not None else set()
        self.sets = {name: live for name, live in self.sets.items() if live not in shared}
        self.close()

    def __enter__(self) -> Ruleset:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the program and the sets; idempotent."""
        self._closing.close()
        for live in self.sets.values() if not self.is_twin else ():
            live.close()
        if self.tables is not None and self._owns_tables:
            self.tables.close()


def _alike(a: Columns, b: Columns) -> bool:
    """Whether ``a`` and ``b`` hold the same members, with the same actions and time-outs."""
    if len(a) != len(b):
        return False
    where = b.among(a)
    return bool((where >= 0).all() and (a.action[where] == b.action).all() and (a.timeout[where] == b.timeout).all())


def lasting(members: Columns) -> Columns:
    """``members`` without time-outs.  A replay judges packets of another time, so members must not time out."""
    return replace(members, timeout=np.zeros(len(members)))


def refuse_sides(pipe: Pipeline) -> None:
    """PipelineError where rules ask for a side (``dev.inside``) or inspect: a single device has no other side."""
    for rule in pipe.every_rule:
        for node in rule.nodes():
            if isinstance(node, OnDevice) and node.names[0] in SIDES:
                said = f"{node} has a meaning on a bridge only: name the device, as in dev.name == 'eth1'"
                raise PipelineError(said, node.where)
        if isinstance(rule.action, Inspect):
            said = "Inspect has a meaning on a bridge only: REDIRECT brings packets to sockets of your own"
            raise PipelineError(said, rule.where)


def folder_of(built: Built) -> Path:
    """The folder that the names of a pipeline's set files are relative to."""
    return built.folder or Path(built.pipeline.where.file).parent


def require_ethernet(device: Device, what: str) -> None:
    """NotSupported about ``what`` unless the device's packets start with an Ethernet header, which every rule reads
    first: on another device no rule on an address or a port would ever match."""
    if not device.is_ethernet:
        raise NotSupported(
            what,
            f"packets there start without an Ethernet header ({device.link_type_name}), which every rule reads first: "
            "use the Ethernet device that these packets arrive on or leave by, or a tap in place of a tun",
        )


def _device(name: str) -> int:
    """Index of a device to forward to."""
    try:
        device = netdev.device(name)
    except OSError as error:
        raise OSError(error.errno, f"FORWARD {name}: {error.strerror}") from None
    require_ethernet(device, f"FORWARD {name}")
    return device.index

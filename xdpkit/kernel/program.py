"""A compiled pipeline in the kernel: load it, read its counters and its line info, run it on a packet.

Loading needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN (CAP_SYS_ADMIN stands for the first two); nothing is attached here.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Mapping
from types import MappingProxyType, TracebackType
from typing import Any

from ..compiler import Compiled
from ..compiler.names import limit_symbol, set_symbol
from ..device.netdev import Device
from ..language.actions import Forward, Redirect
from ..language.devices import MAX_DEVICES
from ..language.errors import NotSupported, VerifierError, Where
from ..language.metadata import kernel_needs
from ..language.pipeline import CLOCK, MATRIX, Pipeline
from ..language.rule import Rule
from .core import check, ffi, lib, text
from .flowmaps import settings
from .loaded import RINGS, LoadedProgram

__all__ = ["Program", "may_load", "program_name"]

_LOG_BYTES = 1 << 20
_MAP_ARRAY, _MAP_LRU_HASH = 2, 9


class Program(LoadedProgram):
    """A loaded program.  Close it, or use it as a context manager; an attached link keeps it alive in the kernel."""

    def __init__(
        self, compiled: Compiled, *, queues: int = 1, metadata: bool = False, explain: bool = False,
        maps: Mapping[str, int] = MappingProxyType({}), device: Device | None = None, spread: int = 1,
        devices: Mapping[str, int] = MappingProxyType({}), completes: bool = False,
    ):  # fmt: skip
        """``queues``: entries of the XSKMAP.  ``metadata``: write time and rule in front of redirected packets.
        ``maps``: file descriptors of maps to use for those of these names, instead of new ones; a program with sets
        needs theirs.
        ``device``: where an XDP program will be attached in native mode.  A program whose rules test ``meta.*``, or
        which writes metadata for readers, is bound to that device for good; without a device all metadata is absent.
        So is one that FORWARDs or transmits, where the driver takes VLAN tags out of packets: it puts them back.
        ``spread``: sockets of each queue.  ``devices``: the indexes of the devices where it will run, by the names that
        conditions know them by (:mod:`xdpkit.language.devices`).  ``completes``: packets come with checksums that their
        sender left to its device, and those that leave by one get them (XDP in native mode).
        ``explain``: the program only says which rule it found, for :meth:`judge`; it is not for attaching.
        Raises VerifierError if the kernel refuses the program, NotSupported if it refuses to bind it to the device, and
        OSError if it may not be loaded."""
        super().__init__(compiled.pipeline, compiled.hook, queues=queues, spread=spread)
        self._reader_metadata = compiled.reader_metadata if self.is_xdp else ()
        self._restores_tags = self.is_xdp and device is not None and restores_tags(self.pipeline, device)
        asks = bool(self._reader_metadata) or (self.is_xdp and bool(self.pipeline.metadata)) or self._restores_tags
        self._bound_to = device if asks else None
        code = unbound(compiled.object) if self.is_xdp and self._bound_to is None else compiled.object
        self.explains = explain
        out = ffi.new("struct xk_program **")
        check(lib.xk_program_open(code, len(code), b"xdpkit", out), "eBPF object")
        self._program = out[0]
        try:
            self._configure_maps(maps)
            check(lib.xk_program_set_u32(self._program, b"explain", int(explain)))
            if not self.pipeline.headerless_fields.isdisjoint(CLOCK):
                check(lib.xk_program_set_u32(self._program, b"tai_seconds", tai_seconds()))
            if self.pipeline.devices:
                indexes = [devices.get(name, 0) for name in self.pipeline.devices]
                values = ffi.new(f"uint32_t[{MAX_DEVICES}]", indexes)
                check(lib.xk_program_set_u32s(self._program, b"device_indexes", values, MAX_DEVICES), "device_indexes")
            if self.pipeline.tracking is not None:
                for name, value in settings(self.pipeline.tracking).items():
                    check(lib.xk_program_set_u32(self._program, name.encode(), value), name)
            if self.is_xdp:
                self._configure_xdp(metadata, completes, maps)
            self._load()
        except BaseException:
            self.close()
            raise

    def _configure_maps(self, maps: Mapping[str, int]) -> None:
        """Use the maps that were handed in, and set the sizes of the others."""
        missing = [s.name for s in self.pipeline.sets if self._lacks(set_symbol(s.name), maps)]
        if missing:
            raise ValueError(f"program with sets ({', '.join(missing)}): load it as a Ruleset, which makes them")
        if self.pipeline.tracking is not None and self._lacks("flows", maps):
            raise ValueError("program that tracks connections: load it as a Ruleset, which makes the tables")
        for name, fd in maps.items():
            if self.has_map(name):  # the program has no map for a set that no rule looks up
                check(lib.xk_program_reuse_map(self._program, name.encode(), fd), name)
        check(lib.xk_program_set_entries(self._program, b"counters", len(self._rules) + MATRIX))
        for number, limit in enumerate(self.pipeline.limits):
            kind, symbol = _MAP_LRU_HASH if limit.per else _MAP_ARRAY, limit_symbol(number)
            if self._lacks(symbol, maps):
                size, room = limit.key_bytes, limit.capacity
                check(lib.xk_program_set_map(self._program, symbol.encode(), kind, size, room), symbol)
        if self.is_xdp or self.hook == "tc":
            devices = len(self.pipeline.targets(Forward))
            check(lib.xk_program_set_entries(self._program, b"devices", max(1, devices)))
        for ring in RINGS:
            if self._lacks(ring, maps):
                check(lib.xk_copies_prepare(self._program, ring.encode()), ring)

    def _configure_xdp(self, metadata: bool, completes: bool, maps: Mapping[str, int]) -> None:
        """Set what only an XDP program has: sockets, metadata for readers, the device that it is bound to."""
        groups = len(self.pipeline.targets(Redirect))
        check(lib.xk_program_set_entries(self._program, b"xsks", self.queues * groups * self.spread))
        check(lib.xk_program_set_u32(self._program, b"queues", self.queues))
        if self._lacks("inspecting", maps):
            check(lib.xk_program_set_entries(self._program, b"inspecting", self.queues))
        check(lib.xk_program_set_u32(self._program, b"spread", self.spread))
        check(lib.xk_program_set_u32(self._program, b"want_meta", int(metadata)))
        if self.has_map("completed"):  # a rule may FORWARD or TX
            check(lib.xk_program_set_u32(self._program, b"completes", int(completes)))
            check(lib.xk_program_set_u32(self._program, b"restores_tags", int(self._restores_tags)))
        if self._bound_to is not None:
            check(lib.xk_program_bind(self._program, self._bound_to.index))
            check(lib.xk_program_set_u32(self._program, b"bound", 1))

    def _load(self) -> None:
        log = ffi.new("char[]", _LOG_BYTES)
        result = lib.xk_program_load(self._program, log, _LOG_BYTES)
        if result >= 0:
            return
        said = text(log)
        if result == -errno.EPERM or "prohibited for !root" in said:
            check(-errno.EPERM, "load", "loading eBPF needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN: run as root")
        if self._bound_to is not None and (reason := self._refused_to_bind(-result, said)):
            fields, driver = self.pipeline.metadata, self._bound_to.driver or "none"
            names = [*fields, *(f"meta.{name}" for name in self._reader_metadata if f"meta.{name}" not in fields)]
            where = f"{next(iter(fields.values()))}: " if fields else ""
            feature = f"{where}{', '.join(names)} on {self._bound_to.name} (driver {driver})"
            raise NotSupported(feature, f"{reason}; needs {kernel_needs(names)}")
        raise verifier_error(self.pipeline, said)

    def _refused_to_bind(self, error: int, log: str) -> str:
        """Why a program that asks for metadata could not be bound to its device; empty where the verifier found
        something else in it."""
        if error == errno.EOPNOTSUPP:
            return "the driver takes no program that is bound to its device"
        release, missing = os.uname().release, ffi.new("char[64]")
        if lib.xk_program_missing(self._program, missing, 64) == 1:
            return f"Linux {release} has no {text(missing)}()"
        return "" if "processed " in log else f"Linux {release} binds no program to this device"

    def __repr__(self) -> str:
        state = "closed" if self._program is None else "loaded"
        return f"<Program {self.pipeline.name}: {self.hook}, {len(self._rules)} rules, {state}>"

    @property
    def fd(self) -> int:
        """File descriptor of the program, owned by this object."""
        return check(lib.xk_program_fd(self._program))

    @property
    def handle(self) -> Any:
        """The loaded object (struct xk_program), owned by this one."""
        return self._program

    def map_fd(self, name: str) -> int:
        """File descriptor of a map, owned by this object."""
        return check(lib.xk_program_map(self._program, name.encode()), name)

    def maps(self) -> dict[str, int]:
        """File descriptors, owned by this object, of all maps of the program by their names; without those that hold
        its variables and constants."""
        found, name, number = {}, ffi.new("char[128]"), 0
        while (fd := lib.xk_program_map_at(self._program, number, name, 128)) >= 0:
            number += 1
            if "." not in text(name):
                found[text(name)] = int(fd)
        return found

    def _lacks(self, name: str, maps: Mapping[str, int]) -> bool:
        return name not in maps and self.has_map(name)

    def has_map(self, name: str) -> bool:
        """Whether the program has a map of that name."""
        return bool(lib.xk_program_has_map(self._program, name.encode()))

    def close(self) -> None:
        """Let go of the program and its maps; idempotent."""
        if self._program is not None:
            lib.xk_program_close(self._program)
            self._program = None

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def tai_seconds() -> int:
    """Seconds by which the kernel's TAI clock is ahead of UTC now: 0 where nobody told the kernel of leap seconds."""
    return round(time.clock_gettime(time.CLOCK_TAI) - time.clock_gettime(time.CLOCK_REALTIME))


def restores_tags(pipe: Pipeline, device: Device) -> bool:
    """Whether a program of ``pipe`` in native mode puts VLAN tags back that the driver of ``device`` takes out."""
    return not pipe.verdicts.isdisjoint({"FORWARD", "TX"}) and "vlan-tag" in device.rx_metadata


def may_load() -> bool:
    """Whether this process has the capabilities that loading a program needs (capabilities(7))."""
    net_admin, sys_admin, perfmon, bpf = (1 << n for n in (12, 21, 38, 39))
    with open("/proc/self/status") as status:
        held = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))
    return bool(held & net_admin and (held & sys_admin or (held & perfmon and held & bpf)))


def program_name(prog_id: int) -> str | None:
    """Name of a program that is loaded somewhere, None if it is gone or may not be read."""
    name = ffi.new("char[16]")
    return text(name) if lib.xk_program_name(prog_id, name) == 0 else None


def verifier_error(pipeline: Pipeline, log: str) -> VerifierError:
    """Turn the verifier's log into an error that starts with the pipeline's line.

    The log names the source line before each run of instructions as ``; text @ file:line``; the last such line before
    the verdict is where it stopped.  A file is named by its last component there.
    """
    places = re.findall(r"^; (.*) @ (\S+):(\d+)$", log, flags=re.MULTILINE)
    reason = _reason(log)
    files = {rule.where.file.rpartition("/")[2]: rule.where.file for rule in pipeline.every_rule}
    for _, name, line in reversed(places):
        if name.rpartition("/")[2] in files:
            where = Where(files[name.rpartition("/")[2]], int(line))
            rule = rule_at(pipeline, where)
            said = f"the kernel refused rule {rule.name!r} ({rule})" if rule else "the kernel refused the pipeline"
            return VerifierError(f"{said}: {reason}", where=where, rule=rule.name if rule else None, log=log)
    return VerifierError(f"the kernel refused pipeline {pipeline.name!r}: {reason}", log=log)


def unbound(code: bytes) -> bytes:
    """The object for a load without a device, which the kernel refuses to a program that names the metadata functions,
    called or not.  They are weak symbols: under a name that no kernel has, libbpf leaves them out, and the verifier
    never comes to the calls (``bound`` in bpf/xdp_metadata.h is 0)."""
    return code.replace(b"bpf_xdp_metadata_rx_", b"unbound_metadata_rx_")


def rule_at(pipeline: Pipeline, where: Where) -> Rule | None:
    """The rule that a line belongs to: one that was declared or has a condition there, else the last one before it."""
    for rule in pipeline.every_rule:
        if where == rule.where or any(where == node.where for node in rule.expr.nodes()):
            return rule
    before = [r for r in pipeline.every_rule if r.where.file == where.file and r.where.line <= where.line]
    return max(before, key=lambda r: r.where.line, default=None)


def _reason(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    ends = ("processed ", "verification time", "stack depth", "-- END", "libbpf:", "max_states")
    for line in reversed(lines):
        if not line.startswith(ends) and not line.startswith("mark_precise"):
            return line
    return "it gave no reason"

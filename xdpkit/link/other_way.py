"""Packets that go the other way than those that a link judges, for pipelines that track connections.

A link at ingress does not see what the host sends, and half of each connection with it.  So where its pipeline tracks,
a second program is on the device, at TC, the other way: it has no rules, lets every packet go, and notes it in the same
tables.  What it sees has passed the host already, so a packet in the middle of an unknown connection opens a flow
there.
"""

from __future__ import annotations

import os
from dataclasses import replace

from ..compiler.compile import compile_pipeline
from ..device.netdev import Device
from ..kernel.core import check, lib
from ..kernel.features import require
from ..kernel.flowmaps import FlowMaps
from ..kernel.program import Program
from ..language.actions import PASS
from ..language.pipeline import Pipeline

__all__ = ["OtherWay"]


class OtherWay:
    """The second program of a link.  Close it: it is detached, unless its bpf_link is pinned."""

    def __init__(self, fd: int, program: Program | None):
        self.fd: int = fd
        self._program = program

    @classmethod
    def attach(cls, maps: FlowMaps, device: Device, *, egress: bool) -> OtherWay:
        """OSError names the device; NotSupported where the kernel has no tcx."""
        require("tcx", f"tracking connections on {device.name}")
        program = _load(maps)
        fd = lib.xk_link_tcx(program.fd, device.index, egress)
        if fd < 0:
            program.close()
        check(fd, f"attach to {device.name} at {'tc_egress' if egress else 'tc_ingress'}, to track connections")
        return cls(fd, program)

    def update(self, maps: FlowMaps) -> None:
        """The same with other tables or time-outs."""
        program = _load(maps)
        try:
            check(lib.xk_link_update(self.fd, program.fd), "update of the program that tracks connections")
        except BaseException:
            program.close()
            raise
        if self._program is not None:
            self._program.close()
        self._program = program

    def close(self) -> None:
        """Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self._program is not None:
            self._program.close()
            self._program = None


def _load(maps: FlowMaps) -> Program:
    pipe = Pipeline("other-way", default=PASS)
    pipe.restore((), tracked=replace(maps.spec, loose=True, full=PASS))
    return Program(compile_pipeline(pipe, "tc"), maps=maps.fds)

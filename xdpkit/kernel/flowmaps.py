"""The tables of connections in the kernel: made by user space, so that several programs can share them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from ..language.tracking import Timeouts, Tracking
from .bpfmap import ARRAY, HASH, Map

__all__ = [
    "COUNTED_BYTES", "FLOW", "FLOW_BYTES", "FLOW_COUNTED", "FLOW_KEY", "FULL", "KEY_BYTES", "LEARNED", "LEARN_UNTIL",
    "FlowMaps", "settings",
]  # fmt: skip

LRU_HASH = 9
#: ``struct flow_key`` and ``struct flow`` of bpf/track.bpf.c and bpf/flow.h, as numpy has them: a dtype of names, types
#: and shapes.
FLOW_KEY: list[Any] = [
    ("low", "u1", 16), ("high", "u1", 16), ("low_port", ">u2"), ("high_port", ">u2"), ("tags", "=u4"),
]  # fmt: skip
_SIDE: list[Any] = [("end", "=u4"), ("max_end", "=u4"), ("max_window", "=u4")]
FLOW: list[Any] = [
    ("expires_ns", "=u8"), ("created", "=u4"), ("stage", "u1"), ("flags", "u1"), ("scale", "u1", 2), ("side", _SIDE, 2),
]  # fmt: skip
FLOW_COUNTED: list[Any] = [*FLOW, ("packets", "=u8", 2), ("bytes", "=u8", 2)]
KEY_BYTES, FLOW_BYTES, COUNTED_BYTES = 40, 40, 72
#: The maps, as programs name them.
NAMES = ("flows", "half_open", "fragments", "flow_notes")
#: Entries of ``flow_notes``.
LEARN_UNTIL, FULL, LEARNED, NOTES = range(4)
#: First fragments that are remembered.
FRAGMENTS = 4096
#: The constants of the program that hold time-outs, in milliseconds.
_SYMBOLS = tuple(Timeouts.__dataclass_fields__)


class FlowMaps:
    """The maps of one set of tables.  Close it: programs that use them keep them in the kernel."""

    def __init__(self, spec: Tracking):
        """Make them.  OSError: EPERM without CAP_BPF, ENOMEM where they are too large for this machine."""
        self.spec = spec
        self._closing = ExitStack()
        value = COUNTED_BYTES if spec.count else FLOW_BYTES
        try:
            self.flows: Map = self._make(HASH, "flows", KEY_BYTES, value, spec.capacity)
            self.half_open: Map = self._make(LRU_HASH, "half_open", KEY_BYTES, value, spec.half_open)
            self.fragments: Map = self._make(LRU_HASH, "fragments", KEY_BYTES, 8, FRAGMENTS)
            self.notes: Map = self._make(ARRAY, "flow_notes", 4, 8, NOTES)
        except BaseException:
            self.close()
            raise

    @classmethod
    def opened(cls, spec: Tracking, fds: Mapping[str, int]) -> FlowMaps:
        """Those of a program that another process has loaded; ``fds``: its maps by name, which stay the caller's."""
        maps = cls.__new__(cls)
        maps.spec, maps._closing = spec, ExitStack()
        maps.flows, maps.half_open, maps.fragments, maps.notes = (
            maps._closing.enter_context(Map(os.dup(fds[name]))) for name in NAMES
        )
        return maps

    def _make(self, kind: int, name: str, key_bytes: int, value_bytes: int, capacity: int) -> Map:
        return self._closing.enter_context(Map.create(kind, name, key_bytes, value_bytes, capacity))

    @property
    def fds(self) -> dict[str, int]:
        """File descriptors by the names that programs have for them."""
        maps = (self.flows, self.half_open, self.fragments, self.notes)
        return {name: each.fd for name, each in zip(NAMES, maps, strict=True)}

    def note(self, which: int) -> int:
        """One of the numbers that programs keep: LEARN_UNTIL, FULL or LEARNED."""
        return int.from_bytes(self.notes.get(which.to_bytes(4, "little")) or b"", "little")

    def write_note(self, which: int, value: int) -> None:
        """Write one."""
        self.notes.put(which.to_bytes(4, "little"), value.to_bytes(8, "little"))

    def close(self) -> None:
        """Close the descriptors; idempotent."""
        self._closing.close()


def settings(spec: Tracking) -> Mapping[str, int]:
    """The constants that a program gets before it is loaded, by name."""
    times = {f"{name}_ms": round(getattr(spec.timeouts, name) * 1000) for name in _SYMBOLS}
    return {"flow_loose": int(spec.loose), "flow_counted": int(spec.count), **times}

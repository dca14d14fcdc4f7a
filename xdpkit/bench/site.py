"""Where a path is measured, and what a path is."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..compiler import compile_pipeline
from ..compiler.built import Built
from ..lab.port import Port
from ..language.actions import DROP, REDIRECT
from ..language.headers import eth
from ..language.pipeline import Pipeline
from ..sockets.options import Wait
from .native import DELAYS, ffi

__all__ = ["Path", "Running", "Site", "dropping", "everything", "loop"]


@dataclass(slots=True)
class Site:
    """The port that receives (sends, for what sends), the size of its frames, the CPU for what is measured, how a
    worker waits, and room for delays (none: they are not asked for)."""

    port: Port
    size: int
    cpu: int
    wait: Wait = "adaptive"
    delays_ns: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))

    @property
    def stamped(self) -> bool:
        """Whether delays are asked for."""
        return len(self.delays_ns) > 0

    def ask_delays(self) -> None:
        """Make room for delays."""
        self.delays_ns = np.zeros(DELAYS, np.uint64)


class Running:
    """A path at work.  ``received``, ``lost`` and ``delays`` (how many) are final once its block has ended.
    ``pids``: processes of it, besides this one."""

    def __init__(self, attachment: str = "", pids: tuple[int, ...] = ()):
        self.attachment, self.pids = attachment, pids
        self.received, self.lost, self.delays = 0, 0, 0

    def poll(self) -> None:
        """Let it work for a moment, if it works in this thread."""
        time.sleep(0.01)


@dataclass(frozen=True, slots=True)
class Path:
    """A way for packets: its name, how to open it, what it is set to, and whether it can tell delays."""

    name: str
    open: Callable[[Site], AbstractContextManager[Running]]
    knobs: str
    delays: bool = True
    tool: bool = False  # a process that starts slowly: measured less often


@functools.cache
def everything() -> Built:
    """Redirect every packet."""
    pipe = Pipeline("everything")
    pipe.rule(eth.present, REDIRECT, name="all")
    return _built(pipe)


@functools.cache
def dropping() -> Built:
    """Drop every packet."""
    return _built(Pipeline("nothing", default=DROP))


def _built(pipe: Pipeline) -> Built:
    """Compiled once, not for every run."""
    return Built(pipe, {hook: compile_pipeline(pipe, hook) for hook in ("xdp", "xdp_frags")})


@contextmanager
def loop(site: Site, me: Running, offset: int, run: Callable[[Any, Any], int]) -> Iterator[Running]:
    """A C loop, ``run(stop, delays)``, in a thread until the block ends; it then drains and is counted."""
    stop = ffi.new("int *")
    room = ffi.from_buffer("uint64_t[]", site.delays_ns, require_writable=True) if site.stamped else ffi.NULL
    delays = ffi.new("struct delays *", {"ns": room, "room": len(site.delays_ns), "offset": offset})
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(run, stop, delays)
        try:
            yield me
        finally:
            stop[0] = 1
            me.received, me.delays = future.result(), delays.count

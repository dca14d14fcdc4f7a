"""Whether a pipeline is still on its device, and what of the device has changed since it was attached.

A link can be detached by force (``bpftool link detach``), its program replaced by another process, and its device
deleted or moved to another network namespace.  The bpf_link says so (BPF_OBJ_GET_INFO_BY_FD: no device; another
program); a device that moved is missing from the namespace while the link still has it.

A device can also change so that packets pass the pipeline by.  veth gives a program to the queues that it has when the
program is set (veth_enable_xdp() in drivers/net/veth.c): those that ``ethtool -L`` adds later have none, until another
program is set.  Whatever the reason, then packets arrive that the program does not see.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress

from ..device import ethtool, netdev
from ..device.netdev import Device, State
from ..kernel.core import check, ffi, lib
from ..kernel.loaded import LoadedProgram
from ..kernel.program import program_name

__all__ = ["Presence", "Unseen", "namespace_id"]

_XDP_MODES = ("native", "generic")
#: Seconds by which the counters of network cards may lag behind, because drivers read them now and then.
SETTLE_SECONDS = 4.0
#: So many packets must arrive unseen before it is reported.
UNSEEN_PACKETS = 100


class Presence:
    """Checks whether the pipeline of a link is still on its device."""

    def __init__(self, device: Device, mode: str, fd: int):
        """``fd``: the bpf_link's, -1 for a packet socket.  The namespace is that of the calling thread."""
        self.device, self.mode, self._fd = device, mode, fd
        self.namespace = namespace_id()

    def lost(self, program: LoadedProgram) -> OSError | None:
        """Why ``program`` is no longer on the device, None while it is.  Little work: one or two system calls."""
        here = namespace_id() == self.namespace
        there = here and self._is_here()
        if self._fd < 0:
            gone = "the device was deleted, or moved to another network namespace"
            return self._error(errno.ENODEV, gone) if here and not there else None
        index, prog_id = ffi.new("uint32_t *"), ffi.new("uint32_t *")
        check(lib.xk_link_info(self._fd, index, prog_id), self.device.name)
        if not index[0]:
            if there:
                return self._error(errno.ENOLINK, "the pipeline was detached by force, as by 'bpftool link detach'")
            return self._error(errno.ENODEV, "the device was deleted" if here else "the device is gone")
        if prog_id[0] != program.info()["id"]:
            name = program_name(prog_id[0]) or "of another process"
            what = f"another program, {name} (id {prog_id[0]}), was put in the place of the pipeline"
            return self._error(errno.ENOLINK, what)
        return self._moved() if here and not there else None

    def state(self, program: LoadedProgram) -> State | OSError | None:
        """The device as it is now, or why ``program`` is not on it; None from another namespace, where it cannot be
        seen."""
        if namespace_id() != self.namespace:
            return None
        try:
            state = netdev.state(self.device.index)
        except OSError:
            return self.lost(program)
        programs = {holder.prog_id for holder in state.holders}
        if self.mode in _XDP_MODES and program.info()["id"] not in programs:
            return self.lost(program) or self._moved()  # and another device has its index
        return state

    def queues(self, state: State) -> int:
        """The number of receive queues in use; the last known number where the driver does not report it."""
        with suppress(OSError):
            return ethtool.channels(state.name)[0]
        return self.device.rx_queues

    def _is_here(self) -> bool:
        try:
            return bool(socket.if_indextoname(self.device.index))
        except OSError:
            return False

    def _moved(self) -> OSError:
        return self._error(errno.ENODEV, "the device was moved to another network namespace")

    def _error(self, number: int, what: str) -> OSError:
        return OSError(number, f"{self.device.name}: {what}")


class Unseen:
    """Counts packets that a device received and a program did not see, while the program saw no packet at all."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock, self._seen, self._since = clock, -1, 0.0
        self._before: int | None = None  # rx_packets when counters had settled

    def look(self, seen: int, rx_packets: int) -> int:
        """How many arrived since the program saw its last packet, once that is certain and not a few; else 0."""
        now = self._clock()
        if seen != self._seen:
            self._seen, self._since, self._before = seen, now, None
        elif self._before is None and now - self._since >= SETTLE_SECONDS:
            self._before = rx_packets
        elif self._before is not None and rx_packets - self._before >= UNSEEN_PACKETS:
            return rx_packets - self._before
        return 0


def namespace_id() -> int:
    """Inode number of the calling thread's network namespace: a device index means nothing in another one."""
    return os.stat("/proc/thread-self/ns/net").st_ino

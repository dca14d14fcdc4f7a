"""A program on a device: what sockets are opened on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..device.netdev import Device
from ..kernel.attachment import Attachment
from ..kernel.loaded import LoadedProgram
from .options import SocketOptions

__all__ = ["Attached"]


@dataclass(slots=True)
class Attached:
    """``program``, which an update exchanges, on ``device``.  ``attachment``: what the kernel gave; opening sockets
    adds to it.  ``binds``: the bind modes to try, best first.  ``options``: those of the sockets.  ``check`` is called
    often, and raises OSError once the program is no longer on the device."""

    device: Device
    program: LoadedProgram
    attachment: Attachment
    binds: tuple[str, ...]
    options: SocketOptions
    check: Callable[[], None] = lambda: None

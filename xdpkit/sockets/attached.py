"""A program on a device: what sockets are opened on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..device.netdev import Device
from ..kernel.got import Got
from ..kernel.program import Program
from .options import SocketOptions

__all__ = ["Attached"]


@dataclass(slots=True)
class Attached:
    """``program``, which an update exchanges, on ``device``; what the kernel ``got`` us, which sockets add to; the
    ``binds`` to try, best first, and the ``options`` of the sockets.  ``check`` is called often, and raises OSError
    once the program is no longer on the device."""

    device: Device
    program: Program
    got: Got
    binds: tuple[str, ...]
    options: SocketOptions
    check: Callable[[], None] = lambda: None

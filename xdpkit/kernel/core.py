"""Access to the C core: ``ffi``, ``lib`` and ``check``.  Modules that call the core import it from here."""

from __future__ import annotations

import errno
import os
from typing import Any

from .._core import ffi, lib

__all__ = ["check", "ffi", "lib", "text"]


#: What to do about limits that any call can meet.
_LIMITS = {
    errno.EMFILE: "raise 'ulimit -n'",
    errno.ENFILE: "raise /proc/sys/fs/file-max",
    errno.ENOMEM: "raise 'ulimit -v', or ask for less: smaller rings, fewer frames",
}


def check(result: int, what: str = "", hint: str = "") -> int:
    """Return ``result`` if it is not negative.  Otherwise raise OSError, which names the failing call, ``what`` it was
    for, and a ``hint``: for limits of the process there always is one."""
    if result >= 0:
        return result
    call = text(lib.xk_failed_call())
    parts = [f"{what}: {call}" if what else call, os.strerror(-result)]
    hint = hint or _LIMITS.get(-result, "")
    raise OSError(-result, ": ".join(parts) + (f": {hint}" if hint else ""))


def text(chars: Any) -> str:
    """A C string as str."""
    raw: bytes = ffi.string(chars)
    return raw.decode(errors="replace")

"""Access to the C core: ``ffi``, ``lib`` and ``check``.  Modules that call the core import it from here."""

from __future__ import annotations

import os
from typing import Any

from .._core import ffi, lib

__all__ = ["check", "ffi", "lib", "text"]


def check(result: int, what: str = "", hint: str = "") -> int:
    """Return ``result`` if it is not negative.  Otherwise raise OSError, which names the failing call, ``what`` it was
    for, and a ``hint``."""
    if result >= 0:
        return result
    call = text(lib.xk_failed_call())
    parts = [f"{what}: {call}" if what else call, os.strerror(-result)]
    raise OSError(-result, ": ".join(parts) + (f": {hint}" if hint else ""))


def text(chars: Any) -> str:
    """A C string as str."""
    raw: bytes = ffi.string(chars)
    return raw.decode(errors="replace")

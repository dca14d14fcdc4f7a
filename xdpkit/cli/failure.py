"""How a failed command ends: one line on standard error, exit status 1."""

from __future__ import annotations

import errno
import sys
from typing import NoReturn

from ..terminal import notice

__all__ = ["fail"]


def fail(error: Exception) -> NoReturn:
    """Print ``error`` on standard error and exit with 1."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, OSError) and error.errno == errno.EMFILE and "ulimit" not in text:
        text += ": raise 'ulimit -n'"
    notice(text)
    sys.exit(1)

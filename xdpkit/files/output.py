"""Output files that a user names.  A regular file is replaced whole or not at all; anything else is written into.

A device node, a FIFO or a symbolic link at the path stays what it is: only a regular file is ever renamed over,
truncated or removed.
"""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from contextlib import suppress
from typing import IO

__all__ = ["append_blocks", "empty_regular_file", "remove_if_empty", "write_whole"]


def write_whole(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Make ``data`` (text is written as UTF-8) the content of the file at ``path``.

    A regular file, also one behind symbolic links, is replaced whole or not at all.  It keeps its mode, and also its
    owner where this process may set it.  A device or a FIFO is opened and written into.  OSError names ``path``.
    """
    name, content = os.fspath(path), data.encode() if isinstance(data, str) else data
    try:
        there = os.stat(name)
    except FileNotFoundError:
        there = None
    target = os.path.realpath(name)
    try:
        if there is None or (stat.S_ISREG(there.st_mode) and os.path.exists(target)):
            _replace(target, content, there)
        else:
            with open(os.open(name, os.O_WRONLY | os.O_CLOEXEC), "wb") as file:
                file.write(content)
    except OSError as error:
        raise OSError(error.errno, error.strerror, name) from None


def _replace(target: str, content: bytes, there: os.stat_result | None) -> None:
    """Rename a new file with ``content`` over ``target``; ``there`` describes the file that is there now, if any."""
    number, partial = tempfile.mkstemp(prefix=f".{os.path.basename(target)[:200]}.", dir=os.path.dirname(target))
    try:
        with open(number, "wb") as file:
            file.write(content)
            if there is not None:
                with suppress(PermissionError):
                    os.fchown(number, there.st_uid, there.st_gid)
            os.fchmod(number, stat.S_IMODE(there.st_mode) if there is not None else 0o666 & ~_umask())
        os.replace(partial, target)
    except BaseException:
        os.unlink(partial)
        raise


def _umask() -> int:
    """The mask of this process, from the only place that shows it without changing it (proc_pid_status(5))."""
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o022


def empty_regular_file(file: IO[bytes]) -> None:
    """Truncate an open regular file at its position.  A file that the shell appends to (>>), a device and a FIFO stay
    as they are."""
    appends = fcntl.fcntl(file, fcntl.F_GETFL) & os.O_APPEND
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode) and not appends:
        file.truncate()


def remove_if_empty(path: str | os.PathLike[str], file: IO[bytes]) -> None:
    """Remove the regular file at ``path`` if it is empty and is the open ``file`` itself, not a link to it."""
    mine, there = os.fstat(file.fileno()), os.lstat(path)
    if stat.S_ISREG(there.st_mode) and os.path.samestat(mine, there) and mine.st_size == 0:
        os.unlink(path)


def append_blocks(file: IO[bytes], blocks: bytes) -> None:
    """Write all of ``blocks``.  If the disk is full, a regular file is cut back to its length before, so that it never
    ends within a block.  OSError names the file."""
    file.flush()
    written = 0
    try:
        while written < len(blocks):
            written += os.write(file.fileno(), blocks[written:])
    except OSError as error:
        status = os.fstat(file.fileno())
        if written and stat.S_ISREG(status.st_mode):
            os.ftruncate(file.fileno(), status.st_size - written)
        raise OSError(error.errno, error.strerror, str(file.name)) from None

"""Where the command starts: signals end it in one line from here on, also while the rest of it is imported.

Nothing but the standard library's smallest modules is imported before the handlers are installed.  While modules are
imported nothing is open yet, and an import could swallow an exception, so the process ends at once.  Afterwards the
handlers raise Interrupted, so that everything that was opened is closed.  ``run`` takes the signals itself as soon as
it has something to attach.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

__all__ = ["Interrupted", "main"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal asks the command to end.  ``number``: which one."""

    def __init__(self, number: int):
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.number = number


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, f"xdpkit: ended by {signal.Signals(number).name} before it started\n".encode())
    os._exit(128 + number)


def _interrupt(number: int, frame: FrameType | None) -> None:
    _install(signal.SIG_IGN)  # one exception is enough: a second one would break into the clean-up after the first
    raise Interrupted(number)


def _install(handler: object) -> None:
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup and shells leave them for what runs in the background
            signal.signal(number, handler)  # type: ignore[arg-type]


def _open_standard_streams() -> None:
    """Standard streams that the caller closed: no file that we open may get their numbers.  Using them is EBADF, for
    they are opened the other way round; only standard error goes nowhere."""
    for number, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDWR)):
        try:
            os.fstat(number)
        except OSError:
            os.open("/dev/null", flags)  # the lowest number that is free
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115


os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # no linear algebra here: no threads and no memory for it
_install(_leave)
for _number in (signal.SIGUSR1, signal.SIGUSR2):  # to read the rules again, to confirm them: nothing runs yet
    signal.signal(_number, signal.SIG_IGN)
_open_standard_streams()


def main() -> None:
    """The command ``xdpkit``.  Exit status 0, 1 for a failure, 2 for wrong usage, 128 + number after a signal."""
    try:
        from ..lazy import put_in_place

        put_in_place("numpy")  # a pipeline with C workers and without sets attaches without it
        from .main import main as command
    except (ImportError, OSError, MemoryError, SystemError, AttributeError) as error:
        # what a shared object or a module gives that cannot be mapped or read: no memory, no descriptors, not built
        said = f"xdpkit: cannot start: {type(error).__name__}: {error}"[:500].replace("\n", " ")
        os.write(2, f"{said}\n".encode(errors="backslashreplace"))
        sys.exit(1)
    try:
        _install(_interrupt)
        command()
    except Interrupted as error:
        os.write(2, f"xdpkit: {error}\n".encode())
        sys.exit(128 + error.number)
    finally:
        _install(signal.SIG_IGN)  # the command has ended: a second signal does not change how, while Python cleans up

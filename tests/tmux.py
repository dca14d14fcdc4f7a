"""A command in a terminal of its own, as a user sees it: a pane of tmux in the namespace of a port."""

from __future__ import annotations

import builtins
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

TIMEOUT_SECONDS = 60


class Pane:
    """Runs ``command`` with a shell in a terminal of ``columns`` by ``lines``; context manager.

    After the command the shell prints "exit status N" and waits, so that the last screen can be read.
    """

    def __init__(self, port, command: str, *, columns: int = 80, lines: int = 40):
        self._folder = Path(tempfile.mkdtemp(prefix="tmux-"))
        self._tmux = ["tmux", "-f", "/dev/null", "-S", str(self._folder / "socket")]
        shell = f"trap : INT; {command}; echo exit status $?; exec cat"
        port.namespace.run(
            [
                *self._tmux, "new-session", "-d", "-x", str(columns), "-y", str(lines), "env", "-u", "COLUMNS", "-u",
                "LINES", "sh", "-c", shell,
            ],
            check=True,
        )  # fmt: skip

    def screen(self, *, history: bool = False) -> str:
        """What is on the screen now, and with ``history`` what has left it at the top too."""
        more = ["-S", "-"] if history else []
        done = subprocess.run([*self._tmux, "capture-pane", "-p", *more], capture_output=True, text=True, check=True)
        return done.stdout

    def wait_for(self, pattern: str) -> str:
        """The screen with its history once ``pattern`` (a regular expression) is found there."""
        end = time.monotonic() + TIMEOUT_SECONDS
        while not re.search(pattern, shown := self.screen(history=True)):
            assert time.monotonic() < end, f"{pattern!r} is not on the screen:\n{shown}"
        return shown

    def type(self, *keys: str) -> None:
        """Press keys, by the names that tmux gives them."""
        subprocess.run([*self._tmux, "send-keys", *keys], check=True)

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.type("C-c")

    def __enter__(self) -> Pane:
        return self

    def __exit__(
        self, kind: builtins.type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        subprocess.run([*self._tmux, "kill-server"], check=False, stderr=subprocess.DEVNULL)
        shutil.rmtree(self._folder, ignore_errors=True)

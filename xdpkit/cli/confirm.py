"""Somebody's answer on the terminal, or by SIGUSR2."""

from __future__ import annotations

import os
import select
from contextlib import suppress

from .signals import Signals

__all__ = ["Confirmation"]


class Confirmation:
    """Whether somebody has pressed Enter on our terminal, or sent SIGUSR2."""

    def __init__(self, stop: Signals):
        self.stop = stop
        self.lines = 0  # lines that the terminal has shown of the answers

    def given(self) -> bool:
        """Looks now, and does not wait."""
        if self.stop.confirmed:
            return True
        with suppress(OSError):
            if os.tcgetpgrp(0) == os.getpgrp() and select.select([0], [], [], 0)[0]:  # else reading would stop us
                answer = os.read(0, 4096)
                self.lines = answer.count(b"\n")
                return bool(answer)
        return False

"""Actions: what a rule does with a packet.  Verdicts carry the numbers of ``enum xdp_action``."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from .errors import PipelineError
from .expr import here

__all__ = ["DROP", "PASS", "REDIRECT", "TX", "Action", "Redirect", "Verdict"]


class Verdict(enum.IntEnum):
    """``enum xdp_action`` of linux/bpf.h."""

    DROP = 1
    PASS = 2
    TX = 3
    REDIRECT = 4


@dataclass(frozen=True, slots=True)
class Action:
    """A verdict: PASS to the kernel's stack, DROP, or TX (back out of the device of arrival, with the Ethernet
    addresses exchanged)."""

    verdict: Verdict

    def __str__(self) -> str:
        return self.verdict.name


@dataclass(frozen=True, slots=True)
class Redirect(Action):
    """REDIRECT into the AF_XDP socket of the queue of arrival.  ``otherwise`` is the verdict while no socket is
    there: PASS (fail open, the default) or DROP (fail closed)."""

    verdict: Verdict = Verdict.REDIRECT
    otherwise: Action = Action(Verdict.PASS)

    def __post_init__(self) -> None:
        if self.otherwise not in (PASS, DROP):
            raise PipelineError(f"REDIRECT falls back to PASS or DROP, not {self.otherwise}", here())

    def __str__(self) -> str:
        return "REDIRECT" if self.otherwise == PASS else f"REDIRECT else {self.otherwise}"


PASS = Action(Verdict.PASS)
DROP = Action(Verdict.DROP)
TX = Action(Verdict.TX)
REDIRECT = Redirect()

"""Errors that xdpkit raises besides OSError (which names call, device, queue and what to try)."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FrameError", "NotSupported", "PipelineError", "VerifierError", "Where"]


@dataclass(frozen=True, slots=True)
class Where:
    """A place in the user's source."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class PipelineError(ValueError):
    """A declaration that cannot mean anything; the message starts with the place of the rule."""

    def __init__(self, message: str, where: Where | None = None):
        super().__init__(f"{where}: {message}" if where else message)
        self.where = where


class VerifierError(Exception):
    """The kernel refused the program.  ``where`` and ``rule`` point at the pipeline, ``log`` is the verifier's own."""

    def __init__(self, message: str, *, where: Where | None = None, rule: str | None = None, log: str = ""):
        super().__init__(f"{where}: {message}" if where else message)
        self.where, self.rule, self.log = where, rule, log


class NotSupported(Exception):
    """A feature that is missing here, and what it needs."""

    def __init__(self, feature: str, needs: str):
        super().__init__(f"{feature}: {needs}")
        self.feature, self.needs = feature, needs


class FrameError(RuntimeError):
    """A frame was used after it went back to the kernel, or frames do not add up."""

"""The errors of xdpkit, and which error says what.

* :class:`XdpkitError` is the base of all errors that are defined here.
* :class:`NotSupported`: the request cannot be met here.  It could be met with another kernel, driver, device or mode,
  or with a package that is not installed.
* OSError: the kernel refused a call for another reason, or a file could not be used.  The message names the call, the
  device and the queue, and what to try.  The subclass and ``errno`` say why (PermissionError, ``errno.EBUSY``).
* ValueError and TypeError: the call is wrong on every machine, for instance it names a mode that does not exist.

So ``except (XdpkitError, OSError)`` catches everything that can go wrong with a correct call.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..terminal import shortened

__all__ = ["FrameError", "NotSupported", "PipelineError", "ThreadError", "VerifierError", "Where", "XdpkitError"]


@dataclass(frozen=True, slots=True)
class Where:
    """A place in the user's source."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class XdpkitError(Exception):
    """The base of xdpkit's errors."""


class PipelineError(XdpkitError, ValueError):
    """A declaration is wrong; the message starts with the file and line of the rule."""

    def __init__(self, message: str, where: Where | None = None):
        super().__init__(shortened(f"{where}: {message}" if where else message))
        self.where: Where | None = where


class VerifierError(XdpkitError):
    """The kernel's verifier refused the program.  ``where`` and ``rule`` name the line and the rule of the pipeline;
    ``log`` is the verifier's whole log."""

    def __init__(self, message: str, *, where: Where | None = None, rule: str | None = None, log: str = ""):
        super().__init__(f"{where}: {message}" if where else message)
        self.where: Where | None = where
        self.rule: str | None = rule
        self.log: str = log


class NotSupported(XdpkitError):
    """A ``feature`` is not available here; ``needs`` says what it takes."""

    def __init__(self, feature: str, needs: str):
        super().__init__(f"{feature}: {needs}")
        self.feature: str = feature
        self.needs: str = needs


class FrameError(XdpkitError, RuntimeError):
    """A frame was used after it went back to the kernel, or frames do not add up."""


class ThreadError(XdpkitError, RuntimeError):
    """Two threads used one socket at the same time; the one that came second gets this error, and nothing was done."""

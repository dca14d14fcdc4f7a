"""The errors of xdpkit, and which error says what.

* :class:`XdpkitError` is the base of all that are defined here.
* :class:`NotSupported`: what was asked for cannot be had here, but could be elsewhere: another kernel, driver, device,
  mode, or with a package that is not installed.
* OSError: the kernel refused a call for another reason, or a file did; the message names the call, the device and the
  queue, and what to try.  Its subclasses and ``errno`` say why (PermissionError, ``errno.EBUSY``), so it is left as it
  is.
* ValueError and TypeError: a call that means nothing anywhere, such as a mode that does not exist.

So ``except (XdpkitError, OSError)`` takes everything that can go wrong with a call that is right.
"""

from __future__ import annotations

from dataclasses import dataclass

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


#: Characters of a message; what is quoted in it may be a whole file.
MAX_MESSAGE = 600


def shortened(message: str) -> str:
    """``message`` on one line and with at most MAX_MESSAGE characters: the middle of a longer one is left out."""
    message = message.replace("\n", " ")
    if len(message) <= MAX_MESSAGE:
        return message
    return f"{message[: MAX_MESSAGE - 150]} [... {len(message) - MAX_MESSAGE:,} characters ...] {message[-120:]}"


class PipelineError(XdpkitError, ValueError):
    """A declaration that cannot mean anything; the message starts with the place of the rule."""

    def __init__(self, message: str, where: Where | None = None):
        super().__init__(shortened(f"{where}: {message}" if where else message))
        self.where: Where | None = where


class VerifierError(XdpkitError):
    """The kernel refused the program.  ``where`` and ``rule`` point at the pipeline, ``log`` is the verifier's own."""

    def __init__(self, message: str, *, where: Where | None = None, rule: str | None = None, log: str = ""):
        super().__init__(f"{where}: {message}" if where else message)
        self.where: Where | None = where
        self.rule: str | None = rule
        self.log: str = log


class NotSupported(XdpkitError):
    """A ``feature`` that cannot be had here, and what it ``needs``."""

    def __init__(self, feature: str, needs: str):
        super().__init__(f"{feature}: {needs}")
        self.feature: str = feature
        self.needs: str = needs


class FrameError(XdpkitError, RuntimeError):
    """A frame was used after it went back to the kernel, or frames do not add up."""


class ThreadError(XdpkitError, RuntimeError):
    """Two threads used one socket at the same time; the one that came second gets this error, and nothing was done."""

"""Put a ruleset in force, watch it for a while, and go back to the one before unless it is confirmed.

A ruleset in force is a pinned link (:mod:`xdpkit.link.pin`): it needs no process.  While a new one waits to be
confirmed, the file ``unconfirmed`` beside the link's records names the process that waits and the time it ends.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from ..compiler.built import Built
from ..files.output import write_whole
from ..language.pipeline import Pipeline
from ..link.attach import attach
from ..link.bridge import Bridge, BridgeMode, BridgeNames, bridge
from ..link.ledger import Ledger
from ..link.link import Link, open_link
from ..link.pin import LinkPin
from ..logs import logger
from ..sockets.options import Mode

__all__ = [
    "Applied",
    "Bounds",
    "Guard",
    "Unconfirmed",
    "apply",
    "apply_bridge",
    "place",
    "unconfirmed",
    "was_confirmed",
]

#: Seconds between two looks at what bounds are declared for.
GUARD_SECONDS = 1.0
#: Looks in a row that must fail before a canary counts as out of reach.
CANARY_LOOKS = 3
#: Fewer packets than this in a look say nothing about the share that is dropped.
FEW_PACKETS = 100


@dataclass(frozen=True, slots=True)
class Bounds:
    """What must hold while a ruleset waits to be confirmed.  ``canaries``: addresses that must answer a ping, or
    with ``:PORT`` accept a TCP connection.  ``max_drop``: the share of packets, 0 to 1, that may be dropped; None for
    any."""

    canaries: tuple[str, ...] = ()
    max_drop: float | None = None

    def __post_init__(self) -> None:
        for canary in self.canaries:
            split_canary(canary)
        if self.max_drop is not None and not 0 <= self.max_drop <= 1:
            raise ValueError(f"a share of drops is 0 to 100 percent, not {self.max_drop * 100:g}")


def split_canary(text: str) -> tuple[str, int | None]:
    """Address and port of a canary: "192.0.2.1", "192.0.2.1:443", "[2001:db8::1]:443".  ValueError says how it is
    written."""
    if text.startswith("["):
        address, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":") if rest else ""
    elif text.count(":") == 1:
        address, _, port = text.partition(":")
    else:
        address, port = text, ""
    if not address or text.endswith(":") or (port and not (port.isdigit() and 0 < int(port) < 65536)):
        raise ValueError(f"canary {text!r} is written 192.0.2.1, 192.0.2.1:443 or [2001:db8::1]:443")
    return address, int(port) if port else None


class Guard:
    """Looks, about once a second, whether the bounds hold."""

    def __init__(self, link: Link | Bridge, bounds: Bounds, clock: Callable[[], float] = time.monotonic):
        self._link, self._bounds, self._clock = link, bounds, clock
        self._next = clock() + GUARD_SECONDS
        self._failed = dict.fromkeys(bounds.canaries, 0)
        self._before = link.ledger()

    def problem(self) -> str | None:
        """Which bound does not hold, None while all do.  Takes up to a second for each canary that does not answer."""
        if self._clock() < self._next:
            return None
        self._next = self._clock() + GUARD_SECONDS
        now, before = self._link.ledger(), self._before
        if now.seen - before.seen >= FEW_PACKETS:
            self._before = now
            share = (dropped(now) - dropped(before)) / (now.seen - before.seen)
            if self._bounds.max_drop is not None and share > self._bounds.max_drop:
                return f"{share:.0%} of the packets are dropped, and {self._bounds.max_drop:.0%} may be"
        for canary in self._bounds.canaries:
            self._failed[canary] = 0 if answers(canary) else self._failed[canary] + 1
            if self._failed[canary] >= CANARY_LOOKS:
                return f"{canary} does not answer"
        return None


def dropped(ledger: Ledger) -> int:
    """Packets that rules have dropped."""
    return sum(rule.packets for rule in ledger.rules if rule.verdict == "DROP")


def answers(canary: str, seconds: float = 1.0) -> bool:
    """Whether ``canary`` answers within ``seconds``.  OSError: ENOENT where there is no ping command."""
    address, port = split_canary(canary)
    if port is not None:
        try:
            socket.create_connection((address, port), seconds).close()
        except ConnectionRefusedError:
            return True  # it answers: packets go both ways
        except OSError:
            return False
        return True
    command = ["ping", "-n", "-q", "-c", "1", "-W", str(seconds), address]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        raise OSError(errno.ENOENT, f"canary {canary}: no ping command: install iputils-ping, or add :PORT") from None


@dataclass(frozen=True, slots=True)
class Unconfirmed:
    """A ruleset that waits to be confirmed: by process ``pid``, until ``deadline`` (CLOCK_BOOTTIME, seconds)."""

    pid: int
    deadline: float

    @property
    def seconds_left(self) -> float:
        """Until it is taken back; below 0 where the process that waited did not do it."""
        return self.deadline - time.clock_gettime(time.CLOCK_BOOTTIME)

    @property
    def waits(self) -> bool:
        """The process is still there."""
        return os.path.exists(f"/proc/{self.pid}")


def unconfirmed(name: str) -> Unconfirmed | None:
    """Whether the ruleset that is pinned as ``name`` waits to be confirmed."""
    with suppress(FileNotFoundError, ValueError, TypeError):
        return Unconfirmed(**json.loads((LinkPin(name).records / "unconfirmed").read_text()))
    return None


def was_confirmed(name: str, pid: int) -> bool:
    """Whether process ``pid``, which waited, has kept the ruleset that is pinned as ``name``."""
    with suppress(OSError):
        return (LinkPin(name).records / "confirmed").read_text() == str(pid)
    return False


@dataclass(slots=True)
class Applied:
    """A ruleset in force, and how to go back: ``previous`` is what was in force before, None where nothing was."""

    link: Link | Bridge
    name: str
    previous: Built | None
    action: Literal["attached", "updated"] = field(init=False)

    def __post_init__(self) -> None:
        self.action = "attached" if self.previous is None else "updated"

    @property
    def place(self) -> str:
        """The device, or the two of a bridge, as messages name it."""
        return place(self.link)

    def wait_for_confirmation(self, seconds: float) -> None:
        """Note that this process waits, for other processes to see."""
        deadline = time.clock_gettime(time.CLOCK_BOOTTIME) + seconds
        words = json.dumps({"pid": os.getpid(), "deadline": deadline})
        write_whole(LinkPin(self.name).records / "unconfirmed", words)

    def confirm(self) -> None:
        """It stays."""
        records = LinkPin(self.name).records
        write_whole(records / "confirmed", str(os.getpid()))
        (records / "unconfirmed").unlink(missing_ok=True)

    def roll_back(self) -> str:
        """Put the ruleset of before in place, or detach where there was none; what was done, for people."""
        if self.previous is None:
            self.link.detach()
            done = f"{self.name} is detached, as it was before"
        else:
            self.link.update(self.previous)
            done = f"{self.link.pipeline.name} is in force again, as it was before"
            (LinkPin(self.name).records / "unconfirmed").unlink(missing_ok=True)
        logger.warning("%s: rolled back: %s", self.name, done)
        return done

    def close(self) -> None:
        """Let go: the ruleset stays in force."""
        self.link.close()


def apply(
    rules: Built, device: str, *, name: str | None = None, mode: Mode = "auto", shadow: Pipeline | None = None
) -> Applied:
    """Put ``rules`` in force on ``device``, under ``name`` (default: the device's).  Where a ruleset is in force under
    that name, this is an update: no packet meets no rules, and members, buckets and counters go on.

    Raises what :func:`xdpkit.attach` raises; then what was in force before still is.
    """
    name = name or device
    previous = _in_force(name)
    link = attach(rules, device, mode=mode, shadow=shadow, pin=name)
    return Applied(link, name, previous)


def apply_bridge(
    rules: Built, *, inside: str, outside: str, mode: BridgeMode = "auto", shadow: Pipeline | None = None
) -> Applied:
    """Put ``rules`` in force on a bridge between two devices, as :func:`apply` does on one.

    Raises what :func:`xdpkit.bridge` raises; then what was in force before still is.
    """
    names = BridgeNames(inside, outside)
    previous = _in_force(names.links[0]) if names.is_open() else None
    wire = bridge(rules, inside=inside, outside=outside, fail="open", mode=mode, shadow=shadow)
    return Applied(wire, names.links[0], previous)


def _in_force(name: str) -> Built | None:
    """What is in force under ``name``, None where nothing is any more."""
    if not LinkPin(name).exists:
        return None
    try:
        with open_link(name) as before:
            return before.built
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
    return None


def place(link: Link | Bridge) -> str:
    """The device of a link, or the two of a bridge, as messages name it."""
    return link.device.name if isinstance(link, Link) else link.name

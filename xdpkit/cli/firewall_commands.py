"""What the commands of ``xdpkit firewall`` do."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import NoReturn, cast

import typer

from ..compiler.built import Built, load
from ..firewall.apply import Applied, Bounds, Guard, apply, apply_bridge, unconfirmed, was_confirmed
from ..firewall.feeds import Feeds
from ..firewall.session import Session, cuts, ssh_session
from ..firewall.usage import forget
from ..kernel.program import may_load
from ..language.actions import Mirror
from ..language.check import PipelineWarning
from ..language.errors import NotSupported, PipelineError, VerifierError
from ..language.limits import Log
from ..language.pipeline import Pipeline
from ..link.bridge import BridgeMode, bridge_pins, detach_bridge
from ..link.ledger import Ledger
from ..link.link import Link, open_link
from ..link.pin import LinkPin, pinned_links
from ..link.ruleset import Ruleset
from ..sets.live import LiveSet
from ..sockets.options import Mode
from ..terminal import counted, make_console, notice, print_line, print_table
from .confirm import Confirmation
from .failure import fail
from .sets import _line, _seconds
from .signals import signals
from .table import headline, table

__all__ = [
    "Apply",
    "Guarded",
    "apply_rules",
    "change_bans",
    "check_rules",
    "confirm_waiting",
    "names_of",
    "only_name",
    "refuse_wrong_usage",
    "show_bans",
    "show_status",
    "take_off",
]


@dataclass(frozen=True, slots=True)
class Guarded:
    """Where a firewall stands: on ``device``, or on the bridge between ``inside`` and ``outside``."""

    device: str
    inside: str
    outside: str
    name: str

    @classmethod
    def of(cls, device: str, inside: str, outside: str, name: str) -> Guarded:
        """The options of a command; wrong usage where they contradict each other."""
        if bool(device) == bool(inside or outside) or bool(inside) != bool(outside):
            raise typer.BadParameter("-i DEV for a host, or --inside DEV and --outside DEV for a bridge")
        if inside and name:
            raise typer.BadParameter("--name: a bridge has the name of its devices")
        return cls(device, inside, outside, name or device)

    def apply(self, built: Built, mode: str, shadow: Pipeline | None = None) -> Applied:
        """Put rules in force there."""
        if self.device:
            return apply(built, self.device, name=self.name, mode=cast(Mode, mode), shadow=shadow)
        return apply_bridge(built, inside=self.inside, outside=self.outside, mode=cast(BridgeMode, mode), shadow=shadow)

    @property
    def words(self) -> list[str]:
        """The options that say the same."""
        if self.device:
            return ["-i", self.device, "--name", self.name]
        return ["--inside", self.inside, "--outside", self.outside]


@dataclass(frozen=True, slots=True)
class Apply:
    """The options of ``xdpkit firewall apply``; ``confirm`` in seconds, 0: not; ``max_drop``: a share, 0 to 1."""

    rules: Path
    guarded: Guarded
    mode: str
    shadow: Path | None
    confirm: float
    canaries: tuple[str, ...]
    max_drop: float | None
    force: bool


def apply_rules(wanted: Apply) -> None:
    """Put a ruleset in force; exit with 1 where it was rolled back."""
    if not wanted.confirm and (wanted.canaries or wanted.max_drop is not None):
        raise typer.BadParameter("--canary and --max-drop say when to roll back while --confirm SECONDS waits")
    try:
        bounds = Bounds(wanted.canaries, wanted.max_drop)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    built = load(wanted.rules)
    shadow = load(wanted.shadow).pipeline if wanted.shadow else None
    _refuse_cutting(built.pipeline, wanted)
    with signals() as stop:
        with refuse_wrong_usage():
            applied = wanted.guarded.apply(built, wanted.mode, shadow)
        try:
            _tell(applied)
            _fill(applied)
            if wanted.confirm:
                _wait(applied, wanted.confirm, bounds, Confirmation(stop))
        finally:
            applied.close()


@contextmanager
def refuse_wrong_usage() -> Iterator[None]:
    """A ValueError of the library is a value of the command line; a PipelineError is one too, but the usage is
    right."""
    try:
        yield
    except PipelineError:
        raise
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _tell(applied: Applied) -> None:
    link = applied.link
    print_line(f"{link.pipeline.name} is in force on {applied.place}, {applied.action}: {link.attachment}")
    steps = [name for name, kind in (("log", Log), ("mirror", Mirror)) if kind in link.pipeline.steps]
    steps += ["redirect"] * ("REDIRECT" in link.pipeline.verdicts)
    if steps:
        notice(f"warning: rules {' and '.join(steps)}, and no process reads that: 'xdpkit run' does while it runs")
    for note in link.notes:
        notice(f"warning: {note}")


def _fill(applied: Applied) -> None:
    """Fill the sets that follow feeds: from the last good copies at once, then from the feeds."""
    feeds = Feeds(applied.link)
    for report in [*feeds.load(), *feeds.refresh()]:
        for line in report.summary:
            notice(line)
        notice(f"{'warning: ' if report.problem else ''}{report}")


def _refuse_cutting(pipe: Pipeline, wanted: Apply) -> None:
    """Rules that would cut the SSH session of who applies them are refused, unless forced or to be confirmed."""
    session = ssh_session(os.environ.get("SSH_CONNECTION"))
    if session is None or wanted.force:
        return
    found = _would_cut(pipe, session)
    if found and not wanted.confirm:
        fail(OSError(f"{found[0]}: nothing was changed; --confirm SECONDS tries it, --force applies it"))
    for line in found:
        notice(f"warning: {line}")


def _would_cut(pipe: Pipeline, session: Session) -> list[str]:
    return [
        f"{cut.rule.where}: rule {cut.rule.name!r} drops {cut.what} of this SSH session ({session})"
        for cut in cuts(pipe, session)
    ]


def _wait(applied: Applied, seconds: float, bounds: Bounds, confirmation: Confirmation) -> None:
    """Until somebody confirms; roll back where nobody does, or a bound does not hold."""
    guard, link = Guard(applied.link, bounds), applied.link
    applied.wait_for_confirmation(seconds)
    notice(
        f"press Enter, or run 'xdpkit firewall confirm {applied.name}', within {seconds:g} s, or it is rolled back "
        f"(process {os.getpid()})"
    )
    deadline, reason = time.monotonic() + seconds, ""
    while not reason:
        left = deadline - time.monotonic()
        if confirmation.given():
            applied.confirm()
            print_line(f"{link.pipeline.name} is confirmed")
            return
        try:
            link.check()
            reason = guard.problem() or ("nobody confirmed it" if left <= 0 else "")
        except OSError as error:
            reason = error.strerror or str(error)
        if not reason and confirmation.stop.wait(min(max(left, 0), 0.1)):
            reason = "it was interrupted"
    try:
        done = applied.roll_back()
    except (OSError, PipelineError, VerifierError, NotSupported) as error:
        fail(OSError(f"{reason}, and it could not be rolled back: {error}"))
    fail(OSError(f"{reason}: {done}"))


def check_rules(rules: Path, as_json: bool) -> None:
    """Print what is wrong with the rules; exit with 1 if something is."""
    problems: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PipelineWarning)
        try:
            built = load(rules)
        except PipelineError as error:
            _report(rules, [str(error)], [], as_json)
    problems += [f"{w.filename}:{w.lineno}: {w.message}" for w in caught if issubclass(w.category, PipelineWarning)]
    session = ssh_session(os.environ.get("SSH_CONNECTION"))
    if session is not None:
        problems += _would_cut(built.pipeline, session)
    notes = [f"{len(built.pipeline.rules):,} rules, default {built.pipeline.default}"]
    problems += _load_problems(built, notes)
    if session is None:
        notes.append("no SSH session here (SSH_CONNECTION is not set), so none was tried")
    _report(rules, problems, notes, as_json)


def _load_problems(built: Built, notes: list[str]) -> list[str]:
    """What the kernel says to the program, where we may ask it."""
    if not may_load():
        notes.append("the kernel was not asked, which takes root")
        return []
    try:
        with Ruleset(built, "xdp", explain=True):
            notes.append("the kernel takes the program")
            return []
    except (PipelineError, VerifierError, NotSupported, OSError) as error:
        return [str(error.strerror or error) if isinstance(error, OSError) else str(error)]


def _report(rules: Path, problems: list[str], notes: list[str], as_json: bool) -> NoReturn:
    if as_json:
        print_line(json.dumps({"rules": str(rules), "problems": problems, "notes": notes}))
    else:
        for line in problems:
            print_line(line)
        for line in notes:
            print_line(f"{rules}: {line}")
    sys.exit(1 if problems else 0)


def names_of(name: str) -> list[str]:
    """The firewall of that name, or all that there are.  OSError: ENOENT where there is none."""
    there = pinned_links(here=True)
    if name:
        try:
            LinkPin(name)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        return [name]
    if not there:
        raise OSError(errno.ENOENT, "no firewall is in force: 'xdpkit firewall apply RULES -i DEV' puts one there")
    return there


def only_name(name: str) -> str:
    names = names_of(name)
    pair = bridge_pins(names[0])
    if len(names) > 1 and set(names) != set(pair or ()):
        raise typer.BadParameter(f"which one: {', '.join(names)}?")
    return names[0]


def show_status(name: str, as_json: bool) -> None:
    """Print each firewall with its ledger; exit with 1 where one is not as it should be."""
    console, failed = make_console(), False
    for number, each in enumerate(names_of(name)):
        try:
            link = open_link(each)
        except OSError as error:
            if name:
                raise
            failed = True
            notice(error.strerror or str(error))
            continue
        with link:
            ledger, lost = link.ledger(), link.lost
            failed |= lost is not None
            if as_json:
                waits = unconfirmed(each) is not None
                print_line(json.dumps({"name": each, "unconfirmed": waits, "lost": lost, **ledger.as_dict()}))
                continue
            if number:
                print_line("")
            console.print(headline(ledger), soft_wrap=not console.is_terminal)
            _print_state(each, link, ledger)
            print_table(console, table(ledger))
    sys.exit(1 if failed else 0)


def _print_state(name: str, link: Link, ledger: Ledger) -> None:
    age = timedelta(seconds=int(ledger.seconds))
    updates = f", {counted(ledger.updates, 'update')}" if ledger.updates else ""
    print_line(f"{name}: in force for {age}{updates}, from {link.pipeline.where.file}")
    if link.lost is not None:
        print_line(f"NOT IN FORCE: {link.lost}")
    waiting = unconfirmed(name)
    if waiting is not None:
        print_line(_waiting_line(name, waiting.pid, waiting.seconds_left, waiting.waits))


def _waiting_line(name: str, pid: int, left: float, waits: bool) -> str:
    if waits:
        return f"NOT CONFIRMED: rolled back in {max(0, left):.0f} s: 'xdpkit firewall confirm {name}' keeps it"
    return f"NOT CONFIRMED, and process {pid}, which would have rolled it back, is gone: apply the rules you want"


def confirm_waiting(name: str) -> None:
    """Tell the process that waits."""
    names = [n for n in names_of(name) if unconfirmed(n) is not None]
    if not names:
        fail(OSError("no ruleset waits to be confirmed"))
    if len(names) > 1:
        raise typer.BadParameter(f"which one: {', '.join(names)}?")
    waiting = unconfirmed(names[0])
    if waiting is None or not waiting.waits:
        fail(OSError(f"{names[0]}: the process that waited is gone; 'xdpkit firewall status' says what is in force"))
    os.kill(waiting.pid, signal.SIGUSR2)
    deadline = time.monotonic() + 10
    while unconfirmed(names[0]) is not None:
        if time.monotonic() > deadline:
            fail(OSError(f"{names[0]}: process {waiting.pid} does not answer"))
        time.sleep(0.02)
    if not was_confirmed(names[0], waiting.pid):
        fail(OSError(f"{names[0]} was rolled back at this moment; 'xdpkit firewall status' says what is in force"))
    print_line(f"{names[0]} is confirmed")


def take_off(name: str) -> None:
    """Detach, also what is left of a firewall whose device is gone."""
    only = only_name(name)
    pair = bridge_pins(only)
    try:
        if pair is not None:
            inside, outside = (_device_of(each) for each in pair)
            detach_bridge(inside=inside, outside=outside)
            print_line(f"the bridge between {inside} and {outside} is detached")
            return
        with open_link(only) as link:
            link.detach()
    except OSError as error:
        if error.errno not in (errno.ENODEV, errno.EINVAL):
            raise
        pin = LinkPin(only)
        pin.own()
        pin.remove()
        notice(f"warning: {error.strerror}")
    forget(only)
    print_line(f"{only} is detached")


def _device_of(name: str) -> str:
    with open_link(name) as link:
        return link.device.name


def _bans(link: Link, name: str) -> LiveSet:
    found = link.sets.get(name)
    if found is None:
        known = f"it has {', '.join(link.sets)}" if link.sets else "it has no set"
        hint = 'pipe.rule(pipe.bans(), DROP, name="banned") declares it'
        raise OSError(errno.ENOENT, f"the rules of {link.pipeline.name!r} have no set {name!r}: {known}; {hint}")
    return found


def change_bans(
    name: str, bans: str, *, add: Iterable[str] = (), remove: Iterable[str] = (), timeout: str = "0"
) -> None:  # fmt: skip
    """Add or remove members, in every firewall that has the set where no name was said."""
    seconds, names, found = _seconds(timeout), names_of(name), False
    for each in names:
        with open_link(each) as link:
            if bans not in link.sets and (found or each != names[-1]):
                continue
            change = _bans(link, bans).update(list(add), list(remove), timeout=seconds)
            found = True
        done = ((change.added, "banned"), (change.changed, "banned anew"), (change.removed, "let in again"))
        print_line(f"{each}: {', '.join(f'{n:,} {what}' for n, what in done if n) or 'nothing to change'}")


def show_bans(name: str, bans: str, as_json: bool) -> None:
    """Print the members, one a line."""
    only = only_name(name)
    with open_link(only) as link:
        members = _bans(link, bans).members()
    if as_json:
        rows = [{"member": m.member, "timeout": m.timeout, "by_packet": m.by_packet} for m in members]
        print_line(json.dumps({"name": only, "set": bans, "members": rows}))
        return
    with suppress(BrokenPipeError):
        for member in members:
            print_line(_line(member))

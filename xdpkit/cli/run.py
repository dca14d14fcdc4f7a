"""What ``xdpkit run`` does: attach, drain, show, and say in the end where every packet went."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

import typer

from ..compiler.built import Built, load
from ..device.netdev import promiscuous
from ..files.output import remove_if_empty
from ..language.actions import Mirror
from ..language.errors import NotSupported, PipelineError, VerifierError
from ..language.limits import Log
from ..language.pipeline import Pipeline
from ..link.attach import Link, attach
from ..link.ledger import Ledger
from ..sets.pins import private_bpffs
from ..sockets.options import WAITS, Bind, Mode, SocketOptions, Wait
from ..sockets.workers import Workers, open_capture
from ..terminal import make_console, notice, print_table
from .failure import fail
from .signals import signals
from .table import headline, table
from .watch import Watched, print_events, shown_while

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["RunOptions", "run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The options of ``xdpkit run``, as its help describes them.  ``confirm`` and ``json_lines`` in seconds; 0: not."""

    pipeline: Path
    device: str
    write: str
    count: int
    duration: float
    snaplen: int
    mode: str
    bind: str
    queues: str
    option: tuple[str, ...]
    wait: str
    copies: str
    copies_buffer: str
    shadow: Path | None
    promisc: bool
    confirm: float
    as_json: bool
    json_lines: float
    quiet: bool


def run(wanted: RunOptions) -> None:
    """Do it; exit with 1 after a failure, and where nobody confirmed."""
    _check(wanted)
    built = load(wanted.pipeline)
    shadow = load(wanted.shadow).pipeline if wanted.shadow else None
    _can_write(built.pipeline, wanted.pipeline, wanted.write, wanted.copies)
    if any(found.pinned for found in built.pipeline.sets) and (private := private_bpffs()):
        notice(f"warning: {private}")
    json = wanted.as_json or bool(wanted.json_lines)
    stderr = json or "-" in (wanted.write, wanted.copies)
    with ExitStack() as stack:
        file = stack.enter_context(_capture_file(wanted.write)) if wanted.write else None
        copied = stack.enter_context(_capture_file(wanted.copies)) if wanted.copies else None
        stop = stack.enter_context(signals())
        doing = f"compiling {built.pipeline.name}, attaching it to {wanted.device} ..."
        with shown_while(doing, stderr=stderr, quiet=wanted.quiet):
            link = _attach(built, shadow, wanted)
        failure: OSError | None = None
        console = make_console(stderr=stderr)
        with link:
            watched = Watched(
                link, stop, wanted.duration, wanted.count, console, wanted.quiet, confirm=wanted.confirm,
                json_lines=wanted.json_lines, reload=lambda: _reload(link, wanted.pipeline, shadow),
            )  # fmt: skip
            try:
                _drain(link, wanted, watched, file, copied)
            except OSError as error:
                failure = error
    _finish(link.ledger(), failure, console, json)
    if watched.refused:
        fail(OSError(f"{link.pipeline.name} was not confirmed: it is taken off {wanted.device} again"))


def _check(wanted: RunOptions) -> None:
    """Wrong usage that needs no look at the pipeline."""
    as_json = wanted.as_json or bool(wanted.json_lines)
    if [wanted.write, wanted.copies].count("-") + as_json > 1:
        raise typer.BadParameter("-w -, --copies - and --json all want standard output")
    if wanted.wait and wanted.wait not in WAITS:
        raise typer.BadParameter(f"--wait {wanted.wait}: {', '.join(WAITS)}")


def _attach(built: Built, shadow: Pipeline | None, wanted: RunOptions) -> Link:
    try:
        queues = _parse_queues(wanted.queues) if wanted.queues else None
        options = SocketOptions.parse(wanted.option)
        if wanted.copies_buffer:
            options = replace(options, copies_buffer=_parse_size(wanted.copies_buffer))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    try:
        return attach(
            built, wanted.device, mode=cast(Mode, wanted.mode), bind=cast(Bind, wanted.bind), queues=queues,
            timestamps=bool(wanted.write), options=options, shadow=shadow,
        )  # fmt: skip
    except PipelineError:  # a ValueError too, but the usage is right
        raise
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _drain(
    link: Link, wanted: RunOptions, watched: Watched, file: IO[bytes] | None, copied: IO[bytes] | None
) -> None:  # fmt: skip
    """Open what the rules of ``link`` send packets to, and watch until the end."""
    wait = cast(Wait, wanted.wait) or None
    with ExitStack() as stack:
        if wanted.promisc:
            stack.enter_context(promiscuous(link.device.index))
        if Log in link.pipeline.steps:
            stack.enter_context(print_events(link))
        if copied is not None:
            stack.enter_context(stack.enter_context(link.copies()).write(copied, snaplen=wanted.snaplen, wait=wait))
        workers: Workers | None = None
        if "REDIRECT" in link.pipeline.verdicts:
            sockets = stack.enter_context(link.sockets())
            limit = wanted.count
            made = sockets.write(file, limit=limit, snaplen=wanted.snaplen, wait=wait) if file else None
            workers = stack.enter_context(made or sockets.count(limit=limit, wait=wait))
        watched.run(workers)


def _parse_queues(text: str) -> tuple[int, ...]:
    """Queue numbers from "0-3,5"; ValueError says how they are written."""
    queues: set[int] = set()
    for part in text.split(","):
        low, _, high = part.partition("-")
        try:
            if int(high or low) >= 1 << 16:  # the kernel's devices have fewer
                raise ValueError
            queues.update(range(int(low), int(high or low) + 1))
        except ValueError:
            raise ValueError(f"{text!r}: queues are written 0-3,5") from None
    return tuple(sorted(queues))


def _parse_size(text: str) -> int:
    """Bytes from "256M"; ValueError says how they are written."""
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].upper() in ("K", "M", "G") else (text, "")
    if not (number.isascii() and number.isdigit()):
        raise ValueError(f"--copies-buffer {text}: bytes, or with a unit as in 512K, 256M, 1G")
    return int(number) << {"": 0, "K": 10, "M": 20, "G": 30}[unit]


def _can_write(pipe: Pipeline, path: Path, write: str, copies: str) -> None:
    """Wrong usage where nothing would be written."""
    if write and "REDIRECT" not in pipe.verdicts:
        hint = "; --copies writes what rules mirror" if Mirror in pipe.steps else ""
        raise typer.BadParameter(f"-w: {path} has no REDIRECT rule, so there is nothing to write{hint}")
    if copies and Mirror not in pipe.steps:
        raise typer.BadParameter(f"--copies: {path} has no rule that mirrors, so there is nothing to write")


def _finish(ledger: Ledger, failure: OSError | None, console: Console, as_json: bool) -> None:
    """Print where every packet went; exit with 1 after a failure."""
    if as_json:
        print(ledger.json())
    else:
        console.print(headline(ledger), soft_wrap=not console.is_terminal)
        print_table(console, table(ledger))
    for problem in ledger.problems():
        notice(f"the ledger does not sum: {problem}")
    if failure:
        fail(failure)
    if ledger.problems():
        sys.exit(1)


def _reload(link: Link, pipeline: Path, shadow: Pipeline | None) -> str:
    """Read the pipeline again and put it in place.  A pipeline that is refused leaves the old one.  Returns the line to
    print."""
    try:
        built = load(pipeline)
        if Mirror in built.pipeline.steps and Mirror not in link.pipeline.steps:
            raise ValueError("rules that mirror from now on want a new run, with --copies")
        took = link.update(built, shadow=shadow)
    except (PipelineError, VerifierError, NotSupported, OSError, ValueError) as error:
        return f"{pipeline} is refused, the old rules go on: {error}"
    return f"{link.pipeline.name} is in place: {took}"


@contextmanager
def _capture_file(path: str) -> Iterator[IO[bytes]]:
    """The capture file; one that was made here and stays empty is removed again."""
    existed = path == "-" or os.path.lexists(path)
    file = open_capture(path)
    try:
        yield file
    finally:
        if not existed:
            remove_if_empty(path, file)
        file.close()

"""The ``xdpkit`` command.  Exit status 0, 1 for a failure, 2 for wrong usage; errors are one line on standard error."""

from __future__ import annotations

import errno
import io
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, NoReturn, cast

import typer

from ..compiler.built import load
from ..device.netdev import promiscuous
from ..doctor.doctor import examine
from ..doctor.findings import as_json as findings_json
from ..doctor.findings import render
from ..files.output import remove_if_empty
from ..kernel.holders import clean
from ..language.actions import Mirror
from ..language.errors import FrameError, NotSupported, PipelineError, VerifierError
from ..language.limits import Log
from ..language.pipeline import Pipeline, load_file
from ..link.attach import BINDS, MODES, Link, attach, parse_choice
from ..link.ledger import Ledger
from ..sockets.options import WAITS, Bind, Mode, SocketOptions
from ..sockets.workers import Workers, open_capture
from ..terminal import make_console, notice, print_line, visible
from .bench import bench
from .offline import PipelineFile, build_command, replay_command, show_command
from .sets import sets
from .signals import signals
from .table import headline, table
from .watch import Watched, telling_events

if TYPE_CHECKING:
    from rich.console import Console

#: What typer raises for wrong usage: the class that holds a message to show and an exit status.
_WrongUsage: type[Exception] = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="xdpkit",
    help="Declare a packet filter pipeline in Python, run it at XDP, capture and count what it redirects.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> NoReturn:
    """Entry point: errors that a user can cause end as one line, never as a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may be any bytes
    warnings.showwarning = _show_warning
    try:
        status = app(standalone_mode=False)
    except _WrongUsage as error:
        _show_usage(error)
    except (PipelineError, VerifierError, NotSupported, FrameError, OSError) as error:
        fail(error)
    sys.exit(status if isinstance(status, int) else 0)


def _show_usage(error: Exception) -> NoReturn:
    """Print what the parser of the command line has to say, and exit with 2."""
    text = io.StringIO()
    error.show(text)  # type: ignore[attr-defined]
    print(visible(text.getvalue(), keep="\n"), end="", file=sys.stderr)
    sys.exit(error.exit_code)  # type: ignore[attr-defined]


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: IO[str] | None = None,
    line: str | None = None,
) -> None:
    """Print a warning about a rule as one line, with its place; ``file`` and ``line`` are not used."""
    notice(f"{filename}:{lineno}: {message}")


def fail(error: Exception) -> NoReturn:
    """Print ``error`` on standard error and exit with 1."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    notice(text)
    sys.exit(1)


def _choice(name: str, known: tuple[str, ...]) -> object:
    def parse(value: str) -> str:
        value = value.replace("af-packet", "af_packet").replace("tc-", "tc_").replace("zero-copy", "zerocopy")
        try:
            parse_choice(name, value, known)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        return value

    return parse


def parse_queues(text: str) -> tuple[int, ...]:
    """Queue numbers from "0-3,5"."""
    queues: set[int] = set()
    for part in text.split(","):
        low, _, high = part.partition("-")
        try:
            if int(high or low) >= 1 << 16:  # the kernel's devices have fewer
                raise ValueError
            queues.update(range(int(low), int(high or low) + 1))
        except ValueError:
            raise typer.BadParameter(f"{text!r}: queues are written 0-3,5") from None
    return tuple(sorted(queues))


def _socket_options(given: list[str]) -> SocketOptions:
    """SocketOptions from NAME=VALUE; wrong usage says what there is."""
    try:
        return SocketOptions.parse(given)
    except ValueError as error:
        raise typer.BadParameter(f"-o: {error}") from None


@app.command()
def run(
    pipeline: PipelineFile,
    device: Annotated[str, typer.Option("--interface", "-i", metavar="DEV", help="Network device to attach to.")],
    write: Annotated[
        str,
        typer.Option("-w", "--write", metavar="FILE", help="Write redirected packets to a pcapng file; - for stdout."),
    ] = "",
    count: Annotated[int, typer.Option("-c", "--count", min=0, help="Stop after this many packets; 0: no limit.")] = 0,
    duration: Annotated[
        float, typer.Option("--duration", min=0, help="Stop after this many seconds; 0: no limit.")
    ] = 0,
    snaplen: Annotated[int, typer.Option("-s", "--snaplen", min=0, help="Keep at most this many bytes of each.")] = 0,
    mode: Annotated[
        str,
        typer.Option(
            callback=_choice("mode", MODES),
            help="auto, native, generic, tc-ingress, tc-egress, af-packet, or want:NAME to prefer one.",
        ),
    ] = "auto",
    bind: Annotated[
        str, typer.Option(callback=_choice("bind", BINDS), help="auto, zerocopy, copy, or want:NAME to prefer one.")
    ] = "auto",
    queues: Annotated[str, typer.Option("--queues", metavar="Q", help="RX queues, as in 0-3,5.  Default: all.")] = "",
    option: Annotated[
        list[str] | None,
        typer.Option(
            "-o", "--option", metavar="NAME=VALUE", help="Socket option: ring_size=4096, busy_poll=want:on ..."
        ),
    ] = None,
    wait: Annotated[
        str, typer.Option(help="What workers do when idle: adaptive, busy (never sleep), sleep, nap.")
    ] = WAITS[0],
    copies: Annotated[
        str, typer.Option(metavar="FILE", help="Write the copies that rules mirror to a pcapng file; - for stdout.")
    ] = "",
    shadow: Annotated[
        Path | None,
        typer.Option(metavar="PIPELINE", exists=True, dir_okay=False, help="Try these rules beside: they only count."),
    ] = None,
    promisc: Annotated[
        bool, typer.Option("--promisc", help="Receive frames for every MAC address while it runs.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the final ledger as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No live table.")] = False,
) -> None:
    """Attach a pipeline to a device until Ctrl-C, then print where every packet went.

    Redirected packets are written with -w, else counted; what rules log is told on standard error.  SIGUSR1 reads the
    pipeline again and puts it in place without losing a packet.  Nothing is left behind, however the run ends.

    Example: xdpkit run pipelines/dns.py -i eth1 -w dns.pcapng --duration 60
    """
    if [write, copies].count("-") + as_json > 1:
        raise typer.BadParameter("-w -, --copies - and --json all want standard output")
    if wait not in WAITS:
        raise typer.BadParameter(f"--wait {wait}: {', '.join(WAITS)}")
    built = load(pipeline)
    pipe = built.pipeline
    beside = load(shadow).pipeline if shadow else None
    wanted = parse_queues(queues) if queues else None
    options = _socket_options(option or [])
    redirects = "REDIRECT" in pipe.verdicts
    _can_write(pipe, pipeline, write, copies)
    console = make_console(stderr=bool("-" in (write, copies) or as_json))
    with ExitStack() as stack:
        file = stack.enter_context(_capture_file(write)) if write else None
        copied = stack.enter_context(_capture_file(copies)) if copies else None
        stop = stack.enter_context(signals())
        try:
            link = attach(
                built, device, mode=cast(Mode, mode), bind=cast(Bind, bind), queues=wanted, timestamps=bool(write),
                options=options, shadow=beside,
            )  # fmt: skip
        except ValueError as error:  # a PipelineError is one, but the usage is right then
            raise (error if isinstance(error, PipelineError) else typer.BadParameter(str(error))) from None
        failure: OSError | None = None
        with link:
            watched = Watched(
                link, stop, duration, count, console, quiet, reload=lambda: _reload(link, pipeline, beside)
            )
            try:
                with ExitStack() as draining:
                    if promisc:
                        draining.enter_context(promiscuous(link.device.index))
                    if Log in pipe.steps:
                        draining.enter_context(telling_events(link))
                    if copied is not None:
                        draining.enter_context(draining.enter_context(link.copies()).write(copied, snaplen=snaplen))
                    workers = None
                    if redirects:
                        sockets = draining.enter_context(link.sockets())
                        made = sockets.write(file, limit=count, snaplen=snaplen, wait=wait) if file else None
                        workers = draining.enter_context(made or sockets.count(limit=count, wait=wait))
                    watched.run(workers)
            except OSError as error:
                failure = error
    _finish(link.ledger(), failure, console, as_json)


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
        console.print(headline(ledger), soft_wrap=True)
        console.print(table(ledger))
    for problem in ledger.problems():
        notice(f"the ledger does not sum: {problem}")
    if failure:
        fail(failure)
    if ledger.problems():
        sys.exit(1)


def _reload(link: Link, pipeline: Path, beside: Pipeline | None) -> str:
    """Read the pipeline again and put it in place; what to say of it.  One that is refused leaves the old one."""
    try:
        built = load(pipeline)
        if Mirror in built.pipeline.steps and Mirror not in link.pipeline.steps:
            raise ValueError("rules that mirror from now on want a new run, with --copies")
        took = link.update(built, shadow=beside)
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


@app.command("demo")
def run_demo(
    write: Annotated[Path, typer.Option("-w", "--write", metavar="FILE", help="The capture file.")] = Path(
        "demo.pcapng"
    ),
    duration: Annotated[float, typer.Option("--duration", min=0.1, help="Seconds of traffic.")] = 3,
) -> None:
    """See it work: a veth lab of its own, live traffic filtered, captured and counted.  Needs root, touches no device.

    Example: xdpkit demo -w /tmp/demo.pcapng
    """
    from .demo import PIPELINE, RATE_PPS, demo

    console = make_console()
    console.print(f"pipeline {os.path.relpath(PIPELINE)}:", style="bold")
    for rule in load_file(PIPELINE).outcomes:
        console.print(visible(f"  {rule.name:<8} {rule}"))
    console.print(f"traffic: {RATE_PPS:,} packets/s asked for, {duration:g} s, over a veth pair of two queues\n")
    with signals() as stop:

        def watch(link: Link, workers: Workers, seconds: float) -> None:
            Watched(link, stop, seconds, 0, console, False).run(workers)

        ledger, arrived = demo(write, duration, watch)
    console.print(headline(ledger), soft_wrap=True)
    console.print(table(ledger))
    for problem in ledger.problems():
        raise OSError(f"the ledger does not sum: {problem}")
    if arrived != ledger.seen:
        raise OSError(f"{arrived} packets arrived but the program saw {ledger.seen}")
    size = write.stat().st_size
    console.print(f"\nevery packet is accounted for: {arrived:,} sent, {ledger.seen:,} seen, {ledger.lost:,} lost")
    console.print(visible(f"capture: {write} ({size:,} bytes); look at it with: tcpdump -nr {write}"), soft_wrap=True)


@app.command("doctor")
def run_doctor(
    device: Annotated[str, typer.Argument(metavar="[DEV]", help="A device to look at as well.")] = "",
    clean_up: Annotated[
        bool, typer.Option("--clean", help="Take off XDP programs that no process and no pin holds.  Asks first.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="With --clean: do not ask.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The findings as JSON.")] = False,
) -> None:
    """Say what kernel, driver and device can do, who holds the device, and what to do about each problem.

    Exit status 1 if there is a problem.  Example: xdpkit doctor eth1
    """
    if clean_up and not device:
        raise typer.BadParameter("--clean wants a device")
    if clean_up:
        _clean(device, force)
        return
    findings = examine(device or None)
    if as_json:
        print(findings_json(findings))
    else:
        render(findings, make_console())
    if any(f.status == "problem" for f in findings):
        sys.exit(1)


def _clean(device: str, force: bool) -> None:
    """Take off what nothing holds, if the user says so: it may be a firewall."""
    try:
        for line in clean(device, force=force):
            print_line(line)
    except OSError as error:
        if error.errno != errno.ECANCELED or not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise
        print_line(str(error.strerror).partition(", and may be wanted")[0])
        if not typer.confirm("It may be a firewall that somebody wants.  Take it off?"):
            sys.exit(1)
        _clean(device, True)


app.command("show")(show_command)
app.command("replay")(replay_command)
app.command("build")(build_command)
app.add_typer(sets)
app.add_typer(bench)


@app.command("version")
def show_version() -> None:
    """Print the version."""
    print(version("xdpkit"))


if __name__ == "__main__":
    main()

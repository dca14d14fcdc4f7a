"""The ``xdpkit`` command.  Exit status 0, 1 for a failure, 2 for wrong usage; errors are one line on standard error."""

from __future__ import annotations

import io
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import IO, Annotated, NoReturn

import typer
from rich.console import Console, Group
from rich.live import Live

from . import netdev
from .attach import BINDS, MODES, Link, attach, parse_choice
from .built import load
from .cli_bench import bench
from .cli_sets import sets
from .doctor import examine
from .errors import FrameError, NotSupported, PipelineError, VerifierError
from .findings import as_json as findings_json
from .findings import render
from .holders import clean
from .live import headline, table
from .offline import PipelineFile, build_command, replay_command, show_command
from .options import SocketOptions
from .pipeline import load_file
from .workers import WAITS, Workers, open_capture

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
    try:
        app()
    except (PipelineError, VerifierError, NotSupported, FrameError, OSError) as error:
        fail(error)
    sys.exit(0)


def fail(error: Exception) -> NoReturn:
    """Print ``error`` on standard error and exit with 1."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    print(f"xdpkit: {text}", file=sys.stderr)
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
    wait: Annotated[str, typer.Option(help="What workers do when idle: adaptive, busy (never sleep), sleep.")] = WAITS[
        0
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print the final ledger as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No live table.")] = False,
) -> None:
    """Attach a pipeline to a device until Ctrl-C, then print where every packet went.

    Redirected packets are written with -w, else counted.  Nothing is left behind, however the run ends.

    Example: xdpkit run pipelines/dns.py -i eth1 -w dns.pcapng --duration 60
    """
    if write == "-" and as_json:
        raise typer.BadParameter("-w - and --json both want standard output")
    built = load(pipeline)
    pipe = built.pipeline
    wanted = parse_queues(queues) if queues else None
    options = _socket_options(option or [])
    if wait not in WAITS:
        raise typer.BadParameter(f"--wait {wait}: {', '.join(WAITS)}")
    redirects = "REDIRECT" in pipe.verdicts
    if write and not redirects:
        raise typer.BadParameter(f"-w: {pipeline} has no REDIRECT rule, so there is nothing to write")
    console = Console(stderr=bool(write == "-" or as_json))
    with ExitStack() as stack:
        file = stack.enter_context(_capture_file(write)) if write else None
        stop = stack.enter_context(_stop_signals())
        try:
            link = attach(built, device, mode=mode, bind=bind, queues=wanted, timestamps=bool(write), options=options)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        failure: OSError | None = None
        with link:
            try:
                if redirects:
                    with link.sockets() as sockets:
                        workers = (
                            sockets.write(file, limit=count, snaplen=snaplen, wait=wait)
                            if file
                            else sockets.count(limit=count, wait=wait)
                        )
                        with workers:
                            _watch(link, workers, stop, duration, count, console, quiet)
                else:
                    _watch(link, None, stop, duration, count, console, quiet)
            except OSError as error:
                failure = error
        ledger = link.ledger()
    if as_json:
        print(ledger.json())
    else:
        console.print(headline(ledger), soft_wrap=True)
        console.print(table(ledger))
    for problem in ledger.problems():
        print(f"xdpkit: the ledger does not sum: {problem}", file=sys.stderr)
    if failure:
        fail(failure)
    if ledger.problems():
        sys.exit(1)


def _watch(
    link: Link,
    workers: Workers | None,
    stop: Stop,
    duration: float,
    count: int,
    console: Console,
    quiet: bool,
) -> None:
    """Until stopped, out of time, enough packets, or the device is gone (OSError); meanwhile show the live table."""
    start = time.monotonic()
    show = console.is_terminal and not quiet
    if not show and not quiet:
        print(f"xdpkit: {link.program.pipeline.name} on {link.device.name}: {link.got}", file=sys.stderr)
    with Live(console=console, auto_refresh=False, transient=True) if show else ExitStack() as live:
        before = link.ledger()
        while True:
            left = duration - (time.monotonic() - start) if duration else 1.0
            if left <= 0 or stop.wait(min(left, 0.05 if count and not show else 0.25)):
                return
            if workers is not None and workers.done:
                return
            netdev.stats(link.device.index)  # OSError when the device is gone
            if not show and not (count and workers is None):
                continue
            ledger = link.ledger()
            if workers is None and count and ledger.seen >= count:
                return
            if isinstance(live, Live) and ledger.seconds - before.seconds >= 0.2:
                live.update(Group(headline(ledger), table(ledger, before)), refresh=True)
                before = ledger


@contextmanager
def _capture_file(path: str) -> Iterator[IO[bytes]]:
    """The capture file; one that was made here and stays empty is removed again."""
    existed = path == "-" or os.path.lexists(path)
    file = open_capture(path)
    try:
        yield file
    finally:
        empty = not existed and os.fstat(file.fileno()).st_size == 0
        file.close()
        if empty:
            os.unlink(path)


class Stop:
    """What SIGINT, SIGTERM and SIGHUP ask for.  No threading.Event: its lock is held for a moment by who waits, and a
    signal handler that runs in that moment, in the same thread, would wait for it for ever."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def set(self, *_: object) -> None:
        """The signal handler."""
        os.eventfd_write(self._fd, 1)

    def wait(self, timeout: float) -> bool:
        """True once a signal came; False after ``timeout`` seconds."""
        return bool(select.select([self._fd], [], [], timeout)[0])

    def close(self) -> None:
        """Close the descriptor; the handlers are gone."""
        os.close(self._fd)


@contextmanager
def _stop_signals() -> Iterator[Stop]:
    stop = Stop()
    previous = {s: signal.signal(s, stop.set) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        stop.close()


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
    from .demo import PIPELINE, RATE_PPS, demo  # noqa: PLC0415  scapy takes half a second to import

    console = Console()
    console.print(f"pipeline {os.path.relpath(PIPELINE)}:", style="bold")
    for rule in load_file(PIPELINE).outcomes:
        console.print(f"  {rule.name:<8} {rule}", markup=False, highlight=False)
    console.print(f"traffic: {RATE_PPS:,} packets/s asked for, {duration:g} s, over a veth pair of two queues\n")
    with _stop_signals() as stop:

        def watch(link: Link, workers: Workers, seconds: float) -> None:
            _watch(link, workers, stop, seconds, 0, console, False)

        ledger, arrived = demo(write, duration, watch)
    console.print(headline(ledger), soft_wrap=True)
    console.print(table(ledger))
    for problem in ledger.problems():
        raise OSError(f"the ledger does not sum: {problem}")
    if arrived != ledger.seen:
        raise OSError(f"{arrived} packets arrived but the program saw {ledger.seen}")
    size = write.stat().st_size
    console.print(f"\nevery packet is accounted for: {arrived:,} sent, {ledger.seen:,} seen, {ledger.lost:,} lost")
    console.print(
        f"capture: {write} ({size:,} bytes); look at it with: tcpdump -nr {write}", soft_wrap=True, highlight=False
    )


@app.command("doctor")
def run_doctor(
    device: Annotated[str, typer.Argument(metavar="[DEV]", help="A device to look at as well.")] = "",
    clean_up: Annotated[
        bool, typer.Option("--clean", help="Take off XDP programs that nobody holds any more.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The findings as JSON.")] = False,
) -> None:
    """Say what kernel, driver and device can do, who holds the device, and what to do about each problem.

    Exit status 1 if there is a problem.  Example: xdpkit doctor eth1
    """
    if clean_up and not device:
        raise typer.BadParameter("--clean wants a device")
    if clean_up:
        for line in clean(device):
            print(line)
        return
    findings = examine(device or None)
    if as_json:
        print(findings_json(findings))
    else:
        render(findings, Console(highlight=False))
    if any(f.status == "problem" for f in findings):
        sys.exit(1)


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

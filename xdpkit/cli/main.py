"""The ``xdpkit`` command: what it takes, and how its errors end.

Exit status 0, 1 for a failure, 2 for wrong usage; errors are one line on standard error.  Commands are declared here
and in ``offline``, ``sets`` and ``bench``.  What a command needs is imported when it runs: it does not wait for the
modules of others.
"""

from __future__ import annotations

import errno
import io
import os
import sys
import warnings
from pathlib import Path
from typing import IO, Annotated, NoReturn

import typer

from ..language.errors import FrameError, NotSupported, PipelineError, VerifierError
from ..terminal import notice, print_line, shortened, visible
from .bench import bench
from .failure import fail
from .firewall import firewall
from .offline import PipelineFile, build_command, replay_command, show_command
from .sets import sets

#: What typer raises for wrong usage: the class that holds a message to show and an exit status.
_WrongUsage: type[Exception] = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="xdpkit",
    help="Declare a packet filter pipeline in Python, run it at XDP, capture and count what it redirects.",
    epilog="Example: xdpkit run pipelines/dns.py -i eth1 -w dns.pcapng",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        show_version()
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Declare a packet filter pipeline in Python, run it at XDP, capture and count what it redirects."""


def main() -> NoReturn:
    """Entry point: errors that a user can cause end as one line, never as a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may be any bytes
    warnings.showwarning = _show_warning
    status = None
    try:
        status = app(prog_name="xdpkit", standalone_mode=False)
        sys.stdout.flush()
    except _WrongUsage as error:
        _show_usage(error)
    except typer.Abort:
        sys.exit(1)
    except BrokenPipeError as error:
        _abandon_output()
        fail(error)
    except (PipelineError, VerifierError, NotSupported, FrameError, OSError) as error:
        _abandon_output()
        fail(error)
    except (ImportError, MemoryError, SystemError) as error:  # SystemError: an import without memory
        lines = str(error).split("\n")  # numpy's is a page, with the cause at its end
        fail(OSError(next((line for line in reversed(lines) if line), "out of memory")))
    except RuntimeError as error:
        if "start new thread" not in str(error):
            raise
        fail(OSError(f"{error}: no memory, or too many threads (ulimit -v, ulimit -u)"))
    sys.exit(status if isinstance(status, int) else 0)


def _abandon_output() -> None:
    """Drop the buffer of standard output, which cannot be written, so that Python does not try again at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def _show_usage(error: Exception) -> NoReturn:
    """Print what the parser of the command line has to say, and exit with 2."""
    text = io.StringIO()
    error.show(text)  # type: ignore[attr-defined]
    for line in text.getvalue().splitlines():
        print_line(shortened(line), file=sys.stderr)
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
    notice(f"{visible(filename)}:{lineno}: {message}")


def _choice(name: str) -> object:
    def parse(value: str) -> str:
        from ..link.attach import BINDS, MODES, parse_choice

        value = value.replace("af-packet", "af_packet").replace("tc-", "tc_").replace("zero-copy", "zerocopy")
        try:
            parse_choice(name, value, {"mode": MODES, "bind": BINDS}[name])
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        return value

    return parse


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
            callback=_choice("mode"),
            help="auto, native, generic, tc_ingress, tc_egress, af_packet, or want:NAME to prefer one.",
        ),
    ] = "auto",
    bind: Annotated[
        str, typer.Option(callback=_choice("bind"), help="auto, zerocopy, copy, or want:NAME to prefer one.")
    ] = "auto",
    queues: Annotated[str, typer.Option("--queues", metavar="Q", help="RX queues, as in 0-3,5.  Default: all.")] = "",
    option: Annotated[
        list[str] | None,
        typer.Option(
            "-o", "--option", metavar="NAME=VALUE", help="Socket option: ring_size=4096, busy_poll=want:on ..."
        ),
    ] = None,
    wait: Annotated[
        str,
        typer.Option(help="What workers do when idle: adaptive, busy, sleep, nap.  Default: nap for copies and TC."),
    ] = "",
    copies: Annotated[
        str, typer.Option(metavar="FILE", help="Write the copies that rules mirror to a pcapng file; - for stdout.")
    ] = "",
    copies_buffer: Annotated[
        str,
        typer.Option(
            metavar="SIZE", help="Memory for copies on their way, all CPUs together, as in 256M.  Default: up to 64M."
        ),
    ] = "",
    shadow: Annotated[
        Path | None,
        typer.Option(metavar="PIPELINE", exists=True, dir_okay=False, help="A shadow: rules that only count."),
    ] = None,
    promisc: Annotated[
        bool, typer.Option("--promisc", help="Receive frames for every MAC address while it runs.")
    ] = False,
    confirm: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=0, help="Take it off again unless Enter or SIGUSR2 comes within SECONDS."),
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the final ledger as JSON.")] = False,
    json_lines: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=0, help="A line of JSON every SECONDS, and at the end."),
    ] = 0,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No live table.")] = False,
) -> None:
    """Attach a pipeline to a device until Ctrl-C, then print where every packet went.

    Redirected packets are written with -w, else counted; what rules log is printed on standard error.  SIGUSR1 reads
    the pipeline again and puts it in place without losing a packet.  Nothing is left behind, however the run ends.

    With --confirm the pipeline is taken off again, with exit status 1, unless you answer: a rule that cuts off your own
    session undoes itself.

    Example: xdpkit run pipelines/dns.py -i eth1 -w dns.pcapng --duration 60

    Example: xdpkit run pipelines/firewall.py -i eth1 --confirm 30
    """
    from .run import RunOptions
    from .run import run as attach_and_run

    options = RunOptions(
        pipeline=pipeline, device=device, write=write, count=count, duration=duration, snaplen=snaplen, mode=mode,
        bind=bind, queues=queues, option=tuple(option or ()), wait=wait, copies=copies,
        copies_buffer=copies_buffer, shadow=shadow, confirm=confirm, as_json=as_json, json_lines=json_lines,
        quiet=quiet, promisc=promisc,
    )  # fmt: skip
    attach_and_run(options)


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
    from .demo import show_demo

    show_demo(write, duration)


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
    from ..doctor.doctor import examine
    from ..doctor.findings import as_json as findings_json
    from ..doctor.findings import render
    from ..terminal import make_console

    if clean_up and not device:
        raise typer.BadParameter("--clean wants a device")
    try:
        if clean_up:
            _clean(device, force)
            return
        findings = examine(device or None)
    except ValueError as error:  # a name that no device can have
        raise typer.BadParameter(str(error)) from None
    if as_json:
        print(findings_json(findings))
    else:
        render(findings, make_console())
    if any(f.status == "problem" for f in findings):
        sys.exit(1)


def _clean(device: str, force: bool) -> None:
    """Detach programs that nothing holds, after asking the user, because one may be a firewall."""
    from ..kernel.holders import clean

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
app.add_typer(firewall)


@app.command("example")
def example(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="The one to print; without it: a list.")] = "",
) -> None:
    """List the pipelines that come with xdpkit, or print one to start from.

    Example: xdpkit example dns > dns.py
    """
    from .example import list_examples, print_example

    if name:
        print_example(name)
    else:
        list_examples()


@app.command("version")
def show_version() -> None:
    """Print the version."""
    from importlib.metadata import version

    print(version("xdpkit"))


if __name__ == "__main__":
    main()

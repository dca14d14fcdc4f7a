"""``xdpkit bench``: measure on this machine, in namespaces of its own."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from ..files.output import write_whole
from ..terminal import make_console, make_progress

bench = typer.Typer(
    name="bench",
    help="Compare AF_XDP with every other path of packets, on this machine, on veth pairs of its own.",
    epilog="Example: xdpkit bench paths --quick",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_LEAST, _MOST = 64, 9000


def _sizes(text: str) -> tuple[int, ...]:
    """Sizes of frames from "64,1518"."""
    try:
        sizes = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise typer.BadParameter(f"{text!r}: sizes are written 64,256,1518") from None
    if not all(_LEAST <= size <= _MOST for size in sizes):
        raise typer.BadParameter(f"{text}: frames are {_LEAST} to {_MOST} bytes long")
    return sizes


@bench.callback()
def about() -> None:
    """Keeps ``paths`` a command of its own."""


@bench.command("paths")
def paths_command(
    quick: Annotated[
        bool, typer.Option("--quick", help="One short run each, 64 bytes, no tools: under a minute.")
    ] = False,
    sizes: Annotated[str, typer.Option(metavar="N,N", help="Bytes of a frame.  [default: 64,256,1518,9000]")] = "",
    only: Annotated[str, typer.Option(metavar="NAME,NAME", help='Paths to measure; "waits" for ways of waiting.')] = "",
    runs: Annotated[int, typer.Option(min=1, help="Runs of each path at the first size.")] = 5,
    duration: Annotated[float, typer.Option("--duration", min=0.05, help="Seconds of each run.")] = 1.0,
    seconds: Annotated[float | None, typer.Option("--seconds", min=0.05, hidden=True)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything as JSON in place of the tables.")] = False,
    output: Annotated[str, typer.Option("-o", "--output", metavar="FILE", help="Everything as JSON in a file.")] = "",
    html: Annotated[str, typer.Option(metavar="FILE", help="One page with charts; wants matplotlib.")] = "",
) -> None:
    """The same packets through every path there is: rates, losses, CPU, system calls, delays; then verdicts.

    Root, at least 2 CPUs, a quiet machine.  Figures compare within one run only.

    Example: xdpkit bench paths --html paths.html -o paths.json
    """
    from ..bench.page import page, require_matplotlib
    from ..bench.report import as_json as report_json
    from ..bench.report import machine, show
    from ..bench.run import Plan, measure

    if len(os.sched_getaffinity(0)) < 2:
        raise OSError("a comparison needs two CPUs: one sends, the other receives")
    if html:
        require_matplotlib()
    names = tuple(only.split(",")) if only else ()
    if quick:
        some, rates = _sizes(sizes or "64"), (10_000, 100_000)
        plan = Plan(sizes=some, runs=1, seconds=0.15, rates=rates, pings=500, tools=False, only=names)
    else:
        plan = Plan(sizes=_sizes(sizes or "64,256,1518,9000"), runs=runs, seconds=seconds or duration, only=names)
    facts = machine()
    with make_progress() as progress:
        task = progress.add_task("measuring")
        try:
            results = measure(
                plan, lambda done, total, what: progress.update(task, completed=done, total=total, description=what)
            )
        except ValueError as error:
            raise typer.BadParameter(f"--only: {error}") from None
    if as_json:
        print(report_json(plan, results, facts))
    else:
        show(make_console() if sys.stdout.isatty() else make_console(width=170), results, facts)
    if output:
        write_whole(output, report_json(plan, results, facts))
    if html:
        write_whole(html, page(results, facts))

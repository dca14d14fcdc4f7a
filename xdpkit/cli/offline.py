"""The offline commands: ``build``, ``show`` and ``replay``.  None needs a device; only the kernel engine needs root.

What they do is in modules of their own, which are imported when a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PipelineFile = Annotated[
    Path,
    typer.Argument(
        metavar="PIPELINE", exists=True, dir_okay=False, help="Python file that declares `pipe`, or a built one."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="The same as JSON.")]


def build_command(
    pipeline: PipelineFile,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The file to write.")],
) -> None:
    """Compile a pipeline for every hook into one file.  `run`, `replay` and `show` take it where llvmlite is missing.

    Example: xdpkit build pipelines/firewall.py -o firewall.xdp
    """
    from .build import build_file

    build_file(pipeline, output)


def show_command(
    pipeline: PipelineFile,
    hook: Annotated[str, typer.Option(help="Which program: xdp, xdp_frags, tc, socket.")] = "xdp",
    rules_only: Annotated[bool, typer.Option("--rules", help="Only the instructions that came from rules.")] = False,
    stages: Annotated[
        bool, typer.Option("--stages", help="Every stage: declaration, LLVM IR, assembly, and the cost in the kernel.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print the compiled program beside the Python lines it came from.  Needs no privilege; --stages measures as root.

    Example: xdpkit show pipelines/firewall.py --rules
    """
    from .show import show

    show(pipeline, hook, rules_only=rules_only, stages=stages, as_json=as_json)


def _existing(paths: list[Path]) -> list[Path]:
    """The captures, of which "-" is standard input."""
    for path in paths:
        if str(path) != "-" and not path.exists():
            raise typer.BadParameter(f"file {str(path)!r} does not exist")
        if path.is_dir():
            raise typer.BadParameter(f"{str(path)!r} is a directory")
    return paths


def replay_command(
    pipeline: PipelineFile,
    captures: Annotated[
        list[Path],
        typer.Argument(
            metavar="CAPTURE...",
            callback=_existing,
            help="pcap or pcapng, also .gz, .zst; - for standard input.",
        ),
    ],
    against: Annotated[
        Path | None,
        typer.Option(metavar="PIPELINE", exists=True, dir_okay=False, help="Another ruleset: list what differs."),
    ] = None,
    engine: Annotated[str, typer.Option(help="kernel (needs root), reference, or auto.")] = "auto",
    write_to: Annotated[
        str,
        typer.Option("-w", "--write", metavar="FILE", help="Write packets, unaltered, to a pcapng file; - for stdout."),
    ] = "",
    verdict: Annotated[
        str,
        typer.Option(
            metavar="V", help="List the rules of this verdict; with -w, write its packets (default: all but DROP)."
        ),
    ] = "",
    inside: Annotated[
        str, typer.Option(metavar="NAME", help="The interface of the captures that dev.inside means.")
    ] = "",
    outside: Annotated[str, typer.Option(metavar="NAME", help="The one that dev.outside means.")] = "",
    as_json: AsJson = False,
) -> None:
    """Run captures through a pipeline: verdicts per rule.  With --against, every difference between two rulesets.

    Example: xdpkit replay new.py monday.pcapng.gz --against running.py
    """
    from .replay import replay_captures

    replay_captures(
        pipeline, captures, against, engine, write_to, verdict, as_json=as_json, inside=inside, outside=outside
    )

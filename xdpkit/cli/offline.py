"""The offline commands: ``build``, ``show`` and ``replay``.  None needs a device; only the kernel engine needs root."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import IO, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..compiler import HOOKS, Compiled, compile_pipeline
from ..compiler.built import Built, as_built, build, load, needs, write
from ..compiler.listing import listing
from ..files import pcapng
from ..files.output import empty_regular_file
from ..files.reader import CapturedPacket, Skipped, read_captures
from ..kernel.program import may_load
from ..language.actions import Verdict
from ..language.rule import Rule
from ..link.ruleset import Ruleset
from ..replay import ENGINES, Replay, replay, summary
from ..sockets.workers import open_capture
from ..terminal import counted, make_console, make_progress, notice, print_line, visible

PipelineFile = Annotated[
    Path,
    typer.Argument(
        metavar="PIPELINE", exists=True, dir_okay=False, help="Python file that declares `pipe`, or a built one."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="The same as JSON.")]
#: A minimal frame for measuring a program that matches nothing in it: 64 bytes of UDP.
_PROBE = bytes.fromhex("02000000000202000000000108004500003200000000401139b8c6120001c613000104000009001e0000") + bytes(
    22
)


def build_command(
    pipeline: PipelineFile,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The file to write.")],
) -> None:
    """Compile a pipeline for every hook into one file.  `run`, `replay` and `show` take it where llvmlite is missing.

    Example: xdpkit build pipelines/firewall.py -o firewall.xdp
    """
    built = build(load(pipeline).pipeline)
    write(built, output)
    size = sum(len(compiled.object) for compiled in built.programs.values())
    print_line(
        f"{output}: pipeline {built.pipeline.name}, {len(built.pipeline.rules)} rules, {size:,} bytes of objects"
    )
    print_line(f"  digest {built.pipeline.digest()}")
    for hook, compiled in built.programs.items():
        wanted = "; ".join(needs(built.pipeline, hook))
        print_line(f"  {hook}: {len(compiled.object):,} bytes of object; needs {wanted}")


def show_command(
    pipeline: PipelineFile,
    hook: Annotated[str, typer.Option(help=f"Which program: {', '.join(HOOKS)}.")] = "xdp",
    rules_only: Annotated[bool, typer.Option("--rules", help="Only the instructions that came from rules.")] = False,
    stages: Annotated[
        bool, typer.Option("--stages", help="Every stage: declaration, LLVM IR, assembly, and the cost in the kernel.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print the compiled program beside the Python lines it came from.  Needs no privilege; --stages measures as root.

    Example: xdpkit show pipelines/firewall.py --rules
    """
    if hook not in HOOKS:
        raise typer.BadParameter(f"--hook {hook!r}: one of {', '.join(HOOKS)}")
    built = load(pipeline)
    compiled = built.programs.get(hook) or compile_pipeline(built.pipeline, hook, assembly=True)
    cost = _cost(compiled) if stages else None
    if as_json:
        print(json.dumps(_show_json(compiled, rules_only, cost)))
        return
    console = make_console(soft_wrap=True)
    pipe = built.pipeline
    console.print(
        visible(f"{pipe.name}: {counted(len(pipe.rules), 'rule')}, default {pipe.default}, hook {hook}"), style="bold"
    )
    for index, rule in enumerate(pipe.outcomes):
        console.print(visible(f"{index:>5}  {rule.name}: {rule}" + (f"   {rule.where}" if stages else "")))
    for table in compiled.tables:
        first, last = pipe.outcomes[table.first], pipe.outcomes[table.last]
        console.print(visible(f"{table} ({first.where} to {last.where})"))
    if stages:
        console.print("\nLLVM IR of classify()", style="bold")
        console.print(visible(compiled.ir.strip(), keep="\t\n") or "(not kept in a built file)")
        console.print("\nBPF assembly", style="bold")
    for block in listing(compiled.assembly):
        if rules_only and not block.python:
            continue
        place = f"{os.path.basename(block.where.file)}:{block.where.line}"
        console.print(
            visible(f"{place}  {block.text}".rstrip(), keep="\t"), style="bold green" if block.python else "dim"
        )
        for number, text in block.instructions:
            console.print(visible(text if number is None else f"{number:>8}: {text}", keep="\t"))
    if cost is not None:
        console.print("\ncost", style="bold")
        for name, value in cost.items():
            console.print(visible(f"  {name:<24} {value}"))


def _cost(compiled: Compiled) -> dict[str, Any]:
    """Compile times, and where the program may be loaded its size, verifier work and ns per packet (the kernel's own
    measure, best of 5 runs of 100,000, on a 64-byte UDP packet)."""
    cost: dict[str, Any] = {f"{name} ms": round(ns / 1e6, 1) for name, ns in compiled.steps_ns}
    try:
        touches = any(spec.pinned for spec in compiled.pipeline.sets)  # a set that others use is left alone
        with Ruleset(as_built(compiled), compiled.hook, explain=touches) as ruleset:
            program = ruleset.program
            info = program.info()
            cost |= {"instructions": info["xlated_bytes"] // 8, "machine code bytes": info["jited_bytes"]}
            cost |= {"verified instructions": info["verified_instructions"]}
            if compiled.hook.startswith("xdp") and compiled.pipeline.metadata:
                cost["metadata"] = "absent in a test run: asking the driver is not in these figures"
            cost["ns per packet"] = min(program.test_run(_PROBE, repeat=100_000)[1] for _ in range(5))
    except PermissionError as error:
        cost["in the kernel"] = f"not measured: {error.strerror}"
    return cost


def _show_json(compiled: Compiled, rules_only: bool, cost: dict[str, Any] | None) -> dict[str, Any]:
    blocks = [
        {"file": b.where.file, "line": b.where.line, "text": b.text, "instructions": [list(i) for i in b.instructions]}
        for b in listing(compiled.assembly)
        if b.python or not rules_only
    ]
    pipe = compiled.pipeline
    rules = [
        {"name": r.name, "condition": str(r.expr), "action": str(r.action), "file": r.where.file, "line": r.where.line}
        for r in pipe.outcomes
    ]
    out = {"pipeline": pipe.name, "hook": compiled.hook, "digest": pipe.digest(), "rules": rules, "blocks": blocks}
    out["tables"] = [asdict(table) for table in compiled.tables]
    return out if cost is None else out | {"ir": compiled.ir, "cost": cost}


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
    as_json: AsJson = False,
) -> None:
    """Run captures through a pipeline: verdicts per rule.  With --against, every difference between two rulesets.

    Example: xdpkit replay new.py monday.pcapng.gz --against running.py
    """
    if engine not in (*ENGINES, "auto"):
        raise typer.BadParameter(f"--engine {engine!r}: auto, {', '.join(ENGINES)}")
    if verdict and verdict.upper() not in Verdict.__members__:
        raise typer.BadParameter(f"--verdict {verdict!r}: one of {', '.join(Verdict.__members__)}")
    if write_to == "-" and as_json:
        raise typer.BadParameter("-w - and --json both want standard output")
    if write_to not in ("", "-") and any(_same(write_to, p) for p in captures):
        raise typer.BadParameter(f"-w {write_to}: that is a capture to read; write to another file")
    built, other = load(pipeline), load(against) if against else None
    if engine == "auto":  # rules that remember must see every packet, and the kernel's test run does not take all
        remembers = any(b.pipeline.remembers for b in (built, other) if b is not None)
        engine = "kernel" if may_load() and not remembers else "reference"
    with ExitStack() as stack:
        out = stack.enter_context(open_capture(write_to)) if write_to else None
        progress = stack.enter_context(make_progress())
        regular = all(p.is_file() for p in captures)
        task = progress.add_task("replaying", total=sum(p.stat().st_size for p in captures) if regular else None)
        skipped = Skipped()
        packets = read_captures(captures, lambda n: progress.advance(task, n), skipped)
        take = _Writer(out, verdict.upper(), captures) if out else lambda *_: False
        result = replay(packets, built, against=other, engine=engine, take=take)
    if as_json:
        told = {"pipeline": built.pipeline.name, "engine": engine, "absent": _metadata(built, other)}
        print(json.dumps(told | result.as_dict() | {"skipped": skipped.lines()}))
    else:
        console = make_console(stderr=write_to == "-")
        _print_replay(console, built, other, engine, result, write_to, verdict.upper())
    for line in skipped.lines():
        notice(line)
    if result.error:
        raise result.error
    if skipped:
        raise typer.Exit(1)


def _same(path: str, other: Path) -> bool:
    return os.path.exists(path) and os.path.samefile(path, other)


class _Writer:
    """Writes packets as pcapng, with one interface for each file that is read, also where none of its packets is
    kept: readers refuse a file without an interface."""

    def __init__(self, file: IO[bytes], verdict: str, captures: list[Path]):
        self.file, self.verdict = file, verdict
        names = dict.fromkeys("standard input" if str(path) == "-" else str(path) for path in captures)
        self.interfaces = {name: number for number, name in enumerate(names)}
        empty_regular_file(file)
        file.write(pcapng.section("xdpkit replay") + b"".join(pcapng.interface(os.path.basename(n)) for n in names))

    def __call__(self, packet: CapturedPacket, rule: Rule) -> bool:
        name = rule.action.verdict.name
        if name != self.verdict if self.verdict else name == "DROP":
            return False
        self.file.write(pcapng.packet(self.interfaces[packet.file], packet.time_ns, packet.data, packet.wire_bytes))
        return True


def _metadata(*pipelines: Built | None) -> list[str]:
    """The metadata fields that rules test; a capture has none."""
    return list(dict.fromkeys(name for built in pipelines if built for name in built.pipeline.metadata))


def _print_replay(
    console: Console, built: Built, other: Built | None, engine: str, result: Replay, path: str, verdict: str
) -> None:
    table = Table(box=None, pad_edge=False)
    for column, justify in (("rule", "left"), ("verdict", "left"), ("packets", "right"), ("bytes", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for rule in result.rules:
        if verdict and rule.action.verdict.name != verdict:
            continue
        table.add_row(
            visible(rule.name),
            visible(("goes on: " if rule.goes_on else "") + rule.then),
            f"{result.packets[rule.name]:,}",
            f"{result.bytes[rule.name]:,}",
        )
    table.add_row("all", "", f"{result.total:,}", f"{result.total_bytes:,}", style="bold")
    console.print(f"{built.pipeline.name} ({engine} engine)", style="bold")
    console.print(table)
    if engine == "kernel" and result.by_reference:
        console.print(
            f"judged by the reference: {counted(result.by_reference, 'packet')}, cut short, or of no length XDP takes"
        )
    if metadata := _metadata(built, other):
        console.print(f"captures carry no metadata: every test of {', '.join(metadata)} was false")
    if path:
        console.print(visible(f"{counted(result.written, 'packet')} written to {path}"), soft_wrap=True)
    if other is None:
        return
    console.print(f"\nagainst {other.pipeline.name}:", style="bold")
    if not result.differences:
        console.print(f"no difference on {counted(result.total, 'packet')}")
    for d in result.differences:
        change = f"{d.other.action} -> {d.rule.action}" if d.changes_verdict else f"{d.rule.action}, by another rule"
        console.print(
            visible(
                f"{counted(d.packets, 'packet')}: {change}"
                f"   (was {d.other.name}, {d.other.where}; now {d.rule.name}, {d.rule.where})"
            ),
            style="bold red" if d.changes_verdict else "", soft_wrap=True,
        )  # fmt: skip
        for e in d.examples:
            name = os.path.basename(e.file)
            console.print(visible(f"    {name} #{e.number}: {summary(e.data)}"), soft_wrap=True)

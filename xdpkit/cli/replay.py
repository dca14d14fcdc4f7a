"""What ``xdpkit replay`` does: captures through a pipeline, and what two rulesets do differently."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import typer
from rich.table import Table

from ..compiler.built import Built, load
from ..files import pcapng
from ..files.output import append_blocks, empty_regular_file
from ..files.reader import CapturedPacket, Skipped, read_captures
from ..kernel.program import may_load
from ..language.actions import Verdict
from ..language.devices import SIDES
from ..language.rule import Rule
from ..meaning.describe import describe
from ..replay import ENGINES, Replay, replay
from ..sockets.workers import open_capture
from ..terminal import counted, make_console, make_progress, notice, print_table, si, visible

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["replay_captures"]

#: Seconds between two lines of progress where no terminal is.
NOTICE_SECONDS = 10.0


def replay_captures(
    pipeline: Path, captures: list[Path], against: Path | None, engine: str, write_to: str, verdict: str, *,
    as_json: bool, inside: str = "", outside: str = "",
) -> None:  # fmt: skip
    """Judge ``captures`` by ``pipeline`` and print what became of them; exit with 1 where some were skipped."""
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
        way, skipped = _Way(captures), Skipped()
        task = progress.add_task("replaying", total=way.total)

        def advance(size: int) -> None:
            way.read += size
            progress.advance(task, size)

        packets = way.counted(read_captures(captures, advance, skipped))
        stack.enter_context(_progress_said(way.__str__))
        take = _Writer(out, verdict.upper(), captures) if out else lambda *_: False
        sides = {side: name for side, name in zip(SIDES, (inside, outside), strict=True) if name}
        result = replay(packets, built, against=other, engine=engine, take=take, sides=sides)
    if as_json:
        head = {"pipeline": built.pipeline.name, "engine": engine, "absent": _metadata(built, other)}
        print(json.dumps(head | result.as_dict() | {"skipped": skipped.lines()}))
    else:
        console = make_console(stderr=write_to == "-")
        _print_replay(console, built, other, engine, result, write_to, verdict.upper())
    for line in skipped.lines():
        notice(line)
    if result.error:
        raise result.error
    if skipped:
        raise typer.Exit(1)


@contextmanager
def _progress_said(text: Callable[[], str]) -> Iterator[None]:
    """Say how far it is every NOTICE_SECONDS while the block runs, where no terminal shows a progress bar."""
    if sys.stderr.isatty():
        yield
        return
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(NOTICE_SECONDS):
            notice(text())

    thread = threading.Thread(target=run, name="xdpkit-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class _Way:
    """How far reading is."""

    def __init__(self, captures: list[Path]):
        self.read, self.packets = 0, 0
        regular = all(p.is_file() for p in captures)
        self.total = sum(p.stat().st_size for p in captures) if regular else None

    def counted(self, packets: Iterable[CapturedPacket]) -> Iterator[CapturedPacket]:
        for packet in packets:
            self.packets += 1
            yield packet

    def __str__(self) -> str:
        size = si(self.read, "B") + (f" of {si(self.total, 'B')}" if self.total else "")
        return f"replaying: {size} read, {counted(self.packets, 'packet')} so far"


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
        interfaces = b"".join(pcapng.interface(os.path.basename(n)) for n in names)
        append_blocks(file, pcapng.section("xdpkit replay") + interfaces)

    def __call__(self, packet: CapturedPacket, rule: Rule) -> bool:
        name = rule.action.verdict.name
        if name != self.verdict if self.verdict else name == "DROP":
            return False
        number = self.interfaces[packet.file]
        block = pcapng.packet(number, packet.time_ns, packet.data, packet.wire_bytes, outbound=packet.outbound or None)
        append_blocks(self.file, block)
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
    print_table(console, table)
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
            console.print(visible(f"    {name} #{e.number}: {describe(e.data)}"), soft_wrap=True)

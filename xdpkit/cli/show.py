"""What ``xdpkit show`` does: the compiled program beside the Python lines it came from."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from ..compiler import HOOKS, Compiled, compile_pipeline
from ..compiler.built import as_built, load
from ..compiler.listing import listing
from ..link.ruleset import Ruleset
from ..terminal import counted, make_console, visible

__all__ = ["show"]

#: A minimal frame for measuring a program that matches nothing in it: 64 bytes of UDP.
_PROBE = bytes.fromhex("02000000000202000000000108004500003200000000401139b8c6120001c613000104000009001e0000") + bytes(
    22
)


def show(pipeline: Path, hook: str, *, rules_only: bool, stages: bool, as_json: bool) -> None:
    """Print the program of ``pipeline`` for ``hook``."""
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
    chain = ""
    for index, rule in enumerate(pipe.outcomes):
        if rule.chain != chain:
            console.print(visible(f"chain {rule.chain}:" if rule.chain else "otherwise:"))
            chain = rule.chain
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
        {
            "name": r.name,
            "chain": r.chain,
            "condition": str(r.expr),
            "action": str(r.action),
            "file": r.where.file,
            "line": r.where.line,
        }
        for r in pipe.outcomes
    ]
    out = {"pipeline": pipe.name, "hook": compiled.hook, "digest": pipe.digest(), "rules": rules, "blocks": blocks}
    out["tables"] = [asdict(table) for table in compiled.tables]
    return out if cost is None else out | {"ir": compiled.ir, "cost": cost}

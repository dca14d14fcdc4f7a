"""From a pipeline to the object of one hook, step by step: lower, link, optimise, emit."""

from __future__ import annotations

import time
import warnings

from ..language.check import PipelineWarning
from ..language.errors import NotSupported
from ..language.pipeline import Pipeline
from .compiled import HOOKS, Compiled

__all__ = ["compile_pipeline"]


def compile_pipeline(
    pipeline: Pipeline, hook: str = "xdp", *, assembly: bool = False, reader_metadata: tuple[str, ...] = ()
) -> Compiled:
    """Compile ``pipeline`` for ``hook``, one of HOOKS.  ``assembly=True`` also keeps the BPF assembly;
    ``reader_metadata``: see :class:`Compiled`.  Warns with PipelineWarning of chains that no packet comes to.  Raises
    NotSupported where llvmlite is missing, PipelineError where the rules are too many for one program, and ValueError
    for a hook that does not exist."""
    if hook not in HOOKS:
        raise ValueError(f"hook {hook!r}: one of {', '.join(HOOKS)}")
    if hook == "socket" and pipeline.tracking is not None:
        raise NotSupported(
            f"pipeline {pipeline.name!r} tracks connections", "XDP or TC: a socket filter sees copies of packets"
        )
    try:
        from .linker import check_reach, emit_assembly, emit_object, link_module, optimise
        from .lower import lower
    except ImportError as error:
        raise NotSupported("compiling a pipeline", f"pip install llvmlite, or build it elsewhere ({error})") from error
    for finding in pipeline.chain_findings():
        said = str(finding).removeprefix(f"{finding.where}: ")
        warnings.warn_explicit(said, PipelineWarning, finding.where.file, finding.where.line)
    steps, last = [], time.perf_counter_ns()

    def step(name: str) -> None:
        nonlocal last
        now = time.perf_counter_ns()
        steps.append((name, now - last))
        last = now

    rules = lower(pipeline, reader_metadata)
    step("lower")
    module = link_module(rules, hook)
    step("link")
    machine = optimise(module, large=rules.large)
    step("optimise")
    text = emit_assembly(module, machine) if assembly else ""
    last = time.perf_counter_ns()
    check_reach(module, machine, rules)
    code = emit_object(module, machine)
    step("emit")
    return Compiled(pipeline, hook, code, rules.text, text, tuple(steps), rules.tables, reader_metadata)

"""From pipeline to eBPF object, in process: ``lower`` (expressions to LLVM IR), ``link`` (with the bitcode of the fixed
data plane, optimise, emit), ``listing`` (the result beside the Python lines).

Nothing here does I/O but reading the bitcode that ships in the package; nothing knows the kernel.  llvmlite is imported
when something is compiled: pipelines that were built ahead run without it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from ..language.errors import NotSupported
from ..language.pipeline import Pipeline

__all__ = ["HOOKS", "Compiled", "TableInfo", "compile_pipeline"]

#: The hooks a pipeline compiles for; each has its bitcode in the package.  xdp_frags is XDP for packets of several
#: buffers, which only a device with a large MTU has: the price of reading them is paid there alone.
HOOKS = ("xdp", "xdp_frags", "tc", "socket")


@dataclass(frozen=True, slots=True)
class TableInfo:
    """Rules ``first`` to ``last`` (numbers in the pipeline) are looked up, not tried one by one: ``boxes`` in ``trees``
    decision trees of ``entries`` entries together; a packet looks at ``depth`` of them at most."""

    first: int
    last: int
    boxes: int
    trees: int
    entries: int
    depth: int

    def __str__(self) -> str:
        trees = "a decision tree" if self.trees == 1 else f"{self.trees} decision trees"
        return f"rules {self.first} to {self.last}: {trees}, {self.entries} entries, at most {self.depth} for a packet"


@dataclass(frozen=True, slots=True)
class Compiled:
    """An eBPF object (ELF bytes, BTF and line info inside) with what is needed to read its counters.  ``ir``: the LLVM
    IR of classify() before linking; ``assembly``: BPF assembly, empty unless asked for; ``steps_ns``: what each step of
    compiling took; ``tables``: the rules that became decision trees; ``tells``: metadata that an XDP program puts in
    front of redirected packets for readers (names of :data:`xdpkit.language.metadata.TOLD`)."""

    pipeline: Pipeline
    hook: str
    object: bytes = field(repr=False)
    ir: str = field(default="", repr=False)
    assembly: str = field(default="", repr=False)
    steps_ns: tuple[tuple[str, int], ...] = ()
    tables: tuple[TableInfo, ...] = ()
    tells: tuple[str, ...] = ()


def compile_pipeline(
    pipeline: Pipeline, hook: str = "xdp", *, assembly: bool = False, tells: tuple[str, ...] = ()
) -> Compiled:
    """Compile ``pipeline`` for ``hook``, one of HOOKS.  ``assembly=True`` also keeps the BPF assembly; ``tells``: see
    :class:`Compiled`.  Raises NotSupported where llvmlite is missing, PipelineError where the rules are too many for
    one program."""
    if hook not in HOOKS:
        raise ValueError(f"hook {hook!r}: one of {', '.join(HOOKS)}")
    try:
        from .linker import check_reach, emit_assembly, emit_object, link_module, optimise
        from .lower import lower
    except ImportError as error:
        raise NotSupported("compiling a pipeline", f"pip install llvmlite, or build it elsewhere ({error})") from error
    steps, last = [], time.perf_counter_ns()

    def step(name: str) -> None:
        nonlocal last
        now = time.perf_counter_ns()
        steps.append((name, now - last))
        last = now

    rules = lower(pipeline, tells)
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
    return Compiled(pipeline, hook, code, rules.text, text, tuple(steps), rules.tables, tells)

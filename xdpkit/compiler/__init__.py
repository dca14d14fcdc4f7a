"""From pipeline to eBPF object, in process: ``lower`` (expressions to LLVM IR), ``link`` (with the bitcode of the fixed
data plane, optimise, emit), ``listing`` (the result beside the Python lines).

Nothing here does I/O but reading the bitcode that ships in the package; nothing knows the kernel.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from ..pipeline import Pipeline
from .link import HOOKS, emit_assembly, emit_object, link_module
from .lower import lower

__all__ = ["HOOKS", "Compiled", "compile_pipeline"]


@dataclass(frozen=True, slots=True)
class Compiled:
    """An eBPF object (ELF bytes, BTF and line info inside) with what is needed to read its counters."""

    pipeline: Pipeline
    hook: str
    object: bytes = field(repr=False)
    ir: str = field(repr=False)
    assembly: str = field(repr=False)
    compile_ns: int


def compile_pipeline(pipeline: Pipeline, hook: str = "xdp", *, assembly: bool = False) -> Compiled:
    """Compile ``pipeline`` for ``hook`` ("xdp" or "socket").  ``assembly=True`` also keeps the BPF assembly."""
    start = time.perf_counter_ns()
    ir = lower(pipeline)
    module, machine = link_module(ir, hook)
    text = emit_assembly(module, machine) if assembly else ""
    code = emit_object(module, machine)
    return Compiled(pipeline, hook, code, ir, text, time.perf_counter_ns() - start)

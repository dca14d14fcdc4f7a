"""The result of compiling: the object of one hook, and what is needed to read its counters."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..language.pipeline import Pipeline

__all__ = ["HOOKS", "Compiled", "TableInfo"]

#: The hooks a pipeline compiles for; each has its bitcode in the package.  xdp_frags is XDP for packets of several
#: buffers, which only a device with a large MTU has: the price of reading them is paid there alone.
HOOKS = ("xdp", "xdp_frags", "tc", "socket")


@dataclass(frozen=True, slots=True)
class TableInfo:
    """Rules ``first`` to ``last`` (numbers in the pipeline) are looked up in a table, not tried one by one.  The table
    has ``boxes`` boxes in ``trees`` decision trees, with ``entries`` entries in all.  A packet reads at most ``depth``
    entries."""

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
    """An eBPF object (ELF bytes with BTF and line info) and what is needed to read its counters.  ``ir``: the LLVM IR
    of classify() before linking; ``assembly``: BPF assembly, empty unless requested; ``steps_ns``: the time in ns that
    each step of compiling took; ``tables``: the rules that became decision trees; ``reader_metadata``: the metadata
    that an XDP program writes in front of redirected packets for readers (names of
    :data:`xdpkit.language.metadata.READER_METADATA`)."""

    pipeline: Pipeline
    hook: str
    object: bytes = field(repr=False)
    ir: str = field(default="", repr=False)
    assembly: str = field(default="", repr=False)
    steps_ns: tuple[tuple[str, int], ...] = ()
    tables: tuple[TableInfo, ...] = ()
    reader_metadata: tuple[str, ...] = ()

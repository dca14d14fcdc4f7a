"""What ``xdpkit build`` does."""

from __future__ import annotations

from pathlib import Path

from ..compiler.built import build, load, needs, write
from ..terminal import counted, print_line

__all__ = ["build_file"]


def build_file(pipeline: Path, output: Path) -> None:
    """Compile ``pipeline`` for every hook into the file ``output``, and say what it holds."""
    built = build(load(pipeline).pipeline)
    write(built, output)
    size = sum(len(compiled.object) for compiled in built.programs.values())
    rules = counted(len(built.pipeline.rules), "rule")
    print_line(f"{output}: pipeline {built.pipeline.name}, {rules}, {size:,} bytes of objects")
    print_line(f"  digest {built.pipeline.digest()}")
    for hook, compiled in built.programs.items():
        wanted = "; ".join(needs(built.pipeline, hook))
        print_line(f"  {hook}: {len(compiled.object):,} bytes of object; needs {wanted}")

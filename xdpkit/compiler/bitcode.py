"""The files that clang made of ``bpf/`` when the package was built: the bitcode of the hooks, and the objects of small
programs that never change.  They ship in the package."""

from __future__ import annotations

from functools import cache
from pathlib import Path

__all__ = ["DIRECTORY", "shipped"]

DIRECTORY = Path(__file__).parents[1] / "bitcode"


@cache
def shipped(name: str) -> bytes:
    """The bytes of a file of DIRECTORY, such as ``xdp.bc`` or ``generator.o``.  OSError where it is missing."""
    return (DIRECTORY / name).read_bytes()

"""The compiled program with the lines that it came from: BPF assembly grouped by source line."""

from __future__ import annotations

import linecache
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from ..language.errors import Where

__all__ = ["Block", "listing"]

_FILE = re.compile(r'\t\.file\t(\d+) "([^"]*)"(?: "([^"]*)")?')
_LOC = re.compile(r"\t\.loc\t(\d+) (\d+)")
#: Of a place in a function, or of a function.
_LABEL = re.compile(r"(\w+):")


@dataclass(frozen=True, slots=True)
class Block:
    """Instructions (``number`` in their function, text; labels have number None) that came from one source line,
    ``text``."""

    where: Where
    text: str
    python: bool
    instructions: tuple[tuple[int | None, str], ...]


def listing(assembly: str) -> Iterator[Block]:
    """Blocks in program order from the assembly that LLVM wrote (``.loc`` and ``.file`` directives)."""
    files: dict[int, str] = {}
    where, number = Where("", 0), 0
    lines, labels = list[tuple[int | None, str]](), list[tuple[int | None, str]]()
    for line in assembly.splitlines():
        if file := _FILE.match(line):
            directory, name = (file[2], file[3]) if file[3] else ("", file[2])
            files[int(file[1])] = os.path.join(directory, name)
        elif loc := _LOC.match(line):
            at = Where(files.get(int(loc[1]), ""), int(loc[2]))
            if at != where and at.line:  # line 0: LLVM merged several
                if lines:
                    yield _block(where, lines)
                where, lines = at, []
        elif label := _LABEL.match(line):
            labels.append((None, f"{label[1]}:"))
        elif line.startswith(".Lfunc_end"):
            if lines:
                yield _block(where, lines)
            where, number, lines = Where("", 0), 0, []
        elif line.startswith("\t") and not line.startswith("\t."):
            lines += [*labels, (number, line.strip())]
            labels.clear()
            number += 2 if line.rstrip().endswith(" ll") else 1
    if lines:
        yield _block(where, lines)


def _block(where: Where, lines: list[tuple[int | None, str]]) -> Block:
    python = not where.file.endswith((".c", ".h"))
    text = linecache.getline(where.file, where.line).strip() if python else ""
    return Block(where, text, python, tuple(lines))

"""``xdpkit example``: the pipelines that come with the package, to start from."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import typer

from ..terminal import print_line

__all__ = ["list_examples", "print_example"]

#: In a checkout this leads to pipelines/.
FOLDER = Path(__file__).parent.parent / "examples"


def _files() -> dict[str, Path]:
    """Files by name; pipelines go without ".py"."""
    found = sorted(path for path in FOLDER.iterdir() if path.is_file())
    return {path.stem if path.suffix == ".py" else path.name: path for path in found}


def list_examples() -> None:
    """A line for each pipeline: its name and what it is for."""
    files = _files()
    wide = max(map(len, files))
    for name, path in files.items():
        if path.suffix == ".py":
            about = ast.get_docstring(ast.parse(path.read_text())) or ""
            print_line(f"{name:<{wide}}  {re.split('[:;,.]', about)[0]}")
    others = ", ".join(name for name, path in files.items() if path.suffix != ".py")
    print_line(f"Beside them: {others}.  xdpkit example NAME prints one.")


def print_example(name: str) -> None:
    """The file on standard output; wrong usage where there is none of that name."""
    files = _files()
    found = files.get(name.removesuffix(".py"))
    if found is None:
        raise typer.BadParameter(f"no example {name!r}; there are: {', '.join(files)}")
    print(found.read_text(), end="")

"""The manual pages, made of the declarations that the command line itself is made of.

``make man`` and the build of a wheel write them: one page for the command and one for each of its commands, as git has
them (xdpkit-set-add.1).  The format is man(7).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["pages", "write_pages"]

_STATUS = (
    ("0", "It did what was asked."),
    ("1", "A failure, or a finding: one line on standard error says which."),
    ("2", "Wrong usage."),
    ("128+N", "Signal N ended it before it had something to clean up."),
)


def pages(version: str) -> Iterator[tuple[str, str]]:
    """(file name, text) of every page."""
    import typer

    from .main import app

    command: Any = typer.main.get_command(app)
    yield from _pages(command, command.context_class(command, info_name="xdpkit", **command.context_settings), version)


def write_pages(folder: Path, version: str) -> list[Path]:
    """Write every page into ``folder``, which is made if it is missing; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in pages(version):
        written.append(folder / name)
        written[-1].write_text(text)
    return written


def _pages(command: Any, context: Any, version: str) -> Iterator[tuple[str, str]]:
    within = {name: each for name, each in getattr(command, "commands", {}).items() if not each.hidden}
    yield f"{_page_name(context)}.1", _page(command, context, version, within)
    for name, each in within.items():
        yield from _pages(
            each, each.context_class(each, parent=context, info_name=name, **each.context_settings), version
        )


def _page_name(context: Any) -> str:
    return str(context.command_path).replace(" ", "-")


def _page(command: Any, context: Any, version: str, within: dict[str, Any]) -> str:
    name = _page_name(context)
    first, *more = [" ".join(part.split()) for part in (command.help or "").split("\n\n")] + (
        [command.epilog] if command.epilog else []
    )
    told = [part for part in more if not part.startswith("Example: ")]
    examples = [part.removeprefix("Example: ") for part in more if part.startswith("Example: ")]
    lines = [f'.TH {name.upper()} 1 "" "xdpkit {version}" "xdpkit"']
    lines += [".SH NAME", f"{_text(name)} \\- {_text(first.rstrip('.'))}"]
    pieces = " ".join(piece.strip("{}") for piece in command.collect_usage_pieces(context))
    lines += [".SH SYNOPSIS", f".B {_text(context.command_path)}", _text(pieces)]
    lines += [".SH DESCRIPTION", _text(first)]
    for part in told:
        lines += [".PP", _text(part)]
    rows = [record for each in command.get_params(context) if (record := each.get_help_record(context))]
    arguments = [row for row in rows if not row[0].startswith("-")]
    options = [row for row in rows if row[0].startswith("-")]
    summaries = [(f"{context.command_path} {each}", found.get_short_help_str(200)) for each, found in within.items()]
    for title, listed in (("COMMANDS", summaries), ("ARGUMENTS", arguments), ("OPTIONS", options)):
        if listed:
            lines += [f".SH {title}", *(line for row in listed for line in _row(*row))]
    if examples:
        lines += [".SH EXAMPLES", ".nf", *map(_text, examples), ".fi"]
    lines += [".SH EXIT STATUS", *(line for row in _STATUS for line in _row(*row))]
    others = [f"{name}-{each}" for each in within] or [_page_name(context.parent or context)]
    if others != [name]:
        lines += [".SH SEE ALSO", ", ".join(f"{_text(other)}(1)" for other in others)]
    return "\n".join(lines) + "\n"


def _row(head: str, text: str) -> list[str]:
    return [".TP", f".B {_text(head)}", _text(text)]


def _text(text: str) -> str:
    """``text`` so that no character of it is a request or an escape of man(7)."""
    plain = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{plain}" if plain.startswith((".", "'")) else plain


if __name__ == "__main__":
    from importlib.metadata import version

    write_pages(Path(sys.argv[1]), version("xdpkit"))

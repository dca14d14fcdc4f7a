"""What ``xdpkit firewall why`` does: a packet as people write it, and why the rules do to it what they do."""

from __future__ import annotations

import json
import time
from pathlib import Path

import typer

from ..compiler.built import load
from ..firewall.notation import packet_of
from ..firewall.why import why
from ..link.link import open_link
from ..meaning.explain import explain
from ..terminal import print_line
from .firewall_commands import only_name

__all__ = ["explain_packet"]


def explain_packet(text: str, name: str, rules: Path | None, *, everything: bool, as_json: bool) -> None:
    """Print why the firewall ``name``, or the ``rules`` of a file, do to the packet what they do."""
    if rules is not None and name:
        raise typer.BadParameter("--rules asks a file, --name a firewall in force: one of them")
    try:
        frame = packet_of(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if rules is not None:
        found = explain(load(rules).pipeline, frame, now_ns=time.time_ns())
    else:
        with open_link(only_name(name)) as link:
            found = why(link, frame)
    if as_json:
        print_line(json.dumps(found.as_dict()))
        return
    for line in found.lines(everything=everything):
        print_line(line)

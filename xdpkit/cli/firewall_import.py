"""``xdpkit firewall import``: rulesets of nftables as pipeline files."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from ..files.output import write_whole
from ..firewall.nft import Imported, NftError, read, translate
from .failure import fail

__all__ = ["import_nft"]


def import_nft(source: str, output: Path | None, hook: str, bridge: str, name: str) -> None:
    """Write the file, say on standard error what is not in it, and exit with 1 unless everything was imported."""
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text()
        imported = translate(read(text), hook=hook, bridge=_sides(bridge), name=name)
    except (NftError, OSError) as error:
        fail(error)
    except UnicodeDecodeError:
        fail(NftError(f"{source}: this is no text: write one with nft -j list ruleset > FILE"))
    if output is None:
        sys.stdout.write(imported.python)
    else:
        try:
            write_whole(output, imported.python.encode())
        except OSError as error:
            fail(error)
    _report(imported)
    if imported.refused:
        sys.exit(1)


def _sides(bridge: str) -> tuple[str, str] | None:
    if not bridge:
        return None
    outside, comma, inside = bridge.partition(",")
    if not (comma and outside.strip() and inside.strip()) or "," in inside or outside.strip() == inside.strip():
        raise typer.BadParameter(f"--bridge {bridge}: two devices, OUTSIDE,INSIDE")
    return outside.strip(), inside.strip()


def _report(imported: Imported) -> None:
    total, refused = len(imported.outcomes), len(imported.refused)
    for outcome in imported.refused:
        typer.echo(f"not imported: {outcome}", err=True)
    elsewhere: dict[str, int] = {}
    for outcome in imported.elsewhere:
        elsewhere[outcome.elsewhere] = elsewhere.get(outcome.elsewhere, 0) + 1
    for other, count in elsewhere.items():
        rules = "1 rule is" if count == 1 else f"{count} rules are"
        typer.echo(f"{rules} of {other}, and not in this file: import again with --{other}", err=True)
    share = f", {refused} cannot be imported" if refused else ""
    typer.echo(f"{total - refused} of {total} rules imported ({imported.hook}){share}", err=True)

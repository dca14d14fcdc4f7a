"""``xdpkit firewall import``: rulesets of nftables as pipeline files."""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

import typer

from ..files.output import write_whole
from ..firewall.ipset import declarations
from ..firewall.nft import Imported, NftError, Ruleset, read, translate
from ..language.check import PipelineWarning
from ..language.errors import XdpkitError
from ..language.pipeline import Pipeline, load_file
from .failure import fail

__all__ = ["import_ipset", "import_nft"]

#: Packets that are judged differently and listed.
SHOWN = 10


def import_nft(source: str, output: Path | None, hook: str, bridge: str, name: str, capture: Path | None) -> None:
    """Write the file, say on standard error what is not in it, and exit with 1 unless everything was imported."""
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text()
        ruleset = read(text)
        imported = translate(ruleset, hook=hook, bridge=_sides(bridge), name=name)
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
    alike = capture is None or _proved(ruleset, imported, capture)
    if imported.refused or not alike:
        sys.exit(1)


def import_ipset(path: Path) -> None:
    """Print the declarations, and exit with 1 if a set has none."""
    try:
        lines, refused = declarations(path.read_text(), path.name)
    except (NftError, OSError) as error:
        fail(error)
    except UnicodeDecodeError:
        fail(NftError(f"{path}: this is no text: write it with ipset save > FILE"))
    for line in lines:
        typer.echo(line)
    for reason in refused:
        typer.echo(f"not imported: {reason}", err=True)
    if refused:
        sys.exit(1)


def _proved(ruleset: Ruleset, imported: Imported, capture: Path) -> bool:
    """Whether nftables and the file judge the packets of ``capture`` alike; the first packets that they do not are
    listed."""
    from ..files.reader import read_captures
    from ..firewall.nft_prove import prove

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PipelineWarning)
            proof = prove(ruleset, imported, _pipeline(imported), read_captures([capture]))
    except (XdpkitError, OSError) as error:
        fail(error)
    for d in proof.differences[:SHOWN]:
        one, other = ("nftables", "the file") if d.passes == "nftables" else ("the file", "nftables")
        typer.echo(f"packet {d.number}: passed by {one}, not by {other} (rule {d.rule!r})", err=True)
    if len(proof.differences) > SHOWN:
        typer.echo(f"and {len(proof.differences) - SHOWN} more", err=True)
    typer.echo(str(proof), err=True)
    return not proof.differences


def _pipeline(imported: Imported) -> Pipeline:
    """The pipeline that the file declares."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "imported.py"
        path.write_text(imported.python)
        return load_file(path)


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

"""The formats of :mod:`xdpkit.sets.files` that other tools write: ipset, CSV, nftables' JSON."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator

from ..language.errors import PipelineError
from ..language.sets import SetSpec

__all__ = ["csv_rows", "ipset_rows", "nft_elements"]

#: line, member, time-out, action
Row = tuple[int, object, str | None, str | None]

_MEMBER = ("member", "element", "elem", "address", "ip", "cidr", "network", "prefix", "subnet")
_TIMEOUT = ("timeout", "ttl", "expires")
_ACTION = ("action", "verdict")
_TIMEOUT_OPTION = re.compile(r"\btimeout\s+(\S+)")


def ipset_rows(spec: SetSpec, text: str, name: str) -> Iterator[Row]:
    """The ``add`` lines of ``ipset save`` (ipset(8)).  If the file has several sets, only those of the set with the
    name of ``spec`` are taken."""
    adds = [
        (at, words) for at, line in enumerate(text.split("\n"), 1)
        if (words := line.split(None, 3)) and not words[0].startswith("#") and _is_add(words, name, at)
    ]  # fmt: skip
    names = sorted({words[1] for _, words in adds})
    if len(names) > 1 and spec.name not in names:
        raise PipelineError(f"{name}: it holds sets {', '.join(names)}, none is {spec.name!r}: ipset save ONE")
    for at, words in adds:
        if len(names) > 1 and words[1] != spec.name:
            continue
        rest = words[3] if len(words) > 3 else ""
        if "comment" in rest:
            rest = re.sub(r'comment\s+"(?:[^"\\]|\\.)*"', "", rest)
        if "nomatch" in rest.split():
            raise PipelineError(f"{name}:{at}: nomatch: a set here has no exceptions; put a rule in front of it")
        timeout = _TIMEOUT_OPTION.search(rest) if rest else None
        yield at, _without_protocol(spec, words[2]), timeout[1] if timeout else None, None


def _is_add(words: list[str], name: str, at: int) -> bool:
    if words[0] in ("add", "-A") and len(words) >= 3:
        return True
    if words[0] in ("create", "-N", "flush", "-F", "COMMIT"):
        return False
    raise PipelineError(f"{name}:{at}: in ipset save a line is create or add, not {' '.join(words)[:60]!r}")


def _without_protocol(spec: SetSpec, member: str) -> object:
    """``member`` without protocols: ipset writes ``192.0.2.1,tcp:80`` where here the field names the protocol."""
    parts = member.split(",")
    if len(parts) != len(spec.fields) or ":" not in member:
        return member
    cut = [p.removeprefix(f.name.rpartition(".")[0] + ":") for p, f in zip(parts, spec.fields, strict=True)]
    return tuple(cut) if len(cut) > 1 else cut[0]


def csv_rows(spec: SetSpec, text: str, name: str) -> Iterator[Row]:
    """The rows of a CSV file.  The header row names the columns; without one they are the fields, the action of a
    verdict map and the time-out, in this order."""
    rows = csv.reader(text.split("\n"), skipinitialspace=True, strict=True)
    columns: tuple[list[int], int | None, int | None] | None = None
    wide, untitled = len(spec.fields), False
    try:
        for cells in rows:
            at, cells = rows.line_num, [c.strip() for c in cells]
            if not any(cells) or cells[0].startswith("#"):
                continue
            if columns is None:
                columns = _header(spec, cells, f"{name}:{at}")
                if columns is not None:
                    continue
                _refuse_titles(spec, cells, f"{name}:{at}")
                action = wide if spec.actions else None
                columns = list(range(wide)), wide + bool(spec.actions), action
                untitled = True
            members, timeout, action = columns
            if untitled and (bare := _cell(cells, timeout)) is not None and bare.isdigit() and spec.timeouts:
                said = f"what is {bare!r} in a file without titles? a time-out is written {bare}s there"
                raise PipelineError(f"{name}:{at}: {said}, or put a line of titles on top ('member,timeout')")
            if len(members) < wide or (len(cells) == 1 and wide > 1):
                yield at, _cell(cells, members[0]) or "", _cell(cells, timeout), _cell(cells, action)
                continue
            if len(cells) <= max(members):
                names = ", ".join(f.name for f in spec.fields)
                raise PipelineError(f"{name}:{at}: {len(cells)} columns, and a member is {names}")
            member: object = tuple(cells[i] for i in members) if wide > 1 else cells[members[0]]
            yield at, member, _cell(cells, timeout), _cell(cells, action)
    except csv.Error as error:
        raise PipelineError(f"{name}:{rows.line_num}: no CSV: {error}") from None


def _refuse_titles(spec: SetSpec, cells: list[str], place: str) -> None:
    """PipelineError where the first line holds unknown titles, so that it is not taken for a member."""
    if any(re.search(r"\d", cell) for cell in cells) or not all(re.fullmatch(r"[\w .-]*", cell) for cell in cells):
        return
    names = ", ".join(f.name for f in spec.fields)
    raise PipelineError(
        f"{place}: none of the titles {', '.join(cells)} is known: call the column of members 'member' (or {names}), "
        "and the others 'timeout' and 'action' where there are such"
    )


def _cell(cells: list[str], column: int | None) -> str | None:
    return (cells[column] or None) if column is not None and column < len(cells) else None


def _header(spec: SetSpec, cells: list[str], place: str) -> tuple[list[int], int | None, int | None] | None:
    """The columns of the fields (a single one if its title is "member"), of the time-out and of the action; None if
    ``cells`` is no header row."""
    titles = [c.lower() for c in cells]
    known = {*_MEMBER, *_TIMEOUT, *_ACTION, *(n for f in spec.fields for n in (f.name, f.name.rpartition(".")[2]))}
    if not known.intersection(titles):
        return None

    def column(*names: str) -> int | None:
        return next((titles.index(n) for n in names if n in titles), None)

    found = [column(f.name, f.name.rpartition(".")[2]) for f in spec.fields]
    if None in found:
        found = [column(*_MEMBER)]
    fields = [i for i in found if i is not None]
    if not fields:
        names = ", ".join(f.name for f in spec.fields)
        raise PipelineError(f"{place}: no column for {names} (or 'member') among {', '.join(cells)}")
    return fields, column(*_TIMEOUT), column(*_ACTION)


def nft_elements(spec: SetSpec, objects: object, name: str) -> list[object]:
    """The elements of the set or map in the output of ``nft -j list set`` (libnftables-json(5)), in the form of our own
    JSON files."""
    sets = [
        o[kind] for o in objects if isinstance(o, dict) for kind in ("set", "map") if isinstance(o.get(kind), dict)
    ] if isinstance(objects, list) else []  # fmt: skip
    if len(sets) > 1:
        sets = [s for s in sets if s.get("name") == spec.name] or sets
    if len(sets) != 1:
        raise PipelineError(f"{name}: one set is wanted, it holds {len(sets)}: nft -j list set FAMILY TABLE NAME")
    elements = sets[0].get("elem", [])
    if not isinstance(elements, list):
        raise PipelineError(f"{name}: the set's elem is no list")
    return [_nft_element(e) for e in elements]


def _nft_element(element: object) -> object:
    action = None
    if isinstance(element, list) and len(element) == 2:  # of a verdict map
        element, verdict = element
        action = next(iter(verdict), None) if isinstance(verdict, dict) else str(verdict)
    timeout = None
    if isinstance(element, dict) and isinstance(element.get("elem"), dict):
        inner = element["elem"]
        element, timeout = inner.get("val"), inner.get("expires", inner.get("timeout"))
    return {"member": _nft_value(element), "timeout": timeout, "action": action}


def _nft_value(value: object) -> object:
    if not isinstance(value, dict):
        return value
    prefix, ends, parts = value.get("prefix"), value.get("range"), value.get("concat")
    if isinstance(prefix, dict):
        return f"{prefix.get('addr')}/{prefix.get('len')}"
    if isinstance(ends, list) and len(ends) == 2:
        return f"{ends[0]}-{ends[1]}"
    if isinstance(parts, list):
        return [_nft_value(p) for p in parts]
    return None

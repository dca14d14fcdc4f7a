"""Files of set members, in formats that other tools write too.  The content of a file, not its name, decides its
format.

| format | what it is |
|---|---|
| list | a member in each line, as in nftables: ``member [timeout 1h] [: action]``; '#' and ';' start a comment |
| ipset | ``ipset save``: ``add NAME member [timeout SECONDS] [comment "..."]`` |
| csv | RFC 4180, with a header row or without (then: the fields, the action of a verdict map, the time-out) |
| json | a list of members or of ``{"member": ..., "timeout": ..., "action": ...}``, also under "members" |
| nft | ``nft -j list set`` or ``list map``, as in libnftables-json(5) |

Any of them may be compressed (gzip, RFC 1952; Zstandard, RFC 8878).  One wrong line refuses the whole file:
PipelineError names the file, the line and what is wrong.  This module calls no kernel.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from ..files.unpack import DAMAGE, unpack
from ..language.actions import Action
from ..language.errors import PipelineError
from ..language.sets import MAX_TIMEOUT, Entry, SetSpec
from .formats import csv_rows, ipset_rows, nft_elements

__all__ = ["Element", "SetFile", "action_named", "content", "entries", "list_element", "parse", "seconds", "sniff"]

#: Most bytes of a file of members, unpacked: more than the largest set needs.
MAX_FILE_BYTES = 1 << 30
#: Names that nftables, iptables and users have for our verdicts.
_SYNONYMS = {"accept": "pass", "allow": "pass", "deny": "drop", "block": "drop", "reject": "drop"}
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}


@dataclass(frozen=True, slots=True)
class Element:
    """A member as it stands in a file.  ``member``: as SetSpec.entries takes it.  ``timeout``: seconds; None where the
    file says nothing.  ``action``: its name.  ``at``: the line, or in JSON the number of the element from 1."""

    member: object
    at: int
    timeout: float | None = None
    action: str | None = None


@dataclass(frozen=True, slots=True)
class SetFile:
    """The elements of a file, in its order, unchecked."""

    name: str
    format: str
    elements: list[Element]

    def place(self, at: int) -> str:
        """The place of an element, for an error message."""
        return f"{self.name}: element {at}" if self.format in ("json", "nft") else f"{self.name}:{at}"


def content(file: IO[bytes] | IO[str], name: str) -> bytes:
    """The whole content of a file as UTF-8 text without a byte order mark, unpacked if it is compressed."""
    raw = file.read(MAX_FILE_BYTES + 1)
    data = raw.encode() if isinstance(raw, str) else raw
    stream, parts, size = unpack(io.BytesIO(data)), list[bytes](), 0
    try:
        while size <= MAX_FILE_BYTES and (part := stream.read(1 << 20)):
            parts.append(part)
            size += len(part)
    except DAMAGE as error:
        raise PipelineError(f"{name}: cannot be unpacked: {error}") from None
    if size > MAX_FILE_BYTES:
        raise PipelineError(f"{name}: a file of members has at most {MAX_FILE_BYTES:,} bytes")
    return b"".join(parts).removeprefix(b"\xef\xbb\xbf")


def sniff(spec: SetSpec, data: bytes) -> str:
    """The format of ``data``, as its first line that is no comment shows it."""
    match = re.search(rb"^[ \t\r]*([^\s#;][^\n]*)", data, flags=re.MULTILINE)
    first = match[1] if match else b""
    if first[:1] in (b"{", b"["):
        return "json"
    if re.match(rb"(create|add|-N|-A)\s+\S+\s+\S", first):
        return "ipset"
    return "csv" if b"," in re.split(rb"[#;]", first)[0] else "list"


def parse(spec: SetSpec, data: bytes, name: str) -> SetFile:
    """The elements of the file ``name`` with the content ``data``, in the format that :func:`sniff` finds."""
    form = sniff(spec, data)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise _no_text(name, data.count(b"\n", 0, error.start) + 1) from None
    if form == "json":
        return _json(spec, text, name)
    rows: Iterator[tuple[int, object, str | None, str | None]]
    rows = {"ipset": ipset_rows, "csv": csv_rows, "list": _list_rows}[form](spec, text, name)
    return SetFile(name, form, [_element(name, *row) for row in rows])


def entries(spec: SetSpec, file: SetFile, *, timeout: float = 0) -> list[tuple[int, Entry]]:
    """The checked entries, each with the ``at`` of its element.  ``timeout``: the time-out of elements without one."""
    found: list[tuple[int, Entry]] = []
    for e in file.elements:
        try:
            action = action_named(spec, e.action)
            said = timeout if e.timeout is None else e.timeout
            found += [(e.at, entry) for entry in spec.entries(e.member, action=action, timeout=said)]
        except PipelineError as error:
            raise PipelineError(f"{file.place(e.at)}: {plain(error)}") from None
    return found


def plain(error: PipelineError) -> str:
    """The message without the place in front."""
    text = str(error)
    return text.removeprefix(f"{error.where}: ") if error.where else text


def action_named(spec: SetSpec, name: str | None) -> Action | None:
    """The action of ``spec`` that is called ``name`` ("drop", "REDIRECT", nftables' "accept"); None for None."""
    if name is None:
        return None
    wanted = _SYNONYMS.get(name.strip().lower(), name.strip().lower())
    for action in spec.actions:
        if str(action).lower() == wanted:
            return action
    if not spec.actions:
        raise PipelineError(f"set {spec.name!r} holds no actions: {name!r}")
    known = ", ".join(map(str, spec.actions))
    raise PipelineError(f"verdict map {spec.name!r} holds actions {known}: {name!r} is not among them")


def seconds(value: object) -> float:
    """The seconds of a time-out as ipset (60) or nftables ("1d2h30m", "500ms") writes it; ValueError if it is none."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        total = float(value)
    else:
        text = str(value).strip()
        if text.isascii() and text.isdigit():
            return _checked(float(text), value)
        parts = re.findall(r"(\d+(?:\.\d+)?)(ms|[smhdw])", text)
        if re.fullmatch(r"\d+(\.\d+)?", text):
            total = float(text)
        elif parts and "".join(a + b for a, b in parts) == text:
            total = sum(float(number) * _UNITS[unit] for number, unit in parts)
        else:
            raise ValueError(f"a time-out is seconds or as 1h30m, not {value!r}")
    return _checked(total, value)


def _checked(total: float, value: object) -> float:
    if not 0 <= total <= MAX_TIMEOUT:
        raise ValueError(f"a time-out is 0 to {MAX_TIMEOUT:.0f} seconds, not {value}")
    return total


def _element(name: str, at: int, member: object, timeout: object, action: str | None, place: str = "") -> Element:
    try:
        return Element(member, at, None if timeout is None else seconds(timeout), action)
    except ValueError as error:
        raise PipelineError(f"{place or f'{name}:{at}'}: {error}") from None


_LINE = re.compile(r"(.*?)(?:\s+timeout\s+(\S+))?(?:\s+expires\s+(\S+))?(?:\s+:\s+(.+?))?\s*")


def list_element(name: str, at: int, line: bytes) -> Element | None:
    """The element in one line of a list, which is no comment; None if the line has only characters that Unicode counts
    as white space."""
    try:
        found = next(_list_rows_of(line.decode()), None)
    except UnicodeDecodeError:
        raise _no_text(name, at) from None
    if found is None:
        return None
    _, member, timeout, action = found
    return _element(name, at, member, timeout, action)


def _list_rows(spec: SetSpec, text: str, name: str) -> Iterator[tuple[int, object, str | None, str | None]]:
    return _list_rows_of(text)


def _list_rows_of(text: str) -> Iterator[tuple[int, object, str | None, str | None]]:
    for at, line in enumerate(text.split("\n"), 1):
        line = re.split(r"[#;]", line, maxsplit=1)[0].strip()
        if line:
            match = _LINE.fullmatch(line)
            assert match
            yield at, match[1], match[3] or match[2], match[4]


def _no_text(name: str, at: int) -> PipelineError:
    return PipelineError(f"{name}:{at}: this is no text: a list, ipset save, CSV or JSON is wanted")


def _json(spec: SetSpec, text: str, name: str) -> SetFile:
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise PipelineError(f"{name}:{error.lineno}: no JSON: {error.msg}") from None
    except RecursionError:
        raise PipelineError(f"{name}: no list of members: it is nested too deep") from None
    form = "json"
    if isinstance(document, dict) and "nftables" in document:
        form, document = "nft", nft_elements(spec, document["nftables"], name)
    elif isinstance(document, dict):
        document = document.get("members", document.get("elements"))
    if not isinstance(document, list):
        raise PipelineError(f'{name}: a list of members is wanted, or {{"members": [...]}}')
    file = SetFile(name, form, [])
    for at, item in enumerate(document, 1):
        fields = dict(item) if isinstance(item, dict) else {"member": item}
        member, timeout, action = fields.get("member"), fields.get("timeout"), fields.get("action")
        if isinstance(member, list):
            member = tuple(member)
        if member is None or not (action is None or isinstance(action, str)):
            said = '{"member": ..., "timeout": ..., "action": ...}'
            raise PipelineError(f"{file.place(at)}: a member, or {said} is wanted, not {json.dumps(item)[:80]}")
        file.elements.append(_element(name, at, member, timeout, action, file.place(at)))
    return file

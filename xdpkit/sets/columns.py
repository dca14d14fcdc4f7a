"""Members of a set as numpy columns, read from any source: a million members take less than a second.

:mod:`xdpkit.language.sets` says how a member is written.  The C core parses plain lists of addresses, prefixes, ranges
and numbers.  A line that it does not understand is parsed in Python, which also makes the error message.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ..kernel.bpfmap import Bytes
from ..kernel.core import check, ffi, lib
from ..language.actions import Action
from ..language.errors import PipelineError
from ..language.expr import here
from ..language.sets import Entry, SetSpec
from . import files as setfiles

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Columns", "Source", "read"]


_FAST = {"ipv4": lib.XK_IPV4, "ipv6": lib.XK_IPV6, "ip": lib.XK_IP, "uint": lib.XK_NUMBER}
#: Most lines of a list that Python parses one by one because the C core does not understand them.
_MANY = 1000


@dataclass(frozen=True, slots=True)
class Columns:
    """Entries of a set, one in each row.  ``keys``: uint8[n, key_bytes].  ``bits``: uint32[n], how many bits of the key
    are compared.  ``action``: uint32[n], index into SetSpec.actions.  ``timeout``: float64[n], seconds; 0 is for
    ever."""

    keys: Bytes
    bits: npt.NDArray[np.uint32]
    action: npt.NDArray[np.uint32]
    timeout: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.bits)

    @classmethod
    def of(cls, entries: list[Entry], key_bytes: int) -> Columns:
        """The same entries as columns."""
        keys = np.frombuffer(b"".join(e.key for e in entries), np.uint8).reshape(-1, key_bytes)
        return cls(
            keys,
            np.array([e.bits for e in entries], np.uint32),
            np.array([e.action for e in entries], np.uint32),
            np.array([e.timeout for e in entries], np.float64),
        )

    def entry(self, row: int) -> Entry:
        """One row as an Entry."""
        return Entry(self.keys[row].tobytes(), int(self.bits[row]), int(self.action[row]), float(self.timeout[row]))

    def entries(self) -> list[Entry]:
        """Every row as an Entry."""
        return [self.entry(row) for row in range(len(self))]

    def take(self, rows: npt.NDArray[Any]) -> Columns:
        """The rows that a mask or indices select."""
        return Columns(self.keys[rows], self.bits[rows], self.action[rows], self.timeout[rows])

    def with_(self, more: Columns) -> Columns:
        """These rows, then the rows of ``more``."""
        return Columns(
            np.concatenate([self.keys, more.keys]),
            np.concatenate([self.bits, more.bits]),
            np.concatenate([self.action, more.action]),
            np.concatenate([self.timeout, more.timeout]),
        )

    def distinct(self) -> npt.NDArray[np.intp]:
        """The indices of the distinct entries, in order of key, then bits; of equal entries the index of the last."""
        width = -(-(self.keys.shape[1] + 4) // 8) * 8
        packed = np.zeros((len(self), width), np.uint8)
        packed[:, : self.keys.shape[1]] = self.keys
        packed[:, -4:] = self.bits.astype(">u4").view(np.uint8).reshape(-1, 4)
        words = packed.view(">u8").astype(np.uint64)
        order = np.lexsort(words.T[::-1]) if words.shape[1] > 1 else np.argsort(words[:, 0], kind="stable")
        words = words[order]
        again = (words[1:] == words[:-1]).all(axis=1)
        return order[np.append(~again, True)] if again.any() else order

    def once(self) -> Columns:
        """The distinct entries, in order of key, then bits; of equal entries the last is kept.  The kernel's tries fill
        two to three times as fast in this order."""
        return self.take(self.distinct())

    def among(self, others: Columns) -> npt.NDArray[np.int64]:
        """int64[n]: the row of each entry in ``others``, -1 where it is not there.  Both must be results of
        :meth:`once`."""
        found = np.empty(len(self), np.int64)
        result = lib.xk_keys_join(
            self.keys.shape[1], _bytes(others.keys), _words(others.bits), len(others),
            _bytes(self.keys), _words(self.bits), len(self), ffi.cast("int64_t *", ffi.from_buffer(found)),
        )  # fmt: skip
        check(result, "join")
        return found


#: What members can be read from: columns that were read before, an iterable of members as SetSpec.entries takes them, a
#: dict {member: action}, the name of a file, or an open file.
Source = Columns | Iterable[object] | Mapping[Any, Any] | str | Path | IO[str] | IO[bytes]


def read(spec: SetSpec, source: Source, *, timeout: float = 0, folder: Path | None = None) -> Columns:
    """The members in ``source``, checked, each key once.  ``timeout``: the time-out of members that have none of their
    own.  ``folder``: the folder that the name of a file is relative to.  PipelineError names the member, or the file
    and line; OSError if the file cannot be read."""
    if isinstance(source, Columns):
        return source
    if isinstance(source, (str, Path)):
        path = (folder or Path()) / source
        try:
            with path.open("rb") as file:
                return _from_file(spec, file, str(path), timeout)
        except FileNotFoundError as error:
            if folder is not None:
                error.strerror = f"no such file, and it is the source of set {spec.name!r}"
            elif isinstance(source, str) and "/" not in source:
                error.strerror = f"no such file, and no list of members: a member alone is written [{source!r}]"
            raise
    if hasattr(source, "read"):
        return _from_file(spec, source, str(getattr(source, "name", "members")), timeout)
    if not isinstance(source, Iterable) or isinstance(source, bytes):
        raise PipelineError(f"set {spec.name!r}: members is a list or a file, not {source!r}", here())
    pairs = source.items() if isinstance(source, Mapping) else source
    members = list(pairs)
    fast = _FAST.get(spec.fields[0].kind) if len(spec.fields) == 1 and not spec.actions else None
    if fast is not None and len(members) > 64 and set(map(type, members)) == {str}:
        text = "\n".join(members)
        if text.count("\n") == len(members) - 1 and not {"#", ";"} & set(text):
            keys, bits, _, odd = _parse(spec, text.encode())
            if not odd and not timeout and len(members) <= len(bits):
                nothing = np.zeros(len(bits))
                return Columns(keys, bits, nothing.astype(np.uint32), nothing).once()
    found: list[Entry] = []
    for member in members:
        found += _entries(spec, member, timeout)
    return Columns.of(found, spec.key_bytes).once()


def _entries(spec: SetSpec, member: object, timeout: float) -> list[Entry]:
    if isinstance(member, Entry):
        return [member]
    if not spec.actions:
        return spec.entries(member, timeout=timeout)
    if not (isinstance(member, tuple) and len(member) == 2 and isinstance(member[1], (Action, str))):
        raise PipelineError(f"verdict map {spec.name!r}: members are {{key: action}}, not {member!r}", here())
    action = setfiles.action_named(spec, member[1]) if isinstance(member[1], str) else member[1]
    return spec.entries(member[0], action=action, timeout=timeout)


def _from_file(spec: SetSpec, file: Any, name: str, timeout: float) -> Columns:
    data = setfiles.content(file, name)
    simple = len(spec.fields) == 1 and spec.fields[0].kind in _FAST
    if simple and not spec.actions and setfiles.sniff(spec, data) == "list":
        columns = _plain_list(spec, data, name, timeout)
        if columns is not None:
            return columns.once()
    parsed = setfiles.parse(spec, data, name)
    if simple:
        quick = _simple(spec, parsed, timeout)
        if quick is not None:
            return quick.once()
    found = setfiles.entries(spec, parsed, timeout=timeout)
    return Columns.of([entry for _, entry in found], spec.key_bytes).once()


def _plain_list(spec: SetSpec, data: bytes, name: str, timeout: float) -> Columns | None:
    """The members of a list with one member in each line; None where so many lines are not plain that parsing all of
    them in Python is faster."""
    if timeout:
        spec.entries(0, timeout=timeout)  # raises if members of this set may have no time-out
    keys, bits, _, odd = _parse(spec, data)
    columns = Columns(keys, bits, np.zeros(len(bits), np.uint32), np.full(len(bits), timeout, np.float64))
    if not odd or len(odd) > _MANY:
        return None if odd else columns
    elements = [(e, row) for at, line, row in odd if (e := setfiles.list_element(name, at, line)) is not None]
    entries = [
        (entry, row)
        for element, row in elements
        for _, entry in setfiles.entries(spec, setfiles.SetFile(name, "list", [element]), timeout=timeout)
    ]
    more = Columns.of([e for e, _ in entries], spec.key_bytes)
    # in the file's order, because of equal members the last counts
    rows = np.array([row for _, row in entries], np.int64)
    order = np.argsort(np.concatenate([np.arange(len(columns)) * 2 + 1, rows * 2]), kind="stable")
    return columns.with_(more).take(order)


def _simple(spec: SetSpec, file: setfiles.SetFile, timeout: float) -> Columns | None:
    """The elements of a file whose members are one plain field, parsed by the C core; None where it does not understand
    one of them."""
    elements = file.elements
    texts = [e.member for e in elements]
    if not all(isinstance(t, str) and not {"#", ";", "\n"} & set(t) and t for t in texts):
        return None
    keys, bits, lines, odd = _parse(spec, "\n".join(map(str, texts)).encode())
    if odd or (spec.actions and any(e.action is None for e in elements)):
        return None
    said = np.array([timeout if e.timeout is None else e.timeout for e in elements], np.float64)
    names = {e.action for e in elements}
    if (said.any() and not spec.timeouts) or (names != {None} and not spec.actions):
        return None
    try:
        index = {n: spec.actions.index(a) if (a := setfiles.action_named(spec, n)) else 0 for n in names}
    except PipelineError:
        return None
    actions = np.array([index[e.action] for e in elements], np.uint32)
    return Columns(keys, bits, actions[lines - 1], said[lines - 1])


def _parse(
    spec: SetSpec, data: bytes
) -> tuple[Bytes, npt.NDArray[np.uint32], npt.NDArray[np.uint32], list[tuple[int, bytes, int]]]:
    """Keys, bits and line numbers of the lines that the C core understands; and the other lines, as (number, text, how
    many rows are in front of it)."""
    (field,) = spec.fields
    state = ffi.new("struct xk_list *")
    room = data.count(b"\n") + 1 + 2 * field.bits
    keys, bits, lines = np.empty((room, spec.key_bytes), np.uint8), np.empty(room, np.uint32), np.empty(room, np.uint32)
    odd: list[tuple[int, bytes, int]] = []
    text = ffi.from_buffer(data)
    while True:
        result = lib.xk_list_parse(
            text, len(data), _FAST[field.kind], field.bits, spec.intervals, spec.key_bytes, state,
            _bytes(keys), _words(bits), _words(lines), room,
        )  # fmt: skip
        if result == 0:
            break
        if result == 1:
            room *= 2
            keys, bits, lines = (np.resize(a, (room, *a.shape[1:])) for a in (keys, bits, lines))
        else:
            state.line += 1
            odd.append((state.line, data[state.offset : state.offset + state.length], state.count))
            if len(odd) > _MANY:
                break
            state.offset += state.length + 1
    n = state.count
    return keys[:n], bits[:n], lines[:n], odd


def _bytes(array: npt.NDArray[Any]) -> Any:
    return ffi.cast("uint8_t *", ffi.from_buffer(array)) if array.size else ffi.NULL


def _words(array: npt.NDArray[Any]) -> Any:
    return ffi.cast("uint32_t *", ffi.from_buffer(array)) if array.size else ffi.NULL

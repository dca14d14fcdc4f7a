"""Sets and verdict maps: what they are keyed by, and how a member is written.

A set holds members of one kind: a field or a tuple of fields.  ``blocked = pipe.set("blocked", ip.src)`` declares one,
and ``blocked`` stands for the condition that the packet's own fields are in it; ``ip.dst.isin(blocked)`` asks with
another field.  A verdict map (``pipe.vmap``) holds an action with each member.

This module needs no kernel.  :class:`SetSpec` turns members, as people write them, into :class:`Entry` values, which
the reference evaluator and the kernel's maps hold.  The key of an entry is the fields' values in network order, one
after the other, each in whole bytes, with zeros up to a multiple of 4 bytes.  With ``intervals`` the last field is a
prefix (a range becomes several prefixes), and the longest prefix that matches is the member.  Without ``intervals``
keys are exact.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from .actions import Action, Step
from .errors import PipelineError, Where
from .expr import And, EitherFamily, Expr, Keyed, Present, Test, here
from .fields import MAPPED, FieldSpec, families, field_named
from .headers import Field, parse_value

__all__ = ["MAX_CAPACITY", "MAX_TIMEOUT", "Add", "Entry", "Feed", "Member", "Set", "SetSpec", "written"]

DEFAULT_CAPACITY = 65_536
MAX_CAPACITY = 1 << 26
#: Most bytes of a key.  The kernel's prefix tries take 256, but the key must fit on the stack of the program.
MAX_KEY_BYTES = 64
#: Longest time-out, in seconds; in nanoseconds it stays far inside 64 bits.
MAX_TIMEOUT = 10 * 365 * 86_400.0


@dataclass(frozen=True, slots=True)
class Entry:
    """One key of a set.  ``key``: SetSpec.key_bytes bytes, of which the first ``bits`` are compared.  ``action``: an
    index into SetSpec.actions (0 in a plain set).  ``timeout``: the seconds that it stays; 0 is for ever."""

    key: bytes
    bits: int
    action: int = 0
    timeout: float = 0


@dataclass(frozen=True, slots=True)
class Feed:
    """Where the members of a set come from, again and again: a list of addresses that others publish.

    ``source``: an ``http://`` or ``https://`` address, a file, or ``crowdsec:http://127.0.0.1:8080`` for the decisions
    of a CrowdSec local API (its key: ``XDPKIT_CROWDSEC_KEY`` in the environment).  ``every``: seconds between looks.
    ``least``: members that a list must have at least; one that has fewer, or less than half of the one before, is
    refused, and the last good copy stays in force.  PipelineError for values that are none."""

    source: str
    every: float = 3600
    least: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.source, str) or not self.source:
            raise PipelineError(f"feed: source is an address or a file's name, not {self.source!r}", here())
        if isinstance(self.every, bool) or not isinstance(self.every, (int, float)) or not self.every >= 1:
            raise PipelineError(f"feed {self.source}: every is 1 second or more, not {self.every!r}", here())
        if isinstance(self.least, bool) or not isinstance(self.least, int) or self.least < 0:
            raise PipelineError(f"feed {self.source}: least is a number of members, not {self.least!r}", here())


@dataclass(frozen=True, slots=True)
class SetSpec:
    """A declared set: see :meth:`xdpkit.Pipeline.set`.  ``actions``: those that members of a verdict map may have;
    empty for a set."""

    name: str
    fields: tuple[FieldSpec, ...]
    where: Where
    capacity: int = DEFAULT_CAPACITY
    intervals: bool = False
    timeouts: bool = False
    pinned: bool = False
    actions: tuple[Action, ...] = ()
    members: tuple[Entry, ...] = ()
    source: str | None = None
    feed: Feed | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of each field in the key."""
        return tuple((f.bits + 7) // 8 for f in self.fields)

    @property
    def key_bytes(self) -> int:
        """Bytes of a key; in the kernel a set with ``intervals`` has 4 more in front, the prefix length in bits."""
        return -(-sum(self.sizes) // 4) * 4

    @property
    def key_bits(self) -> int:
        """Bits of a key that count in an exact member."""
        return 8 * sum(self.sizes)

    @property
    def kind(self) -> str:
        """The fields and options of the set, as text.  Two declarations of one shared set must have the same text."""
        parts = [",".join(f.name for f in self.fields)]
        parts += [word for word, there in (("intervals", self.intervals), ("timeouts", self.timeouts)) if there]
        parts += [f"actions {'/'.join(map(str, self.actions))}"] * bool(self.actions)
        return " ".join(parts)

    def entries(self, member: object, *, action: Action | None = None, timeout: float = 0) -> list[Entry]:
        """The entries that ``member`` stands for: one, or for a range the prefixes that cover it.

        A member is a value of the field ("192.0.2.1", 443), with ``intervals`` also a prefix or a range
        ("192.0.2.0/24", "1024-65535"), and for several fields a tuple of values, or a string that joins them with " . "
        as nftables does or with "," as ipset does.  PipelineError says what is wrong with it."""
        values = self._split(member)
        number = self._action(member, action)
        if timeout and not self.timeouts:
            raise PipelineError(f"set {self.name!r}: members have no time-outs: declare it with timeouts=True", here())
        if not 0 <= timeout <= MAX_TIMEOUT:
            raise PipelineError(f"set {self.name!r}: a time-out is 0 to {MAX_TIMEOUT:.0f} seconds", here())
        head = b"".join(
            self._value(f, v).to_bytes(size) for f, v, size in zip(self.fields, values, self.sizes, strict=True)
            if f is not self.fields[-1] or not self.intervals
        )  # fmt: skip
        if not self.intervals:
            return [Entry(head.ljust(self.key_bytes, b"\0"), self.key_bits, number, timeout)]
        last, size = self.fields[-1], self.sizes[-1]
        base = self.key_bits - last.bits
        return [
            Entry((head + low.to_bytes(size)).ljust(self.key_bytes, b"\0"), base + length, number, timeout)
            for low, length in cover(*self._interval(last, values[-1]), last.bits)
        ]

    def text(self, entry: Entry) -> str:
        """``entry`` as people write it, the fields joined by " . "."""
        at, parts = 0, []
        for f, size in zip(self.fields, self.sizes, strict=True):
            parts.append(written(f, int.from_bytes(entry.key[at : at + size])))
            at += size
        length = entry.bits - self.key_bits + self.fields[-1].bits
        if self.intervals and length < self.fields[-1].bits:
            low = int.from_bytes(entry.key[at - self.sizes[-1] : at])
            address = self.fields[-1].kind in ("ipv4", "ipv6", "ip")
            if self.fields[-1].kind == "ip" and "." in parts[-1]:
                length -= 96
            high = low | (1 << self.fields[-1].bits - length) - 1
            parts[-1] += f"/{length}" if address else f"-{written(self.fields[-1], high)}"
        return " . ".join(parts)

    def _split(self, member: object) -> tuple[object, ...]:
        if isinstance(member, str) and len(self.fields) > 1:
            parts: tuple[object, ...] = tuple(re.split(r"\s+\.\s+|\s*,\s*", member.strip()))
        else:
            parts = tuple(member) if isinstance(member, (tuple, list)) else (member,)
        if len(parts) != len(self.fields):
            names = ", ".join(f.name for f in self.fields)
            raise PipelineError(f"set {self.name!r}: a member is {names}, not {member!r}", here())
        return parts

    def _value(self, spec: FieldSpec, value: object) -> int:
        try:
            return parse_value(spec, value.strip() if isinstance(value, str) else value)
        except PipelineError as error:
            hint = ""
            if isinstance(value, str) and re.search(r"/|.-", value):
                hint = ": declare it with intervals=True for prefixes and ranges of the last field"
            raise PipelineError(f"set {self.name!r}: {_plain(error)}{hint}", here()) from None

    def _interval(self, spec: FieldSpec, value: object) -> tuple[int, int]:
        """Lowest and highest value of a member of the last field."""
        if isinstance(value, (str, ipaddress.IPv4Network, ipaddress.IPv6Network)):
            text = str(value).strip()
            if "/" in text or ("-" in text and spec.kind != "mac"):
                try:
                    if spec.kind in ("ipv4", "ipv6", "ip"):
                        ((low, high),) = _intervals(Field(spec).within(text))
                        return low, high
                    ends = text.split("-")
                    ((low, high),) = _intervals(Field(spec).between(*_ends(ends)))
                except PipelineError as error:
                    raise PipelineError(f"set {self.name!r}: {_plain(error)}", here()) from None
                except (TypeError, ValueError):
                    said = f"{text!r} is no range: write low-high"
                    raise PipelineError(f"set {self.name!r}: {said}", here()) from None
                return low, high
        number = self._value(spec, value)
        return number, number

    def _action(self, member: object, action: Action | None) -> int:
        if not self.actions and action is not None:
            raise PipelineError(f"set {self.name!r} holds no actions: declare it with pipe.vmap", here())
        if self.actions and action not in self.actions:
            known = ", ".join(map(str, self.actions))
            said = f"{action} is not among them" if action else f"{member!r} has none"
            raise PipelineError(f"verdict map {self.name!r} holds actions {known}: {said}", here())
        return self.actions.index(action) if action else 0


def _intervals(condition: Expr) -> tuple[tuple[int, int], ...]:
    """The intervals of ``condition``, which tests one field."""
    assert isinstance(condition, Test)
    return condition.intervals


def _ends(ends: list[str]) -> tuple[int, int]:
    low, high = (int(end.strip(), 0) for end in ends)
    return low, high


def _plain(error: PipelineError) -> str:
    """The message without the place in front, because the caller puts the place there."""
    text = str(error)
    return text.removeprefix(f"{error.where}: ") if error.where else text


def written(spec: FieldSpec, value: int) -> str:
    """A field's value as people write it."""
    if spec.kind == "ipv4":
        return str(ipaddress.IPv4Address(value))
    if spec.kind == "ip" and value >> 32 == MAPPED >> 32:
        return str(ipaddress.IPv4Address(value & 0xFFFF_FFFF))
    if spec.kind in ("ipv6", "ip"):
        return str(ipaddress.IPv6Address(value))
    if spec.kind == "mac":
        return ":".join(f"{byte:02x}" for byte in value.to_bytes(6))
    if spec.kind == "bytes":
        return f"0x{value:0{spec.bits // 4}x}"
    return str(value)


def cover(low: int, high: int, bits: int) -> Iterator[tuple[int, int]]:
    """The prefixes (value, length), fewest and in order, that cover low..high of a field of ``bits`` bits."""
    while low <= high:
        free = (low & -low).bit_length() - 1 if low else bits
        free = min(free, (high - low + 1).bit_length() - 1)
        yield low, bits - free
        low += 1 << free


@dataclass(frozen=True, slots=True, repr=False)
class Member(Expr):
    """The packet has all of ``fields``, and their values are a member of the set.  With ``action`` (an index into the
    set's actions) the member must also have that action."""

    set: SetSpec
    fields: tuple[FieldSpec, ...]
    action: int | None = None

    @property
    def needs_brackets(self) -> bool:
        return True

    def __str__(self) -> str:
        names = ", ".join(f.name.removesuffix(".mapped") for f in self.fields)
        what = f"{names if len(self.fields) == 1 else f'({names})'} in {self.set.name}"
        return what if self.action is None else f"{what} -> {self.set.actions[self.action]}"


@dataclass(frozen=True, slots=True)
class Add(Step):
    """Add the values of ``fields`` to the set for ``timeout`` seconds (0: for ever).  The time-out of a member that is
    there already starts again; a member without a time-out keeps none.  :meth:`xdpkit.language.sets.Set.add` makes
    this step."""

    set: SetSpec
    fields: tuple[FieldSpec, ...]
    timeout: float = 0

    def __str__(self) -> str:
        names = ", ".join(f.name.removesuffix(".mapped") for f in self.fields)
        return f"ADD {names} to {self.set.name}" + (f" for {self.timeout:g} s" if self.timeout else "")


class Set(Keyed):
    """A declared set or verdict map.  As a condition it is true if the packet's own fields are in the set."""

    def __init__(self, spec: SetSpec):
        self.spec = spec

    @property
    def name(self) -> str:
        """The name of the set."""
        return self.spec.name

    def __repr__(self) -> str:
        return f"<{'vmap' if self.spec.actions else 'set'} {self.spec.name}: {self.spec.kind}>"

    def condition(self) -> Expr:
        """The condition that the packet's own fields, those that the set is declared for, are in the set."""
        return self._member(self.spec.fields)

    def _member(self, specs: tuple[FieldSpec, ...], action: int | None = None) -> Expr:
        """The condition that the values of ``specs`` are in the set.  An address of either family becomes two
        conditions, one for IPv4 and one for IPv6."""
        variants = families(specs)
        if len(variants) == 1:
            return Member(self.spec, specs, action, where=here())
        terms = tuple(
            And((Present(header or "", where=here()), Member(self.spec, fields, action, where=here())), where=here())
            for header, fields in variants
        )
        return EitherFamily(terms, str(Member(self.spec, specs, action, where=here())), where=here())

    def with_action(self, number: int) -> Expr:
        """The condition that the packet's own fields are in the verdict map with action ``number`` (an index)."""
        return self._member(self.spec.fields, number)

    def _keys(self, fields: tuple[Field, ...]) -> tuple[FieldSpec, ...]:
        """The fields that a key is read from.  Where the set holds addresses of both families, an IPv4 address is read
        as an IPv4-mapped one."""
        specs = tuple(_spec(f) for f in fields)
        if len(specs) != len(self.spec.fields):
            return specs
        return tuple(
            field_named(f"{spec.name}.mapped") if key.kind == "ip" and spec.kind == "ipv4" else spec
            for spec, key in zip(specs, self.spec.fields, strict=True)
        )

    def match(self, *fields: Field) -> Expr:
        """The condition that the values of ``fields`` are in the set.  There must be as many fields as the set is
        declared for, each of the same width and kind; otherwise PipelineError."""
        specs = self._keys(fields)
        same = len(specs) == len(self.spec.fields) and all(
            a.bits == b.bits and (a.kind == b.kind or (a.kind, b.kind) == ("ipv6", "ip"))
            for a, b in zip(specs, self.spec.fields, strict=True)
        )
        if not same:
            wanted = ", ".join(f"{f.name} ({f.bits} bits, {f.kind})" for f in self.spec.fields)
            got = ", ".join(f"{f.name} ({f.bits} bits, {f.kind})" for f in specs)
            raise PipelineError(f"set {self.name!r} is keyed by {wanted}: {got} does not fit", here())
        return self._member(specs)

    def add(self, *fields: Field, timeout: float = 0) -> Add:
        """A step that adds the packet's own fields, or ``fields``, to the set for ``timeout`` seconds (0: for ever).
        The time-out of a member that is there already starts again.  PipelineError for a verdict map, for a time-out
        where the set has none, and for fields that do not fit."""
        if self.spec.actions:
            raise PipelineError(f"verdict map {self.name!r}: a packet cannot add a verdict", here())
        if timeout and not self.spec.timeouts:
            raise PipelineError(f"set {self.name!r}: members have no time-outs: declare it with timeouts=True", here())
        if not 0 <= timeout <= MAX_TIMEOUT:
            raise PipelineError(f"set {self.name!r}: a time-out is 0 to {MAX_TIMEOUT:.0f} seconds", here())
        if fields:
            self.match(*fields)  # raises where they do not fit
        return Add(self.spec, self._keys(fields) if fields else self.spec.fields, timeout)


def _spec(value: object) -> FieldSpec:
    if not isinstance(value, Field):
        raise PipelineError(f"{value!r} is no field of a packet, such as ip.src", here())
    return value.spec


def declare(
    name: object, fields: Iterable[object], *, capacity: object, intervals: bool | None, timeouts: bool, pinned: bool,
    actions: tuple[Action, ...], members: object, source: object, feed: object = None,
) -> SetSpec:  # fmt: skip
    """Check the arguments of a declaration and make a SetSpec of them, with the initial members.  PipelineError."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,31}", name):
        raise PipelineError(f"set name {name!r}: letters, digits and '_', at most 32", here())
    specs = tuple(_spec(f) for f in fields)
    if not specs:
        raise PipelineError(f"set {name!r}: of which field? as in pipe.set({name!r}, ip.src)", here())
    if isinstance(capacity, bool) or not isinstance(capacity, int) or not 1 <= capacity <= MAX_CAPACITY:
        raise PipelineError(f"set {name!r}: capacity is 1 to {MAX_CAPACITY} members, not {capacity!r}", here())
    if intervals is None:
        intervals = len(specs) == 1 and specs[0].kind in ("ipv4", "ipv6", "ip")
    if source is not None and not isinstance(source, str):
        raise PipelineError(f"set {name!r}: source is the name of a file, not {source!r}", here())
    if feed is not None:
        if not isinstance(feed, Feed):
            raise PipelineError(f"set {name!r}: feed is a Feed(...), not {feed!r}", here())
        if actions or len(specs) > 1 or specs[0].kind not in ("ipv4", "ipv6", "ip"):
            raise PipelineError(f"set {name!r}: a feed holds addresses, so the set has one field of addresses", here())
        if source is not None:
            raise PipelineError(f"set {name!r}: a source or a feed, not both", here())
    if isinstance(members, (str, bytes)) or not isinstance(members, Iterable):
        raise PipelineError(f"set {name!r}: members is a list, not {members!r}", here())
    listed = tuple(members.items()) if isinstance(members, dict) else tuple(members)
    spec = SetSpec(
        name, specs, here(), capacity=capacity, intervals=intervals, timeouts=timeouts, pinned=pinned,
        actions=actions, source=source, feed=feed,
    )  # fmt: skip
    if spec.key_bytes > MAX_KEY_BYTES:
        raise PipelineError(f"set {name!r}: a key of {spec.key_bytes} bytes; at most {MAX_KEY_BYTES}", here())
    initial = {(e.key, e.bits): e for e in _initial(spec, listed)}
    if len(initial) > capacity:
        raise PipelineError(f"set {name!r}: {len(initial)} members, capacity={capacity}", here())
    return replace(spec, members=tuple(initial.values()))


def _initial(spec: SetSpec, members: tuple[object, ...]) -> list[Entry]:
    """The entries of the members in the declaration; those of a verdict map are (member, action) pairs."""
    found: list[Entry] = []
    for member in members:
        if spec.actions:
            if not (isinstance(member, tuple) and len(member) == 2 and isinstance(member[1], Action)):
                raise PipelineError(f"verdict map {spec.name!r}: members are {{key: action}}", here())
            found += spec.entries(member[0], action=member[1])
        else:
            found += spec.entries(member)
    return found

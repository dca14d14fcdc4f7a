"""Feeds: lists of addresses as others publish them.  The reader takes what it understands, and reports what it changed
or left out.

Users' own files are read strictly (:mod:`xdpkit.sets.files`): one wrong line refuses the file, because its author can
correct it.  The user of a feed cannot correct it, so here a line that cannot be understood is skipped and counted.

The reader understands:

* one address, prefix (``/24`` or ``/255.255.255.0``) or range in each line, whatever follows it in the line;
* comments after ``#``, ``;`` or ``//``;
* ranges as two columns, also with a prefix length behind them (DShield);
* ranges with a name in front (``name:192.0.2.0-192.0.2.255``);
* CSV with and without a header; the column is found by its title or by its content;
* hosts files; JSON of any shape, also one object in each line;
* UTF-8, UTF-16 and Latin-1.

IPv4 and IPv6 may be mixed.  This module calls no kernel.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from ..language.errors import PipelineError

__all__ = ["FeedContents", "Remark", "read_feed"]

#: How many line numbers a remark keeps.
FIRST = 3
#: Titles of columns that hold addresses, the most telling first.
_TITLES = (
    "cidr", "network", "netblock", "prefix", "subnet", "ip_prefix", "ipv6_prefix", "dst_ip", "src_ip", "ip",
    "ip_address", "ipaddress", "address", "addr", "ioc", "indicator", "ioc_value", "host", "range",
)  # fmt: skip
_INVISIBLE = dict.fromkeys([*range(0x200B, 0x2010), *range(0x202A, 0x202F), 0x2060, 0xFEFF, 0xAD]) | {
    0xA0: " ", 0x2007: " ", 0x202F: " ", 0x3000: " ",
}  # fmt: skip
_COMMENT = re.compile(r"\s*(?:[#;]|(?:^|(?<=\s))//).*")
_V4 = r"\d{1,3}(?:\.\d{1,3}){3}"
_RANGE = re.compile(rf"(?:.*:)?\s*({_V4})\s*-\s*({_V4})")
_RANGE6 = re.compile(r"([0-9a-fA-F:.]+:[0-9a-fA-F:.]*)\s*-\s*([0-9a-fA-F:.]+:[0-9a-fA-F:.]*)")
_PORT = re.compile(rf"({_V4}):\d{{1,5}}|\[([0-9a-fA-F:.]+)\](?::\d{{1,5}})?")
_HTML = re.compile(r"\s*(?:<!doctype html|<html|<head|<body|<\?xml[^>]*>\s*<(?:!doctype )?html)", re.IGNORECASE)

Network = IPv4Network | IPv6Network


@dataclass(slots=True)
class Remark:
    """Lines with the same remark: how ``many`` there are, and the numbers of the ``first`` few."""

    many: int = 0
    first: list[int] = field(default_factory=list)


@dataclass(slots=True)
class FeedContents:
    """The content of a feed.  ``ipv4`` and ``ipv6``: the members in the feed's order, each once, as SetSpec.entries
    takes them (an address, a prefix, or a range ``low-high``).  ``mended``: the lines that were changed in order to
    take them, by reason.  ``skipped``: the lines that were not taken, by reason."""

    name: str
    ipv4: list[str] = field(default_factory=list)
    ipv6: list[str] = field(default_factory=list)
    mended: dict[str, Remark] = field(default_factory=dict)
    skipped: dict[str, Remark] = field(default_factory=dict)

    def of(self, kind: str) -> list[str]:
        """The members for a field of ``kind``: "ipv4", "ipv6", or "ip" for both.  Other kinds have none."""
        return {"ipv4": self.ipv4, "ipv6": self.ipv6, "ip": [*self.ipv4, *self.ipv6]}.get(kind, [])

    def summary(self) -> list[str]:
        """What was read, in lines for people."""
        lines = [f"{self.name}: {len(self.ipv4):,} IPv4 and {len(self.ipv6):,} IPv6 members"]
        for verb, remarks in (("mended", self.mended), ("skipped", self.skipped)):
            for reason, remark in remarks.items():
                more = ", ..." if remark.many > len(remark.first) else ""
                lines_ = "line" if remark.many == 1 else "lines"
                at = ", ".join(map(str, remark.first)) + more
                lines.append(f"{self.name}: {verb} {remark.many:,} {lines_} ({at}): {reason}")
        return lines


class _Skip(Exception):
    """The line gives no member; the message says why."""


def read_feed(data: bytes, name: str) -> FeedContents:
    """The members in ``data``, which must not be compressed.  PipelineError where it is no list: an HTML page, binary
    data, or text without an address."""
    feed = FeedContents(name)
    text = _text(data, feed)
    if _HTML.match(text):
        title = re.search(r"<title[^>]*>\s*(.{1,80}?)\s*<", text, re.IGNORECASE | re.DOTALL)
        said = f" ({title[1]!r})" if title else ""
        raise PipelineError(f"{name}: this is an HTML page{said}, not a list: the source gave an error or has moved")
    if "\0" in text[:4096]:
        raise PipelineError(f"{name}: this is not text: if it is compressed, gzip and Zstandard are understood")
    seen: set[str] = set()
    for at, piece in _pieces(text):
        try:
            member = _member(feed, at, piece)
        except _Skip as why:
            _note(feed.skipped, str(why), at)
            continue
        if member not in seen:
            seen.add(member)
            (feed.ipv6 if ":" in member else feed.ipv4).append(member)
    if not seen and feed.skipped:
        first = next(iter(feed.skipped.items()))
        raise PipelineError(f"{name}: no line holds an address; line {first[1].first[0]}: {first[0]}")
    return feed


def _note(remarks: dict[str, Remark], reason: str, at: int) -> None:
    remark = remarks.setdefault(reason, Remark())
    remark.many += 1
    if len(remark.first) < FIRST:
        remark.first.append(at)


def _text(data: bytes, feed: FeedContents) -> str:
    """``data`` as text, in the encoding that its first bytes show, without invisible characters."""
    sample = data[:2000]
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encoding = "utf-16"
    elif len(sample) > 3 and sample[1::2].count(0) > len(sample) // 3:
        encoding = "utf-16-le"
    elif len(sample) > 3 and sample[::2].count(0) > len(sample) // 3:
        encoding = "utf-16-be"
    else:
        encoding = "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        if encoding != "utf-8-sig":
            raise PipelineError(f"{feed.name}: this begins as {encoding.upper()} text, and is damaged") from None
        text = data.decode("latin-1")
    if text.isascii():
        return text
    clean = text.translate(_INVISIBLE)
    if clean != text:
        old, new = text.split("\n"), clean.split("\n")
        for at, (before, after) in enumerate(zip(old, new, strict=True), 1):
            if before != after:
                _note(feed.mended, "invisible characters are left out", at)
    return clean


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    """For each line that is no comment: its number, and the part of it that should be the member."""
    if text.lstrip()[:1] in ("{", "["):
        yield from _json(text)
        return
    lines = [(at, _COMMENT.sub("", line).strip()) for at, line in enumerate(text.splitlines(), 1)]
    lines = [(at, line) for at, line in lines if line]
    if sum("," in line for _, line in lines[:100]) * 2 > len(lines[:100]):
        yield from _csv(lines, text)
        return
    yield from lines


def _csv(lines: list[tuple[int, str]], text: str) -> Iterator[tuple[int, str]]:
    """The cells of the column of addresses: the one with a title that says so, else the one with the most addresses."""
    rows = [(at, next(csv.reader([line], skipinitialspace=True), [])) for at, line in lines]
    rows = [(at, [cell.strip() for cell in row]) for at, row in rows]
    titles = [cell.lower() for cell in rows[0][1]]
    if any(_is_address(cell) for cell in rows[0][1]):  # no header, or one that is a comment
        comments = (line.lstrip("#;/ ") for line in text.splitlines()[:200] if line.startswith(("#", ";", "//")))
        wide = len(rows[0][1])
        found = [cells for c in comments if "," in c and len(cells := next(csv.reader([c]), [])) == wide]
        titles = [cell.strip().lower() for cell in found[-1]] if found else []
    else:
        rows = rows[1:]
    column = next((titles.index(title) for title in _TITLES if title in titles), None)
    if column is None or not any(_is_address(row[column]) for _, row in rows[:100] if column < len(row)):
        held = Counter(i for _, row in rows[:100] for i, cell in enumerate(row) if _is_address(cell))
        column = min(held, key=lambda i: (-held[i], i)) if held else 0
    for at, row in rows:
        yield at, row[column] if column < len(row) else ",".join(row)


def _json(text: str) -> Iterator[tuple[int, str]]:
    """Every string that is an address in a JSON document, or in one JSON object in each line.  Other strings are left
    out without a remark."""
    try:
        documents = [(1, json.loads(text))]
    except (json.JSONDecodeError, RecursionError):
        documents = []
        for at, line in enumerate(text.splitlines(), 1):
            if line.strip():
                try:
                    documents.append((at, json.loads(line)))
                except (json.JSONDecodeError, RecursionError):
                    yield at, line.strip()
    for at, document in documents:
        left = [document]
        while left:
            value = left.pop()
            if isinstance(value, dict):
                left += reversed(value.values())
            elif isinstance(value, list):
                left += reversed(value)
            elif isinstance(value, str) and _is_address(value):
                yield at, value


def _is_address(text: str) -> bool:
    try:
        _member(FeedContents(""), 0, text)
    except _Skip:
        return False
    return True


def _member(feed: FeedContents, at: int, text: str) -> str:
    """The member in ``text``, the part of a line that should hold one."""
    if match := _RANGE.fullmatch(text) or _RANGE6.fullmatch(text):
        if text[: match.start(1)].strip():
            _note(feed.mended, "the name in front of a range is left out", at)
        return _range(match[1], match[2])
    words = text.split() or [""]
    first = words[0]
    if len(words) > 1 and _plain(first) is not None and _plain(words[1]) is not None:
        return _range(first, words[1])
    if len(words) > 1 and first in ("0.0.0.0", "127.0.0.1", "::", "::1", "255.255.255.255"):
        raise _Skip("a line of a hosts file names a host, not an address")
    if port := _PORT.fullmatch(first):
        first = port[1] or port[2]
        _note(feed.mended, "a port behind an address is left out", at)
    return _network(feed, at, first)


def _plain(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _range(low: str, high: str) -> str:
    try:
        first, last = ip_address(low), ip_address(high)
    except ValueError as error:
        raise _Skip(f"not a range of addresses ({error})") from None
    if first.version != last.version or int(first) > int(last):
        raise _Skip("a range goes from a lower address to a higher one of the same family")
    if int(last) - int(first) + 1 == 1 << first.max_prefixlen:
        raise _Skip("it is the whole address space")
    return f"{first}-{last}" if first != last else str(first)


def _network(feed: FeedContents, at: int, text: str) -> str:
    if "%" in text:
        raise _Skip("an address with a zone means one interface of one machine")
    address, _, length = text.partition("/")
    if re.search(r"(?:^|\.)0\d", address) and re.fullmatch(_V4, address):
        raise _Skip("zeros in front of a number: some read them as octal")
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        raise _Skip("not an address") from None
    if network.prefixlen == 0:
        raise _Skip("it is the whole address space")
    if length and ip_address(address) != network.network_address:
        _note(feed.mended, "bits beyond the prefix length are set: the network is taken", at)
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)

"""The connections that a pipeline tracks, as user space sees them: rows, columns, counts; forgotten, swept, learned."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import numpy as np
import numpy.typing as npt

from ..device.conversations import Conversation, conversations, vlans
from ..kernel.flowmaps import (
    COUNTED_BYTES,
    FLOW,
    FLOW_BYTES,
    FLOW_COUNTED,
    FLOW_KEY,
    FULL,
    KEY_BYTES,
    LEARN_UNTIL,
    LEARNED,
    FlowMaps,
)  # fmt: skip

__all__ = [
    "Flow", "FlowCounts", "Flows", "count_flows", "forget", "learn_sockets", "learn_until", "read_flows", "sweep",
]  # fmt: skip

#: By ``flow.stage``.
STATES = ("", "syn sent", "syn received", "established", "closing", "time wait", "closed", "open")
#: Flags of a flow; bpf/track.bpf.c.
OPENED_BY_HIGH, ANSWERED, HAS_FIN, HAS_OTHER_FIN = 1, 2, 8, 16
ESTABLISHED, CLOSING, TIME_WAIT = 3, 4, 5
MAX_SCALE = 14
_NAMES = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp6", 132: "sctp"}
_NUMBERS = {name: number for number, name in _NAMES.items()}
_MAPPED = np.frombuffer(bytes(10) + b"\xff\xff", np.uint8)
SECOND_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Flow:
    """One connection.

    ``source`` and ``sport`` are of the side that sent the first packet.  Of a query of ICMP both ports are its
    identifier; where a protocol has no ports they are 0.  ``protocol``: "tcp", "udp", "icmp", "icmp6", "sctp", or the
    number.  ``vlan``: identifiers of its tags, the outer first.  ``state``: of TCP "syn sent", "syn received",
    "established", "closing", "time wait" or "closed", else "open".  ``half_open``: it was not answered yet.  ``age``:
    seconds since the first packet; ``timeout``: seconds until it is forgotten unless a packet comes.  ``packets`` and
    ``bytes``: there and back, None where the pipeline does not count."""

    source: IPv4Address | IPv6Address
    destination: IPv4Address | IPv6Address
    sport: int
    dport: int
    protocol: str
    vlan: tuple[int, ...]
    state: str
    half_open: bool
    age: float
    timeout: float
    packets: tuple[int, int] | None = None
    bytes: tuple[int, int] | None = None

    def __str__(self) -> str:
        tags = "".join(f" vlan {tag}" for tag in self.vlan)
        source, destination = _end(self.source, self.sport), _end(self.destination, self.dport)
        return f"{self.protocol} {source} > {destination}{tags} {self.state}, {self.timeout:.0f} s left"


def _end(address: IPv4Address | IPv6Address, port: int) -> str:
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


@dataclass(frozen=True, slots=True)
class FlowCounts:
    """The tables in numbers.  ``flows``: seen in both directions, as of the last sweep; ``capacity``: room for them;
    ``refused``: packets for whose flow there was no room; ``learned``: flows that were picked up while learning."""

    flows: int
    capacity: int
    refused: int
    learned: int

    def rows(self) -> list[tuple[str, int, str]]:
        """As :meth:`Ledger.rows`."""
        full = "packets: a larger capacity, or see link.flows().top_sources()"
        more = [("  learned", self.learned, "in the middle"), ("  found no room", self.refused, full)]
        return [("connections", self.flows, f"room for {self.capacity}"), *(row for row in more if row[1])]


class Flows:
    """The connections at one moment: a sequence of :class:`Flow`, made when they are asked for.

    ``columns`` has them as one numpy array: ``source`` and ``destination`` (16 bytes, an IPv4 address as an IPv4-mapped
    one), ``sport``, ``dport``, ``proto`` (the number), ``vlan``, ``vlan2`` (0 without a tag), ``state`` (index into
    :attr:`STATES`), ``half_open``, ``age``, ``timeout`` (seconds), and ``packets``, ``bytes`` (there and back) where
    the pipeline counts."""

    STATES: tuple[str, ...] = STATES

    def __init__(self, columns: npt.NDArray[np.void], keys: npt.NDArray[np.uint8], capacity: tuple[int, int]):
        self.columns: npt.NDArray[np.void] = columns
        self._keys = keys
        self._capacity = capacity

    def __len__(self) -> int:
        return len(self.columns)

    def __iter__(self) -> Iterator[Flow]:
        return map(_row, self.columns)

    def __getitem__(self, number: int) -> Flow:
        return _row(self.columns[number])

    def __repr__(self) -> str:
        return f"<Flows: {self.established} of {self._capacity[0]}, {self.half_open} of {self._capacity[1]} half open>"

    @property
    def established(self) -> int:
        """How many of these were seen in both directions."""
        return len(self) - self.half_open

    @property
    def half_open(self) -> int:
        """How many of these were not answered yet."""
        return int(self.columns["half_open"].sum())

    @property
    def fill(self) -> float:
        """The part of the table of established flows that these take: 1.0 when it is full."""
        return self.established / self._capacity[0]

    def where(
        self, *, source: str | None = None, destination: str | None = None, host: str | None = None,
        sport: int | None = None, dport: int | None = None, port: int | None = None, protocol: str | None = None,
        half_open: bool | None = None, state: str | None = None,
    ) -> Flows:  # fmt: skip
        """Those of them that all of this is true of.  ``source``, ``destination``, ``host`` (either): an address or a
        prefix, "192.0.2.0/24"; ``port``: either port.  ValueError for what is no address, protocol or state."""
        c = self.columns
        keep = np.ones(len(c), np.bool_)
        for names, text in ((("source",), source), (("destination",), destination), (("source", "destination"), host)):
            if text is not None:
                network = ip_network(text, strict=False)
                keep &= np.logical_or.reduce([_inside(c[name], network) for name in names])
        for ports, number in ((("sport",), sport), (("dport",), dport), (("sport", "dport"), port)):
            if number is not None:
                keep &= np.logical_or.reduce([c[name] == number for name in ports])
        if protocol is not None:
            keep &= c["proto"] == _number(protocol)
        if half_open is not None:
            keep &= c["half_open"] == half_open
        if state is not None:
            if state not in STATES[1:]:
                raise ValueError(f"state {state!r}: one of {', '.join(STATES[1:])}")
            keep &= c["state"] == STATES.index(state)
        return Flows(c[keep], self._keys[keep], self._capacity)

    def top_sources(self, n: int = 10) -> list[tuple[IPv4Address | IPv6Address, int]]:
        """The addresses that opened the most of these flows, each with how many, the most first."""
        addresses = np.ascontiguousarray(self.columns["source"]).view("V16").ravel()
        found, counts = np.unique(addresses, return_counts=True)
        order = np.argsort(-counts, kind="stable")[:n]
        return [(_address(found[i].tobytes()), int(counts[i])) for i in order]


def _number(protocol: str) -> int:
    if protocol in _NUMBERS:
        return _NUMBERS[protocol]
    if not protocol.isdigit() or int(protocol) > 255:
        raise ValueError(f"protocol {protocol!r}: {', '.join(_NUMBERS)} or a number")
    return int(protocol)


def _inside(addresses: npt.NDArray[np.uint8], network: IPv4Network | IPv6Network) -> npt.NDArray[np.bool_]:
    bits = network.prefixlen + (96 if network.version == 4 else 0)
    wanted = network.network_address.packed
    wanted = _MAPPED.tobytes() + wanted if network.version == 4 else wanted
    mask = ((1 << 128) - (1 << 128 - bits)).to_bytes(16)
    same = (addresses ^ np.frombuffer(wanted, np.uint8)) & np.frombuffer(mask, np.uint8)
    return np.asarray(~same.any(axis=1))


def _address(data: bytes) -> IPv4Address | IPv6Address:
    return ip_address(data[12:] if data.startswith(_MAPPED.tobytes()) else data)


def _row(c: np.void) -> Flow:
    counted = "packets" in (c.dtype.names or ())
    proto = int(c["proto"])
    return Flow(
        _address(c["source"].tobytes()), _address(c["destination"].tobytes()), int(c["sport"]), int(c["dport"]),
        _NAMES.get(proto, str(proto)), tuple(int(c[n]) for n in ("vlan", "vlan2") if c[n]),
        STATES[c["state"]], bool(c["half_open"]), float(c["age"]), float(c["timeout"]),
        (int(c["packets"][0]), int(c["packets"][1])) if counted else None,
        (int(c["bytes"][0]), int(c["bytes"][1])) if counted else None,
    )  # fmt: skip


_COLUMNS = [
    ("source", np.uint8, 16), ("destination", np.uint8, 16), ("sport", "=u2"), ("dport", "=u2"), ("proto", np.uint8),
    ("vlan", "=u2"), ("vlan2", "=u2"), ("state", np.uint8), ("half_open", np.bool_), ("age", "=f8"), ("timeout", "=f8"),
]  # fmt: skip
_COUNTS = [("packets", "=u8", 2), ("bytes", "=u8", 2)]


def read_flows(maps: FlowMaps) -> Flows:
    """The flows that live now, established ones first.  OSError where the kernel does not give them."""
    now = time.monotonic_ns()
    kind = FLOW_COUNTED if maps.spec.count else FLOW
    parts = []
    for table in (maps.flows, maps.half_open):
        keys, values = table.read(kind)
        lives = values["expires_ns"] > now
        parts.append((keys[lives], values[lives]))
    keys = np.concatenate([k for k, _ in parts])
    values = np.concatenate([v for _, v in parts])
    found = np.zeros(len(keys), np.dtype([*_COLUMNS, *(_COUNTS if maps.spec.count else [])]))
    key = keys.view(FLOW_KEY).ravel() if len(keys) else np.zeros(0, FLOW_KEY)
    from_high = (values["flags"] & OPENED_BY_HIGH).astype(np.bool_)
    both = from_high[:, None]
    found["source"], found["destination"] = (np.where(both, key[a], key[b]) for a, b in _ENDS)
    found["sport"] = np.where(from_high, key["high_port"], key["low_port"])
    found["dport"] = np.where(from_high, key["low_port"], key["high_port"])
    found["proto"], found["vlan"], found["vlan2"] = key["tags"] & 0xFF, key["tags"] >> 8 & 0xFFF, key["tags"] >> 20
    queries = np.isin(found["proto"], (1, 58)) & (values["stage"] == len(STATES) - 1)
    for name in ("sport", "dport"):  # a query has its identifier in the place of the first port
        found[name] = np.where(queries, key["low_port"], found[name])
    found["state"] = values["stage"]
    found["half_open"][len(parts[0][0]) :] = True
    found["age"] = np.maximum(now / SECOND_NS - values["created"].astype(np.float64), 0)
    found["timeout"] = (values["expires_ns"] - np.uint64(now)) / SECOND_NS
    for name in ("packets", "bytes") if maps.spec.count else ():
        found[name] = values[name]
    return Flows(found, keys, (maps.flows.info.capacity, maps.half_open.info.capacity))


_ENDS = (("high", "low"), ("low", "high"))


def forget(maps: FlowMaps, flows: Flows) -> int:
    """Forget ``flows``; how many of them were still there."""
    half = flows.columns["half_open"]
    return maps.flows.remove(flows._keys[~half]) + maps.half_open.remove(flows._keys[half])


def sweep(maps: FlowMaps, now_ns: int | None = None) -> int:
    """Take away the established flows whose time has been over for a second, and return how many are there.  Half-open
    ones give way by themselves."""
    now = (time.monotonic_ns() if now_ns is None else now_ns) - SECOND_NS
    keys, values = maps.flows.read(FLOW_COUNTED if maps.spec.count else FLOW)
    over = keys[values["expires_ns"] <= now]
    return len(keys) - (maps.flows.expire(over, now) if len(over) else 0)


def count_flows(maps: FlowMaps, flows: int) -> FlowCounts:
    """The tables in numbers; ``flows`` as the last sweep counted them."""
    return FlowCounts(flows, maps.flows.info.capacity, maps.note(FULL), maps.note(LEARNED))


# ---- learned before rules act


def learn_until(maps: FlowMaps, seconds: float) -> None:
    """Take packets in the middle of unknown flows for established ones, from now on for ``seconds``."""
    maps.write_note(LEARN_UNTIL, time.monotonic_ns() + round(seconds * SECOND_NS) if seconds > 0 else 0)


def learn_sockets(maps: FlowMaps, index: int) -> int:
    """Note the connections that sockets of this host have, those in VLANs of the device of that index with their tag;
    how many.  Their windows are seen with the next packets.  OSError where the kernel does not say."""
    tags, now = vlans(index), time.monotonic_ns()
    found = {
        _key(each, tags.get(each.local, None)): _value(maps, each, now)
        for each in conversations()
        if maps.flows.get(_key(each, tags.get(each.local, None))) is None
    }
    written, _ = maps.flows.write(_matrix(found.keys(), KEY_BYTES), _matrix(found.values(), _value_bytes(maps)))
    return written  # fewer where the table is full


def _matrix(rows: Iterable[bytes], size: int) -> npt.NDArray[np.uint8]:
    return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, size)


def _value_bytes(maps: FlowMaps) -> int:
    return COUNTED_BYTES if maps.spec.count else FLOW_BYTES


def _order(address: bytes) -> tuple[int, ...]:
    """Addresses in the order of the data plane: it compares words as they are in memory."""
    return tuple(int.from_bytes(address[at : at + 8], sys.byteorder) for at in range(0, len(address), 8))


def _low_first(each: Conversation) -> bool:
    local, remote = _order(each.local), _order(each.remote)
    if local != remote:
        return local < remote
    ports = [int.from_bytes(port.to_bytes(2), sys.byteorder) for port in (each.local_port, each.remote_port)]
    return ports[0] <= ports[1]


def _key(each: Conversation, tag: int | None) -> bytes:
    ends = [(each.local, each.local_port), (each.remote, each.remote_port)]
    low, high = ends if _low_first(each) else reversed(ends)
    row = np.zeros(1, FLOW_KEY)
    for name, (address, port) in (("low", low), ("high", high)):
        row[name] = np.frombuffer(_MAPPED.tobytes() + address if len(address) == 4 else address, np.uint8)
        row[f"{name}_port"] = port
    row["tags"] = each.proto | (tag or 0) << 8
    return row.tobytes()


def _value(maps: FlowMaps, each: Conversation, now: int) -> bytes:
    row = np.zeros(1, FLOW_COUNTED if maps.spec.count else FLOW)
    opened_by_low = _low_first(each) != each.accepted
    row["created"], row["flags"] = now // SECOND_NS, ANSWERED | (0 if opened_by_low else OPENED_BY_HIGH)
    times = maps.spec.timeouts
    if each.proto == 6:
        fins = each.fins if not each.accepted else each.fins[::-1]
        row["stage"] = (ESTABLISHED, CLOSING, TIME_WAIT)[sum(fins)]
        row["scale"] = MAX_SCALE
        row["flags"] |= HAS_FIN * fins[0] | HAS_OTHER_FIN * fins[1]
        seconds = (times.tcp_established, times.tcp_closing, times.tcp_time_wait)[sum(fins)]
    else:
        row["stage"], seconds = len(STATES) - 1, times.udp_stream
    row["expires_ns"] = now + round(seconds * SECOND_NS)
    return row.tobytes()

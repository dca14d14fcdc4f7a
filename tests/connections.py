"""Hypothesis strategies for connections: TCP, UDP and ICMP between few hosts, interleaved, with packets again, out of
window, out of turn, cut short, in fragments, in VLANs, quoted in ICMP errors."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from ipaddress import ip_address
from random import Random

from hypothesis import strategies as st
from stateful import SECOND, Arrival

from xdpkit.language.actions import COUNT, DROP, PASS, TX
from xdpkit.language.headers import tcp, udp
from xdpkit.language.pipeline import Pipeline
from xdpkit.language.tracking import Timeouts, ct

HOSTS4 = [ip_address(f"10.0.0.{n}").packed for n in (1, 2, 200)]
HOSTS6 = [ip_address(host).packed for host in ("2001:db8::1", "2001:db8::2", "2001:db8::3", "::ffff:10.0.0.1")]
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
#: Seconds; far enough apart that pauses end some and not others.
SHORT = Timeouts(
    tcp_syn_sent=5, tcp_syn_recv=4, tcp_established=100, tcp_closing=8, tcp_time_wait=7, tcp_closed=2, udp=3,
    udp_stream=30, icmp=3, other=9,
)  # fmt: skip


PAUSES = tuple(SECOND * n // 10 for n in (1, 10, 30, 50, 1100))


def link(family: int, tags: tuple[int, ...]) -> bytes:
    """An Ethernet header with tags."""
    types = [0x88A8 if len(tags) == 2 else 0x8100, 0x8100][: len(tags)]
    types.append(0x0800 if family == 4 else 0x86DD)
    frame = bytes.fromhex("020000000001020000000002") + types[0].to_bytes(2)
    for tag, kind in zip(tags, types[1:], strict=True):
        frame += struct.pack("!HH", tag, kind)
    return frame


def network(
    source: bytes, target: bytes, proto: int, body: bytes, *, piece: tuple[int, int, int] | None = None
) -> bytes:
    """An IP header in front of ``body``; ``piece``: identification, offset in units of 8 bytes, more to come."""
    if len(source) == 4:
        ident, word = (piece[0] & 0xFFFF, piece[2] << 13 | piece[1]) if piece else (0, 0)
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), ident, word, 64, proto, 0)
        return head + source + target + body
    if piece:
        body = struct.pack("!BBHI", proto, 0, piece[1] << 3 | piece[2], piece[0]) + body
        proto = 44
    return struct.pack("!IHBB", 6 << 28, len(body), proto, 64) + source + target + body


def segment(
    sport: int, dport: int, seq: int, ack: int, flags: int, window: int, data: bytes = b"", options: bytes = b""
) -> bytes:
    """A TCP segment."""
    off = (20 + len(options)) // 4 << 4
    head = struct.pack("!HHIIBBHHH", sport, dport, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, off, flags, window, 0, 0)
    return head + options + data


@dataclass
class Peer:
    """One side of a connection: what it sends next, and what it has received."""

    host: bytes
    port: int
    next: int
    got: int = 0
    fin: bool = False


@dataclass
class Connection:
    """Two peers that talk more or less as TCP says."""

    a: Peer
    b: Peer
    tags: tuple[int, ...]
    step: int = 0
    sent: list[bytes] = field(default_factory=list)

    def frame(self, rng: Random) -> bytes:
        """What comes next, or what came before, or what ought not to come."""
        if self.sent and rng.random() < 0.1:
            return rng.choice(self.sent)
        frame = self._wild(rng) if rng.random() < 0.15 else self._next(rng)
        self.sent.append(frame)
        return frame

    def _next(self, rng: Random) -> bytes:
        self.step += 1
        if self.step == 1:
            options = rng.choice(
                (b"", b"\2\4\5\xb4\1\3\3" + bytes((rng.choice((0, 2, 7, 14, 20)),)), b"\1\1\1\3\3\5\0\0")
            )
            data = rng.choice((b"", b"", b"early"))
            return self._send(rng, self.a, self.b, SYN, data, options)
        if self.step == 2:
            options = rng.choice((b"", b"\4\2\1\3\3" + bytes((rng.choice((1, 7)),)) + b"\0\0", b"\3\4\5\6"))
            return self._send(rng, self.b, self.a, SYN | ACK, b"", options)
        if self.step == 3:
            return self._send(rng, self.a, self.b, ACK, rng.choice((b"", b"GET /")))
        mine, theirs = (self.a, self.b) if rng.random() < 0.5 else (self.b, self.a)
        flags, data = ACK, rng.randbytes(rng.choice((0, 0, 1, 40)))
        if rng.random() < 0.12:
            flags |= FIN
        elif rng.random() < 0.04:
            flags = rng.choice((RST, RST | ACK))
        if rng.random() < 0.04 or (self.a.fin and self.b.fin and rng.random() < 0.5):  # and once more from the start
            self.step = 1
            self.a.next, self.a.fin, self.b.fin = rng.getrandbits(32), False, False
            return self._send(rng, self.a, self.b, SYN, b"")
        return self._send(rng, mine, theirs, flags, data)

    def _send(self, rng: Random, mine: Peer, theirs: Peer, flags: int, data: bytes, options: bytes = b"") -> bytes:
        window = rng.choice((0, 1, 200, 65_535))
        ack = mine.got if flags & ACK else 0
        body = segment(mine.port, theirs.port, mine.next, ack, flags, window, data, options)
        mine.next = mine.next + len(data) + bool(flags & SYN) + bool(flags & FIN) & 0xFFFFFFFF
        mine.fin = mine.fin or bool(flags & FIN)
        if rng.random() < 0.9:
            theirs.got = mine.next
        return link(4 if len(mine.host) == 4 else 6, self.tags) + network(mine.host, theirs.host, 6, body)

    def _wild(self, rng: Random) -> bytes:
        mine, theirs = (self.a, self.b) if rng.random() < 0.5 else (self.b, self.a)
        far = rng.choice(
            (0, 1, -1, 300, -300, 66_000, -66_001, 1 << 20, -(1 << 20), 1 << 30, 1 << 31, rng.getrandbits(32))
        )
        seq, ack = rng.choice(((mine.next + far, mine.got), (mine.next, mine.got + far), (mine.next + far, far)))
        flags = rng.choice(
            (0, SYN, ACK, RST, FIN, SYN | ACK, RST | ACK, FIN | ACK, SYN | FIN, SYN | RST, 0xFF, PSH | ACK)
        )
        data = rng.randbytes(rng.choice((0, 1, 100)))
        options = rng.choice((b"", b"", b"\3\3\7\1", b"\3\2\7\1", b"\1" * 40, b"\2\0\0\0"))
        body = segment(mine.port, theirs.port, seq, ack, flags, rng.choice((0, 1, 65_535)), data, options)
        if rng.random() < 0.2:
            body = body[:12] + bytes((rng.choice((0, 0x40, 0x60, 0xF0)),)) + body[13:]
        return link(4 if len(mine.host) == 4 else 6, self.tags) + network(mine.host, theirs.host, 6, body)


def other(rng: Random, hosts: list[bytes], tags: tuple[int, ...], sent: list[bytes]) -> bytes:
    """Anything but TCP: UDP, queries, errors about packets that were sent, fragments, protocols without ports."""
    source, target = rng.choice((hosts[:2], hosts[1::-1]))
    v4, kind = len(source) == 4, rng.randrange(6)
    icmp, ports = 1 if v4 else 58, rng.choice(((53, 1000), (1000, 53)))
    piece, proto = None, 17
    body = struct.pack("!HHHH", *ports, 12, 0) + b"data"
    if kind == 1:
        types = (8, 8, 0, 0, 13, 14, 9, 40, 3) if v4 else (128, 128, 129, 129, 135, 1, 200)
        proto, body = icmp, struct.pack("!BBHHH", rng.choice(types), 0, 0, 0x107, 7) + b"ping"
        body = body if rng.random() < 0.9 else body[: rng.randrange(9)]
    elif kind == 2 and sent:
        quoted = rng.choice(sent)
        at = 14 + 4 * sum(quoted[n : n + 2] in (b"\x81\x00", b"\x88\xa8") for n in (12, 16))
        inside = quoted[at : at + rng.choice((20, 28, 48, 60, 60, 60))]
        if len(inside) >= 40 and (inside[0] >> 4 == 4) == v4 and rng.random() < 0.8:
            target = inside[12:16] if v4 else inside[8:24]
        errors = [3, 4, 5, 11, 12] if v4 else [1, 2, 3, 4]
        proto, body = icmp, struct.pack("!BBHI", rng.choice(errors), 0, 0, 0) + inside
    elif kind == 3:
        proto = rng.choice((132, 47, 50, 41, 58 if v4 else 1))
        body = struct.pack("!HHII", *ports, 5, 6)
    elif kind == 4:
        offset = rng.choice((0, 3))
        piece = (rng.choice((1, 0x10001)), offset, 1 if not offset else rng.choice((0, 1)))
    return link(4 if v4 else 6, tags) + network(source, target, proto, body, piece=piece)


def conversations(size: int) -> st.SearchStrategy[list[Arrival]]:
    """``size`` frames of some connections, interleaved, in bursts and with pauses."""

    def some(seed: int) -> list[Arrival]:
        rng, now, found = Random(seed), 1 << 40, []
        tags = rng.choice(((), (), (0,), (7,), (7, 8)))
        made = []
        for _ in range(rng.choice((1, 2, 4))):
            hosts = rng.choice((HOSTS4, HOSTS4, HOSTS6))
            ends = [
                Peer(rng.choice(hosts), rng.choice((1000, 443)), rng.choice((0, 0xFFFFFF00, rng.getrandbits(32))))
                for _ in "ab"
            ]
            made.append(Connection(ends[0], ends[1], tags if rng.random() < 0.9 else (9,)))
        sent: list[bytes] = []
        for _ in range(size):
            now += rng.choice((0, 999, SECOND // 100)) if rng.random() < 0.95 else rng.choice(PAUSES)
            if rng.random() < 0.65:
                frame = rng.choice(made).frame(rng)
            else:
                frame = other(rng, rng.choice((HOSTS4, HOSTS6)), tags, sent)
            if rng.random() < 0.02:
                frame = frame[: rng.randrange(14, len(frame) + 1)]
            sent.append(frame)
            found.append(Arrival(frame, now, rng.getrandbits(32)))
        return found

    return st.integers(0, 2**32 - 1).map(some)


@st.composite
def tracking_pipelines(draw: st.DrawFn) -> Pipeline:
    """Rules that name what they ask of flows, so that each state of a packet is seen in the rule that takes it."""
    pipe = Pipeline("tracks", default=draw(st.sampled_from((PASS, DROP))))
    small = draw(st.sampled_from((1, 2, 400, 400, 400)))
    full, flags = draw(st.sampled_from((PASS, DROP))), st.booleans()
    pipe.track(capacity=small, half_open=4096, full=full, loose=draw(flags), count=draw(flags), timeouts=SHORT)
    pipe.rule(ct.reply, COUNT, name="reply")
    pipe.rule(ct.original, COUNT, name="original")
    pipe.rule(ct.new & tcp.syn & tcp.ack, DROP, name="new syn-ack")
    pipe.rule(ct.established, draw(st.sampled_from((PASS, TX))), name="established")
    if draw(flags):
        pipe.rule((tcp.dport == 443) | (udp.dport == 53), draw(st.sampled_from((PASS, DROP))), name="some")
    pipe.rule(ct.related, PASS, name="related")
    pipe.rule(ct.invalid, draw(st.sampled_from((PASS, DROP, DROP))), name="invalid")
    pipe.rule(ct.new, draw(st.sampled_from((PASS, PASS, PASS, DROP))), name="new")
    return pipe

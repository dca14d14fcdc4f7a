"""Capture files of every form are read as tcpdump reads them, and damage is an error, never the end of the file."""

from __future__ import annotations

import gzip
import re
import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from random import Random
from struct import pack

import pytest
import zstandard

from xdpkit.compiler.built import Built
from xdpkit.files.pcapng import packet
from xdpkit.files.reader import CapturedPacket, read_captures
from xdpkit.language.actions import DROP
from xdpkit.language.headers import pkt
from xdpkit.language.pcap import pcap as string
from xdpkit.language.pipeline import Pipeline
from xdpkit.replay import replay

FRAMES = [bytes([2] * 12) + b"\x88\xb5" + bytes([n]) * (20 + n) for n in range(5)]
SECONDS = 1_700_000_000


def pcap(
    frames: list[bytes] = FRAMES, *, order: str = "<", magic: int = 0xA1B2C3D4, version: tuple[int, int] = (2, 4),
    snaplen: int = 262_144, linktype: int = 1, tail: bytes = b"", wire: int | None = None,
) -> bytes:  # fmt: skip
    """A pcap file; ``tail`` ends each record's header."""
    out = pack(f"{order}IHHIIII", magic, *version, 0, 0, snaplen, linktype)
    for n, frame in enumerate(frames):
        out += pack(f"{order}IIII", SECONDS + n, n, len(frame), len(frame) if wire is None else wire) + tail + frame
    return out


def block(order: str, kind: int, body: bytes) -> bytes:
    """A pcapng block."""
    body += bytes(-len(body) % 4)
    return pack(f"{order}II", kind, len(body) + 12) + body + pack(f"{order}I", len(body) + 12)


def section(order: str = "<", *, version: tuple[int, int] = (1, 0)) -> bytes:
    return block(order, 0x0A0D0D0A, pack(f"{order}IHHq", 0x1A2B3C4D, *version, -1))


def interface(order: str = "<", *, linktype: int = 1, snaplen: int = 0, options: bytes = b"") -> bytes:
    return block(order, 1, pack(f"{order}HHI", linktype, 0, snaplen) + options)


def enhanced(frame: bytes, *, order: str = "<", at: int = 0, time: int = 0) -> bytes:
    head = pack(f"{order}IIIII", at, time >> 32, time & 0xFFFF_FFFF, len(frame), len(frame))
    return block(order, 6, head + frame + bytes(-len(frame) % 4))


def option(code: int, value: bytes, order: str = "<") -> bytes:
    return pack(f"{order}HH", code, len(value)) + value + bytes(-len(value) % 4)


def read(tmp_path: Path, data: bytes) -> list[CapturedPacket]:
    path = tmp_path / "capture"
    path.write_bytes(data)
    return list(read_captures([path]))


def refused(tmp_path: Path, data: bytes) -> tuple[int, str]:
    """Packets until the error, and what it says."""
    path, count = tmp_path / "capture", 0
    path.write_bytes(data)
    with pytest.raises(OSError, match=r".") as caught:  # noqa: PT012
        for _ in read_captures([path]):
            count += 1
    assert caught.value.filename == str(path)
    return count, str(caught.value.strerror)


FORMS: dict[str, tuple[bytes, int]] = {
    "little-endian": (pcap(), 1000),
    "big-endian": (pcap(order=">"), 1000),
    "nanoseconds": (pcap(magic=0xA1B23C4D), 1),
    "nanoseconds, big-endian": (pcap(magic=0xA1B23C4D, order=">"), 1),
    "modified, with longer record headers": (pcap(magic=0xA1B2CD34, tail=bytes(8)), 1000),
    "modified, big-endian": (pcap(magic=0xA1B2CD34, tail=bytes(8), order=">"), 1000),
    "with frame check sequences noted beside the link type": (pcap(linktype=0x3000_0001), 1000),
    "version 2.3": (pcap(version=(2, 3)), 1000),
}


@pytest.mark.root
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_pcap_is_read_with_its_times(tmp_path: Path, form: str):
    data, unit_ns = FORMS[form]
    got = read(tmp_path, data)
    assert [(p.data, p.wire_bytes, p.number) for p in got] == [(f, len(f), n) for n, f in enumerate(FRAMES, 1)]
    assert [p.time_ns for p in got] == [(SECONDS + n) * 1_000_000_000 + n * unit_ns for n in range(5)]
    assert tcpdump(tmp_path / "capture") == len(FRAMES)


def tcpdump(path: Path, text: str = "") -> int:
    """How many packets tcpdump counts."""
    done = subprocess.run(["tcpdump", "-n", "--count", "-r", path, text], capture_output=True, text=True, check=True)
    found = re.search(r"^(\d+) packet", done.stdout, re.MULTILINE)
    assert found
    return int(found[1])


def test_old_versions_wrote_the_two_lengths_in_the_other_order(tmp_path: Path):
    head = pack("<IHHIIII", 0xA1B2C3D4, 2, 2, 0, 0, 100, 1)
    (got,) = read(tmp_path, head + pack("<IIII", 1, 0, 1000, 30) + bytes(30))
    assert (len(got.data), got.wire_bytes) == (30, 1000)


def test_a_packet_is_cut_to_the_snapshot_length_as_by_tcpdump(tmp_path: Path):
    got = read(tmp_path, pcap(snaplen=22))
    assert [(p.data, p.wire_bytes) for p in got] == [(f[:22], len(f)) for f in FRAMES]


def test_a_packet_longer_than_64_kib_is_read_whole(tmp_path: Path):
    long = bytes(200_000)
    assert [p.data for p in read(tmp_path, pcap([long, *FRAMES]))] == [long, *FRAMES]


def test_each_section_of_a_pcapng_has_its_own_interfaces_and_byte_order(tmp_path: Path):
    """And each interface its own unit of time, offset and snapshot length; other blocks are passed over."""
    nano, offset = option(9, b"\x09"), option(14, pack(">q", 1000), ">")
    data = section() + interface(linktype=113) + interface(options=nano) + block("<", 0xBAD, b"other")
    data += enhanced(FRAMES[0], at=1, time=5) + section(">") + interface(">", options=offset)
    data += interface(">", snaplen=20, options=option(9, b"\x8a", ">"))
    data += enhanced(FRAMES[1], order=">", time=7) + enhanced(FRAMES[2], order=">", at=1, time=512)
    data += block(">", 3, pack(">I", len(FRAMES[3])) + FRAMES[3])
    data += block(">", 2, pack(">HHIIII", 0, 0, 0, 9, 34, 40) + FRAMES[0][:34] + bytes(2))
    got = read(tmp_path, data)
    assert [p.data for p in got] == [*FRAMES[:4], FRAMES[0][:34]]
    assert [p.time_ns for p in got] == [5, 1_000_000_007_000, 500_000_000, 0, 1_000_000_009_000]
    assert (got[4].wire_bytes, got[4].cut) == (40, True)


def test_a_time_that_no_clock_shows_is_the_nearest_that_can_be_written(tmp_path: Path):
    """Before 1970, and more nanoseconds since than 64 bits hold."""
    seconds = option(9, b"\0")
    data = section() + interface(options=seconds) + interface(options=seconds + option(14, pack("<q", -(1 << 63))))
    got = read(tmp_path, data + enhanced(FRAMES[0], time=(1 << 64) - 1) + enhanced(FRAMES[1], at=1, time=1))
    assert [p.time_ns for p in got] == [(1 << 64) - 1, 0]
    for p in got:
        packet(0, p.time_ns, p.data, p.wire_bytes)


PCAPNG = section() + interface() + b"".join(enhanced(f) for f in FRAMES)
DAMAGE = {
    "nothing": (b"", 0, "it is empty"),
    "text": (b"hello, world", 0, "neither pcap nor pcapng"),
    "a file header": (pcap()[:20], 0, "cut short in the file header"),
    "a record header": (pcap()[: 24 + 16 + 34 + 7], 1, "cut short in packet 2"),
    "a record": (pcap()[:-1], 4, "cut short in packet 5"),
    "a length": (pcap()[:-54] + b"\xff" * 54, 4, "packet 5 would have 4,294,967,295 bytes"),
    "a version": (pcap(version=(2, 5)), 0, "pcap version 2.5 is unknown"),
    "another link type": (pcap(linktype=101), 0, "packet 1 has link type 101: only Ethernet (1)"),
    "a pcapng version": (section(version=(2, 0)), 0, "pcapng version 2.0 is unknown"),
    "a byte order": (block("<", 0x0A0D0D0A, bytes(16)), 0, "a section has no byte order"),
    "a block header": (PCAPNG + b"\1\0\0", 5, "cut short in the header of a block"),
    "a block": (PCAPNG[:-1], 4, "cut short in a block"),
    "a block's second length": (PCAPNG[:-1] + b"\1", 4, "not the same length at its start and at its end"),
    "a block's length": (PCAPNG + pack("<III", 6, 13, 13), 5, "a block would have 13 bytes"),
    "a huge block": (PCAPNG + pack("<II", 6, 1 << 31), 5, "a block would have 2,147,483,648 bytes"),
    "no interface": (section() + enhanced(FRAMES[0]), 0, "of interface 0, and no block describes that"),
    "an interface of the section before": (PCAPNG + section() + enhanced(FRAMES[0]), 5, "of interface 0, and no block"),
    "a captured length": (
        section() + interface() + block("<", 6, pack("<IIIII", 0, 0, 0, 99, 99) + bytes(20)), 0, "would have 99 bytes",
    ),
    "a unit of time": (section() + interface(options=option(9, b"\x63")), 0, "in units of 10^-99 s"),
    "an option": (section() + interface(options=option(9, b"\6\6")), 0, "option 9 of an interface cannot have 2 bytes"),
    "gzip": (gzip.compress(pcap([]))[:-12], 0, "not readable as a capture"),
    "gzip data": (gzip.compress(pcap())[:30] + b"\xff" * 40, 0, "not readable as a capture"),
    "zstd": (zstandard.ZstdCompressor().compress(pcap())[:-9] + b"\xff" * 9, 0, "not readable as a capture"),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named_where_it_is(tmp_path: Path, what: str):
    data, packets, words = DAMAGE[what]
    count, said = refused(tmp_path, data)
    assert words in said
    assert count == packets


@pytest.mark.parametrize("data", [pcap(), PCAPNG])
def test_a_file_may_end_between_packets_and_nowhere_else(tmp_path: Path, data: bytes):
    whole = 0
    for size in range(len(data)):
        try:
            got = [p.data for p in read(tmp_path, data[:size])]
        except OSError as error:
            assert "capture" in str(error)  # noqa: PT017
        else:
            assert got == FRAMES[: len(got)]
            whole += 1
    assert whole == (len(FRAMES) if data is not PCAPNG else len(FRAMES) + 1)


@pytest.mark.parametrize("make", [bytes, gzip.compress, zstandard.ZstdCompressor().compress])
@pytest.mark.parametrize("data", [pcap(), PCAPNG])
def test_a_spoiled_file_is_read_or_refused_in_one_line(tmp_path: Path, data: bytes, make: Callable[[bytes], bytes]):
    rng, data = Random(7), make(data)
    for _ in range(300):
        spoiled = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            spoiled[rng.randrange(len(spoiled))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        try:
            read(tmp_path, bytes(spoiled[: rng.choice((len(spoiled), rng.randrange(len(spoiled))))]))
        except OSError as error:
            assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.root
def test_the_engines_agree_on_a_packet_that_is_longer_than_its_file_says(tmp_path: Path):
    """The length on the wire is what the file says, as for tcpdump."""
    packets = read(tmp_path, pcap(wire=16))
    pipe = Pipeline("lengths")
    pipe.rule(string("less 16"), DROP, name="string")
    pipe.rule(pkt.len < 17, DROP, name="field")
    for engine in ("kernel", "reference"):
        found = replay(packets, Built(pipe, {}), engine=engine).packets
        assert found == {"string": tcpdump(tmp_path / "capture", "less 16"), "field": 0, "default": 0} == found
    assert [b.number - a.number for a, b in pairwise(packets)] == [1] * 4

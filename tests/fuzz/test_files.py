"""Files of every kind that others may hand in, spoiled at random: each is read, or refused with the one error that its
reader declares.  `make fuzz` tries new ones for as long as it runs."""

# ruff: noqa: PT017 - an error may come, and then it is looked at

from __future__ import annotations

import gzip
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random
from struct import pack

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples

from xdpkit import DROP, PASS, Mark, Pipeline, PipelineError, ip, limit, log, pcap, src, tcp, udp
from xdpkit.compiler.built import Built, read, write
from xdpkit.files import pcapng
from xdpkit.files.reader import read_captures
from xdpkit.sets import columns, feeds

LISTS = (
    b"192.0.2.1\n198.51.100.0/24 timeout 1h # mine\n10.0.0.1-10.0.0.9\n",
    b"add blocked 192.0.2.1 timeout 60\nadd blocked 198.51.100.0/24\n",
    b"address,timeout\n192.0.2.1,60\n198.51.100.0/24,\n",
    b'["192.0.2.1", {"member": "198.51.100.0/24", "timeout": 60}]',
    b'{"nftables": [{"set": {"name": "blocked", "elem": [{"prefix": {"addr": "10.0.0.0", "len": 8}}]}}]}',
)
PACKETS = [bytes([2] * 12) + b"\x08\x00" + bytes(20 + n) for n in range(4)]
PCAP = pack("<IHHIIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1) + b"".join(
    pack("<IIII", n, 0, len(data), len(data)) + data for n, data in enumerate(PACKETS)
)
PCAPNG = pcapng.section("test") + pcapng.interface("eth9") + b"".join(pcapng.packet(0, 9, p, 40) for p in PACKETS)
COMPRESS: tuple[Callable[[bytes], bytes], ...] = (bytes, gzip.compress, zstandard.ZstdCompressor().compress)


def spoiled(rng: Random, data: bytes) -> bytes:
    """``data`` with one to four changes: a bit, a byte, a piece left out, doubled, or put in."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed) + 1)
        size = rng.choice((1, 1, 2, 4, 8, 100))
        piece = bytes(changed[at : at + size])
        match rng.choice(("flip", "byte", "cut", "double", "insert", "end")):
            case "flip" if at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            case "byte" if at < len(changed):
                changed[at] = rng.choice((0, 0xFF, 0x7F, 0x80, *b'\n,"{}[]%/-'))
            case "cut":
                del changed[at : at + size]
            case "double":
                changed[at:at] = piece
            case "insert":
                changed[at:at] = rng.randbytes(size)
            case "end":
                del changed[at:]
    return bytes(changed)


seeds = st.integers(0, 2**32 - 1)


@examples(200)
@given(seeds, st.sampled_from(LISTS), st.sampled_from(COMPRESS))
def test_a_spoiled_list_is_read_or_refused_in_one_line(seed, data, compress):
    rng = Random(seed)
    data = spoiled(rng, compress(spoiled(rng, data)) if rng.random() < 0.5 else compress(data))
    spec = Pipeline("p").set("blocked", ip.src, timeouts=True).spec
    try:
        columns.read(spec, io.BytesIO(data))
    except PipelineError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 1000


@examples(200)
@given(seeds, st.sampled_from(LISTS))
def test_a_spoiled_feed_is_read_or_refused_in_one_line(seed, data):
    try:
        feeds.read_feed(spoiled(Random(seed), data), "feed")
    except PipelineError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 1000


@examples(200)
@given(seeds, st.sampled_from((PCAP, PCAPNG)), st.sampled_from(COMPRESS))
def test_a_spoiled_capture_is_read_or_refused_by_name(tmp_path_factory, seed, data, compress):
    rng = Random(seed)
    path = tmp_path_factory.getbasetemp() / "capture"
    path.write_bytes(spoiled(rng, compress(spoiled(rng, data)) if rng.random() < 0.5 else compress(data)))
    try:
        list(read_captures([path]))
    except OSError as error:
        assert error.filename == str(path)
        assert "\n" not in str(error.strerror)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A built file with sets, limits, steps and a tcpdump string."""
    pipe = Pipeline("built", default=PASS)
    banned = pipe.set("banned", src, timeouts=True, members=["192.0.2.1"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe.rule(banned | pcap("tcp dst port 443"), DROP)
        pipe.rule(udp & ~limit("10/second", per=src), log("1/second"), banned.add(timeout=5), Mark(3), DROP)
        pipe.rule((udp.dport == 53) | (tcp.flags & 2 == 2), DROP)
    path = tmp_path_factory.mktemp("built") / "rules.xdp"
    write(Built(pipe, {}), path)
    return path


@examples(200)
@given(seeds)
def test_a_spoiled_built_file_is_read_or_refused_by_name(built, seed):
    path = built.with_name("spoiled.xdp")
    path.write_bytes(spoiled(Random(seed), built.read_bytes()))
    try:
        read(path)
    except PipelineError as error:
        assert str(path) in str(error)
        assert len(str(error)) < 1000

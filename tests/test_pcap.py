"""tcpdump strings mean what libpcap means by them: the reference, libpcap's own filter and the compiled program agree.

The filters of tests/data/pcap_filters.txt and random ones, on frames of every protocol they name, whole, cut at every
length and spoiled.
"""

from __future__ import annotations

import gzip
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from random import Random
from struct import pack
from typing import Any

import pytest
from hypothesis import given, note
from hypothesis import strategies as st
from pcap_frames import samples, spoiled
from strategies import FUZZ, again, examples

from xdpkit import DROP, PASS, REDIRECT, NotSupported, Pipeline, PipelineError, Program, compile_pipeline, pcap, tcp, udp
from xdpkit import pkt as packet
from xdpkit.classic import MAX_TURNS, Classic, run
from xdpkit.reference import evaluate, walk

FILTERS = tuple(
    line
    for line in (Path(__file__).parent / "data" / "pcap_filters.txt").read_text().splitlines()
    if line and not line.startswith("#")
)
XDP_DROP = 1


class Libpcap:
    """libpcap's own compiler and interpreter, opened by the tests for themselves."""

    def __init__(self) -> None:
        from cffi import FFI  # noqa: PLC0415

        self.ffi = FFI()
        self.ffi.cdef("""
            struct bpf_program { unsigned int bf_len; void *bf_insns; };
            struct pcap_pkthdr { long seconds, microseconds; uint32_t caplen, len; };
            void *pcap_open_dead(int, int);
            int pcap_compile(void *, struct bpf_program *, const char *, int, uint32_t);
            void pcap_freecode(struct bpf_program *);
            int pcap_offline_filter(const struct bpf_program *, const struct pcap_pkthdr *, const uint8_t *);
        """)
        self.lib = self.ffi.dlopen("libpcap.so.0.8")
        self.handle = self.lib.pcap_open_dead(1, 262144)

    def filter(self, text: str) -> Callable[[bytes], bool]:
        """Does a frame match ``text``?"""
        program = self.ffi.gc(self.ffi.new("struct bpf_program *"), self.lib.pcap_freecode)
        assert self.lib.pcap_compile(self.handle, program, text.encode(), 1, 0) == 0, text
        header = self.ffi.new("struct pcap_pkthdr *")

        def matches(frame: bytes) -> bool:
            header.caplen = header.len = len(frame)
            return bool(self.lib.pcap_offline_filter(program, header, self.ffi.from_buffer(frame)))

        return matches


LIBPCAP = Libpcap()


def node(text: str, **options: Any) -> Classic:
    expr = pcap(text, **options)
    assert isinstance(expr, Classic)
    return expr


def assert_all_agree(text: str, frames: list[bytes]) -> None:
    """Reference, libpcap and XDP, on each frame; XDP takes none of less than 14 bytes."""
    expr, libpcap = node(text), LIBPCAP.filter(text)
    pipe = Pipeline("filter")
    pipe.rule(expr, DROP)
    with Program(compile_pipeline(pipe)) as program:
        for frame in frames:
            result, turns = run(expr.instructions, frame)
            engines = {"reference": result != 0}
            if turns <= MAX_TURNS:  # else libpcap would not come back
                engines["libpcap"] = libpcap(frame)
            if len(frame) >= 14:
                engines["XDP"] = program.test_run(frame)[0] == XDP_DROP
            assert len(set(engines.values())) == 1, f"{text!r} on {frame.hex()}: {engines}"


def frames_for(text: str) -> list[bytes]:
    """The samples (all of them once in five filters, as many as there is time for), cut and spoiled ones besides: the
    same for the same filter."""
    rng = Random(text)
    whole = list(samples())
    chosen = whole if FUZZ else rng.sample(whole, 120)
    cut = [frame[:size] for frame in rng.sample(whole, 2 if not FUZZ else 50) for size in range(min(len(frame), 150))]
    return [*chosen, *cut, *(spoiled(rng, rng.choice(whole)) for _ in range(60 if not FUZZ else 5000))]


@pytest.mark.parametrize("part", range(8))
def test_every_filter_of_the_corpus_means_the_same_to_all(part: int):
    for text in FILTERS[part::8]:
        assert_all_agree(text, frames_for(text))


def test_the_corpus_is_large_and_the_samples_match_and_miss_most_of_it():
    assert len(FILTERS) > 500
    missed = [text for text in FILTERS if not any(map(LIBPCAP.filter(text), islice(samples(), None)))]
    print(missed)
    assert len(missed) < len(FILTERS) / 10, missed

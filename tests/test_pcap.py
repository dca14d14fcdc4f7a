"""tcpdump strings mean what libpcap means by them: the reference, libpcap's own filter and the compiled program agree.

The filters of tests/data/pcap_filters.txt and random ones, on frames of every protocol they name, whole, cut at every
length and spoiled.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from struct import pack
from typing import Any

import pytest
from hypothesis import given, note
from hypothesis import strategies as st
from pcap_frames import samples, spoiled
from strategies import FUZZ, again, examples

from xdpkit import (
    DROP,
    Pipeline,
    PipelineError,
    Program,
    Where,
    compile_pipeline,
    pcap,
)
from xdpkit.classic import MAX_TURNS, Classic, Instruction, interpret, run

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
        return self._matcher(program)

    def program(self, instructions: tuple[Instruction, ...]) -> Callable[[bytes], bool]:
        """Does a frame match a program?"""
        program = self.ffi.new("struct bpf_program *")
        code = self.ffi.from_buffer(b"".join(pack("=HBBI", *ins) for ins in instructions))
        program.bf_len, program.bf_insns = len(instructions), self.ffi.cast("void *", code)
        matcher = self._matcher(program)
        return lambda frame, _keep=code: matcher(frame)  # type: ignore[misc]

    def _matcher(self, program: Any) -> Callable[[bytes], bool]:
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


def test_the_corpus_is_large_and_the_samples_match_most_of_it():
    assert len(FILTERS) > 500
    missed = [text for text in FILTERS if not any(map(LIBPCAP.filter(text), samples()))]
    assert len(missed) < len(FILTERS) / 8, missed


# ---- random filters ----

NUMBERS = (
    0,
    1,
    2,
    4,
    6,
    8,
    15,
    17,
    20,
    31,
    40,
    53,
    64,
    100,
    255,
    256,
    443,
    0x800,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
)
HEADERS = ("ether", "ip", "ip6", "tcp", "udp", "icmp", "arp", "sctp")


def arithmetic() -> st.SearchStrategy[str]:
    """Arithmetic expressions, with bytes at computed offsets."""
    number = st.sampled_from(NUMBERS).map(str)
    size = st.sampled_from(("", ":1", ":2", ":4"))
    offset = st.integers(0, 44).map(str) | number
    leaves = number | st.just("len") | st.builds("{}[{}{}]".format, st.sampled_from(HEADERS), offset, size)
    return st.recursive(
        leaves,
        lambda inner: (
            st.builds(
                "({} {} {})".format, inner, st.sampled_from(["+", "-", "*", "/", "%", "&", "|", "^", "<<", ">>"]), inner
            )
            | st.builds("ether[{}{}]".format, inner, size)
            | inner.map("(- {})".format)
        ),
        max_leaves=6,
    )


def filters() -> st.SearchStrategy[str]:
    """Filters that are syntactically right; libpcap may still find that one can never match, or divides by zero."""
    relation = st.builds(
        "({} {} {})".format, arithmetic(), st.sampled_from(["=", "!=", "<", "<=", ">", ">="]), arithmetic()
    )  # fmt: skip
    primitive = st.sampled_from([text for text in FILTERS if len(text) < 60]).map("({})".format)
    return st.recursive(
        primitive | relation,
        lambda inner: (
            st.builds("({} {} {})".format, inner, st.sampled_from(("and", "or")), inner) | inner.map("not {}".format)
        ),
        max_leaves=6,
    )


@examples(120)
@given(filters())
def test_random_filters_mean_the_same_to_all(text: str):
    note(again("test_pcap.py"))
    try:
        pcap(text)
    except PipelineError:
        return
    assert_all_agree(text, frames_for(text))


# ---- random programs: what libpcap might emit, and what it never does ----


@st.composite
def programs(draw: st.DrawFn) -> tuple[Instruction, ...]:
    """Classic BPF programs without loops, of every instruction; k loves the edges of a frame."""
    size = draw(st.integers(1, 20))
    k = st.sampled_from(NUMBERS) | st.integers(0, 70)
    word, width, source = st.integers(0, 15), st.sampled_from((0x00, 0x08, 0x10)), st.sampled_from((0x00, 0x08))
    out = []
    for left in range(size, 0, -1):
        jump = st.integers(0, left - 1)
        kind = draw(
            st.sampled_from(("abs", "ind", "ind", "other", "mem", "alu", "alu", "alu", "jump", "jump", "ja", "ret"))
        )
        if kind == "abs":
            out.append(Instruction(0x20 | draw(width), 0, 0, draw(k)))
        elif kind == "ind":
            out.append(Instruction(0x40 | draw(width), 0, 0, draw(k)))
        elif kind == "other":  # ld imm, ld len, ldx imm, ldx len, ldx msh, tax, txa
            out.append(Instruction(draw(st.sampled_from((0x00, 0x80, 0x01, 0x81, 0xB1, 0x07, 0x87))), 0, 0, draw(k)))
        elif kind == "mem":  # ld, ldx, st, stx
            out.append(Instruction(draw(st.sampled_from((0x60, 0x61, 0x02, 0x03))), 0, 0, draw(word)))
        elif kind == "alu":
            operation, of = draw(st.integers(0, 10)), draw(source)
            shift = operation in (6, 7) and not of  # libpcap's interpreter leaves k > 31 to C, and refuses to emit it
            zero = operation in (3, 9) and not of
            out.append(
                Instruction(
                    operation << 4 | 4 | of, 0, 0, draw(st.integers(0, 31) if shift else k.filter(bool) if zero else k)
                )
            )
        elif kind == "jump":
            out.append(Instruction(draw(st.integers(1, 4)) << 4 | 5 | draw(source), draw(jump), draw(jump), draw(k)))
        elif kind == "ja":
            out.append(Instruction(0x05, 0, 0, draw(jump)))
        else:
            out.append(Instruction(draw(st.sampled_from((0x06, 0x16))), 0, 0, draw(st.sampled_from((0, 1, 262144)))))
    return (*out, Instruction(draw(st.sampled_from((0x06, 0x16))), 0, 0, 1))


@examples(250)
@given(programs(), st.randoms(use_true_random=False))
def test_random_programs_mean_the_same_to_all(program: tuple[Instruction, ...], rng: Random):
    note(again("test_pcap.py"))
    used_before = {ins.k for ins in program if ins.code in (0x60, 0x61)}
    # Scratch words are 0 at the start here; libpcap's own are not cleared.
    program = (Instruction(0, 0, 0, 0), *(Instruction(0x02, 0, 0, k) for k in sorted(used_before)), *program)
    expr, libpcap = Classic("random", program, where=Where(__file__, 1)), LIBPCAP.program(program)
    pipe = Pipeline("random")
    pipe.rule(expr, DROP)
    frames = [spoiled(rng, rng.choice(samples())).ljust(14, b"\0") for _ in range(30)]
    with Program(compile_pipeline(pipe)) as loaded:
        for frame in frames:
            answers = (interpret(program, frame) != 0, libpcap(frame), loaded.test_run(frame)[0] == XDP_DROP)
            assert len(set(answers)) == 1, f"{frame.hex()}: reference, libpcap, XDP: {answers}"

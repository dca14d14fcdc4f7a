"""tcpdump strings mean what libpcap means by them: the reference, libpcap's own filter and the compiled program agree.

The filters of tests/language/data/pcap_filters.txt and random ones, on frames of every protocol they name, whole, cut
at every length and spoiled.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from struct import pack
from typing import Any

import pytest
from engines import attached, counted, expected, live, packet_socket
from hypothesis import example, given, note
from hypothesis import strategies as st
from pcap_frames import samples, spoiled
from strategies import FUZZ, again, examples

from xdpkit import (
    DROP,
    PASS,
    REDIRECT,
    Pipeline,
    PipelineError,
    Program,
    Where,
    compile_pipeline,
    pcap,
    tcp,
    udp,
)
from xdpkit import pkt as packet
from xdpkit.kernel.core import check, lib
from xdpkit.lab import Port
from xdpkit.language.classic import MAX_TURNS, Classic, Instruction, interpret, run
from xdpkit.meaning.evaluate import evaluate, walk

FILTERS = tuple(
    line
    for line in (Path(__file__).parent / "data" / "pcap_filters.txt").read_text().splitlines()
    if line and not line.startswith("#")
)
XDP_DROP = 1


class Libpcap:
    """libpcap's own compiler and interpreter, opened by the tests for themselves."""

    def __init__(self) -> None:
        from cffi import FFI

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
            defined = run(expr.instructions, frame, scratch=0xDEADBEEF)[0] == result  # libpcap 1.10 does not clear M[]
            if turns <= MAX_TURNS and defined:  # else libpcap would not come back
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


@pytest.mark.root
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


@pytest.mark.root
@examples(120)
@given(filters())
@example("((len = ether[len]) and (0 = ether[len:2]))")  # two sizes at one place: one bound for both
def test_random_filters_mean_the_same_to_all(text: str):
    note(again("language/test_pcap.py"))
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
            operation = draw(st.integers(0, 10))
            of = draw(source) if operation != 8 else 0  # neg has no operand
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


@pytest.mark.root
@examples(100)
@given(programs(), st.randoms(use_true_random=False))
def test_random_programs_mean_the_same_to_all(program: tuple[Instruction, ...], rng: Random):
    note(again("language/test_pcap.py"))
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


# ---- loops ----


def ip6_chain(headers: int, last: int = 17) -> bytes:
    """An IPv6 packet with ``headers`` destination options of 8 bytes each."""
    chain = b"".join(bytes((60 if i + 1 < headers else last,)).ljust(8, b"\0") for i in range(headers))
    ip = b"\x60\0\0\0" + pack("!HBB", len(chain), 60 if headers else last, 64) + bytes(32)
    return bytes(12) + b"\x86\xdd" + ip + chain


@pytest.mark.root
@pytest.mark.parametrize("headers", [0, 1, 63, 64, 65, 180, 1000, MAX_TURNS - 1, MAX_TURNS, MAX_TURNS + 1])
def test_a_chain_of_headers_is_followed_to_the_documented_bound(headers: int):
    frame, text = ip6_chain(headers), "ip6 protochain 17"
    expr = node(text)
    pipe = Pipeline("chain")
    pipe.rule(expr, DROP)
    assert LIBPCAP.filter(text)(frame)
    # BPF_PROG_TEST_RUN takes a page at most: longer chains are the reference's alone, and the wire test's.
    assert (interpret(expr.instructions, frame) != 0) is (headers <= MAX_TURNS)
    if len(frame) < 3520:
        with Program(compile_pipeline(pipe)) as program:
            assert program.test_run(frame)[0] == XDP_DROP


@pytest.mark.root
def test_a_chain_that_leads_back_to_itself_does_not_match():
    """libpcap takes the length of an authentication header for an offset, and goes round for ever here."""
    frame = bytearray(bytes(12) + b"\x86\xdd\x60" + bytes(5) + b"\x33\x40" + bytes(32) + b"\x33" * 1000)
    frame[14 + 41] = 8
    for text in ("ip6 protochain 6", "not ip6 protochain 6"):
        expr = node(text)
        assert run(expr.instructions, bytes(frame)) == (0, MAX_TURNS + 1)
        pipe = Pipeline("round")
        pipe.rule(expr, DROP)
        with Program(compile_pipeline(pipe)) as program:
            assert program.test_run(bytes(frame))[0] != XDP_DROP


@pytest.mark.root
def test_several_looping_filters_share_a_program():
    pipe = Pipeline("loops")
    texts = ["ip6 protochain 6", "ip protochain 51", "ip6 protochain 17 and ip6 protochain 60", "protochain 17", "tcp"]
    for text in texts:
        pipe.rule(pcap(text) & (packet.len > 20), DROP, name=text)
    libpcap = {text: LIBPCAP.filter(text) for text in texts}
    with Program(compile_pipeline(pipe)) as program:
        for frame in samples():
            wanted = next((text for text in texts if libpcap[text](frame) and len(frame) > 20), "default")
            assert program.judge(frame)[0].name == evaluate(pipe, frame).name == wanted


@pytest.mark.root
def test_scratch_memory_is_clear_at_the_start():
    """libpcap emits a read of what it has not written here, and 1.10 finds there what was on its stack."""
    text = "not (((ip or geneve) or (ip proto 17)) and ((not vlan) or (tcp and host 192.0.2.1)))"
    frame, expr = bytes.fromhex("0180c2000000020000003301001ee0e0010000000000000000"), node(text)
    assert run(expr.instructions, frame)[0] != run(expr.instructions, frame, scratch=0xDEADBEEF)[0] == 0
    assert_all_agree(text, [frame])


# ---- beside the rest of the language ----


@pytest.mark.root
def test_strings_join_with_fields_and_each_other():
    pipe = Pipeline("mixed")
    pipe.rule(pcap("port 53") & ~pcap("net 10/8") & (udp.dport == 53), DROP, name="dns")
    pipe.rule(tcp & pcap("greater 60") | ~pcap("ip or ip6"), PASS, name="other")
    texts = {text: LIBPCAP.filter(text) for text in ("port 53", "net 10.0.0.0/8", "greater 60", "ip or ip6")}
    with Program(compile_pipeline(pipe)) as program:
        for frame in samples():
            is_ = {text: matches(frame) for text, matches in texts.items()}
            seen = walk(frame)
            if is_["port 53"] and not is_["net 10.0.0.0/8"] and seen.value(udp.dport.spec) == 53:
                wanted = "dns"
            elif ("tcp" in seen.present and is_["greater 60"]) or not is_["ip or ip6"]:
                wanted = "other"
            else:
                wanted = "default"
            assert program.judge(frame)[0].name == evaluate(pipe, frame).name == wanted


def test_a_length_is_that_on_the_wire():
    pipe = Pipeline("cut")
    rule = pipe.rule(pcap("greater 1000"), DROP)
    assert evaluate(pipe, bytes(60), wire_bytes=1000) is rule
    assert evaluate(pipe, bytes(60)) is not rule


@pytest.mark.parametrize("text", ["", "  "])
def test_the_empty_string_matches_everything(text: str):
    expr = node(text)
    assert all(interpret(expr.instructions, frame) for frame in (b"", *samples()))


def test_one_octet_networks_may_have_a_length():
    """libpcap's grammar knows "net 10" and "net 10.0/8" only."""
    plain, spelt = node("tcp dst port 443 and net 10/8"), node("tcp dst port 443 and net 10.0.0.0/8")
    assert plain.instructions == spelt.instructions
    assert str(plain) == "pcap('tcp dst port 443 and net 10/8')"


def test_the_netmask_is_for_ip_broadcast():
    frame = bytes(12) + b"\x08\x00\x45" + bytes(15) + bytes((192, 0, 2, 255))
    assert not interpret(node("ip broadcast").instructions, frame)
    assert interpret(node("ip broadcast", netmask="255.255.255.0").instructions, frame)


# ---- errors, lines, cost ----


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tcp and and", "can't parse filter expression: syntax error"),
        ("ip and ip6", "expression rejects all packets"),
        ("net 192.0.2.1/24", "non-network bits set"),
        ("ip[0] / 0 = 1", "division by zero"),
        ("action pass", "PF linktype"),
        ("tcp\0", "takes a tcpdump string"),
        (5, "takes a tcpdump string"),
    ],
)
def test_what_libpcap_refuses_is_an_error_at_the_line(text: str, words: str):
    with pytest.raises(PipelineError, match=words) as error:
        pcap(text)
    assert error.value.where is not None
    assert error.value.where.file == __file__


@pytest.mark.parametrize(
    "declare", [lambda: tcp & "port 53", lambda: "port 53" | pcap("tcp"), lambda: Pipeline("p").rule("port 53", DROP)]
)
def test_a_plain_string_is_no_condition(declare: Callable[[], object]):
    with pytest.raises(PipelineError, match=r"write pcap\('port 53'\) for tcpdump syntax"):
        declare()


def test_without_libpcap_nothing_but_strings_is_missing():
    code = """
import ctypes.util, cffi
cffi.FFI.dlopen = lambda *_: (_ for _ in ()).throw(OSError("no libpcap"))
import xdpkit
xdpkit.Pipeline("p").rule(xdpkit.tcp, xdpkit.DROP)
try:
    xdpkit.pcap("tcp")
except xdpkit.NotSupported as error:
    print(error)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "tcpdump strings: libpcap: apt-get install libpcap0.8\n"


@pytest.mark.root
@pytest.mark.parametrize("text", ["tcp port 443", "ip[ip[0] & 15] = 4", "ip6 protochain 6"])
@pytest.mark.parametrize("hook", ["xdp", "tc", "socket"])
def test_the_instructions_of_a_string_carry_its_line(text: str, hook: str):
    pipe = Pipeline("lines")
    rule = pipe.rule(pcap(text), REDIRECT)
    with Program(compile_pipeline(pipe, hook)) as program:
        assert any(line.where == rule.where and "pcap(text)" in line.text for line in program.lines())


LONG = " or ".join(f"(host 198.51.100.{i} and tcp port {8000 + i})" for i in range(1, 51))


@pytest.mark.root
@pytest.mark.parametrize("text", [LONG, LONG.replace("tcp port ", "portrange 1-"), "vlan and (" + LONG + ")"])
@pytest.mark.parametrize("hook", ["xdp", "tc", "socket"])
def test_long_filters_are_far_from_the_limit_of_the_verifier(text: str, hook: str):
    pipe = Pipeline("long")
    expr = node(text)
    pipe.rule(expr, REDIRECT)
    with Program(compile_pipeline(pipe, hook)) as program:
        limit = 250_000 if hook == "tc" else 100_000  # each load in place and, beyond the linear part, copied: two ways
        assert program.info()["verified_instructions"] < limit
        if hook == "xdp":
            frame = (
                bytes(12)
                + b"\x08\0\x45"
                + bytes(8)
                + b"\6\0\0"
                + bytes((198, 51, 100, 50, 1, 1, 1, 1))
                + pack("!HH", 1, 8050)
            )
            assert (program.judge(frame)[0].name == "rule-1") is LIBPCAP.filter(text)(frame)


# ---- peers: socket filter and TC on a wire, tcpdump on a capture ----

#: Those that look around tags among them: the kernel takes tags out of the packet on its way.
ON_THE_WIRE = [text for text in FILTERS if any(word in text for word in ("vlan", "protochain", "ether["))][::6]
ON_THE_WIRE += FILTERS[::60]


@pytest.mark.root
def test_tc_judges_as_the_reference(wire: Port):
    batch = live(list(samples()))
    for text in ON_THE_WIRE:
        pipe = Pipeline("tc")
        pipe.rule(pcap(text), DROP, name="taken")
        with Program(compile_pipeline(pipe, "tc")) as program, attached(program, wire), wire.capture() as seen:
            wire.peer.send(batch)
            assert seen.wait(len(batch)) == batch, "the wire itself"
            check(lib.xk_quiesce())
            assert counted(program) == expected(pipe, batch), text


@pytest.mark.root
def test_the_socket_filter_judges_as_the_reference(wire: Port):
    batch = live(list(samples()))
    for text in ON_THE_WIRE:
        pipe = Pipeline("socket")
        pipe.rule(pcap(text), REDIRECT, name="taken")
        with Program(compile_pipeline(pipe, "socket")) as program, wire.capture() as seen:
            with packet_socket(wire, program, lib.XK_RECVMMSG):
                wire.peer.send(batch)
                assert seen.wait(len(batch)) == batch, "the wire itself"
                check(lib.xk_quiesce())
                assert counted(program) == expected(pipe, batch), text


@pytest.mark.root
def test_tcpdump_takes_the_same_packets_of_a_capture(tmp_path: Path):
    capture, kept = tmp_path / "all.pcap", tmp_path / "kept.pcap"
    rng = Random(7)
    frames = [*samples(), *(spoiled(rng, rng.choice(samples())) for _ in range(300))]
    write_capture(capture, frames)
    for text in FILTERS[::12]:
        expr = node(text)
        wanted = [frame for frame in frames if interpret(expr.instructions, frame)]
        subprocess.run(["tcpdump", "-nr", capture, "-w", kept, text], check=True, capture_output=True)
        assert list(read_capture(kept)) == wanted, text


def write_capture(path: Path, frames: list[bytes]) -> None:
    """A pcap file (draft-ietf-opsawg-pcap), Ethernet."""
    head = pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1)
    path.write_bytes(head + b"".join(pack("<IIII", 1, 0, len(f), len(f)) + f for f in frames))


def read_capture(path: Path) -> Iterator[bytes]:
    data, at = path.read_bytes(), 24
    while at < len(data):
        size = int.from_bytes(data[at + 8 : at + 12], "little")
        yield data[at + 16 : at + 16 + size]
        at += 16 + size

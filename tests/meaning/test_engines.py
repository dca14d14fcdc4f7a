"""Every engine agrees with the reference on every frame.

Three engines: the XDP program under BPF_PROG_TEST_RUN, the XDP program attached to a veth port, and the socket filter
on an AF_PACKET socket there (BPF_PROG_TEST_RUN hides the Ethernet header from socket filters: it cannot judge them).
"""

from __future__ import annotations

import mmap
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from functools import reduce
from operator import or_
from random import Random

import pytest
from engines import TAGS, attached, counted, drain, expected, live, one_by_one, packet_socket, runs
from hypothesis import assume, given, note
from hypothesis import strategies as st
from strategies import again, batches, examples, frames, listing, pipelines, truncations

from xdpkit.compiler import compile_pipeline, plan
from xdpkit.compiler import rule_tables as table
from xdpkit.kernel.core import check, ffi, lib
from xdpkit.kernel.program import Program
from xdpkit.lab import Lab, Port
from xdpkit.language.actions import DROP, PASS, TX, Verdict
from xdpkit.language.errors import VerifierError
from xdpkit.language.expr import Present, here
from xdpkit.language.fields import FIELDS, HEADERS
from xdpkit.language.headers import HEADER_OBJECTS, pkt, udp
from xdpkit.language.metadata import Metadata
from xdpkit.language.pipeline import CLOCK, Pipeline
from xdpkit.meaning.evaluate import evaluate, walk

#: Random rules and rules about every field are in each other's way.
pytestmark = [pytest.mark.root, pytest.mark.filterwarnings("ignore::xdpkit.PipelineWarning")]

#: From how many rules on a run of them is a table: from the first, or never.
TABLES = st.sampled_from([1, 10**6])
SOL_PACKET, PACKET_VNET_HDR = 263, 15  # linux/socket.h, linux/if_packet.h


def beside(frame: bytes) -> Metadata:
    """What the kernel knows beside the bytes of ``frame`` when TC and packet sockets see it: it takes the outer tag out
    itself.  Nobody computed a hash on the way: veth ports with one queue have no use for it."""
    return Metadata(vlan=int.from_bytes(frame[14:16]) & 0xFFF if frame[12:14] in TAGS else None)


# ---- XDP and TC, one frame at a time ----


def assert_judged_alike(pipe: Pipeline, batch: list[bytes], hook: str) -> None:
    note(f"{pipe}\n{listing(pipe)}")
    batch = [frame for frame in batch if runs(hook, frame)]
    with Program(compile_pipeline(pipe, hook)) as program:
        wrong = [frame for frame in batch if program.judge(frame)[0] is not evaluate(pipe, frame)]
        if wrong:
            frame = min(wrong, key=len)
            engine, reference = program.judge(frame)[0].name, evaluate(pipe, frame).name
            pytest.fail(
                f"{len(wrong)} of {len(batch)} frames; the shortest, {frame.hex()}, is {walk(frame)}: "
                f"{hook} takes it by {engine!r}, the reference by {reference!r}"
            )


@one_by_one
@examples(50)
@given(pipelines(), batches(150))
def test_the_program_judges_every_frame_as_the_reference_does(hook: str, pipe: Pipeline, batch: list[bytes]):
    note(again("meaning/test_engines.py"))
    assert_judged_alike(pipe, batch, hook)


@pytest.mark.parametrize("hook", ["xdp", "xdp_frags", "tc"])
@examples(20)
@given(pipelines(), batches(150))
def test_on_a_bridge_the_same_rule_takes_a_frame(hook: str, pipe: Pipeline, batch: list[bytes]):
    note(again("meaning/test_engines.py"))
    wire = pipe.across()
    with Program(compile_pipeline(wire, hook), explain=True) as program:
        for frame in batch:
            if runs(hook, frame):
                rule, verdict = program.judge(frame)
                expected = evaluate(pipe, frame)
                assert rule.name == expected.name
                passes = expected.action.verdict is Verdict.PASS
                assert verdict is (Verdict.FORWARD if passes else expected.action.verdict)
                assert str(rule.action) == str(expected.action)


@one_by_one
@pytest.mark.parametrize("limit", ["MANY", "FEW"])
@examples(20)
@given(pipelines(), batches(150))
def test_what_is_hidden_from_the_verifier_for_many_rules_changes_no_verdict(
    hook: str, limit: str, pipe: Pipeline, batch: list[bytes]
):
    note(again("meaning/test_engines.py"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, limit, -1)
        assert_judged_alike(pipe, batch, hook)


@one_by_one
@pytest.mark.parametrize("least", [1, 10**6], ids=["tables", "code"])
@examples(25)
@given(pipelines(max_rules=12), batches(150))
def test_rules_in_tables_and_rules_in_code_mean_the_same(hook: str, least: int, pipe: Pipeline, batch: list[bytes]):
    note(again("meaning/test_engines.py"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "LEAST", least)
        try:
            assert_judged_alike(pipe, batch, hook)
        except VerifierError as error:  # nobody makes tables of so few rules: they may be too much for the kernel
            assume("too large" not in str(error))
            raise


@one_by_one
@examples(20)
@given(pipelines(), st.lists(frames(), min_size=4, max_size=8))
def test_the_program_agrees_at_every_length_a_frame_may_be_cut_to(hook: str, pipe: Pipeline, wholes: list[bytes]):
    note(again("meaning/test_engines.py"))
    assert_judged_alike(pipe, [part for whole in wholes for part in truncations(whole)], hook)


@pytest.fixture(scope="module")
def detectors() -> Iterator[dict[str, Program]]:
    """For each header the program that takes the frames that have it."""
    with ExitStack() as stack:
        programs = {}
        for header in HEADERS:
            pipe = Pipeline(header)
            pipe.rule(Present(header, where=here()), DROP, name="there")
            programs[header] = stack.enter_context(Program(compile_pipeline(pipe), explain=True))
        yield programs


@examples(30)
@given(batches(300))
def test_xdp_finds_every_header_that_the_reference_finds(detectors: dict[str, Program], batch: list[bytes]):
    """With the first frames cut short at every byte."""
    note(again("meaning/test_engines.py"))
    for frame in [*batch, *(part for whole in batch[:10] for part in truncations(whole))]:
        there = {header for header, program in detectors.items() if program.judge(frame)[0].name == "there"}
        assert there == walk(frame).present, frame.hex()


def deviations(frame: bytes) -> Pipeline:
    """A pipeline whose rules match where a field is not what the reference reads from ``frame``."""
    pipe, packet = Pipeline("fields"), walk(frame)
    for spec in FIELDS:
        if spec.name in CLOCK:
            continue  # the kernel has another time than the reference: see test_clock.py
        header, _, name = spec.name.rpartition(".")
        value = packet.value(spec)
        field = getattr(HEADER_OBJECTS[header], name)
        pipe.rule(field >= 0 if value is None else ~(field == value), DROP, name=spec.name)
    return pipe


@one_by_one
@examples(12)
@given(frames())
def test_the_program_reads_every_field_as_the_reference_does(hook: str, frame: bytes):
    note(again("meaning/test_engines.py"))
    assume(runs(hook, frame))
    with Program(compile_pipeline(deviations(frame), hook)) as program:
        assert program.judge(frame)[0].name == "default", frame.hex()


def test_a_condition_may_have_thousands_of_terms():
    """No recursion: longer than Python's stack."""
    pipe = Pipeline("long")
    taken = pipe.rule(reduce(or_, (pkt.len == size for size in range(20, 4020, 2))), DROP)
    with Program(compile_pipeline(pipe)) as program:
        for size in (18, 19, 20, 21, 1000, 1001):
            frame = bytes(size)
            assert (
                program.judge(frame)[0]
                is evaluate(pipe, frame)
                is (taken if size >= 20 and size % 2 == 0 else pipe.outcomes[-1])
            )


# ---- on the wire ----


@examples(40)
@given(pipelines(), batches(200), st.sampled_from([lib.XK_RECVMMSG, lib.XK_TPACKET_V3]), TABLES)
def test_the_socket_filter_judges_as_the_reference_and_hands_out_what_it_redirects_whole(
    wire: Port, pipe: Pipeline, batch: list[bytes], kind: int, least: int
):
    note(again("meaning/test_engines.py"))
    note(f"{pipe}\n{listing(pipe)}")
    batch = live(batch)
    wanted = [
        frame for frame in batch if evaluate(pipe, frame, metadata=beside(frame)).action.verdict == Verdict.REDIRECT
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "LEAST", least)
        compiled = compile_pipeline(pipe, "socket")
    with Program(compiled) as program, wire.capture() as seen:
        with packet_socket(wire, program, kind) as sock:
            wire.peer.send(batch)
            assert seen.wait(len(batch)) == batch, "the wire itself"
            check(lib.xk_quiesce())  # the last frame is with all sockets now
            assert counted(program) == expected(pipe, batch, beside)
            assert drain(sock, len(wanted)) == wanted
            packets, drops = ffi.new("uint64_t *"), ffi.new("uint64_t *")
            check(lib.xk_packet_stats(sock, packets, drops))
            assert (packets[0], drops[0]) == (len(wanted), 0)


@pytest.fixture(scope="module")
def reflected(wire: Port) -> Iterator[None]:
    """A veth end takes what XDP_TX sends it only when something wakes it; an XDP program there makes TX do so."""
    with Program(compile_pipeline(Pipeline("all"))) as program, attached(program, wire.peer):
        yield


@examples(25, shrink=False)
@given(pipelines(), batches(200))
def test_xdp_on_a_device_judges_as_the_reference(wire: Port, reflected: None, pipe: Pipeline, batch: list[bytes]):
    """And REDIRECT without a socket falls back as declared, PASS reaches the stack, TX comes back, DROP vanishes."""
    note(again("meaning/test_engines.py"))
    note(f"{pipe}\n{listing(pipe)}")
    batch = live(batch)
    fates = [(evaluate(pipe, frame), frame) for frame in batch]
    ends = [(getattr(rule.action, "otherwise", rule.action), frame) for rule, frame in fates]
    passed = [frame for action, frame in ends if action == PASS]
    returned = [frame[6:12] + frame[:6] + frame[12:] for action, frame in ends if action == TX]
    with Program(compile_pipeline(pipe, "xdp")) as program:
        with wire.capture() as stack, wire.peer.capture() as back, attached(program, wire):
            wire.peer.send(batch)
            stack.wait(len(passed))
            back.wait(len(live(returned)))
            for _ in range(1000):
                if sum(c.packets for c in program.counts() if not c.rule.goes_on) >= len(batch):
                    break
                check(lib.xk_quiesce())  # a grace period: the poll that was under way has ended
        assert (stack, back) == (passed, live(returned))
        assert counted(program) == expected(pipe, batch)
        fallen_back = sum(count.no_socket for count in program.counts())
        assert fallen_back == sum(rule.action.verdict == Verdict.REDIRECT for rule, _ in fates)


@examples(25)
@given(pipelines(), batches(200))
def test_tc_on_a_device_judges_as_the_reference(wire: Port, pipe: Pipeline, batch: list[bytes]):
    """Packet sockets look at packets before TC does, so all is captured; what DROP and PASS do is in test_tc.py."""
    note(again("meaning/test_engines.py"))
    note(f"{pipe}\n{listing(pipe)}")
    batch = live(batch)
    taken = [(evaluate(pipe, frame, metadata=beside(frame)), frame) for frame in batch]
    returned = [frame[6:12] + frame[:6] + frame[12:] for rule, frame in taken if rule.action == TX]
    with Program(compile_pipeline(pipe, "tc")) as program:
        with wire.capture() as seen, wire.peer.capture() as back, attached(program, wire):
            wire.peer.send(batch)
            assert seen.wait(len(batch)) == batch
            assert back.wait(len(returned)) == returned
            check(lib.xk_quiesce())  # the last frame is through the hook now
            assert counted(program) == expected(pipe, batch, beside)
        lost = sum(count.no_socket for count in program.counts())
        assert lost == sum(rule.action.verdict == Verdict.REDIRECT for rule, _ in taken)


# ---- TC, where part of a packet is in fragments ----


@pytest.fixture(scope="module")
def jumbo() -> Iterator[Port]:
    """A port whose peer sends frames of up to 16,014 bytes."""
    with Lab.pair(mtu=16_000) as (_, right):
        yield right


def send_in_fragments(port: Port, batch: list[tuple[bytes, int]]) -> None:
    """Send (frame, size) with ``size`` bytes of the frame in the linear part of its socket buffer.

    The header length of struct virtio_net_hdr (linux/virtio_net.h) says how many; the kernel heeds it for frames of
    more than a page."""
    with port.namespace, socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        sock.bind((port.name, 0))
        for frame, size in batch:
            assert len(frame) > mmap.PAGESIZE
            sock.send(struct.pack("=BBHHHH", 0, 0, size, 0, 0, 0) + frame)


def in_fragments(pipe: Pipeline, jumbo: Port, batch: list[tuple[bytes, int]]) -> list[Counter[str]]:
    """What a TC program for ``pipe`` counts where the packets leave, and where they arrive."""
    compiled = compile_pipeline(pipe, "tc")
    with Program(compiled) as out, Program(compiled) as into, jumbo.capture() as seen:
        with attached(out, jumbo.peer, egress=True), attached(into, jumbo):
            send_in_fragments(jumbo.peer, batch)
            assert seen.wait(len(batch)) == [frame for frame, _ in batch]
            check(lib.xk_quiesce())
        return [counted(out), counted(into)]


@examples(25)
@given(pipelines(), batches(100), st.integers(0, 1 << 32))
def test_tc_judges_a_packet_in_fragments_as_the_reference(jumbo: Port, pipe: Pipeline, batch: list[bytes], seed: int):
    note(again("meaning/test_engines.py"))
    note(f"{pipe}\n{listing(pipe)}")
    pipe, rng = pipe.shadow(), Random(seed)
    longer = [frame + rng.randbytes(mmap.PAGESIZE + rng.randrange(4000)) for frame in batch]
    sizes = [rng.randrange(14, rng.choice((20, 60, 130, 300))) for _ in batch]
    wanted = expected(pipe, longer)
    assert in_fragments(pipe, jumbo, list(zip(longer, sizes, strict=True))) == [wanted, wanted]


def test_tc_finds_a_header_however_deep_in_the_fragments_it_is(jumbo: Port):
    """Behind six extension headers of 2 KiB: the linear part is doubled many times until it is in there."""
    pipe = Pipeline("deep")
    pipe.rule(udp.dport == 53, PASS, name="deep")
    link, chain = bytes.fromhex("02" * 12 + "86dd"), (60, 60, 60, 60, 60, 60, 17)
    options = b"".join(bytes((following, 255)) + bytes(2046) for following in chain[1:])
    body = options + struct.pack("!HHHH", 1000, 53, 8, 0)
    frame = link + struct.pack("!IHBB", 6 << 28, len(body), chain[0], 64) + bytes(32) + body
    other = frame[:-5] + b"\x36" + frame[-4:]  # to port 54
    batch = [(data, size) for data in (frame, other) for size in (14, 54, 55, 4000, len(frame) - 1, len(frame))]
    assert expected(pipe, [frame, other]) == {"deep": 1, "default": 1}
    assert in_fragments(pipe, jumbo, batch) == [{"deep": 6, "default": 6}] * 2

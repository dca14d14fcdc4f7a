"""Metadata: what the kernel knows of a packet beside its bytes, read at every hook as the reference is told it.

The sending port gives each frame its metadata: a program of a dozen instructions at TC egress there sets the hash of
the skb (bpf_set_hash) and puts a VLAN tag beside it (bpf_skb_vlan_push), as a network card would have found them.  No
veth carries a hardware time stamp; at TC a test run has one.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from random import Random

import pytest
from engines import TAGS, attached, counted, live, packet_socket, runs
from giving import PROG_TEST_RUN, Sent, bpf, giving, send, tap
from hypothesis import given, note
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.utils import wrpcap
from strategies import again, batches, examples, listing, make_frame, pipelines
from traffic import take, until

from xdpkit import (
    DROP,
    REDIRECT,
    NotSupported,
    Pipeline,
    VerifierError,
    attach,
    compile_pipeline,
    limit,
    meta,
    udp,
    vlan,
)
from xdpkit.compiler import Compiled
from xdpkit.compiler.built import build, needs, read, write
from xdpkit.doctor.device import examine_device
from xdpkit.kernel.core import lib
from xdpkit.kernel.loaded import LoadedProgram
from xdpkit.kernel.program import Program
from xdpkit.lab import Lab, Port
from xdpkit.lab.generator import udp_frame
from xdpkit.language.expr import Expr
from xdpkit.language.fields import METADATA
from xdpkit.language.headers import field_object
from xdpkit.language.metadata import Metadata
from xdpkit.meaning.evaluate import evaluate

pytestmark = pytest.mark.filterwarnings("ignore::xdpkit.PipelineWarning")


@pytest.fixture(scope="module")
def wire() -> Iterator[Port]:
    """A port; its peer gives what it sends metadata."""
    with Lab.pair(offloads=True) as (left, right), giving(left):
        yield right


def expected(pipe: Pipeline, batch: Iterable[Sent]) -> Counter[str]:
    return Counter(evaluate(pipe, frame, metadata=known).name for frame, known in batch)


def load(pipe: Pipeline, hook: str, port: Port) -> Program:
    with port.namespace:
        return Program(compile_pipeline(pipe, hook), device=port.device)


# ---- the engines and the reference ----

HASHES = (1, 2, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
VLANS = (None, None, 0, 1, 5, 4094, 4095)
TIMES = (0, 1, 2**32, 2**63, 2**64 - 1)


@st.composite
def questions(draw: st.DrawFn):
    field, pool = draw(st.sampled_from([(meta.hash, HASHES), (meta.vlan, VLANS[2:]), (meta.timestamp, TIMES)]))
    value = draw(st.sampled_from(pool))
    made: list[Callable[[], Expr]] = [
        lambda: field == value, lambda: field != value, lambda: field <= value, lambda: field >= value,
    ]  # fmt: skip
    made += [lambda: field.isin(pool[:2]), lambda: field >= 0]
    condition = draw(st.sampled_from(made))()
    return ~condition if draw(st.booleans()) else condition


@st.composite
def asking(draw: st.DrawFn) -> Pipeline:
    """Pipelines that ask for metadata, alone and beside what else rules ask."""
    pipe, other = Pipeline("asking"), draw(pipelines(max_rules=3, chains=False))
    for rule in other.rules:
        if draw(st.booleans()):
            pipe.rule(draw(questions()), DROP)
        pipe.rule(rule.expr & draw(questions()) if draw(st.booleans()) else rule.expr, DROP)
    pipe.rule(draw(questions()), DROP)
    return pipe


def sent(hashes: tuple[int | None, ...]) -> st.SearchStrategy[list[Sent]]:
    """100 frames and what each is given, known by a seed (see strategies.py)."""

    def batch(seed: int) -> list[Sent]:
        rng = Random(seed)
        whole = live([make_frame(rng) for _ in range(100)])
        return [(frame, Metadata(hash=rng.choice(hashes), vlan=rng.choice(VLANS))) for frame in whole]

    return st.integers(0, 2**32 - 1).map(batch)


def judged(program: LoadedProgram, count: int) -> Counter[str]:
    """What the program counted once it has seen ``count`` frames."""
    until(lambda: counted(program).total() >= count, f"{count} frames")
    return counted(program)


@pytest.mark.root
@examples(20, shrink=False)
@given(asking(), sent(HASHES))
def test_xdp_reads_what_the_driver_knows(wire: Port, pipe: Pipeline, batch: list[Sent]):
    note(again("language/test_metadata.py"))
    note(listing(pipe))
    with load(pipe, "xdp", wire) as program, attached(program, wire):
        send(wire.peer, batch)
        assert judged(program, len(batch)) == expected(pipe, batch)


def in_the_skb(batch: Iterable[Sent]) -> list[Sent]:
    """As TC and packet sockets see it: a tag beside the bytes is walked as the outer tag, and one that is in the bytes
    goes beside them where none is."""
    seen = []
    for frame, known in batch:
        if known.vlan is not None:
            seen.append((frame[:12] + struct.pack("!HH", 0x8100, known.vlan) + frame[12:], known))
        elif frame[12:14] in TAGS:
            seen.append((frame, Metadata(hash=known.hash, vlan=int.from_bytes(frame[14:16]) & 0xFFF)))
        else:
            seen.append((frame, known))
    return seen


@pytest.mark.root
@examples(20, shrink=False)
@given(asking(), sent((None, *HASHES)))
def test_tc_reads_what_the_skb_carries(wire: Port, pipe: Pipeline, batch: list[Sent]):
    note(again("language/test_metadata.py"))
    note(listing(pipe))
    with load(pipe, "tc", wire) as program, attached(program, wire):
        send(wire.peer, batch)
        assert judged(program, len(batch)) == expected(pipe, in_the_skb(batch))


@pytest.mark.root
@examples(20, shrink=False)
@given(asking(), sent((None, *HASHES)))
def test_the_socket_filter_reads_what_the_skb_carries(wire: Port, pipe: Pipeline, batch: list[Sent]):
    note(again("language/test_metadata.py"))
    note(listing(pipe))
    with load(pipe, "socket", wire) as program, packet_socket(wire, program, lib.XK_RECVMMSG):
        send(wire.peer, batch)
        assert judged(program, len(batch)) == expected(pipe, in_the_skb(batch))


def verdict_with_time(program: LoadedProgram, frame: bytes, timestamp: int) -> int:
    """BPF_PROG_TEST_RUN with a hardware time stamp: struct __sk_buff as context, hwtstamp at 184."""
    packet, context = (
        ctypes.create_string_buffer(frame),
        ctypes.create_string_buffer(bytes(184) + timestamp.to_bytes(8, sys.byteorder)),
    )
    data, skb = ctypes.addressof(packet), ctypes.addressof(context)
    attributes = struct.pack("IIIIQQIIIIQQ", program.fd, 0, len(frame), 0, data, 0, 1, 0, 192, 0, skb, 0)
    return struct.unpack_from("I", bpf(PROG_TEST_RUN, attributes)[1], 4)[0]


@pytest.mark.root
@examples(20)
@given(asking(), batches(30), st.sampled_from(TIMES))
def test_tc_reads_the_hardware_time_stamp(pipe: Pipeline, batch: list[bytes], timestamp: int):
    note(again("language/test_metadata.py"))
    note(listing(pipe))
    with Program(compile_pipeline(pipe, "tc"), explain=True) as program:
        for frame in (frame for frame in batch if runs("tc", frame)):
            found = pipe.outcomes[verdict_with_time(program, frame, timestamp) >> 16]
            assert found is evaluate(pipe, frame, metadata=Metadata(timestamp=timestamp)), frame.hex()


# ---- absent ----


def every() -> Pipeline:
    """A rule for each field: it is there."""
    pipe = Pipeline("every")
    for name in METADATA:
        pipe.rule(field_object(name) >= 0, DROP, name=name)
    return pipe


def tagged() -> Pipeline:
    pipe = Pipeline("tagged")
    pipe.rule(meta.vlan == 5, REDIRECT, name="five")
    return pipe


@pytest.mark.root
def test_a_frame_that_never_was_an_skb_has_no_metadata_at_xdp(veth_pair, generator):
    left, right = veth_pair
    frame = udp_frame(src_mac=left.mac, dst_mac=right.mac).frame
    with load(every(), "xdp", right) as program, attached(program, right):
        generator(left, [frame]).send(64)
        assert judged(program, 64) == {"default": 64}


@pytest.mark.root
def test_without_a_device_all_metadata_is_absent_and_the_verdict_the_reference_s():
    frame = bytes(Ether() / IP() / UDP())
    with Program(compile_pipeline(every())) as program, Program(compile_pipeline(every()), explain=True) as explaining:
        assert program.judge(frame)[0].name == explaining.judge(frame)[0].name == "default"


@pytest.mark.root
def test_a_driver_without_the_functions_gives_none_and_attach_says_so(lab):
    namespace = lab.namespace("tap")
    with tap(namespace) as fd, namespace, attach(every(), "tap0", mode="native") as link:
        assert str(link.attachment).endswith("no packet has meta.timestamp or meta.hash or meta.vlan")
        os.write(fd, bytes(Ether(dst="ff:ff:ff:ff:ff:ff") / IP() / UDP()))
        assert {r.name: r.packets for r in link.ledger().rules}["default"] >= 1
        assert {r.packets for r in link.ledger().rules if r.name != "default"} == {0}


# ---- only those who ask pay ----


@pytest.mark.root
@pytest.mark.parametrize("rules", [1, 60], ids=["few", "many"])
def test_a_pipeline_that_asks_for_none_has_no_call_and_is_bound_to_no_device(veth_pair, rules: int):
    left, right = veth_pair
    pipe = Pipeline("plain")
    for port in range(rules):
        pipe.rule(udp.dport == port + 1, DROP)
    compiled = compile_pipeline(pipe)
    assert b"metadata_rx" not in compiled.object
    with left.namespace, Program(compiled, device=left.device) as program:
        with attached(program, right):
            pass


def test_a_pipeline_calls_for_what_it_asks_only():
    pipe = Pipeline("hash")
    pipe.rule(meta.hash >= 0, DROP)
    called = set(re.findall(rb"bpf_xdp_metadata_rx_(\w+)", compile_pipeline(pipe).object))
    assert called == {b"hash"}


# ---- attach ----


@pytest.mark.root
def test_what_is_redirected_by_metadata_reaches_its_socket(wire: Port):
    frame = bytes(Ether(src=wire.peer.mac, dst=wire.mac) / IP() / UDP() / b"hello")
    with wire.namespace, attach(tagged(), wire.name) as link, link.sockets() as sockets:
        send(
            wire.peer, [(frame, Metadata(hash=1, vlan=5)), (frame, Metadata(hash=1, vlan=6)), (frame, Metadata(hash=1))]
        )
        assert take(sockets, 1) == [frame]
        until(lambda: link.ledger().seen == 3, "3 frames")
    assert link.attachment.mode == "native"
    assert {r.name: r.packets for r in link.ledger().rules} == {"five": 1, "default": 2}


@pytest.mark.root
def test_in_the_bytes_at_xdp_a_tag_is_vlan_and_not_metadata(wire: Port):
    pipe = Pipeline("both")
    pipe.rule(vlan.id == 5, DROP, name="bytes")
    pipe.rule(meta.vlan == 5, DROP, name="beside")
    plain = bytes(Ether(src=wire.peer.mac, dst=wire.mac) / IP() / UDP() / b"hello")
    in_bytes = plain[:12] + b"\x81\x00\x00\x05" + plain[12:]
    with load(pipe, "xdp", wire) as program, attached(program, wire):
        send(wire.peer, [(in_bytes, Metadata(hash=1)), (plain, Metadata(hash=1, vlan=5))])
        assert judged(program, 2) == {"bytes": 1, "beside": 1}


@pytest.mark.root
def test_a_live_link_starts_and_stops_asking_with_its_rules(wire: Port):
    """Bound and unbound programs follow each other on one link."""
    plain, frame = Pipeline("plain", default=DROP), bytes(64)
    with wire.namespace, attach(plain, wire.name, mode="native") as link:
        for count, (pipe, name) in enumerate([(tagged(), "five"), (plain, "default"), (tagged(), "five")], 1):
            link.update(pipe)
            send(wire.peer, [(frame, Metadata(hash=1, vlan=5))])
            until(lambda count=count: link.ledger().seen == count, f"{count} frames")
            last = {count.rule.name: count.packets for count in link.program.counts()}
            assert last[name] == 1


@pytest.mark.root
def test_an_update_that_asks_is_refused_where_attaching_would_be(wire: Port):
    """The kernel looks at the mode at attach only: here it would hand the driver's functions a packet not its own."""
    with wire.namespace, attach(Pipeline("plain"), wire.name, mode="generic") as link:
        with pytest.raises(NotSupported, match=r"meta.vlan in generic mode on right"):
            link.update(tagged())
        assert link.pipeline.name == "plain"


@pytest.mark.root
def test_an_update_that_asks_must_come_from_the_device_s_namespace(wire: Port):
    """A device index means another device, or none, elsewhere."""
    with wire.namespace:
        link = attach(Pipeline("plain"), wire.name, mode="native")
    with link, pytest.raises(OSError, match="to bind a program to it, enter its network namespace"):
        link.update(tagged())


@pytest.mark.root
def test_metadata_may_key_a_set_and_a_limit(wire: Port):
    """Absent, it is no key: the condition is false."""
    pipe = Pipeline("keyed")
    known = pipe.set("known", meta.vlan, members=[5, 7])
    pipe.rule(known, DROP, name="known")
    pipe.rule(limit("1/hour", burst=2, per=meta.hash), DROP, name="first two")
    assert list(pipe.metadata) == ["meta.vlan", "meta.hash"]
    frame = bytes(64)
    batch = [(frame, Metadata(hash=h, vlan=v)) for h, v in [(1, 5), (1, 6), (1, None), (2, 7), (1, None), (2, None)]]
    with wire.namespace, attach(pipe, wire.name, mode="native") as link:
        send(wire.peer, batch)
        until(lambda: link.ledger().seen == len(batch), "all")
        assert {r.name: r.packets for r in link.ledger().rules} == {"known": 2, "first two": 3, "default": 1}


def line_of(pipe: Pipeline) -> str:
    return re.escape(str(next(iter(pipe.metadata.values()))))


@pytest.mark.root
def test_generic_mode_by_name_says_what_would_do(wire: Port):
    pipe = tagged()
    said = (
        rf"{line_of(pipe)}: meta.vlan in generic mode on right: a device-bound program, native mode only; mode tc_ingr"
    )
    with wire.namespace, pytest.raises(NotSupported, match=said):
        attach(pipe, wire.name, mode="generic")


@pytest.mark.root
def test_auto_walks_past_native_and_generic_and_says_why(wire: Port):
    """The loopback device of a namespace: a driver without native XDP."""
    pipe = every()
    said = r"TC ingress; not native \(the driver takes no program .*\); not generic \(a device-bound program, .*\)"
    with wire.namespace, attach(pipe, "lo") as link:
        assert re.match(said, str(link.attachment))
    with (
        wire.namespace,
        pytest.raises(NotSupported, match=rf"{line_of(pipe)}: .* on lo \(driver none\): the driver takes"),
    ):
        attach(pipe, "lo", mode="native")


@pytest.mark.root
def test_a_kernel_without_the_function_is_not_supported_at_the_rule_s_line(wire: Port):
    """As on a kernel before 6.8: the object asks for a function that is not there."""
    pipe = tagged()
    code = compile_pipeline(pipe).object.replace(b"bpf_xdp_metadata_rx_vlan_tag", b"bpf_xdp_metadata_rx_no_such_")
    said = rf"^{line_of(pipe)}: meta.vlan on right \(driver veth\): Linux \S+ has no bpf_xdp_metadata_rx_no_such_\(\); "
    with wire.namespace, pytest.raises(NotSupported, match=said):
        Program(Compiled(pipe, "xdp", code), device=wire.device)


@pytest.mark.root
def test_another_refusal_of_the_verifier_is_still_one(wire: Port):
    """A program for a bound device that is wrong in itself: its exit is gone."""
    code = compile_pipeline(tagged()).object
    at = code.rindex(struct.pack("<BBhi", 0x95, 0, 0, 0))
    broken = code[:at] + struct.pack("<BBhi", 0xBF, 0x90, 0, 0) + code[at + 8 :]
    with wire.namespace, pytest.raises(VerifierError):
        Program(Compiled(tagged(), "xdp", broken), device=wire.device)


@pytest.mark.root
def test_a_packet_socket_has_no_time_stamp_and_got_says_so(wire: Port):
    pipe = Pipeline("stamped")
    pipe.rule(meta.timestamp > 0, REDIRECT)
    with wire.namespace, attach(pipe, wire.name, mode="af_packet") as link:
        assert str(link.attachment).endswith("; no packet has meta.timestamp")


# ---- built ahead, replayed, examined ----


@pytest.mark.root
def test_a_built_file_says_what_metadata_needs_and_runs_bound(wire: Port, tmp_path):
    path = tmp_path / "tagged.xdp"
    write(build(tagged()), path)
    built = read(path)
    assert needs(built.pipeline, "xdp")[-1] == (
        "a device-bound program in native mode (Linux 6.3, Linux 6.8 for meta.vlan): meta.vlan"
    )
    assert not any("meta" in need for hook in ("tc", "socket") for need in needs(built.pipeline, hook))
    with wire.namespace, attach(built, wire.name, mode="native") as link:
        send(wire.peer, [(bytes(64), Metadata(hash=1, vlan=5))])
        until(lambda: link.ledger().seen == 1, "a frame")
        assert link.ledger().rules[0].packets == 1


@pytest.mark.root
@pytest.mark.parametrize("engine", ["kernel", "reference"])
def test_replay_says_that_captures_carry_no_metadata(tmp_path, engine: str):
    rules, capture = tmp_path / "rules.py", tmp_path / "some.pcap"
    rules.write_text(
        "from xdpkit import *\npipe = Pipeline('some')\n"
        "pipe.rule(meta.hash >= 0, DROP)\npipe.rule(~(meta.vlan == 5), DROP)\n"
    )
    wrpcap(str(capture), [Ether() / IP() / UDP()])
    command = [sys.executable, "-m", "xdpkit.cli.main", "replay", str(rules), str(capture), "--engine", engine]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "captures carry no metadata: every test of meta.hash, meta.vlan was false" in out
    told = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout)
    assert told["absent"] == ["meta.hash", "meta.vlan"]
    assert [rule["packets"] for rule in told["rules"]] == [0, 1, 0]


@pytest.mark.root
def test_the_doctor_tells_what_the_driver_offers(wire: Port, lab):
    with wire.namespace:
        found = {finding.topic: finding for finding in examine_device(wire.name)}["metadata"]
    assert (found.status, found.text) == (
        "ok",
        "the driver offers meta.timestamp, meta.hash, meta.vlan in native mode",
    )
    namespace = lab.namespace("tap")
    with tap(namespace), namespace:
        found = {finding.topic: finding for finding in examine_device("tap0")}["metadata"]
    assert (found.status, found.advice) == ("note", "mode tc_ingress reads what the skb carries")

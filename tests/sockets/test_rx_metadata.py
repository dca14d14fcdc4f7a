"""What the driver knows of a packet, told to the readers of sockets: hash and VLAN tag as test_metadata.py gives them.

No veth carries a hardware time stamp: its column is all zeros there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from giving import giving, send, tap
from hypothesis import given, note
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from strategies import again, examples
from traffic import frames, number, until

from xdpkit import DROP, REDIRECT, NotSupported, Pipeline, SocketOptions, attach, compile_pipeline, meta, pkt, udp
from xdpkit.compiler.built import build, read, write
from xdpkit.kernel.program import Program
from xdpkit.lab import Lab, Port
from xdpkit.language.actions import Mark
from xdpkit.language.metadata import READER_METADATA, Metadata, choose_reader_metadata
from xdpkit.link.forward import forward
from xdpkit.sockets.batch import NO_RULE, NO_VLAN
from xdpkit.sockets.options import Bind

pytestmark = [pytest.mark.needs("VLAN kfunc"), pytest.mark.filterwarnings("ignore::xdpkit.PipelineWarning")]

ALL = SocketOptions(ring_size=64, debug=True, rx_metadata="timestamp,hash,vlan")
PRIORITY = 13  # its place in the TCI
XDPKIT = str(Path(sys.executable).with_name("xdpkit"))
DNS_FILE = str(Path(__file__).parents[2] / "pipelines" / "dns.py")


def option(names: str) -> SocketOptions:
    return SocketOptions(ring_size=64, debug=True, rx_metadata=names)


def every() -> Pipeline:
    return Pipeline("every", default=REDIRECT)


@pytest.fixture(scope="module")
def wire() -> Iterator[Port]:
    """A port; its peer gives what it sends metadata."""
    with Lab.pair(offloads=True) as (left, right), giving(left):
        yield right


def numbered(wire: Port, count: int) -> list[bytes]:
    return frames(wire.peer, wire, range(count))


def columns(sockets, count: int) -> dict[int, tuple[int, int, int]]:
    """{number of the frame: (device time, hash, TCI)} of `count` packets."""
    got: dict[int, tuple[int, int, int]] = {}
    for batch in sockets.batches(timeout=5):
        kinds = (batch.device_times.dtype, batch.hashes.dtype, batch.vlans.dtype)
        assert kinds == (np.uint64, np.uint32, np.uint32)
        rows = zip(batch.device_times.tolist(), batch.hashes.tolist(), batch.vlans.tolist(), strict=True)
        got |= {number(f): row for f, row in zip(batch.frames, rows, strict=True)}
        if len(got) == count:
            return got
    raise AssertionError(f"{len(got)} of {count} packets came")


def expected(known: list[Metadata], names: tuple[str, ...] = READER_METADATA) -> dict[int, tuple[int, int, int]]:
    return {
        n: (
            0,
            (m.hash or 0) if "hash" in names else 0,
            m.vlan if m.vlan is not None and "vlan" in names else NO_VLAN,
        )
        for n, m in enumerate(known)
    }


HASHES = (1, 2, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
TAGS = (None, 0, 1, 5, 4095, 7 << PRIORITY | 5, 1 << 12, 0xFFFF)


def a_batch(seed: int, count: int = 50) -> list[Metadata]:
    rng = Random(seed)
    return [Metadata(hash=rng.choice(HASHES), vlan=rng.choice(TAGS)) for _ in range(count)]


@pytest.mark.parametrize("bind", ["auto", "copy"])
def test_readers_get_hash_and_tag_of_every_packet(wire: Port, bind: Bind):
    known = [Metadata(hash=h, vlan=v) for h in HASHES for v in TAGS]
    with wire.namespace, attach(every(), wire.name, bind=bind, options=ALL) as link, link.sockets() as sockets:
        assert link.attachment.rx_metadata == READER_METADATA
        assert "RX metadata timestamp and hash and vlan" in str(link.attachment)
        send(wire.peer, zip(numbered(wire, len(known)), known, strict=True))
        assert columns(sockets, len(known)) == expected(known)
    assert link.ledger().problems() == ()


@examples(20, shrink=False)
@given(st.sets(st.sampled_from(READER_METADATA), min_size=1), st.integers(0, 2**32 - 1))
def test_readers_get_what_they_asked_for_and_no_more(wire: Port, names: set[str], seed: int):
    note(again("sockets/test_rx_metadata.py"))
    known, options = a_batch(seed), option(",".join(sorted(names)))
    with wire.namespace, attach(every(), wire.name, options=options) as link, link.sockets() as sockets:
        assert link.attachment.rx_metadata == tuple(name for name in READER_METADATA if name in names)
        send(wire.peer, zip(numbered(wire, len(known)), known, strict=True))
        assert columns(sockets, len(known)) == expected(known, link.attachment.rx_metadata)


def test_rule_mark_and_time_stay_beside_it(wire: Port):
    """The rule's number shares a word with the tag."""
    pipe = Pipeline("many", default=DROP)
    for n in range(300):
        pipe.rule(udp.dport == 60_000 + n, DROP)
    pipe.rule(meta.hash == 2, Mark(0xDEADBEEF))
    pipe.rule(meta.vlan == 5, REDIRECT, name="five")
    pipe.rule(pkt.len >= 0, REDIRECT, name="rest")
    known = [Metadata(hash=2, vlan=5), Metadata(hash=1, vlan=0xFFFF), Metadata(hash=2)]
    with wire.namespace, attach(pipe, wire.name, options=ALL) as link, link.sockets() as sockets:
        send(wire.peer, zip(numbered(wire, 3), known, strict=True))
        got = []
        for batch in sockets.batches(timeout=5):
            assert (batch.timestamps > 0).all()
            got += list(zip(*(x.tolist() for x in (batch.rules, batch.marks, batch.hashes, batch.vlans)), strict=True))
            if len(got) == 3:
                break
    assert got == [(301, 0xDEADBEEF, 2, 5), (302, 0, 1, 0xFFFF), (302, 0xDEADBEEF, 2, NO_VLAN)]


def test_a_frame_that_never_was_an_skb_has_none_and_keeps_rule_and_time(veth_pair, generator):
    left, right = veth_pair
    sent = frames(left, right, range(64))
    with right.namespace, attach(every(), right.name, options=ALL) as link, link.sockets() as sockets:
        generator(left, sent[:1]).send(64)
        seen = 0
        for batch in sockets.batches(timeout=5):
            seen += len(batch)
            assert (batch.device_times == 0).all()
            assert (batch.hashes == 0).all()
            assert (batch.vlans == NO_VLAN).all()
            assert (batch.rules == 0).all()
            if seen == 64:
                break


def test_jumbo_packets_have_it_too(make_veth):
    left, right = make_veth(mtu=9000, offloads=True)
    known = [Metadata(hash=7, vlan=3), Metadata(hash=8), Metadata(hash=9, vlan=0)]
    sent = [f for n, size in enumerate((64, 9000, 5000)) for f in frames(left, right, [n], size=size)]
    with giving(left), right.namespace, attach(every(), right.name, options=ALL) as link, link.sockets() as sockets:
        assert link.attachment.multi_buffer
        send(left, zip(sent, known, strict=True))
        assert columns(sockets, 3) == expected(known)


@pytest.mark.parametrize(
    "options",
    [
        SocketOptions(ring_size=64, debug=True, rx_metadata="hash,vlan", unaligned="on", chunk_size=2304),
        SocketOptions(ring_size=64, debug=True, rx_metadata="hash,vlan", chunk_size=2048, headroom=64),
    ],
    ids=["unaligned", "headroom"],
)
def test_frames_may_be_laid_out_in_any_way(wire: Port, options: SocketOptions):
    known = a_batch(1, 300)
    sent = numbered(wire, 300)
    with wire.namespace, attach(every(), wire.name, options=options) as link, link.sockets() as sockets:
        got: dict[int, tuple[int, int, int]] = {}
        for n in range(0, 300, 30):
            send(wire.peer, zip(sent[n : n + 30], known[n : n + 30], strict=True))
            got |= columns(sockets, 30)
    assert got == expected(known)


def test_what_does_not_ask_gets_none_and_pays_nothing(wire: Port):
    compiled = compile_pipeline(every())
    assert b"metadata_rx" not in compiled.object
    called = set(re.findall(rb"bpf_xdp_metadata_rx_(\w+)", compile_pipeline(every(), reader_metadata=("vlan",)).object))
    assert called == {b"vlan_tag"}
    with wire.namespace, attach(compiled, wire.name, timestamps=True) as link, link.sockets() as sockets:
        send(wire.peer, [(numbered(wire, 1)[0], Metadata(hash=1, vlan=5))])
        assert columns(sockets, 1) == {0: (0, 0, NO_VLAN)}
        assert link.attachment.rx_metadata == ()


def test_batches_of_copies_have_the_columns_too(wire: Port):
    for mode in ("tc_ingress", "af_packet"):
        with wire.namespace, attach(every(), wire.name, mode=mode, options=option("want:hash")) as link:
            with link.sockets() as sockets:
                send(wire.peer, [(numbered(wire, 1)[0], Metadata(hash=1))])
                assert columns(sockets, 1) == {0: (0, 0, NO_VLAN)}
            assert link.attachment.rx_metadata == ()
            assert f"not RX metadata hash (none in mode {mode})" in str(link.attachment)


def test_a_packet_for_the_stack_leaves_no_metadata_behind(wire: Port):
    """A REDIRECT that finds no socket passes the packet: GRO takes no metadata for a difference."""
    pipe = Pipeline("passing", default=REDIRECT)
    sent = numbered(wire, 20)
    with wire.namespace, attach(pipe, wire.name, options=ALL) as link, wire.capture() as got:
        send(wire.peer, [(f, Metadata(hash=1)) for f in sent])
        got.wait(20, timeout=20)
        ledger = link.ledger()
    assert list(got) == sent
    assert (ledger.no_socket, ledger.redirected) == (20, 0)


# ---- over the life of a link ----


def test_updates_go_on_telling(wire: Port, tmp_path):
    path = tmp_path / "built.xdp"
    write(build(every()), path)
    known = Metadata(hash=3, vlan=9)
    with wire.namespace, attach(read(path), wire.name, options=option("hash,vlan")) as link:
        with link.sockets() as sockets:
            for pipe in (None, every(), read(path), compile_pipeline(every())):
                if pipe is not None:
                    link.update(pipe)
                send(wire.peer, [(numbered(wire, 1)[0], known)])
                assert columns(sockets, 1) == {0: (0, 3, 9)}


def test_an_update_that_goes_on_telling_must_come_from_the_device_s_namespace(wire: Port):
    with wire.namespace:
        link = attach(every(), wire.name, options=option("hash"))
    with link, pytest.raises(OSError, match="to bind a program to it, enter its network namespace"):
        link.update(every())


def test_workers_and_forwarders_are_none_the_worse(wire: Port, tmp_path):
    sent = numbered(wire, 50)
    options = SocketOptions(ring_size=64, debug=True, rx_metadata="hash,vlan")
    with wire.namespace, attach(every(), wire.name, options=options) as link:
        with link.sockets() as sockets, sockets.write(tmp_path / "out.pcapng") as workers:
            send(wire.peer, [(f, Metadata(hash=1, vlan=5)) for f in sent])
            until(lambda: workers.stats().packets == 50, "all are written")
        with wire.peer.capture() as got, forward(link, link):
            send(wire.peer, [(f, Metadata(hash=1, vlan=5)) for f in sent])
            got.wait(50, timeout=20)
    assert sorted(number(f) for f in got) == list(range(50))
    assert link.ledger().problems() == ()


# ---- want, require, got ----


def test_a_driver_that_has_none_is_refused_or_done_without(lab):
    namespace = lab.namespace("tap")
    with tap(namespace) as fd, namespace:
        said = r"rx_metadata hash on tap0: a driver that has it: the driver offers none"
        with pytest.raises(NotSupported, match=said):
            attach(every(), "tap0", mode="native", options=option("hash"))
        with attach(every(), "tap0", mode="native", options=option("want:hash,vlan")) as link:
            assert link.attachment.rx_metadata == ()
            with link.sockets() as sockets:
                assert "; not RX metadata hash, vlan (the driver offers none)" in str(link.attachment)
                os.write(fd, bytes(Ether(dst="ff:ff:ff:ff:ff:ff") / IP() / UDP() / b"xdpkit\0\0\0\1"))
                assert columns(sockets, 1) == {1: (0, 0, NO_VLAN)}


def test_modes_without_it_are_refused_or_done_without(wire: Port):
    with wire.namespace:
        for mode in ("generic", "tc_ingress", "af_packet"):
            offers = "the driver offers timestamp, hash, vlan"
            said = f"rx_metadata vlan on right: native mode, where {offers}; this is {mode}"
            with pytest.raises(NotSupported, match=said):
                attach(every(), wire.name, mode=mode, options=option("vlan"))
            with attach(every(), wire.name, mode=mode, options=option("want:vlan")) as link:
                assert f"not RX metadata vlan (none in mode {mode})" in str(link.attachment)
        with pytest.raises(NotSupported, match="rx_metadata hash on lo: native mode, where the driver offers none"):
            attach(every(), "lo", options=option("hash"))
        with attach(every(), "lo", options=option("want:hash")) as link:
            assert "not native" in str(link.attachment)
            assert "not RX metadata hash (none in mode generic)" in str(link.attachment)


def test_what_a_driver_has_is_what_readers_get():
    some = frozenset({"timestamp", "vlan-tag"})
    assert choose_reader_metadata(READER_METADATA, False, "native", some, "eth1") == (
        ("timestamp", "vlan"),
        ("RX metadata hash (the driver offers timestamp, vlan)",),
    )
    assert choose_reader_metadata(("vlan",), True, "native", some, "eth1") == (("vlan",), ())
    assert choose_reader_metadata((), True, "generic", some, "eth1") == ((), ())
    with pytest.raises(
        NotSupported, match="rx_metadata hash on eth1: a driver that has it: the driver offers timestamp, v"
    ):
        choose_reader_metadata(READER_METADATA, True, "native", some, "eth1")


def test_a_built_file_where_nothing_can_be_compiled_is_refused_or_done_without(wire: Port, monkeypatch):
    ahead = build(every())

    def missing(*_: object, **__: object):
        raise NotSupported("compiling a pipeline", "pip install llvmlite")

    monkeypatch.setattr("xdpkit.compiler.built.compile_pipeline", missing)
    with wire.namespace:
        with attach(ahead, wire.name, options=option("want:hash")) as link:
            assert link.attachment.mode == "native"
            assert "; not RX metadata hash (pip install llvmlite)" in str(link.attachment)
        with pytest.raises(NotSupported, match="compiling a pipeline: pip install llvmlite"):
            attach(ahead, wire.name, mode="native", options=option("hash"))


def test_a_kernel_without_the_function_is_not_supported(wire: Port):
    """As on a kernel before 6.8: the object asks for a function that is not there."""
    compiled = compile_pipeline(every(), reader_metadata=("vlan",))
    code = compiled.object.replace(b"bpf_xdp_metadata_rx_vlan_tag", b"bpf_xdp_metadata_rx_no_such_")
    said = r"^meta.vlan on right \(driver veth\): Linux \S+ has no bpf_xdp_metadata_rx_no_such_\(\); needs"
    with wire.namespace, pytest.raises(NotSupported, match=said):
        Program(replace(compiled, object=code), metadata=True, device=wire.device)


def test_a_program_that_tells_runs_without_a_device_and_tells_nothing():
    with Program(compile_pipeline(every(), reader_metadata=READER_METADATA), metadata=True) as program:
        assert program.test_run(bytes(64))[0] == 2  # PASS: there is no socket


def test_run_says_what_came_of_it(wire: Port):
    command = [XDPKIT, "run", DNS_FILE, "-i", wire.name, "--duration", "0.1", "-q", "-o"]

    def run(choice: str) -> subprocess.CompletedProcess[str]:
        return wire.namespace.run([*command, f"rx_metadata={choice}"], capture_output=True, text=True, check=False)

    assert "RX metadata hash and vlan" in run("hash,vlan").stdout
    refused = run("speed")
    assert (refused.returncode, "rx_metadata 'speed': off, timestamp" in " ".join(refused.stderr.split())) == (2, True)


@pytest.mark.parametrize("names", ["", "want:", "speed", "hash,,vlan", "want:on", "auto"])
def test_names_that_there_are_not_are_refused(names: str):
    with pytest.raises(ValueError, match=r"rx_metadata .*: off, timestamp, hash, vlan, or want:NAMES to prefer them"):
        SocketOptions(rx_metadata=names)


def test_names_come_in_one_order_however_they_are_given():
    assert SocketOptions.parse(["rx_metadata=want:vlan,hash,hash"]).rx_wanted == ("hash", "vlan")
    assert SocketOptions().rx_wanted == ()
    assert NO_RULE == NO_VLAN == 0xFFFFFFFF

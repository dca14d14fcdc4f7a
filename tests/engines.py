"""Programs and frames of tests that hold engines to the reference: on a wire, in sockets, one frame at a time."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from xdpkit.kernel.core import check, ffi, lib
from xdpkit.kernel.loaded import LoadedProgram
from xdpkit.lab import Port
from xdpkit.language.metadata import Metadata
from xdpkit.language.pipeline import Pipeline
from xdpkit.meaning.evaluate import State, run

XDP_FLAGS_DRV_MODE = 1 << 2
#: The kernel drops a tagged frame that ends before the EtherType behind the tag and one byte pair more.
SHORTEST_TAGGED = 20
TAGS = (b"\x81\x00", b"\x88\xa8")


def expected(
    pipe: Pipeline, batch: list[bytes], known: Callable[[bytes], Metadata] = lambda _: Metadata()
) -> Counter[str]:
    """Packets by the name of the rules that they pass, and of the one that takes them; ``known``: what is known beside
    their bytes."""
    outcomes = [run(pipe, frame, State(pipe), metadata=known(frame)) for frame in batch]
    return Counter(rule.name for outcome in outcomes for rule in (*outcome.passed, outcome.rule))


def counted(program: LoadedProgram) -> Counter[str]:
    """The same, from the counters of a loaded program."""
    return Counter({count.rule.name: count.packets for count in program.counts() if count.packets})


one_by_one = pytest.mark.parametrize("hook", ["xdp", "xdp_frags", "tc"])


def runs(hook: str, frame: bytes) -> bool:
    """BPF_PROG_TEST_RUN makes no skb of an IP packet that is shorter than its header; those are judged on the wire."""
    shortest = {b"\x08\x00": 34, b"\x86\xdd": 54}.get(frame[12:14], 14)
    return hook.startswith("xdp") or len(frame) >= shortest


def live(batch: list[bytes]) -> list[bytes]:
    """Without those that the kernel drops before anyone sees them."""
    return [frame for frame in batch if frame[12:14] not in TAGS or len(frame) >= SHORTEST_TAGGED]


@contextmanager
def packet_socket(port: Port, program: LoadedProgram, kind: int) -> Iterator[object]:
    config = ffi.new("struct xk_packet_config *")
    config.kind, config.filter_prog_fd, config.buffer_bytes = kind, program.fd, 1 << 24
    config.block_size, config.blocks, config.retire_ms = 1 << 18, 8, 1
    out = ffi.new("struct xk_packet **")
    with port.namespace:
        check(lib.xk_packet_open(port.index, config, out))
    try:
        yield out[0]
    finally:
        lib.xk_packet_close(out[0])


def drain(sock: object, count: int) -> list[bytes]:
    """``count`` frames from the socket, and all else that is there with them."""
    got: list[bytes] = []
    room, lengths, times = ffi.new("uint8_t[]", 1 << 20), ffi.new("uint32_t[]", 256), ffi.new("uint64_t[]", 256)
    while len(got) < count:
        assert lib.xk_packet_wait(sock, -1, 5000) == 1, f"{len(got)} of {count} frames came"
        at = 0
        for i in range(check(lib.xk_packet_receive(sock, 256, room, len(room), lengths, times))):
            got.append(bytes(room[at : at + lengths[i]]))
            at += lengths[i]
    return got


@contextmanager
def attached(program: LoadedProgram, port: Port, *, egress: bool = False) -> Iterator[None]:
    with port.namespace:
        if program.hook == "tc":
            link = check(lib.xk_link_tcx(program.fd, port.index, egress))
        else:
            link = check(lib.xk_link_xdp(program.fd, port.index, XDP_FLAGS_DRV_MODE))
    try:
        yield
    finally:
        os.close(link)

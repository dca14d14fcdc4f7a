"""Numbered frames, and ways to wait for what must happen (bounded polling; a sentinel frame ends each queue)."""

from __future__ import annotations

import re
import struct
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Dot1Q, Ether

MARK = b"xdpkit"  # in front of the sequence number
LAST = 0xFFFFFFFF


def frames(left, right, numbers, *, dport=53, size=64, vlan=None, source="198.51.100.1"):
    """One UDP frame of `size` bytes for each number, from port `left` to port `right`; bytes, fast."""
    head = Ether(src=left.mac, dst=right.mac)
    if vlan is not None:
        head /= Dot1Q(vlan=vlan)
    head /= IP(src=source, dst="192.0.2.1") / UDP(sport=4000, dport=dport, chksum=0)
    empty = len(head)
    template = bytes(head / (MARK + b"\0" * 4).ljust(size - empty, b"."))
    before, after = template[: empty + len(MARK)], template[empty + len(MARK) + 4 :]
    return [before + struct.pack("!I", n) + after for n in numbers]


def number(frame):
    """The sequence number of a frame."""
    frame = bytes(frame)
    at = frame.index(MARK) + len(MARK)
    return struct.unpack_from("!I", frame, at)[0]


def last(left, right, **options):
    """The sentinel: what was sent before it on its queue has arrived when it has."""
    return frames(left, right, [LAST], **options)


def drain(sockets, queues, timeout=5.0):
    """{queue: [frame bytes]} until every queue's sentinel came (not part of the answer)."""
    got, open_ = defaultdict(list), set(queues)
    for batch in sockets.batches(timeout=timeout):
        for frame in batch.frames:
            if number(frame) == LAST:
                open_.discard(batch.queue)
            else:
                got[batch.queue].append(bytes(frame))
        if not open_:
            return dict(got)
    raise AssertionError(f"queues {sorted(open_)}: no sentinel; came: { {q: len(f) for q, f in got.items()} }")


def take(sockets, count, timeout=5.0):
    """`count` frames, in the order of arrival, as bytes."""
    got = []
    for batch in sockets.batches(timeout=timeout):
        got += [bytes(frame) for frame in batch.frames]
        if len(got) >= count:
            return got
    raise AssertionError(f"{len(got)} of {count} frames came")


def until(condition, what, timeout=10.0):
    """Poll until `condition()` is true and return its value; AssertionError names `what` when it does not come."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        time.sleep(0.002)
    return value


def detach_by_force(port, pid="self"):
    """As `bpftool link detach`, of each link to a device that the process holds; other tests have their own."""
    texts = []
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(FileNotFoundError):
            texts.append(path.read_text())
    links = [text for text in texts if re.search(r"link_type:\s*(xdp|tcx)", text)]
    found = [number for text in links for number in re.findall(r"link_id:\s*(\d+)", text)]
    assert found
    for number in found:
        port.namespace.run(["bpftool", "link", "detach", "id", number])

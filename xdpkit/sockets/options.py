"""The options of AF_XDP sockets: :class:`SocketOptions`, a value."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from ..language.metadata import READER_METADATA

__all__ = [
    "KERNEL_HEADROOM",
    "L2_BYTES",
    "NATIVE_FRAME_BYTES",
    "SWITCHES",
    "WAITS",
    "Bind",
    "Mode",
    "SocketOptions",
    "Switch",
    "Wait",
    "parse_choice",
]

#: Where a pipeline is attached.  "auto": the best mode that works.  "want:X": mode X, or another that works.  "X": mode
#: X or an error.
Mode = Literal[
    "auto", "native", "generic", "tc_ingress", "af_packet", "tc_egress",
    "want:native", "want:generic", "want:tc_ingress", "want:af_packet",
]  # fmt: skip
#: How AF_XDP sockets are bound; "auto" and "want:X" as for :data:`Mode`.
Bind = Literal["auto", "zerocopy", "copy", "want:zerocopy", "want:copy"]
#: A switch of :class:`SocketOptions`.  "on" and "off": that or an error.  "want:on": on, or off if it does not work.
Switch = Literal["auto", "on", "off", "want:on", "want:off"]
#: What a worker does when there is no packet: see :meth:`xdpkit.Sockets.count`.
Wait = Literal["adaptive", "busy", "sleep", "nap"]
#: The values of :data:`Wait`, in the order of XK_WAIT_*.
WAITS: tuple[Wait, ...] = get_args(Wait)

#: XDP_PACKET_HEADROOM: bytes that the kernel keeps free in front of a received packet in each frame.
KERNEL_HEADROOM = 256
#: Bytes of an Ethernet header and two VLAN tags, which a frame may have on top of the MTU.
L2_BYTES = 14 + 2 * 4
#: Largest frame of a native program that takes no packets of several buffers: a page less XDP_PACKET_HEADROOM and
#: struct skb_shared_info, 320 bytes with the usual 17 fragments.  veth_xdp_set() holds the peer's MTU + 14 to it; most
#: drivers are near.
NATIVE_FRAME_BYTES = os.sysconf("SC_PAGE_SIZE") - KERNEL_HEADROOM - 320
#: What a switch can be; "want:on" tries on first.
SWITCHES = ("on", "off")
_SWITCHED = ("need_wakeup", "busy_poll", "huge_pages", "multi_buffer", "shared_umem", "unaligned", "tx_timestamp")
_PAGE = 4096
_CHUNKS = (2048, 4096)
#: The chunk size with ``unaligned`` in copy mode where 2048 bytes would do: one cache line more.  So the beginnings of
#: frames, which are all that short packets touch, are spread over the sets of a cache.
SPREAD_CHUNK = 2048 + 64


def parse_choice(name: str, value: str, known: tuple[str, ...], by_name_only: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The choices to try, in order: all of ``known`` for "auto", X first for "want:X", X alone for "X".  Those in
    ``by_name_only`` are tried only as "X".  ValueError lists the choices."""
    want, _, wanted = str(value).rpartition(":")  # str(): a value of another type is refused below
    walk = tuple(k for k in known if k not in by_name_only)
    if value == "auto":
        return walk
    if wanted not in known or want not in ("", "want"):
        raise ValueError(f"{name} {value!r}: auto, {', '.join(known)}, or want:NAME to prefer one of them")
    if want and wanted in by_name_only:
        raise ValueError(f"{name} {value!r}: nothing else would do in its place: ask for {wanted}")
    return (wanted, *(k for k in walk if k != wanted)) if want else (wanted,)


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketOptions:
    """Sizes and switches of a link's sockets.

    ``ring_size``: entries of the FILL, RX, TX and COMPLETION rings, a power of two; ``frames``: frames of each queue
    (default twice the ring size); ``chunk_size``: bytes per frame, 2048 or 4096 (default: the smallest that takes the
    device's MTU), with ``unaligned`` "on" any number between; ``headroom``: bytes kept free before each packet on top
    of the kernel's 256; ``tx``: also a TX ring; ``debug``: check every frame's owner and overwrite frames that are
    returned (default: the environment variable XDPKIT_DEBUG).

    Switches are "on" (that or an error), "want:on", "off" or "auto", and ``link.attachment`` says what the kernel gave:
    ``need_wakeup``: the driver may sleep until it is woken (auto: on); ``busy_poll``: the socket's reader runs the
    driver (SO_PREFER_BUSY_POLL; auto: off), for ``busy_poll_us`` microseconds and ``busy_poll_budget`` packets a time;
    ``huge_pages``: UMEM in huge pages (auto: off); ``multi_buffer``: packets that need several frames (auto: on where
    the MTU needs it, and in generic mode); ``shared_umem``: one UMEM for all queues (auto: off); ``unaligned``: frames
    at any address (XDP_UMEM_UNALIGNED_CHUNK_FLAG; auto: off).  With ``unaligned`` in copy mode, and no ``chunk_size``,
    frames have 2112 bytes where 2048 would do: short packets that are only counted come faster, packets that are read
    come more slowly.

    ``sockets_per_queue``: sockets that share a queue; flows are spread over them.  ``checksum``: room for TX metadata,
    so that ``send(checksum=...)`` can request checksums.  ``tx_timestamp``, a switch (auto: off): the same for
    ``send(timestamp=True)``; zero-copy is then taken only from a driver that has TX timestamps, and
    ``link.attachment`` says whose clock it is.

    ``copies_buffer``: bytes of the ring buffers for copies (what rules mirror, and REDIRECT at TC), all CPUs together,
    at least 4096; each online CPU has one of the largest power of two that is no more than its part.  Default: room for
    ``ring_size`` packets on each CPU, 64 MiB in all at most.

    ``rx_metadata``: the driver's metadata that batches have for each packet: "timestamp", "hash" and "vlan", joined by
    commas, and all of them required; "want:timestamp,hash": those that the driver has; "off".  Native mode only.

    Raises ValueError for an option with a wrong value.
    """

    ring_size: int = 2048
    frames: int | None = None
    chunk_size: int | None = None
    headroom: int = 0
    tx: bool = False
    debug: bool | None = None
    need_wakeup: Switch = "auto"
    busy_poll: Switch = "auto"
    busy_poll_us: int = 20
    busy_poll_budget: int = 64
    huge_pages: Switch = "auto"
    multi_buffer: Switch = "auto"
    shared_umem: Switch = "auto"
    unaligned: Switch = "auto"
    sockets_per_queue: int = 1
    checksum: bool = False
    tx_timestamp: Switch = "auto"
    copies_buffer: int | None = None
    rx_metadata: str = "off"

    def __post_init__(self) -> None:
        if self.ring_size < 1 or self.ring_size & (self.ring_size - 1):
            raise ValueError(f"ring_size {self.ring_size}: a power of two is wanted")
        if self.frames is not None and self.frames < 1:
            raise ValueError(f"frames {self.frames}: at least 1")
        if not 1 <= self.sockets_per_queue <= 64:
            raise ValueError(f"sockets_per_queue {self.sockets_per_queue}: 1 to 64")
        if self.busy_poll_us < 1 or not 1 <= self.busy_poll_budget <= 65535:
            raise ValueError(f"busy_poll_us {self.busy_poll_us}, busy_poll_budget {self.busy_poll_budget}: 1 or more")
        if self.copies_buffer is not None and self.copies_buffer < _PAGE:
            raise ValueError(f"copies_buffer {self.copies_buffer}: {_PAGE} bytes or more")
        for name in _SWITCHED:
            parse_choice(name, getattr(self, name), SWITCHES)
        if self.chunk_size is not None and not 2048 <= self.chunk_size <= _PAGE:
            raise ValueError(f"chunk_size {self.chunk_size}: 2048 to 4096")
        if self.chunk_size not in (None, *_CHUNKS) and self.unaligned != "on":
            raise ValueError(f"chunk_size {self.chunk_size}: 2048 or 4096, or any number between with unaligned=on")
        if self.switch("tx_timestamp", auto=False)[0] and not self.tx:
            raise ValueError(f"tx_timestamp {self.tx_timestamp!r} without a TX ring: tx=True")
        unknown = [name for name in self.rx_wanted if name not in READER_METADATA]
        if unknown:
            raise ValueError(
                f"rx_metadata {self.rx_metadata!r}: off, {', '.join(READER_METADATA)}, or want:NAMES to prefer them"
            )

    @classmethod
    def parse(cls, texts: Iterable[str]) -> SocketOptions:
        """The options of texts "NAME=VALUE".  ValueError lists the options, or says what is wrong with a value."""
        defaults = {f.name: f.default for f in fields(cls)}
        values: dict[str, Any] = {}
        for text in texts:
            name, equals, value = text.partition("=")
            if not equals:
                raise ValueError(f"{text!r}: NAME=VALUE is wanted")
            if name not in defaults:
                raise ValueError(f"no socket option {name!r}: there are {', '.join(defaults)}")
            if isinstance(defaults[name], str):
                values[name] = value
            elif isinstance(defaults[name], bool) or name == "debug":
                if value not in SWITCHES:
                    raise ValueError(f"{text}: {name} is on or off")
                values[name] = value == "on"
            elif value.isascii() and value.isdigit():
                values[name] = int(value)
            else:
                raise ValueError(f"{text}: {name} is a whole number")
        return cls(**values)

    def switch(self, name: str, *, auto: bool) -> tuple[bool, ...]:
        """The values of switch ``name`` to try, best first.  ``auto``: the value that "auto" stands for."""
        value = getattr(self, name)
        if value == "auto":
            return (auto,)
        return tuple(choice == "on" for choice in parse_choice(name, value, SWITCHES))

    @property
    def rx_wanted(self) -> tuple[str, ...]:
        """The metadata that readers request, names of READER_METADATA."""
        names = [] if self.rx_metadata == "off" else self.rx_metadata.removeprefix("want:").split(",")
        known = [name for name in READER_METADATA if name in names]
        return (*known, *sorted(set(names) - set(known)))

    @property
    def rx_required(self) -> bool:
        """Whether metadata that the driver does not have is an error."""
        return not self.rx_metadata.startswith("want:")

    def room(self, chunk_size: int | None = None) -> int:
        """The longest packet in bytes that a frame of ``chunk_size`` takes; without it, that the largest frame
        takes."""
        return (chunk_size or self.chunk_size or _PAGE) - KERNEL_HEADROOM - self.headroom

    def chunk_for(self, frame_bytes: int) -> int:
        """The chunk size for packets of up to ``frame_bytes``; ValueError if no frame takes them."""
        for size in (self.chunk_size,) if self.chunk_size else _CHUNKS:
            if frame_bytes <= self.room(size):
                return size
        raise ValueError(f"packets of {frame_bytes} bytes do not fit a frame, which takes {self.room()}")

    def multi_buffers(self, frame_bytes: int, native_bytes: int) -> tuple[bool, ...]:
        """The values to try, best first, for whether packets may have several buffers.  ``frame_bytes``: the longest
        packet that can come.  ``native_bytes``: the longest that a native program takes in one buffer."""
        tries = self.switch("multi_buffer", auto=frame_bytes > min(self.room(), native_bytes))
        return tuple(t for t in tries if t or frame_bytes <= self.room() or len(tries) == 1)

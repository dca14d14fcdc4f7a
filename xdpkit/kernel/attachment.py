"""What the kernel gave of what was requested."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["TC_MODES", "Attachment", "Got", "completes_checksums", "ranges"]

TC_MODES = ("tc_ingress", "tc_egress")
_SHOWN = {
    "multi_buffer": "multi-buffer",
    "busy_poll": "busy poll",
    "huge_pages": "huge pages",
    "shared_umem": "shared UMEM",
}
_CLOCKS = {"device": "by the device", "software": "in software (CLOCK_TAI)"}
_NAMES = {
    "af_packet": "AF_PACKET (copies: packets also go on to the stack)",
    "tc_ingress": "TC ingress",
    "tc_egress": "TC egress",
    "zerocopy": "zero-copy",
    "ringbuf": "ring buffer",
}


@dataclass(frozen=True, slots=True)
class Attachment:
    """What the kernel gave of what was requested.  ``mode``: native, generic, tc_ingress,
    tc_egress or af_packet; ``bind``: zerocopy, copy, ringbuf (TC), or None while no socket is open; ``queues``: those
    that have sockets, none at TC, where ring buffers take the packets of all; ``walk``: what was tried before and
    why it was not taken; ``absent``: metadata that rules test and no packet has here; ``rx_metadata``: what readers get
    with each packet, as far as the driver knows it (:data:`xdpkit.language.metadata.READER_METADATA`).

    Of AF_XDP sockets, None while none is open: ``need_wakeup``, ``busy_poll``, ``huge_pages``, ``multi_buffer``,
    ``shared_umem``, ``unaligned``, ``chunk_size``; what they mean is in :class:`xdpkit.SocketOptions`.
    ``tx_timestamp``: whose clock says when packets left, "device" (its own) or "software" (the kernel's CLOCK_TAI, when
    it was done with a packet); "off"."""

    device: str
    driver: str | None
    mode: str
    bind: str | None
    queues: tuple[int, ...]
    timestamps: bool
    walk: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    need_wakeup: bool | None = None
    busy_poll: bool | None = None
    huge_pages: bool | None = None
    multi_buffer: bool | None = None
    shared_umem: bool | None = None
    unaligned: bool | None = None
    chunk_size: int | None = None
    tx_timestamp: str | None = None
    rx_metadata: tuple[str, ...] = ()

    @property
    def partial_checksums(self) -> bool:
        """Packets may come here with TCP and UDP checksums that their sender left to its device."""
        return self.mode == "generic" or completes_checksums(self.mode, self.driver)

    def __str__(self) -> str:
        parts = [_NAMES.get(name, name) for name in (self.mode, self.bind) if name]
        if self.queues:
            parts.append(f"queue{'s' if len(self.queues) > 1 else ''} {ranges(self.queues)}")
        if self.driver:
            parts.append(self.driver)
        parts += [text for name, text in _SHOWN.items() if getattr(self, name)]
        if self.unaligned:
            parts.append(f"unaligned frames of {self.chunk_size}")
        if self.tx_timestamp in _CLOCKS:
            parts.append(f"TX timestamps {_CLOCKS[self.tx_timestamp]}")
        if self.rx_metadata:
            parts.append(f"RX metadata {' and '.join(self.rx_metadata)}")
        if self.need_wakeup is False:
            parts.append("no need_wakeup")
        absent = f"; no packet has {' or '.join(self.absent)}" if self.absent else ""
        return ", ".join(parts) + "".join(f"; not {w}" for w in self.walk) + absent


#: An older name.
Got = Attachment


def completes_checksums(mode: str, driver: str | None) -> bool:
    """Whether a program in this mode completes the TCP and UDP checksums of packets that leave by a device: senders on
    the same machine leave them to theirs, and what native XDP sends on has lost the mark of it.  In generic mode the
    socket buffer keeps the mark, so the device that the packet leaves by completes them."""
    return mode == "native" and driver in ("veth", "tun")


def ranges(numbers: Iterable[int]) -> str:
    """0-2,5 for 0, 1, 2, 5."""
    out: list[list[int]] = []
    for n in sorted(numbers):
        if out and n == out[-1][1] + 1:
            out[-1][1] = n
        else:
            out.append([n, n])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in out)

"""Limits of zero-copy that the kernel does not check, so that packets would be cut or lost.

In zero-copy the NIC writes into the frame, and the driver sets the size of the frame in the NIC.  Some NICs take the
size in KiB, and their drivers round it down: 1792 bytes (a chunk of 2048 less 256) become 1024, and a longer packet
arrives as two.  igb does so (SRRCTL.BSIZEPKT; seen with Linux 7.3), and igc writes the same register.  virtio_net drops
what a program transmits (XDP_TX) from a zero-copy frame: no room is left in front of it for the device's own header.
"""

from __future__ import annotations

from ..device.netdev import Device
from ..language.errors import NotSupported
from ..language.pipeline import Pipeline
from .options import L2_BYTES, SocketOptions

__all__ = ["check_zerocopy", "chunk_for_zerocopy"]

_COUNT_IN_KIB = ("igb", "igc")
_KIB = 1024


def check_zerocopy(device: Device, pipeline: Pipeline) -> None:
    """NotSupported where zero-copy would lose packets of this pipeline on this device."""
    if device.driver == "virtio_net" and "TX" in pipeline.verdicts:
        raise NotSupported(
            f"zero-copy on {device.name}",
            "a pipeline without TX, because virtio_net drops what a zero-copy frame sends",
        )


def chunk_for_zerocopy(device: Device, pipeline: Pipeline, options: SocketOptions) -> int:
    """The chunk size in bytes for zero-copy: one that holds the device's MTU however its NIC counts.

    NotSupported where zero-copy would cut, or lose, packets of this pipeline on this device.
    """
    check_zerocopy(device, pipeline)
    frame_bytes = device.mtu + L2_BYTES
    smallest = options.chunk_for(frame_bytes)
    for size in (smallest,) if options.chunk_size else (smallest, 4096):
        if options.room(size) // _KIB * _KIB >= frame_bytes:
            return size
    if device.driver in _COUNT_IN_KIB:
        room = options.room(smallest) // _KIB * _KIB
        advice = "chunk_size 4096" if smallest < 4096 else f"an MTU of {room - L2_BYTES} or less"
        text = f"{advice}, because {device.driver} cuts packets after {room} bytes and the MTU here is {device.mtu}"
        raise NotSupported(f"zero-copy on {device.name}", text)
    return smallest

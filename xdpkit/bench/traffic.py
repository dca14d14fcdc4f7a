"""The sender of a comparison: a process of its own on one CPU, because pacing in Python wants the GIL for itself.

Live frames up to a page; what is longer goes through a packet socket, by sendmmsg.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import NamedTuple

from ..lab.generator import Generator, udp_frame
from ..lab.port import Port
from ..language.errors import NotSupported
from .measure import own_seconds
from .native import ffi, loops

__all__ = ["CPUS", "TIME_OFFSET", "Load", "Sent", "frame_for", "packet_socket", "transmit"]

#: The CPU of the sender and of the softirq that its frames cause, and that of what is measured.
CPUS = (min(os.sched_getaffinity(0)), max(os.sched_getaffinity(0)))
#: Where the time of sending is in a UDP datagram's payload; in a frame it is 42 bytes further on.
TIME_OFFSET = 8
_HEADERS = 42
_BURST = 1024  # frames by which a paced sender that was held up catches up: half a ring of AF_XDP
# What a paced sender sends at a time, in seconds.  It sleeps after each, and a sleep can take 30 us of CPU time: where
# that is measured, a short time would show little but the sender; where delays are, a long one.
_CHEAP, _SMOOTH = 1e-3, 100e-6
_LIVE_MOST = 3408  # bytes of a live frame, see xdpkit.lab.generator
_SOL_PACKET, _QDISC_BYPASS, _IGNORE_OUTGOING = 263, 20, 23


class Load(NamedTuple):
    """What is offered: a name, a rate (None: as fast as it goes), and whether frames are stamped with their time."""

    name: str
    rate_pps: float | None = None
    stamped: bool = False


class Sent(NamedTuple):
    """What the sender did: frames, those lost at the receiver's ring, seconds, CPU seconds."""

    frames: int
    lost_ring: int
    seconds: float
    cpu_s: float


def packet_socket(port: Port, protocol: int = 0, buffer_bytes: int = 16 << 20) -> socket.socket:
    """A packet socket on a port (of the calling thread's namespace or another); protocol 0 receives nothing."""
    with port.namespace:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.setsockopt(_SOL_PACKET, _QDISC_BYPASS, 1)
    if protocol:
        sock.setsockopt(socket.SOL_SOCKET, 33, buffer_bytes)  # SO_RCVBUFFORCE
        sock.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
    sock.bind((port.name, protocol))
    return sock


def frame_for(port: Port, size: int, dst_mac: str = "") -> bytes:
    """The frame of ``size`` bytes that a port sends."""
    return udp_frame(size, src_mac=port.mac, dst_mac=dst_mac or port.peer.mac).frame


def transmit(
    port: Port, frame: bytes, load: Load, seconds: float, meanwhile: Callable[[], None], *, begin: Callable[[], None]
) -> Sent:
    """Offer ``load`` for ``seconds`` from a process of its own; ``begin()`` is called when it is ready, and
    ``meanwhile()`` again and again until it is done.  OSError if it failed."""
    context = multiprocessing.get_context("fork")
    if len(frame) > _LIVE_MOST:
        loops()  # compiled once, here
    ours, theirs = context.Pipe()
    process = context.Process(target=_process, args=(port, frame, load, seconds, ours, theirs), daemon=True)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # Ctrl-C is for us: we hang up on it then
    process.start()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    try:
        ours.recv()
        begin()
        ours.send("go")
        while not ours.poll():
            meanwhile()
        result: Sent | str = ours.recv()
    except EOFError:
        result = "it ended without a word"
    finally:
        ours.close()  # whoever still waits for "go" ends
        process.join()
    if isinstance(result, str):
        raise OSError(f"sender on {port.name}: {result}")
    return result


def _process(port: Port, frame: bytes, load: Load, seconds: float, parents: Connection, pipe: Connection) -> None:
    parents.close()
    send = _long if len(frame) > _LIVE_MOST else _live
    with suppress(EOFError):
        try:
            os.sched_setaffinity(0, {CPUS[0]})
            pipe.send(send(port, frame, load, seconds, pipe))
        except (OSError, NotSupported) as error:
            with suppress(OSError):
                pipe.send(str(error))


def _live(port: Port, frame: bytes, load: Load, seconds: float, pipe: Connection) -> Sent:
    stamp = _HEADERS + TIME_OFFSET if load.stamped else None
    with Generator(port, [frame], sequence_offset=_HEADERS, time_offset=stamp, cpu=CPUS[0]) as generator:
        pipe.send("ready")
        pipe.recv()
        cpu, start = own_seconds(), time.monotonic()
        if load.rate_pps is None:
            while time.monotonic() - start < seconds:
                generator.send(16384)
        else:
            every = _SMOOTH if load.stamped else _CHEAP
            generator.start(rate_pps=load.rate_pps, burst=_BURST, every=every)
            time.sleep(seconds)
            generator.stop()
        took, cpu = time.monotonic() - start, own_seconds() - cpu
        generator.settle(30)
        return Sent(generator.sent, generator.dropped, took, cpu)


def _long(port: Port, frame: bytes, load: Load, seconds: float, pipe: Connection) -> Sent:
    stop, done = ffi.new("int *"), threading.Event()
    with packet_socket(port) as sock, ThreadPoolExecutor(1) as pool:
        pipe.send("ready")
        pipe.recv()
        cpu, start = own_seconds(), time.monotonic()
        stamp = _HEADERS + TIME_OFFSET if load.stamped else 0
        run = pool.submit(loops().send_run, sock.fileno(), frame, len(frame), 16, load.rate_pps or 0.0, stamp, stop)
        done.wait(seconds)
        stop[0] = 1
        sent = run.result()
        return Sent(sent, 0, time.monotonic() - start, own_seconds() - cpu)

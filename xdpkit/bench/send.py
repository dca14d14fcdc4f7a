"""Paths that send: AF_XDP TX, packet sockets, trafgen, live frames.  Each sends from one CPU until told to stop."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path as File

import numpy as np

from ..lab.generator import Generator
from ..language.errors import NotSupported
from ..link.attach import attach
from ..sockets.options import SocketOptions
from .native import ffi, loops
from .site import Path, Running, Site, everything
from .traffic import frame_for, packet_socket

__all__ = ["SEND"]

_RING, _ARRAY_BYTES = 2048, 128 << 10


@contextmanager
def _afxdp_tx(site: Site) -> Iterator[Running]:
    """sockets.send() of an array, in Python."""
    frame = np.frombuffer(frame_for(site.port, site.size), np.uint8)
    rows = np.tile(frame, (min(_RING, _ARRAY_BYTES // site.size), 1))
    with attach(everything(), site.port.name, mode="native", options=SocketOptions(tx=True)) as link:
        with link.sockets() as sockets:

            class Send(Running):
                def poll(self) -> None:
                    for _ in range(64):
                        self.received += sockets.send(rows)

            me = Send(str(link.attachment))
            yield me
            while sum(x._pool.frames()["tx"] for x in sockets.xsks):
                sockets.complete()


def _socket(batch: int) -> Callable[[Site], AbstractContextManager[Running]]:
    """send() or sendmmsg() in C."""

    @contextmanager
    def path(site: Site) -> Iterator[Running]:
        me, stop, frame = Running("AF_PACKET"), ffi.new("int *"), frame_for(site.port, site.size)
        with packet_socket(site.port) as sock, ThreadPoolExecutor(1) as pool:
            run = pool.submit(loops().send_run, sock.fileno(), frame, len(frame), batch, 0.0, 0, stop)
            try:
                yield me
            finally:
                stop[0] = 1
                me.received = int(run.result())

    return path


@contextmanager
def _trafgen(site: Site) -> Iterator[Running]:
    """netsniff-ng's generator, on one CPU; it does not say what it sent in a form worth reading."""
    if not shutil.which("trafgen"):
        raise NotSupported("trafgen", "apt-get install netsniff-ng")
    with tempfile.TemporaryDirectory() as folder:
        config = File(folder, "frame.cfg")
        config.write_text("{ " + ", ".join(f"0x{byte:02x}" for byte in frame_for(site.port, site.size)) + " }\n")
        child = site.port.namespace.popen(
            ["trafgen", "--dev", site.port.name, "--conf", str(config), "--cpus", "1", "--no-cpu-stats"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            preexec_fn=lambda: os.sched_setaffinity(0, {site.cpu}),
        )  # fmt: skip
        me = Running("AF_PACKET TX_RING", (child.pid,))
        me.received = -1
        try:
            yield me
        finally:
            child.send_signal(signal.SIGINT)
            try:
                child.wait(5)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


@contextmanager
def _live(site: Site) -> Iterator[Running]:
    """The lab's generator."""
    with Generator(site.port, [frame_for(site.port, site.size)], cpu=site.cpu) as generator:

        class Live(Running):
            def poll(self) -> None:
                generator.send(16384)

        me = Live("BPF_PROG_TEST_RUN")
        yield me
        generator.settle(30)
        me.received = generator.sent


SEND = (
    Path("afxdp-tx", _afxdp_tx, "sockets.send() from Python, arrays of 128 KiB, TX ring of 2048", delays=False),
    Path("live-frames", _live, "xdpkit.lab.generator: BPF_PROG_TEST_RUN, batches of 64", delays=False),
    Path("sendmmsg", _socket(64), "packet socket in C, batch 64, PACKET_QDISC_BYPASS", delays=False),
    Path("send", _socket(1), "packet socket in C, PACKET_QDISC_BYPASS", delays=False),
    Path("trafgen", _trafgen, "TX_RING, one process, past the qdisc", delays=False, tool=True),
)

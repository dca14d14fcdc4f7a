"""Forward 64-byte packets between two veth devices in every way there is, in one run, and compare.

    python perf/forward.py [--runs 5] [--seconds 1] [--only user-space,kernel]

left --- a | b --- right: a process pinned to CPU 0 sends into `a` as fast as it can, and what comes out of `right` is
counted there.  Ways: `user-space` is forward(a, b), one C thread on CPU 1; `kernel` is the verdict Forward("b"), which
never leaves the kernel (its work is done on the sending CPU); `python` is a loop of receive and send over AF_XDP.
Rates compare only within one run; figures are medians.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from receive import RECEIVER_CPU, SENDER_CPU, everything
from rich.console import Console
from rich.table import Table

from xdpkit import DROP, Forward, Pipeline, SocketOptions, attach, eth, forward
from xdpkit.generator import Generator, udp_frame
from xdpkit.lab import Lab
from xdpkit.live import si
from xdpkit.port import Port


@contextmanager
def user_space() -> Iterator[Callable[[], None]]:
    """forward(a, b)."""
    with attach(everything(), "a", mode="native") as a, attach(everything(), "b", mode="native") as b:
        with forward(a, b, cpus=[RECEIVER_CPU]):
            yield lambda: time.sleep(0.01)


@contextmanager
def kernel() -> Iterator[Callable[[], None]]:
    """Forward("b"): a devmap."""
    pipe = Pipeline("devmap")
    pipe.rule(eth.present, Forward("b"), name="all")
    with attach(pipe, "a", mode="native"):
        yield lambda: time.sleep(0.01)


@contextmanager
def python() -> Iterator[Callable[[], None]]:
    """Batches of a, copied by numpy into arrays that b sends."""
    options = SocketOptions(tx=True)
    with attach(everything(), "a", mode="native") as a, attach(everything(), "b", mode="native", options=options) as b:
        with a.sockets() as come, b.sockets() as go:

            def turn() -> None:
                for batch in come.batches(timeout=0.01):
                    rows = np.stack([np.frombuffer(bytes(frame), np.uint8) for frame in batch.frames])
                    while len(rows):
                        rows = rows[go.send(rows) :]
                        go.complete()

            yield turn


WAYS: dict[str, Callable[[], Any]] = {"user-space": user_space, "kernel": kernel, "python": python}


def sender(port: Port, pipe: Any, seconds: float, frame: bytes) -> None:
    """The sending process: at "go", send for ``seconds``; report (sent, seconds)."""
    with Generator(port, [frame], cpu=SENDER_CPU) as generator:
        pipe.send("ready")
        pipe.recv()
        start = time.monotonic()
        while time.monotonic() - start < seconds:
            generator.send(16384)
        pipe.send((generator.sent, time.monotonic() - start))


def run_once(way: str, seconds: float) -> tuple[float, float]:
    """(sent, arrived) packets per second."""
    with Lab() as lab:
        middle = lab.namespace("middle")
        left, a = lab.veth(lab.namespace("left"), middle, names=("left", "a"))
        _, right = lab.veth(middle, lab.namespace("right"), names=("b", "right"))
        sink = Pipeline("sink", default=DROP)
        with right.namespace:
            counter = attach(sink, "right", mode="native")
        ours, theirs = multiprocessing.get_context("fork").Pipe()
        with counter, a.namespace, WAYS[way]() as turn:
            frame = udp_frame(64, src_mac=left.mac, dst_mac=right.mac).frame
            process = multiprocessing.get_context("fork").Process(target=sender, args=(left, theirs, seconds, frame))
            process.start()
            ours.recv()
            ours.send("go")
            while not ours.poll():
                turn()
            sent, took = ours.recv()
            arrived = counter.ledger().seen
            process.join()
    return sent / took, arrived / took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--only", default=",".join(WAYS), help="comma-separated ways")
    args = parser.parse_args()
    os.sched_setaffinity(0, {RECEIVER_CPU})
    names = args.only.split(",")
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for _ in range(args.runs):
        for name in names:
            samples[name].append(run_once(name, args.seconds))
    table = Table(title="forward 64-byte packets, one veth queue", box=None)
    for column in ("way", "offered/s", "arrived/s", "min - max"):
        table.add_column(column, justify="right")
    for name, rates in samples.items():
        arrived = [a for _, a in rates]
        offered = statistics.median(s for s, _ in rates)
        table.add_row(name, si(offered), si(statistics.median(arrived)), f"{si(min(arrived))} - {si(max(arrived))}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()

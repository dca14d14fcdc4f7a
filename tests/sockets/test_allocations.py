"""Once they run, workers and forwarders allocate nothing: counted by a library that is preloaded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "c" / "allocations.c"

PROGRAM = """
import ctypes, os, sys
from xdpkit import attach, forward
from xdpkit.bench.forwarding import middle
from xdpkit.bench.site import everything
from xdpkit.lab.generator import Generator, udp_frame

counted = ctypes.CDLL(None).allocations
counted.restype = ctypes.c_ulong


def flood(port, to, packets):
    frames = [udp_frame(size, src_mac=port.mac, dst_mac=to).frame for size in (64, 1500)]
    with Generator(port, frames) as generator:
        for turn in range(20):
            generator.send(512)
            generator.settle()
            while packets() < generator.sent:
                os.sched_yield()
            before = before if turn else counted()  # the first one touches what a thread has of its own
    print(counted() - before)


with middle(1500) as (left, a, b, right), a.namespace:
    with attach(everything(), "a", mode="native") as link:
        if sys.argv[1] == "forward":
            with attach(everything(), "b", mode="native") as other, forward(link, other) as work:
                flood(left, right.mac, lambda: work.stats().packets)
        else:
            with link.sockets() as sockets:
                with sockets.count() if sys.argv[1] == "count" else sockets.write("/dev/null") as work:
                    flood(left, a.mac, lambda: work.stats().packets)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp("allocations") / "allocations.so"
    subprocess.run(["cc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", str(SOURCE), "-o", str(path)], check=True)
    return path


@pytest.mark.parametrize("work", ["count", "write", "forward"])
def test_no_thread_of_the_core_allocates_once_it_runs(library, work):
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, work], env={**os.environ, "LD_PRELOAD": str(library)}, timeout=60,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (run.stdout, run.stderr) == ("0\n", "")

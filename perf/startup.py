"""From the start of `xdpkit run` to the first packet that the pipeline judges, beside what Python alone needs.

python perf/startup.py --runs 15: each run is a process of its own on a veth pair, to which test frames are sent all the
time.  pipelines/reflect.py sends them back: the first that comes ends the measurement.  pipelines/dns.py writes one and
ends.  The figures are medians of the time and of the CPU time of whole runs; the ratio is to `python -c pass`, taken by
turns with the others.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from xdpkit import Pipeline, attach
from xdpkit.lab import Lab
from xdpkit.lab.template import udp_frame

PIPELINES = Path(__file__).resolve().parent.parent / "pipelines"
XDPKIT = [sys.executable, "-m", "xdpkit"]
_ETH_P_ALL, _SOL_PACKET, _PACKET_IGNORE_OUTGOING = 3, 263, 23


def spent(process):
    """CPU seconds of a process that is waited for."""
    _, _, usage = os.wait4(process.pid, 0)
    return usage.ru_utime + usage.ru_stime


def alone(code):
    """(seconds, CPU seconds) of a Python process."""
    begin = time.monotonic()
    cpu = spent(subprocess.Popen([sys.executable, "-c", code]))
    return time.monotonic() - begin, cpu


def judged(lab, arguments, port, until_end):
    """(seconds until the first frame comes back, or ``until_end`` of the run; CPU seconds of the run)."""
    left, right = lab.veth(lab.namespace("client"), lab.namespace("server"))
    frame = udp_frame(src_mac=left.mac, dst_mac=right.mac, dst="198.18.0.1", dport=port).frame
    ended = threading.Event()

    def send():
        while not ended.wait(0.0002):
            left.send([frame])

    sender = threading.Thread(target=send)
    with ExitStack() as stack:
        with left.namespace:
            stack.enter_context(attach(Pipeline("nothing"), left.name))  # veth: TX wakes a peer that has a program
            sock = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
        sock.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        sock.bind((left.name, _ETH_P_ALL))
        sender.start()
        begin = time.monotonic()
        try:
            process = right.namespace.popen(
                [*XDPKIT, "run", *arguments, "-i", right.name, "-q"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            if until_end:
                cpu = spent(process)
            else:
                sock.settimeout(60)
                sock.recv(2048)
            took = time.monotonic() - begin
        finally:
            ended.set()
            sender.join()
    if not until_end:
        process.terminate()
        cpu = spent(process)
    return took, cpu


def report(name, rows, base):
    """A line of medians."""
    took, cpu = (statistics.median(column) for column in zip(*rows, strict=True))
    ratio = f"{took / base:6.1f} x python" if base else ""
    print(f"{name:34} {took * 1e3:7.0f} ms   {cpu * 1e3:6.0f} ms CPU  {ratio}", flush=True)
    return took


def main():
    """All measurements, by turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15, help="runs of each kind")
    args = parser.parse_args()
    kinds = {
        "python -c pass": lambda _: alone("pass"),
        "python, numpy and LLVM imported": lambda _: alone("import numpy, llvmlite.binding"),
        "run reflect.py: first packet back": lambda lab: judged(lab, [str(PIPELINES / "reflect.py")], 9, False),
        "run dns.py -c 1 -w -: all of it": lambda lab: judged(lab, [str(PIPELINES / "dns.py"), "-c1", "-w-"], 53, True),
    }
    rows: dict[str, list[Any]] = {name: [] for name in kinds}
    for _ in range(args.runs):
        for name, measure in kinds.items():
            with Lab() as lab:
                rows[name].append(measure(lab))
    base = None
    for name, found in rows.items():
        took = report(name, found, base)
        base = base or took


if __name__ == "__main__":
    main()

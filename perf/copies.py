"""What a copy to user space costs: ns in the program while one CPU copies and while all do, and ns to read a record.

    python perf/copies.py [--rounds 30] [--realtime]

Frames of 64, 512 and 1500 bytes go through a program that mirrors and drops them (BPF_PROG_TEST_RUN, medians over
rounds, less what the same program takes without a copy), on one CPU, and on all at the same time.  Then a worker counts
or writes (to /dev/null) what was copied.  On a busy machine --realtime (SCHED_FIFO, for some ms at a time) makes sure
that the CPUs work at the same time.  Run it in two trees by turns to compare them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import threading
import time

from xdpkit import DROP, Mirror, Pipeline, SocketOptions, attach, udp
from xdpkit.lab import Lab
from xdpkit.lab.generator import udp_frame

SIZES = {64: 50_000, 512: 10_000, 1500: 5_000}  # frames in a round, on each CPU
CPUS = sorted(os.sched_getaffinity(0))
OPTIONS = SocketOptions(ring_size=16384)


def pipeline(*steps):
    """UDP is dropped, after ``steps``."""
    pipe = Pipeline("copies")
    for number, step in enumerate(steps):
        pipe.rule(udp, step, name=f"step-{number}")
    pipe.rule(udp, DROP, name="end")
    return pipe


def took(link, cpus, frame, times):
    """Mean ns a packet of a run on each of ``cpus`` at the same time."""
    start, ns = threading.Barrier(len(cpus)), []

    def run(cpu):
        os.sched_setaffinity(0, {cpu})
        start.wait()
        ns.append(link.program.test_run(frame, repeat=times)[1])

    threads = [threading.Thread(target=run, args=(cpu,)) for cpu in cpus]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statistics.mean(ns)


def drained(copies):
    """Read what is there."""
    for _ in copies.batches(timeout=0, limit=4096):
        pass


def reading(link, frame, times, write):
    """ns for each record that a worker reads."""
    with link.copies() as copies, open("/dev/null", "wb", buffering=0) as null:
        for cpu in CPUS:
            took(link, [cpu], frame, times)
        total = len(CPUS) * times
        begin = time.perf_counter_ns()
        with copies.write(null, wait="busy") if write else copies.count(wait="busy") as workers:
            while workers.stats().packets < total:
                pass
            return (time.perf_counter_ns() - begin) / total


def main():
    """All measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="runs of each kind")
    parser.add_argument("--realtime", action="store_true", help="run the programs with SCHED_FIFO")
    args = parser.parse_args()
    if args.realtime:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))  # and of the threads that it starts
    with Lab() as lab:
        left, right = lab.veth(lab.namespace("client"), lab.namespace("server"))
        heads = ("copied by 1 CPU", f"by {len(CPUS)} at a time", "counted", "written")
        print(f"{'ns':10}" + "".join(f"{head:>18}" for head in heads))
        for size, times in SIZES.items():
            frame, row = udp_frame(size, src_mac=left.mac, dst_mac=right.mac).frame, []
            with right.namespace, attach(pipeline(), right.name, mode="native") as link:
                bare = statistics.median(took(link, CPUS[:1], frame, times) for _ in range(args.rounds))
            with right.namespace, attach(pipeline(Mirror()), right.name, mode="native", options=OPTIONS) as link:
                for cpus in (CPUS[:1], CPUS):
                    with link.copies() as copies:
                        found = []
                        for _ in range(args.rounds):
                            found.append(took(link, cpus, frame, times))
                            drained(copies)
                        row.append(statistics.median(found) - bare)
                        if copies.stats().rx_ring_full:
                            raise SystemExit("ring buffers were full: what does not copy is not a copy's cost")
                for write in (False, True):  # the start of a thread is in it, which other work delays
                    row.append(min(reading(link, frame, times, write) for _ in range(args.rounds)))
            print(f"{size:4} bytes" + "".join(f"{ns:18.1f}" for ns in row), flush=True)


if __name__ == "__main__":
    main()

"""What writing costs: packets/s of one queue into a file, ns per KiB into a pipe, packets/s of a tap's copies by wait.

python perf/sink.py --duration 1 --turns 3: medians, 64-byte packets, receiver and generator each on a CPU of its own.
Run it in two trees by turns to compare them.
"""

import argparse
import os
import statistics
import tempfile
import threading
import time

from xdpkit import REDIRECT, Mirror, Pipeline, attach, udp
from xdpkit.lab import Lab

FRAME = bytes.fromhex("020000000001020000000002080045000032000000004011000000000000000000000fa00035001e0000") + bytes(
    22
)


def pipeline(action):
    """One rule for all UDP."""
    pipe = Pipeline("sink")
    pipe.rule(udp, action, name="all")
    return pipe


def rate(workers, port, seconds, size=64):
    """(packets/s, own CPU seconds per million packets) while the generator sends as fast as it can."""
    with port.generator([FRAME + bytes(size - 64)], cpu=0) as generator:
        cpu, begin, before = sum(os.times()[:2]), time.monotonic(), workers.stats().packets
        generator.start()
        time.sleep(seconds)
        packets, took = workers.stats().packets - before, time.monotonic() - begin
        cpu = sum(os.times()[:2]) - cpu
        generator.stop()
    return packets / took, cpu / max(1, packets) * 1e6


def drained(fd):
    """Read a pipe until it ends."""
    while os.read(fd, 1 << 20):
        pass


def report(name, rows):
    """A line of medians."""
    pps, cpu = (statistics.median(column) for column in zip(*rows, strict=True))
    print(f"{name:24} {pps / 1e6:6.2f} Mpps {cpu:6.2f} CPU s per million packets (with the generator's)", flush=True)


def main():
    """All measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--duration", "--seconds", dest="seconds", type=float, default=1.0, help="of each run")
    parser.add_argument("--turns", type=int, default=3, help="runs of each kind")
    args = parser.parse_args()
    with Lab() as lab:
        left, right = lab.veth(lab.namespace("client"), lab.namespace("server"))
        files = tempfile.mkdtemp(dir="/dev/shm")
        for name, stamp in (("file", False), ("file, rule names", True)):
            rows = []
            for _ in range(args.turns):
                with right.namespace, attach(pipeline(REDIRECT), right.name, mode="native", timestamps=stamp) as link:
                    with link.sockets() as sockets, sockets.write(f"{files}/out", cpus=[1]) as workers:
                        rows.append(rate(workers, left, args.seconds))
                os.unlink(f"{files}/out")
            report(name, rows)
        rows = []
        for _ in range(args.turns):
            reader, writer = os.pipe()
            thread = threading.Thread(target=drained, args=(reader,))
            thread.start()
            with right.namespace, attach(pipeline(REDIRECT), right.name, mode="native") as link:
                with os.fdopen(writer, "wb", buffering=0) as file, link.sockets() as sockets:
                    with sockets.write(file, cpus=[1]) as workers:
                        rows.append(rate(workers, left, args.seconds, 1500))
            thread.join()
            os.close(reader)
        report("pipe, 1500 bytes", rows)
        for wait in ("adaptive", "nap"):
            rows = []
            for _ in range(args.turns):
                with right.namespace, attach(pipeline(Mirror()), right.name, mode="native") as link:
                    with link.copies() as copies, copies.count(cpus=[1], wait=wait) as workers:
                        rows.append(rate(workers, left, args.seconds))
            report(f"copies, {wait}", rows)
        os.rmdir(files)


if __name__ == "__main__":
    main()

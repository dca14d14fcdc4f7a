"""Change and remove the device of `xdpkit run` at random moments: devices.py --help

Each trial is a run under traffic, as root, on a veth pair of its own, in one of ten variants (see runs.py).  One to
three events come at random moments once it is attached: down and up, another MTU, other queues, the device deleted or
moved to another network namespace.  After each the run must go on, or end with status 1 and one line
that says why; and where the device is deleted or moved, it must end.  What the fuzzer of signals asks of a run holds
here too.  Exit status 1 if anything was found; a trial's events depend on the seed and its number alone.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random

from runs import VARIANTS, Ended, Run, Variant, faults, gone, pins, remove_pins, site, traffic

from xdpkit.device.ethtool import set_channels
from xdpkit.lab import Namespace, Port

#: Seconds within which a run says that its device is away.
NOTICE_SECONDS = 15.0


def command(port: Port, *words: str) -> bool:
    """Run a command of iproute2 at the port; whether the kernel did it."""
    return port.namespace.run(list(words), check=False, capture_output=True).returncode == 0


def down_and_up(port: Port, random: Random, _: Namespace) -> bool:
    """The device goes down and comes back."""
    command(port, "ip", "link", "set", port.name, "down")
    time.sleep(random.uniform(0, 0.05))
    return command(port, "ip", "link", "set", port.name, "up")


def other_mtu(port: Port, random: Random, _: Namespace) -> bool:
    """Another MTU, which the kernel may refuse."""
    return command(port, "ip", "link", "set", port.name, "mtu", str(random.choice((68, 576, 1280, 1500, 3000, 9000))))


def other_queues(port: Port, random: Random, _: Namespace) -> bool:
    """Another number of queues, which the kernel may refuse."""
    number = random.choice((1, 2))
    try:
        with port.namespace:
            set_channels(port.name, rx=number, tx=number)
    except OSError:
        return False
    return True


def deleted(port: Port, _: Random, __: Namespace) -> bool:
    """The device is deleted."""
    return command(port, "ip", "link", "delete", port.name)


def moved(port: Port, _: Random, elsewhere: Namespace) -> bool:
    """The device moves to another network namespace."""
    return command(port, "ip", "link", "set", port.name, "netns", elsewhere.path)


Event = Callable[[Port, Random, Namespace], bool]
HARMLESS: tuple[Event, ...] = (down_and_up, other_mtu, other_queues)
FATAL: tuple[Event, ...] = (deleted, moved)


def plan(random: Random) -> list[tuple[float, Event]]:
    """(seconds after the one before, event): what changes a device, and in half of the trials what takes it away."""
    events = [random.choice(HARMLESS) for _ in range(random.randrange(3))]
    events += [random.choice(FATAL)] if not events or random.random() < 0.5 else []
    return [(random.uniform(0, 0.3), event) for event in events]


def wait_until_attached(run: Run) -> None:
    """OSError where the run ends before."""
    while not run.ready():
        if run.process.poll() is not None:
            raise OSError(f"{run.variant.name}: the run ended with {run.process.returncode}: {run.err.read_text()}")
        time.sleep(0.005)


def carry_out(events: Sequence[tuple[float, Event]], run: Run, random: Random, elsewhere: Namespace) -> bool:
    """Let the events come; whether the device is away then.  The run is asked to end where it may go on."""
    away = False
    for seconds, event in events:
        time.sleep(seconds)
        away |= event(run.port, random, elsewhere) and event in FATAL
    if not away:
        time.sleep(random.uniform(0.3, 0.6))
        if run.process.poll() is None:
            run.process.send_signal(signal.SIGINT)
    return away


def judge(ended: Ended, *, away: bool) -> list[str]:
    """What is wrong with how a run ended."""
    found = faults(ended, whole=True)
    said = ended.err.splitlines()
    if away and ended.status != 1:
        found.append(f"status {ended.status} of a run whose device is away")
    if ended.status not in (0, 1):
        found.append(f"status {ended.status}: {said[-1:]}")
    if ended.status == 1 and len(said) < 2:
        found.append(f"status 1 without a line that says why: {said}")
    return found


def trial(variant: Variant, events: Sequence[tuple[float, Event]], random: Random) -> tuple[int, list[str]]:
    """One run; (its exit status, what was wrong)."""
    with site() as (left, right, folder), traffic(left, right), Namespace() as elsewhere:
        run = Run(variant, right, folder)
        try:
            wait_until_attached(run)
            away = carry_out(events, run, random, elsewhere)
            try:
                ended = run.wait(NOTICE_SECONDS)
            except subprocess.TimeoutExpired:
                return -1000, ["it did not end"]
            found = judge(ended, away=away)
            if not away:
                found += [f"left attached: {what}" for what in gone(right)]
            return ended.status, found + [f"left pinned: {what}" for what in pins(run.set_name)]
        finally:
            run.kill()


def fuzz(count: int, seed: int, names: Sequence[str], *, only: int | None = None) -> int:
    """``count`` trials, the variants in turn; how many were found wrong."""
    wrong, statuses = 0, Counter[tuple[str, int]]()
    numbers = range(count) if only is None else [only]
    try:
        for number in numbers:
            variant, random = VARIANTS[names[number % len(names)]], Random(f"{seed}/{number}")
            events = plan(random)
            status, found = trial(variant, events, random)
            statuses[variant.name, status] += 1
            shown = ", ".join(f"{event.__name__} after {seconds * 1000:.0f} ms" for seconds, event in events)
            for what in found:
                print(f"trial {number}, {variant.name}, {shown}: {what}", flush=True)
            wrong += bool(found)
    finally:
        remove_pins(f"fuzz_{os.getpid()}")
    for name in names:
        shown = ", ".join(f"{times} x {status}" for (of, status), times in sorted(statuses.items()) if of == name)
        print(f"{name:10} exit statuses: {shown}")
    print(f"{len(numbers)} trials of device events with seed {seed}: {wrong} found wrong")
    return wrong


def main() -> int:
    """Parse the command line and fuzz."""
    parser = argparse.ArgumentParser(description="Change and remove the device of `xdpkit run` at random moments.")
    parser.add_argument("--count", type=int, default=200, metavar="N", help="trials (200)")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3)), help="repeat the trials of a run")
    parser.add_argument("--only", type=int, metavar="N", help="this trial alone")
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="this variant alone; several times: these")
    options = parser.parse_args()
    return 1 if fuzz(options.count, options.seed, options.variant or list(VARIANTS), only=options.only) else 0


if __name__ == "__main__":
    sys.exit(main())

"""Send signals to `xdpkit run` at random moments, from its first millisecond on: signals.py --help

Each trial is a run under traffic in one of ten variants (see runs.py), as root, in a lab of its own.  With ``--kill``
the signal is SIGKILL; otherwise it is SIGINT, SIGTERM or SIGHUP, which end a run, in one of three trials a second one
after it, or SIGUSR1, which reads the pipeline again, and later SIGINT.  After each nothing may be attached, no pin be
left that belongs to no set, the capture must be readable (after SIGKILL up to its last whole block, otherwise whole and
with as many packets as the ledger says), and what was printed must be lines of xdpkit and no traceback.  Exit status 1
if anything was found; the moment of each trial depends on the seed and the trial's number alone.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from runs import VARIANTS, Ended, Run, Variant, faults, gone, pins, remove_pins, site, traffic

from xdpkit.lab import Port

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(slots=True)
class Plan:
    """The signals of a trial: (seconds after the one before, signal)."""

    signals: list[tuple[float, signal.Signals]] = field(default_factory=list)

    def __str__(self) -> str:
        return ", ".join(f"{number.name} after {seconds * 1000:.1f} ms" for seconds, number in self.signals)


def plan(random: Random, startup: float, *, kill: bool) -> Plan:
    """Most moments are while the run starts, which takes ``startup`` seconds, the others up to half a second later."""
    moment = random.uniform(0, startup) if random.random() < 0.6 else startup + random.uniform(0, 0.5)
    if kill:
        return Plan([(moment, signal.SIGKILL)])
    first = random.choice((*ENDING, signal.SIGUSR1))
    signals = [(moment, first)]
    if first == signal.SIGUSR1:
        signals += [(random.uniform(0, 0.3), random.choice(ENDING))]
    elif random.random() < 1 / 3:
        signals += [(random.uniform(0, 0.1), random.choice(ENDING))]
    return Plan(signals)


def carry_out(planned: Plan, run: Run) -> bool:
    """Send the signals; whether the run was attached before the first that ends it."""
    at, attached = run.started, False
    for seconds, number in planned.signals:
        at += seconds
        time.sleep(max(0.0, at - time.monotonic()))
        if number != signal.SIGUSR1 and not attached:
            attached = run.ready()
        if run.process.poll() is None:
            run.process.send_signal(number)
    return attached


def judge(planned: Plan, ended: Ended, *, attached: bool) -> list[str]:
    """What is wrong with how a run ended."""
    sent = [number for _, number in planned.signals]
    if sent == [signal.SIGKILL]:
        return ([] if ended.status == -signal.SIGKILL else [f"status {ended.status} after SIGKILL"]) + faults(
            ended, whole=False
        )
    found = faults(ended, whole=True)
    if attached:
        # a second signal may come when the run has ended and the ledger is being printed
        if ended.status not in {0, *(128 + number for number in sent[1:] if sent[0] != signal.SIGUSR1)}:
            found.append(f"status {ended.status} of a run that was attached")
    elif ended.status not in {0, *(128 + number for number in sent), *(-number for number in sent)}:
        found.append(f"status {ended.status} of a run that was starting")
    return found


def measured_startup(variant: Variant, port: Port, folder: Path) -> float:
    """Seconds from the start of the process to the line that says it is attached."""
    run = Run(variant, port, folder)
    try:
        while not run.ready():
            if run.process.poll() is not None:
                raise OSError(f"{variant.name}: the run ended with {run.process.returncode}: {run.err.read_text()}")
            time.sleep(0.005)
        startup = time.monotonic() - run.started
        run.process.send_signal(signal.SIGINT)
        run.wait()
    finally:
        run.kill()
    return startup


def trial(variant: Variant, port: Port, folder: Path, planned: Plan) -> tuple[Ended | None, list[str]]:
    """One run, its signals, and what was wrong."""
    run = Run(variant, port, folder)
    try:
        attached = carry_out(planned, run)
        try:
            ended = run.wait()
        except subprocess.TimeoutExpired:
            return None, ["it did not end"]
        found = judge(planned, ended, attached=attached)
        found += [f"left attached: {what}" for what in gone(port)]
        found += [f"left pinned: {what}" for what in pins(run.set_name)]
        return ended, found
    finally:
        run.kill()


def fuzz(
    count: int, seed: int, names: Sequence[str], *, kill: bool, only: int | None = None, seconds: float = 0
) -> int:
    """``count`` trials, the variants in turn; how many were found wrong.  ``seconds`` that a run takes to start are
    measured for each variant where none are given."""
    wrong, statuses = 0, Counter[tuple[str, int]]()
    startup = dict.fromkeys(names, seconds) if seconds else {}
    numbers = range(count) if only is None else [only]
    try:
        with site() as (left, right, folder), traffic(left, right):
            for number in numbers:
                variant = VARIANTS[names[number % len(names)]]
                if variant.name not in startup:
                    startup[variant.name] = measured_startup(variant, right, folder)
                planned = plan(Random(f"{seed}/{number}"), startup[variant.name], kill=kill)
                ended, found = trial(variant, right, folder, planned)
                statuses[variant.name, ended.status if ended else -1000] += 1
                for what in found:
                    print(f"trial {number}, {variant.name}, {planned}: {what}", flush=True)
                wrong += bool(found)
    finally:
        remove_pins(f"fuzz_{os.getpid()}")
    for name in names:
        shown = ", ".join(f"{times} x {status}" for (of, status), times in sorted(statuses.items()) if of == name)
        print(f"{name:10} starts in {startup.get(name, 0) * 1000:5.0f} ms; exit statuses: {shown}")
    what = "SIGKILL" if kill else "signals"
    print(f"{len(numbers)} trials of {what} with seed {seed}: {wrong} found wrong")
    return wrong


def main() -> int:
    """Parse the command line and fuzz."""
    parser = argparse.ArgumentParser(description="Send signals to `xdpkit run` at random moments.")
    parser.add_argument("--count", type=int, default=200, metavar="N", help="trials (200)")
    parser.add_argument("--kill", action="store_true", help="SIGKILL in place of the signals that a run handles")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3)), help="repeat the trials of a run")
    parser.add_argument("--only", type=int, metavar="N", help="this trial alone")
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="this variant alone; several times: these")
    options = parser.parse_args()
    names = options.variant or list(VARIANTS)
    return 1 if fuzz(options.count, options.seed, names, kill=options.kill, only=options.only) else 0


if __name__ == "__main__":
    sys.exit(main())

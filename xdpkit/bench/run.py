"""Run paths by turns on fresh veth pairs, and keep a sample of each run.

One queue.  What is measured runs on the last CPU, the sender on the first one, which also runs the receiving port's
softirq: on veth every path is a closed loop, and one that costs the kernel more slows its own sender.  So there are two
measures: the rate with a sender that goes as fast as it can, and CPU time per packet at an offered rate that all can
take.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from ..lab.lab import Lab, Namespace
from ..language.errors import NotSupported
from ..link.attach import attach
from ..sockets.options import Wait
from .echo import ECHO, round_trips
from .forwarding import FORWARD, middle
from .measure import Calls, Cost, family, idle_share, percentiles
from .receive import RECEIVE
from .sample import Sample
from .send import SEND
from .site import Path, Site, dropping
from .tools import TOOLS
from .traffic import CPUS, Load, frame_for, transmit

__all__ = ["DIRECTIONS", "Plan", "Results", "measure"]

DIRECTIONS: dict[str, tuple[Path, ...]] = {
    "receive": RECEIVE + TOOLS,
    "send": SEND,
    "forward": FORWARD,
    "echo": ECHO,
}
_WAITS: tuple[Wait, ...] = ("busy", "adaptive", "sleep", "nap")
_JUMBO = 3408


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """``sizes``: bytes of a frame, FCS not counted; ``runs`` of ``seconds`` each; ``only``: names of paths (empty:
    all); ``rates``: offered rates at which ways of waiting are compared; ``pings``: round trips of each echo;
    ``tools``: also programs that are installed (those that ``only`` names are run anyhow)."""

    sizes: tuple[int, ...] = (64, 256, 1518, 9000)
    runs: int = 5
    seconds: float = 1.0
    only: tuple[str, ...] = ()
    rates: tuple[int, ...] = (1_000, 10_000, 100_000, 500_000)
    pings: int = 5000
    tools: bool = True

    def fixed_pps(self, size: int) -> int:
        """The offered rate at which CPU time is measured: what all but the slowest paths can take."""
        return 500_000 if size <= 256 else 200_000 if size <= _JUMBO else 30_000

    def wanted(self, name: str) -> bool:
        """Whether a path, or "waits", is asked for."""
        return not self.only or name in self.only


@dataclass(slots=True)
class Results:
    """Samples; ``missing``: why a path gave none; ``idle``: CPUs at work while nothing was measured."""

    idle: float
    samples: list[Sample] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Step:
    direction: str
    path: Path
    size: int
    load: Load
    wait: Wait = "adaptive"


def _steps(plan: Plan) -> list[_Step]:
    """A round of every path comes before the next, so that what disturbs the machine disturbs all.  Sizes other than
    the first take fewer rounds, and tools, which start slowly, fewer still."""
    out: list[_Step] = []
    few = max(1, plan.runs // 2)
    for size in plan.sizes:
        main = size == plan.sizes[0]
        saturated, fixed = (plan.runs, few) if main else (few, 1)
        for turn in range(saturated):
            for direction in ("receive", "send", "forward"):
                if direction == "receive" or size <= _JUMBO:
                    tools = turn < few and size in (plan.sizes[0], 1518)
                    out += [
                        _Step(direction, path, size, Load("saturated"))
                        for path in DIRECTIONS[direction]
                        if tools or not path.tool
                    ]
        rate = plan.fixed_pps(size)
        for load in [Load("fixed", rate)] * fixed + [Load("probe", rate, True)]:
            for direction in ("receive", "forward") if load.name == "fixed" and size <= _JUMBO else ("receive",):
                out += [_Step(direction, path, size, load) for path in DIRECTIONS[direction] if not path.tool]
    out += [_Step("echo", path, 64, Load("probe")) for _ in range(few) for path in ECHO]
    out = [s for s in out if plan.wanted(s.path.name) and (plan.tools or plan.only or not s.path.tool)]
    if plan.wanted("waits"):
        afxdp = next(p for p in RECEIVE if p.name == "afxdp")
        loads = [Load(str(rate), rate, True) for rate in plan.rates]
        out += [_Step("waits", afxdp, 64, load, wait) for _ in range(few) for load in loads for wait in _WAITS]
    return out


def measure(plan: Plan, progress: Callable[[int, int, str], None] = lambda *_: None) -> Results:
    """Do it; ``progress(done, all, what)`` is called before each run.  ValueError for a path that there is not;
    PermissionError where namespaces cannot be made."""
    known = {p.name for paths in DIRECTIONS.values() for p in paths} | {"waits"}
    if unknown := [n for n in plan.only if n not in known]:
        raise ValueError(f"unknown path {unknown[0]!r}: {', '.join(sorted(known))}")
    Namespace("probe").close()  # PermissionError here, not for each path
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {CPUS[1]})
        results = Results(idle_share(min(1.0, 2 * plan.seconds)))
        steps = _steps(plan)
        for number, step in enumerate(steps):
            progress(number, len(steps), f"{step.direction} {step.path.name} {step.size} {step.load.name}")
            key = f"{step.direction} {step.path.name} {step.size}"
            if key in results.missing or f"{step.direction} {step.path.name}" in results.missing:
                continue
            try:
                results.samples.append(_run(step, plan, results.idle))
            except FileNotFoundError as error:
                results.missing[f"{step.direction} {step.path.name}"] = error.strerror or str(error)
            except (NotSupported, OSError) as error:
                results.missing[key] = (isinstance(error, OSError) and error.strerror) or str(error)
        return results
    finally:
        os.sched_setaffinity(0, before)


def _run(step: _Step, plan: Plan, idle: float) -> Sample:
    if step.direction == "echo":
        return _echo(step, plan)
    if step.direction == "send":
        return _send(step, plan, idle)
    if step.direction == "forward":
        return _forward(step, plan, idle)
    return _receive(step, plan, idle)


def _receive(step: _Step, plan: Plan, idle: float) -> Sample:
    mtu = max(1500, step.size - 14)
    address = "198.19.0.1/15" if step.path.name.startswith("udp") else None  # else the stack drops at once
    with Lab.pair(names=("sender", "receiver"), addresses=(None, address), mtu=mtu) as (left, right):
        site = Site(right, step.size, CPUS[1], step.wait)
        if step.load.stamped and step.path.delays:
            site.ask_delays()
        with right.namespace, ExitStack() as stack:
            costs: list[Cost] = []
            with step.path.open(site) as running:
                calls = None
                if step.load.name == "probe" or step.load.stamped:
                    calls = stack.enter_context(Calls(family(running.pids[0])[-1] if running.pids else os.getpid()))
                load = step.load if site.stamped or step.load.name != "probe" else step.load._replace(stamped=False)
                sent = transmit(
                    left, frame_for(left, step.size), load, plan.seconds, running.poll,
                    begin=lambda: costs.append(Cost(idle, running.pids)),
                )  # fmt: skip
                machine, own = costs[0].seconds()
                made = calls.count() if calls else None
        return Sample(
            direction=step.direction, path=step.path.name if step.direction != "waits" else step.wait, size=step.size,
            load=step.load.name, attachment=running.attachment, knobs=step.path.knobs, seconds=sent.seconds,
            sent=sent.frames, lost_ring=sent.lost_ring, lost_kernel=running.lost, received=running.received,
            machine_s=machine, own_s=own + sent.cpu_s, calls=made,
            delays_us=percentiles(site.delays_ns[: running.delays]),
        )  # fmt: skip


def _forward(step: _Step, plan: Plan, idle: float) -> Sample:
    with middle(max(1500, step.size - 14)) as (left, a, b, right):
        with right.namespace:
            counter = attach(dropping(), right.name, mode="native")
        site = Site(a, step.size, CPUS[1], step.wait)
        costs: list[Cost] = []
        with counter, a.namespace:
            with step.path.open(site) as running:
                sent = transmit(
                    left, frame_for(left, step.size, right.mac), step.load, plan.seconds, running.poll,
                    begin=lambda: costs.append(Cost(idle)),
                )  # fmt: skip
                machine, own = costs[0].seconds()
            received = counter.ledger().seen
        lost = sent.frames - sent.lost_ring - received
        dropped = max(0, min(lost, running.lost + b.stats()["tx_dropped"]))
    return Sample(
        direction="forward", path=step.path.name, size=step.size, load=step.load.name, attachment=running.attachment,
        knobs=step.path.knobs, seconds=sent.seconds, sent=sent.frames, lost_ring=sent.lost_ring,
        lost_kernel=dropped, received=received, machine_s=machine,
        own_s=own + sent.cpu_s,
    )  # fmt: skip


def _send(step: _Step, plan: Plan, idle: float) -> Sample:
    """A window of ``seconds`` in what arrives, once the first frame has."""
    with Lab.pair(names=("sender", "receiver"), mtu=max(1500, step.size - 14)) as (left, right), ExitStack() as stack:
        with right.namespace:
            counter = stack.enter_context(attach(dropping(), right.name, mode="native"))
        with left.namespace, step.path.open(Site(left, step.size, CPUS[1])) as running:
            deadline = time.monotonic() + 10
            while not counter.ledger().seen:
                running.poll()
                if time.monotonic() > deadline:
                    raise OSError(f"{step.path.name}: nothing arrives")
            calls = Calls(family(running.pids[0])[-1] if running.pids else os.getpid()) if step.size == 64 else None
            cost, start, before = Cost(idle, running.pids), time.monotonic(), counter.ledger().seen
            while time.monotonic() - start < plan.seconds:
                running.poll()
            took, arrived = time.monotonic() - start, counter.ledger().seen - before
            machine, own = cost.seconds()
            made = calls.count() if calls else None
            if calls:
                calls.close()
        total = counter.ledger().seen
    return Sample(
        direction="send", path=step.path.name, size=step.size, load=step.load.name, attachment=running.attachment,
        knobs=step.path.knobs, seconds=took, sent=arrived + max(0, running.received - total), received=arrived,
        machine_s=machine, own_s=own, calls=made,
    )  # fmt: skip


def _echo(step: _Step, plan: Plan) -> Sample:
    start = time.monotonic()
    attachment, times = round_trips(step.path, plan.pings, 0)
    return Sample(
        direction="echo", path=step.path.name, size=64, load="probe", attachment=attachment, knobs=step.path.knobs,
        seconds=time.monotonic() - start, sent=plan.pings, received=len(times), delays_us=percentiles(times),
    )  # fmt: skip

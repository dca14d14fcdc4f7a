"""What xdpkit is held to, as ratios within one run (pure)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .sample import Row

__all__ = ["QUIET", "Verdict", "verdicts"]

#: CPUs at work besides, below which CPU time of the whole machine means something; else that of the run's processes.
QUIET = 0.1


@dataclass(frozen=True, slots=True)
class Verdict:
    """``target`` in words; ``measured``: the ratio, or None where a path is missing; ``met``."""

    target: str
    measured: float | None
    at_least: bool
    limit: float
    remark: str = ""

    @property
    def met(self) -> bool | None:
        """Whether it holds; None if it was not measured."""
        if self.measured is None:
            return None
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


#: (what, over what, at least): saturated packets per second at the first size.
_RATES = (
    ("receive", "afxdp", "recvfrom", 3.4),
    ("receive", "afxdp", "tpacket-v3", 1.7),
    ("receive", "afxdp", "plain-c", 1.0),
    ("receive", "afxdp", "plain-c-2k", 1.0),
    ("receive", "afxdp-spread", "plain-c-2k", 1.05),
    ("receive", "afxdp-python", "afxdp", 0.8),
    ("send", "afxdp-tx", "send", 2.2),
    ("send", "afxdp-tx", "sendmmsg", 1.3),
    ("send", "afxdp-tx", "trafgen", 1.7),
    ("send", "live-frames", "send", 4.0),
    ("forward", "afxdp-forward", "packet-forward", 2.0),
    ("forward", "devmap", "afxdp-forward", 2.0),
)


def verdicts(rows: Sequence[Row], idle: float) -> list[Verdict]:
    """Each target, judged on the rows of the smallest size; ``idle``: CPUs at work besides."""
    found = {(r.direction, r.path): r for r in sorted(rows, key=lambda r: -r.size)}
    out = []
    for direction, ours, other, limit in _RATES:
        a, b = found.get((direction, ours)), found.get((direction, other))
        ratio = a.rate[0] / b.rate[0] if a and b and a.rate and b.rate and b.rate[0] else None
        out.append(Verdict(f"{direction}: {ours} / {other}, packets/s", ratio, True, limit))
    out += [_cpu(found, "machine" if idle < QUIET else "own", path) for path in ("afxdp", "afxdp-sleep", "afxdp-nap")]
    tx, udp = found.get(("echo", "afxdp-adaptive")), found.get(("echo", "udp-echo"))
    ratio = tx.delays_us[1] / udp.delays_us[1] if tx and udp and tx.delays_us and udp.delays_us else None
    return [*out, Verdict("echo: afxdp-adaptive / udp-echo, p99 of the round trip", ratio, False, 1.0)]


def _cpu(found: dict[tuple[str, str], Row], which: str, path: str) -> Verdict:
    """Without what the sender and the hook cost, which xdp-drop tells; the ratio with them is the remark."""
    cost = [getattr(found.get(("receive", name)), f"{which}_ns", None) for name in (path, "tpacket-v3", "xdp-drop")]
    target = f"receive: {path} / tpacket-v3, CPU per packet beyond xdp-drop's at a fixed rate"
    words = {"machine": "the whole machine", "own": "the run's processes: other work ran on this machine"}[which]
    ours, other, base = cost
    if ours is None or other is None or base is None or not min(ours, other) > base > 0:
        return Verdict(target, None, False, 0.5, words)
    return Verdict(target, (ours - base) / (other - base), False, 0.5, f"{words}; {ours / other:.2f} with the sender")

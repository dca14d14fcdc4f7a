"""When each rule took its last packet, as far as somebody looked: rules that nothing meets can be taken out.

Counters say how much, not when.  Each look compares them with those of the look before, which are kept in
``/var/lib/xdpkit/usage``; `xdpkit firewall run` looks every minute, `xdpkit firewall unused` when it is called."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..files.output import write_whole
from ..link.ledger import Ledger

__all__ = ["USAGE", "RuleUse", "forget", "look"]

USAGE = Path("/var/lib/xdpkit/usage")


@dataclass(frozen=True, slots=True)
class RuleUse:
    """A rule, the packets it has taken, and the Unix time since when a look has found no more of them: that of the
    first look where it has never taken one."""

    name: str
    packets: int
    since: float

    def idle_seconds(self, now: float | None = None) -> float:
        """How long it has taken no packet, as far as somebody looked."""
        return max(0.0, (time.time() if now is None else now) - self.since)


def look(name: str, ledger: Ledger, *, folder: Path = USAGE, now: float | None = None) -> list[RuleUse]:
    """Compare the counters of the firewall ``name`` with those of the last look, and keep them for the next.  OSError
    where they cannot be kept."""
    now = time.time() if now is None else now
    path = folder / f"{name}.json"
    before: dict[str, RuleUse] = {}
    with suppress(OSError, ValueError, TypeError, AttributeError, KeyError):
        before = {
            rule: RuleUse(rule, int(u["packets"]), float(u["since"]))
            for rule, u in json.loads(path.read_text()).items()
        }
    found = []
    for rule in ledger.rules:
        then = before.get(rule.name)
        same = then is not None and then.packets == rule.packets
        found.append(RuleUse(rule.name, rule.packets, then.since if then is not None and same else now))
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps({use.name: {"packets": use.packets, "since": use.since} for use in found}))
    return found


def forget(name: str, *, folder: Path = USAGE) -> None:
    """The firewall is gone: what was kept of it goes too."""
    (folder / f"{name}.json").unlink(missing_ok=True)

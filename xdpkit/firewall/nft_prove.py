"""The proof of an import: nftables and the pipeline judge the same packets, one by one.

Two namespaces are made with a veth pair between them.  The ruleset, without the rules that were not imported, is put on
the receiving end, and the packets of a capture are sent there as they are, but for their Ethernet addresses: the source
is the packet's number, so that a set of nftables at the end of the way can remember who came there.  Every address is
local, so that nftables' connection tracking sees what it would see on a host; nothing is answered.

Packets that do not get through without any rule (bad checksums, not IP, fragments, which the kernel joins) are no case
for a comparison: they are found first, by sending all of them to no rules, and left out.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files.reader import CapturedPacket
from ..lab import Lab, Port
from ..language.pipeline import Pipeline
from ..meaning.evaluate import State, run
from .nft import HOOKS, Imported, NftError, Ruleset
from .nft_text import statements_of

__all__ = ["Difference", "Proof", "device_of", "prove"]

#: Packets of a proof at most: members of a set of nftables.
MAX_PACKETS = 200_000
CHUNK = 256
SECONDS = 60.0
#: The chain that remembers who came through is behind all others; the one that counts is in front of them.
FIRST, LAST = -1000, 1000


@dataclass(frozen=True, slots=True)
class Difference:
    """A packet that nftables and the pipeline judge differently: its ``number`` in the capture, which of them
    ``passes`` it ("nftables" or "pipeline"), and the ``rule`` of the pipeline that took it."""

    number: int
    passes: str
    rule: str


@dataclass(frozen=True, slots=True)
class Proof:
    """``sent``: packets of the capture; ``judged``: those that get through without rules, which are compared;
    ``passed``: those that both passed; ``differences``: all that they judge differently."""

    sent: int
    judged: int
    passed: int
    differences: tuple[Difference, ...] = field(default=())

    def __str__(self) -> str:
        same = self.judged - len(self.differences)
        left = f"; {self.sent - self.judged} of {self.sent} do not get to the rules" if self.sent > self.judged else ""
        return f"{same} of {self.judged} packets are judged alike, {self.passed} of them pass{left}"


def device_of(ruleset: Ruleset) -> str:
    """The device that rules ask for most, where packets are to arrive; "eth0" if they ask for none."""
    names: dict[str, int] = {}
    for rules in ruleset.rules.values():
        for name in _devices(rules):
            names[name] = names.get(name, 0) + 1
    for chain in ruleset.chains.values():
        if isinstance(chain.get("dev"), str):
            return str(chain["dev"])
    return max(names, key=lambda name: names[name], default="eth0")


def _devices(value: Any) -> Iterator[str]:
    """The names that iif and iifname are compared with."""
    if isinstance(value, list):
        for each in value:
            yield from _devices(each)
    elif isinstance(value, dict):
        left = value.get("left")
        if isinstance(left, dict) and left.get("meta", {}).get("key") in ("iif", "iifname"):
            right = value.get("right")
            wanted = right.get("set", []) if isinstance(right, dict) else [right]
            yield from (n for n in wanted if isinstance(n, str) and n != "lo" and not n.startswith("@"))
        for each in value.values():
            yield from _devices(each)


def prove(ruleset: Ruleset, imported: Imported, pipeline: Pipeline, packets: Iterable[CapturedPacket]) -> Proof:
    """Send ``packets`` to nftables, judge them by ``pipeline``, and compare.  Needs root and nft.  NftError where the
    import is for a hook that cannot be tried this way, OSError where nft or the namespaces fail."""
    if imported.hook not in ("input", "ingress"):
        raise NftError(f"--prove tries rulesets of the hooks input and ingress, not {imported.hook}")
    frames = [(p.number, p.data) for p in packets if len(p.data) >= 14 and p.wire_bytes == len(p.data)]
    if not 0 < len(frames) <= MAX_PACKETS:
        raise NftError(f"--prove takes captures of 1 to {MAX_PACKETS:,} whole packets, not {len(frames):,}")
    device = device_of(ruleset)
    rules = _without_refused(ruleset, imported, device)
    reach, _ = _through(device, imported.hook, frames, [])
    passed, sent = _through(device, imported.hook, frames, rules, _sets_that_rules_fill(ruleset))
    state, found, both = State(pipeline), [], 0
    for index, (number, _) in enumerate(frames):
        if index not in reach:
            continue
        state.now_ns = sent[index][1]
        rule = run(pipeline, sent[index][0], state, devices=(device,)).rule
        mine, theirs = not rule.action.drops, index in passed
        both += mine and theirs
        if mine != theirs:
            found.append(Difference(number, "pipeline" if mine else "nftables", rule.name))
    return Proof(len(frames), len(reach), both, tuple(found))


def _without_refused(ruleset: Ruleset, imported: Imported, device: str) -> list[dict[str, Any]]:
    """The ruleset as commands: without base chains of other hooks, and without the rules that were not imported."""
    outcomes, commands = iter(imported.outcomes), []
    on_way = HOOKS[imported.hook]
    kept = {key for key, c in ruleset.chains.items() if c.get("hook", on_way[0]) in on_way and c.get("type") != "nat"}
    tables = {table for table, _ in kept}
    for table in sorted(tables):
        family, name = table.split(" ", 1)
        commands.append({"add": {"table": {"family": family, "name": name}}})
        for kind, objects in ruleset.objects.get(table, {}).items():
            filled = _filled(ruleset, table)
            for what in objects.values():
                if kind != "set" or what["name"] not in filled:
                    commands.append({"add": {kind: {k: v for k, v in what.items() if k != "handle"}}})
    for key, chain in ruleset.chains.items():
        if key in kept:
            made = {k: v for k, v in chain.items() if k != "handle"}
            commands.append({"add": {"chain": made | ({"dev": device} if made.get("hook") == "ingress" else {})}})
    maps = [c for c in commands if "map" in c["add"]]  # their verdicts name chains
    commands = [c for c in commands if "map" not in c["add"]] + maps
    for key, rules in ruleset.rules.items():
        for rule in rules:
            outcome = next(outcomes)
            if key in kept and outcome.done:
                made = {k: v for k, v in rule.items() if k in ("family", "table", "chain", "expr")}
                commands.append({"add": {"rule": made | {"expr": [_mended(e) for e in made.get("expr", [])]}}})
    return commands


def _filled(ruleset: Ruleset, table: str) -> set[str]:
    """The sets of a table that rules add members to."""
    rules = [rule for (t, _), rules in ruleset.rules.items() if t == table for rule in rules]
    statements = [e for rule in rules for e in rule.get("expr", ()) if "set" in e]
    return {e["set"]["set"].removeprefix("@") for e in statements if isinstance(e["set"].get("set"), str)}


def _sets_that_rules_fill(ruleset: Ruleset) -> str:
    """Their declarations, in nft's own language: its JSON cannot say that rules add members."""
    lines = []
    for table in dict.fromkeys(table for table, _ in ruleset.chains):
        filled = _filled(ruleset, table)
        lines.append(f"add table {table}")
        for name, what in ruleset.of(table, "set").items():
            if name not in filled:
                continue
            kinds = what["type"] if isinstance(what["type"], list) else [what["type"]]
            flags = what.get("flags", [])
            flags = {*([flags] if isinstance(flags, str) else flags), "dynamic"}
            more = [f"flags {','.join(sorted(flags))}", f"size {what.get('size', 65535)}"]
            more += [f"timeout {what['timeout']}s"] if what.get("timeout") else []
            lines.append(f"add set {table} {name} {{ type {' . '.join(kinds)}; {'; '.join(more)}; }}")
    return "\n".join(lines) + "\n"


def _mended(expression: dict[str, Any]) -> dict[str, Any]:
    kind, what = next(iter(expression.items()))
    if kind == "meter":
        return {kind: what | {"stmt": statements_of(what)[0]}}
    return expression


@contextmanager
def _pair(device: str) -> Iterator[tuple[Port, Port]]:
    """Two ports; at the second every address is local, and nothing is checked or answered."""
    with Lab() as lab:
        left, right = lab.veth(lab.namespace("sender"), lab.namespace("nft"), names=("sender", device))
        with right.namespace:
            for path, value in _settings(device).items():
                Path(path).write_text(value)
        for family, everything in (("-4", "0.0.0.0/0"), ("-6", "::/0")):
            right.namespace.run(["ip", family, "route", "add", "local", everything, "dev", "lo"], check=True)
        yield left, right


def _settings(device: str) -> Mapping[str, str]:
    four, six = "/proc/sys/net/ipv4/conf", "/proc/sys/net/ipv6/conf"
    names = ("all", device)
    return (
        {f"{six}/{n}/disable_ipv6": "0" for n in ("all", "lo", device)}
        | {f"{four}/{n}/rp_filter": "0" for n in names}
        | {f"{four}/{n}/accept_local": "1" for n in names}
    )


def _through(
    device: str, hook: str, frames: list[tuple[int, bytes]], rules: list[dict[str, Any]], filled: str = ""
) -> tuple[set[int], list[tuple[bytes, int]]]:
    """The packets that come through ``rules``, by their place in ``frames``; and every packet as it was sent, with the
    time.  ``filled``: what is declared in nft's own language in front of the rules."""
    with _pair(device) as (left, right):
        _nft(right, "-f", "-", stdin=_watch(device, hook, len(frames)))
        if rules:
            _nft(right, "-f", "-", stdin=filled)
            _nft(right, "-j", "-f", "-", stdin=json.dumps({"nftables": rules}))
        mac, sent = bytes.fromhex(right.mac.replace(":", "")), []
        for start in range(0, len(frames), CHUNK):
            now, part = time.time_ns(), []
            for index, (_, data) in enumerate(frames[start : start + CHUNK], start):
                target = data[:6] if data[0] & 1 else mac
                part.append(target + b"\2\0" + index.to_bytes(4) + data[12:])
            left.send(part)
            sent += [(frame, now) for frame in part]
        _settle(right, len(frames))
        family = "inet" if hook == "input" else "netdev"
        listed = json.loads(_nft(right, "-j", "list", "set", family, "xdpkit", "passed"))
    members = next(o["set"].get("elem", []) for o in listed["nftables"] if "set" in o)
    macs = [m["elem"]["val"] if isinstance(m, dict) else m for m in members]
    return {int(m.replace(":", "")[4:], 16) for m in macs}, sent


def _watch(device: str, hook: str, count: int) -> str:
    """The chains in front of the rules and behind them."""
    passed = f"set passed {{ type ether_addr; size {max(count, 16)}; flags dynamic; }}"
    front = f'chain front {{ type filter hook ingress device "{device}" priority {FIRST}; counter name came; }}'
    note = "update @passed { ether saddr }"
    if hook == "ingress":
        last = f'chain last {{ type filter hook ingress device "{device}" priority {LAST}; {note}; }}'
        return f"table netdev xdpkit {{ counter came {{ }}\n {passed}\n {front}\n {last}\n}}\n"
    last = f"chain last {{ type filter hook input priority {LAST}; {note}; }}"
    silent = f"chain silent {{ type filter hook output priority {FIRST}; drop; }}"
    early = f"table netdev xdpkit {{ counter came {{ }}\n {front}\n}}\n"
    return f"{early}table inet xdpkit {{ {passed}\n {last}\n {silent}\n}}\n"


def _settle(port: Port, count: int) -> None:
    """Wait until ``count`` packets have come in front of the rules; behind them they are then, too."""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        listed = json.loads(_nft(port, "-j", "list", "counter", "netdev", "xdpkit", "came"))
        came = next(o["counter"]["packets"] for o in listed["nftables"] if "counter" in o)
        if came >= count:
            time.sleep(0.05)  # the last of them is judged in the same softirq
            return
        time.sleep(0.02)
    raise NftError(f"{came} of {count} packets came to nftables within {SECONDS:g} s")


def _nft(port: Port, *args: str, stdin: str = "") -> str:
    done = port.namespace.run(["nft", *args], input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["it gave no reason"]
        raise NftError(f"nft {' '.join(args)}: {said[0].strip()}")
    return str(done.stdout)

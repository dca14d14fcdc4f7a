"""nftables as a peer: a ruleset of the netdev family on a port's ingress hook, and what its rules counted.

The hook is behind XDP and behind TC's ingress: a packet that xdpkit lets pass is judged by nftables next, so both see
the very same packets.  A rule with a counter is known by its comment.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from strategies import make_frame
from traffic import until

from xdpkit import Pipeline, attach
from xdpkit.kernel.core import check, lib
from xdpkit.lab import Port
from xdpkit.meaning.walk import EXTENSIONS, FRAGMENT, MAX_EXTENSIONS, TAGS, TRANSPORT, walk
from xdpkit.sockets.options import Mode

#: The device in rulesets, as the documentation names it.
DEVICE = "eth1"
ROOT = Path(__file__).parent.parent


def table(rules: str, outside: str = "") -> str:
    """A ruleset of one chain.  ``outside``: what stands beside the chain, sets and other chains."""
    hook = f'type filter hook ingress device "{DEVICE}" priority 0; policy accept;'
    return f"table netdev peer {{\n{outside}\nchain ingress {{\n{hook}\n{rules}\n}}\n}}\n"


class Nft:
    """A ruleset on the ingress hook of ``port``, as a file of nft's that names the device DEVICE.  A chain of our own
    in front of it counts what it is to judge."""

    def __init__(self, port: Port, ruleset: str):
        self.port = port
        hook = f'type filter hook ingress device "{DEVICE}" priority -10; policy accept;'
        ruleset += f'table netdev peer_all {{\nchain ingress {{\n{hook}\ncounter comment "all";\n}}\n}}\n'
        self.run("-f", "-", stdin=ruleset.replace(f'"{DEVICE}"', f'"{port.name}"'))

    def run(self, *args: str, stdin: str = "") -> str:
        """``nft ARGS``, its standard output; AssertionError with what it says if it refuses."""
        done = self.port.namespace.run(["nft", *args], input=stdin, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.stderr}\n{stdin}"
        return str(done.stdout)

    def listed(self, kind: str) -> list[dict]:
        """Every object of a kind: "rule", "set"."""
        return [o[kind] for o in json.loads(self.run("-j", "list", "ruleset"))["nftables"] if kind in o]

    def statements(self, kind: str) -> list[dict]:
        """Every statement of a kind: "counter", "limit"."""
        return [e for rule in self.listed("rule") for e in rule["expr"] if kind in e]

    def counts(self, what: str = "packets") -> dict[str, int]:
        """Packets (or bytes) by the comment of the rule."""
        return {
            rule["comment"]: next(e["counter"][what] for e in rule["expr"] if "counter" in e)
            for rule in self.listed("rule")
            if "comment" in rule
        }

    def set_size(self, name: str) -> int:
        """How many members the set of that name has that are not over."""
        return next(len(found.get("elem", ())) for found in self.listed("set") if found["name"] == name)


def counted(link) -> dict[str, int]:
    """Packets by the rule's name."""
    return {rule.name: rule.packets for rule in link.ledger().rules}


class Both:
    """xdpkit on ``right``, and nftables behind it: two judges of what ``left`` sends."""

    def __init__(self, left: Port, link, nft: Nft):
        self.left, self.link, self.nft, self.sent = left, link, nft, 0

    def send(self, frames: Iterable[bytes]) -> None:
        """Send, and wait until both have judged all."""
        self.sent += self.left.send(frames)
        self.settle()

    def settle(self) -> None:
        """Wait until both have judged what was sent."""
        until(lambda: self.link.ledger().seen == self.sent, f"xdpkit sees {self.sent} packets")
        until(lambda: self.nft.counts()["all"] == self.sent, f"nftables sees {self.sent} packets")
        check(lib.xk_quiesce())  # what is counted in front of the ruleset is behind it too

    def counts(self) -> tuple[dict[str, int], dict[str, int]]:
        """What the rules counted here and there, by name and by comment."""
        ours, theirs = counted(self.link), self.nft.counts()
        del theirs["all"], ours["default"]
        assert ours.keys() == theirs.keys()
        return ours, theirs


@contextmanager
def with_nftables(left: Port, right: Port, pipe: Pipeline, mode: Mode, ruleset: str) -> Iterator[Both]:
    """Both on ``right``.  What xdpkit drops never gets to nftables: give it ``pipe.shadow()``, or rules that pass."""
    nft = Nft(right, ruleset)
    with right.namespace, attach(pipe, right.name, mode=mode) as link:
        yield Both(left, link, nft)


def random_frames(seed: int, count: int) -> list[bytes]:
    """Frames of every shape, but for those cut inside a tag: the kernel drops them before nftables sees them."""
    rng = Random(seed)
    frames = (make_frame(rng) for _ in range(count))
    return [f for f in frames if f[12:14] not in (b"\x81\x00", b"\x88\xa8") or len(f) >= 20]


def pairs(page: str) -> list[tuple[str, str, str]]:
    """(heading, nft block, Python block) where a page has the two in a row."""
    found = []
    for part in re.split(r"^## ", (ROOT / page).read_text(), flags=re.MULTILINE)[1:]:
        title = part.split("\n", 1)[0]
        found += [(title, *m) for m in re.findall(r"```nft\n(.*?)```\s*```python\n(.*?)```", part, flags=re.DOTALL)]
    return found


def rows(page: str, heading: str) -> list[list[str]]:
    """The rows of the table under ``heading``, without its head; cells that are code lose their marks."""
    part = re.split(rf"^## {re.escape(heading)}$", (ROOT / page).read_text(), flags=re.MULTILINE)[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")][2:]
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    return [[cell.strip().strip("`").replace("\\|", "|") for cell in row] for row in cells]


def mended(frame: bytes) -> bytes:
    """``frame`` with the lengths in its IP header as they are: nftables looks at no transport header otherwise."""
    found = walk(frame)
    for header, at, before in (("ip", 2, 0), ("ip6", 4, 40)):
        if (start := found.starts.get(header)) is not None and len(frame) - start >= before:
            return frame[: start + at] + (len(frame) - start - before).to_bytes(2) + frame[start + at + 2 :]
    return frame


def is_plain(frame: bytes) -> bool:
    """Both walk it the same way: at most one tag, an 802.1Q one, and every header that is announced is whole.  What is
    left out here is in the table of differences, docs/nftables.md."""
    found = walk(frame)
    start = found.starts.get("vlan", 10) + 4
    ethertype = int.from_bytes(frame[start - 2 : start])
    if frame[12:14] == b"\x88\xa8" or ethertype in TAGS:
        return False
    network = {0x0800: "ip", 0x86DD: "ip6", 0x0806: "arp"}.get(ethertype)
    if network is None or network == "arp":
        usual = frame[start : start + 6] == b"\0\1\x08\0\6\4" and len(frame) >= start + 28
        return network is None or usual
    if network not in found.present:
        return False
    if network == "ip":
        size, proto = 4 * (frame[start] & 15), frame[start + 9]
        later = int.from_bytes(frame[start + 6 : start + 8]) & 0x1FFF
    else:
        chain, size = _chain(frame, start), 40
        proto = found.members["ip6_proto"]
        later = "frag" in found.present and int.from_bytes(frame[found.starts["frag"] + 2 :][:2]) & 0xFFF8
        if "ah" in found.present or proto in EXTENSIONS or len(set(chain)) < len(chain):
            return False
    transport = TRANSPORT[network].get(proto)
    foreign = proto == {"ip": 58, "ip6": 1}[network]
    if later or foreign or start + size > len(frame) or (transport and transport not in found.present):
        return False
    return transport != "tcp" or found.starts["tcp"] + 4 * (frame[found.starts["tcp"] + 12] >> 4) <= len(frame)


def _chain(frame: bytes, start: int) -> list[int]:
    """The extension headers of the IPv6 packet at ``start``, by number, in the order they come in."""
    chain: list[int] = []
    kind, at = frame[start + 6], start + 40
    while kind in EXTENSIONS and at + 8 <= len(frame) and len(chain) <= MAX_EXTENSIONS:
        chain.append(kind)
        kind, at = frame[at], at + (8 if kind == FRAGMENT else 8 * (frame[at + 1] + 1))
    return chain


def plain_frames(seed: int, count: int) -> list[bytes]:
    """Of ``count`` random frames those that both walk the same way, their lengths mended."""
    return [f for f in map(mended, random_frames(seed, count)) if is_plain(f)]

"""Packets a second through a firewall between two devices: bridge(), and the Linux bridge with nftables.

    python perf/bridge.py [--runs 5] [--duration 2] [--rules 10 1000] [-o FILE]

Both stand between the same two veth pairs and take turns in one run.  A sender on one side fills the wire with UDP of
64 bytes that no rule takes, so each packet meets all rules; what arrives on the other side within the time is counted,
where an XDP program drops it.  nftables has its rules in a chain of the bridge family, as rulesets have them; a set
would be the better way to write these, and xdpkit makes a table of them by itself.  "Linux alone" is the bridge without
nftables.  Medians, and the ratios of the medians.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.table import Table
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from xdpkit import DROP, PASS, Pipeline, attach, bridge, ip, udp
from xdpkit.lab import Lab, Port
from xdpkit.terminal import make_console

WARM_SECONDS = 0.5


def denied(count: int) -> list[tuple[str, int]]:
    """Addresses and ports that rules drop; the sender's is none of them."""
    return [(f"198.18.{n >> 8}.{n & 255}", 1 + n % 60_000) for n in range(count)]


@contextmanager
def with_xdpkit(middle: Port, rules: int) -> Iterator[None]:
    """bridge() with so many rules."""
    pipe = Pipeline("wire", default=PASS)
    for number, (address, port) in enumerate(denied(rules)):
        pipe.rule((ip.src == address) & (udp.dport == port), DROP, name=f"deny-{number}")
    with middle.namespace, bridge(pipe, inside="a", outside="b", mode="native"):
        yield


@contextmanager
def with_linux(middle: Port, rules: int | None) -> Iterator[None]:
    """The Linux bridge, with so many rules of nftables or without it."""
    run = middle.namespace.run
    run(["ip", "link", "add", "name", "br0", "type", "bridge"])
    try:
        for name in ("a", "b"):
            run(["ip", "link", "set", "dev", name, "master", "br0"])
        run(["ip", "link", "set", "dev", "br0", "up"])
        if rules is not None:
            lines = "\n".join(f"ip saddr {address} udp dport {port} counter drop" for address, port in denied(rules))
            chain = f"chain forward {{\ntype filter hook forward priority 0; policy accept;\n{lines}\n}}"
            run(["nft", "-f", "-"], input=f"table bridge wire {{\n{chain}\n}}\n".encode())
        yield
    finally:
        run(["nft", "flush", "ruleset"])
        run(["ip", "link", "del", "dev", "br0"])


def rate(left: Port, right: Port, seconds: float) -> float:
    """Packets a second that arrive on the right."""
    frame = Ether(src=left.mac, dst=right.mac) / IP(src="192.0.2.1", dst="192.0.2.2") / UDP(sport=4000, dport=5000)
    with right.namespace, attach(Pipeline("sink", default=DROP), right.name, mode="native") as sink:
        with left.generator([bytes(frame / bytes(22))]) as sender:
            sender.start()
            time.sleep(WARM_SECONDS)
            before, start = sink.ledger().seen, time.monotonic()
            time.sleep(seconds)
            got, took = sink.ledger().seen - before, time.monotonic() - start
            sender.stop()
    return got / took


def measure(rules: int, runs: int, seconds: float) -> dict[str, Any]:
    """All ways for one number of rules, in turns."""
    ways: dict[str, Callable[[Port], AbstractContextManager[None]]] = {
        "bridge()": lambda port: with_xdpkit(port, rules),
        "Linux + nft": lambda port: with_linux(port, rules),
        "Linux alone": lambda port: with_linux(port, None),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    with Lab() as lab, ExitStack() as stack:
        middle = lab.namespace("middle")
        left, a = lab.veth(lab.namespace("left"), middle, names=("left", "a"))
        _, right = lab.veth(middle, lab.namespace("right"), names=("b", "right"))
        stack.enter_context(middle)
        for _ in range(runs):
            for name, way in ways.items():
                with way(a):
                    taken[name].append(rate(left, right, seconds))
    medians = {name: statistics.median(rates) for name, rates in taken.items()}
    ratios = {f"x {name}": medians["bridge()"] / medians[name] for name in ("Linux + nft", "Linux alone")}
    return {"rules": rules, **{f"{name}, Mpps": median / 1e6 for name, median in medians.items()}, **ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--duration", "--seconds", dest="seconds", type=float, default=2)
    parser.add_argument("--rules", type=int, nargs="+", default=[10, 1000])
    parser.add_argument("-o", "--output", dest="json", default="", metavar="FILE")
    args = parser.parse_args()
    rows = [measure(rules, args.runs, args.seconds) for rules in args.rules]
    table = Table(title=f"UDP of 64 bytes, Linux {platform.release()}", box=None, title_justify="left")
    for column in rows[0]:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*(f"{v:.3f}" if isinstance(v, float) and v < 10 else f"{v:,.0f}" for v in row.values()))
    make_console().print(table)
    if args.json:
        Path(args.json).write_text(json.dumps({"kernel": platform.release(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()

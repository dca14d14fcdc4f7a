"""Would a ruleset cut the session of who applies it?  Asked of the reference, with packets as that session sends them.

sshd says in ``SSH_CONNECTION`` which addresses and ports the session has.  A packet of it that comes in, and ARP or
neighbour discovery without which none comes at all, must pass.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address

from ..language.actions import Verdict
from ..language.pipeline import Pipeline
from ..language.rule import Rule
from ..meaning.evaluate import State, run

__all__ = ["Cut", "Session", "cuts", "ssh_session"]

_TCP, _ICMP6 = 6, 58
_ACK = 0x10
_NEIGHBOUR_SOLICITATION = 135
#: Any two stations: rules on MAC addresses are not asked here.
_MACS = bytes.fromhex("020000000001020000000002")


@dataclass(frozen=True, slots=True)
class Session:
    """A TCP connection from ``client`` to ``server``, which is this host; addresses of one family."""

    client: str
    client_port: int
    server: str
    server_port: int

    def __str__(self) -> str:
        return f"{self.client} to {self.server} port {self.server_port}"


@dataclass(frozen=True, slots=True)
class Cut:
    """``rule`` drops ``what``, which the session needs."""

    what: str
    rule: Rule


def ssh_session(value: str | None) -> Session | None:
    """The session that ``SSH_CONNECTION`` names, None where it is not set or says something else."""
    parts = (value or "").split()
    try:
        client, client_port, server, server_port = parts
        addresses = [ip_address(a.partition("%")[0]) for a in (client, server)]
        if addresses[0].version != addresses[1].version:
            return None
        return Session(str(addresses[0]), int(client_port), str(addresses[1]), int(server_port))
    except ValueError:
        return None


def cuts(pipe: Pipeline, session: Session, state: State | None = None) -> list[Cut]:
    """What of the session the rules would drop; empty where it goes on.  ``state``: what sets hold; by default what is
    declared."""
    found = []
    for what, frame in _frames(session):
        rule = run(pipe, frame, state or State(pipe)).rule
        if rule.action.verdict is Verdict.DROP:
            found.append(Cut(what, rule))
    return found


def _frames(session: Session) -> Iterator[tuple[str, bytes]]:
    client, server = ip_address(session.client), ip_address(session.server)
    tcp = struct.pack("!HHIIBBHHH", session.client_port, session.server_port, 1, 1, 5 << 4, _ACK, 0xFFFF, 0, 0)
    if isinstance(client, IPv4Address):
        arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + _MACS[6:] + client.packed + bytes(6) + server.packed
        yield "ARP requests", b"\xff" * 6 + _MACS[6:] + b"\x08\x06" + arp
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 1, 0, 64, _TCP, 0) + client.packed + server.packed
        yield "its packets", _MACS + b"\x08\x00" + header + tcp
        return
    solicitation = struct.pack("!BBHI", _NEIGHBOUR_SOLICITATION, 0, 0, 0) + server.packed
    for what, protocol, content, hops in (
        ("neighbour solicitations", _ICMP6, solicitation, 255), ("its packets", _TCP, tcp, 64),
    ):  # fmt: skip
        header = struct.pack("!IHBB", 6 << 28, len(content), protocol, hops) + client.packed + server.packed
        yield what, _MACS + b"\x86\xdd" + header + content

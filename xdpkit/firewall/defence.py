"""Conditions and rules that most firewalls need, ready to be declared.

pipe.rule(bogons(), DROP, name="bogons")
pipe.rule(dev.outside & own_sources("192.0.2.0/24"), DROP, name="spoofed")
ban_scanners(pipe, pipe.bans(), services=(80, 443))
"""

from __future__ import annotations

from collections.abc import Iterable

from ..language.actions import DROP
from ..language.errors import PipelineError
from ..language.expr import Expr, here
from ..language.headers import ip, ip6, src, tcp
from ..language.limits import limit
from ..language.pipeline import Pipeline
from ..language.rule import Rule
from ..language.sets import Set

__all__ = ["BOGONS", "ban_scanners", "bogons", "own_sources"]

#: Prefixes that no packet from the Internet comes from: those of IANA's registries of special-purpose addresses
#: (RFC 6890) that are not globally reachable, and multicast.
BOGONS = (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
    "192.0.2.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4",
    "240.0.0.0/4",
    "::/128", "::1/128", "::ffff:0:0/96", "64:ff9b:1::/48", "100::/64", "2001:2::/48", "2001:db8::/32", "3fff::/20",
    "5f00::/16", "fc00::/7", "fec0::/10", "ff00::/8",
)  # fmt: skip
#: The source of a host that is choosing its address (RFC 4862): without it IPv6 does not work.
_OF_THE_LINK = ("::/128",)


def bogons(*, allow: Iterable[str] = ()) -> Expr:
    """True of packets whose source no packet from the Internet has.  IPv6 link-local sources (fe80::/10) are not among
    them, nor is ``::``, because neighbour discovery uses both.  ``allow``: prefixes of the list that are wanted here,
    written as they are there, such as "10.0.0.0/8".  PipelineError for one that is not in the list."""
    allowed = (*allow, *_OF_THE_LINK)
    unknown = [prefix for prefix in allowed if prefix not in BOGONS]
    if unknown:
        raise PipelineError(f"bogons: {unknown[0]!r} is not in the list: {', '.join(BOGONS)}", here())
    wanted = [prefix for prefix in BOGONS if prefix not in allowed]
    # not src.within(): there, ::ffff:0:0/96 is every IPv4 address
    return ip.src.within(*(p for p in wanted if ":" not in p)) | ip6.src.within(*(p for p in wanted if ":" in p))


def own_sources(*prefixes: str) -> Expr:
    """True of packets that claim to come from ``prefixes``: on the side where those are not, they are spoofed."""
    if not prefixes:
        raise PipelineError("own_sources: which prefixes are yours?", here())
    return src.within(*prefixes)


def ban_scanners(
    pipe: Pipeline, bans: Set, *, services: Iterable[int], rate: str = "30/minute", timeout: float = 600
) -> tuple[Rule, Rule]:  # fmt: skip
    """Declare that sources which open TCP connections to ports other than ``services`` faster than ``rate`` are added
    to ``bans`` for ``timeout`` seconds, and that what is banned is dropped.

    A source address can be spoofed, and who is banned then is who it belongs to: put management, and what must never be
    banned, in front."""
    ports = tuple(services)
    if not ports:
        raise PipelineError("ban_scanners: which TCP ports do you serve?", here())
    opens = tcp.flags.has("syn") & ~tcp.flags.has("ack") & ~tcp.dport.isin(ports)
    return (
        pipe.rule(bans, DROP, name="banned"),
        pipe.rule(opens & ~limit(rate, per=src), bans.add(timeout=timeout), DROP, name="scanners"),
    )

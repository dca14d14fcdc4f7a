"""What devices on the two sides of a bridge say to each other, and that rules on addresses and ports forget (pure)."""

from __future__ import annotations

from .expr import Expr
from .headers import arp, dst, eth, icmp6, ip, ip6

__all__ = ["protocols"]

#: Neighbour discovery (RFC 4861) is not routed: its hop limit is 255.
_DISCOVERY = 255
#: EtherType of LLDP (IEEE 802.1AB), and where spanning tree protocols send to (IEEE 802.1D; Cisco's PVST+).
_LLDP = 0x88CC
_SPANNING_TREE = ("01:80:c2:00:00:00", "01:00:0c:cc:cc:cd")
_IGMP = 2
#: Queries, reports and the end of membership (RFC 2710, RFC 3810).
_MLD = (130, 131, 132, 143)


def protocols() -> dict[str, Expr]:
    """The condition of each protocol by its name."""
    return {
        "arp": arp.present,
        "nd": icmp6.type.between(133, 137) & (ip6.hlim == _DISCOVERY),
        "lldp": eth.type == _LLDP,
        "stp": eth.dst.isin(_SPANNING_TREE),
        "multicast": (ip.proto == _IGMP) | icmp6.type.isin(_MLD) | dst.within("224.0.0.0/4", "ff00::/8"),
    }

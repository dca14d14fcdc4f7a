"""What an expression of nftables is called here: fields, and the values that it writes as words."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FIELDS", "PROTOCOLS", "Field", "NotImported", "value_of"]


class NotImported(Exception):
    """Why a rule is not imported."""


@dataclass(frozen=True, slots=True)
class Field:
    """A field: ``text`` as it is written here, the ``header`` that it is in ("" for none), and what its values are:
    addr, num, mac, flags, or the name of a table of words."""

    text: str
    header: str
    kind: str = "num"


def _fields(header: str, *names: str) -> dict[str, Field]:
    """Fields of one header: "nft", "nft=ours" or "nft=ours:kind"."""
    found = {}
    for name in names:
        theirs, _, rest = name.partition("=")
        ours, _, kind = (rest or theirs).partition(":")
        found[theirs] = Field(f"{header}.{ours}", header, kind or "num")
    return found


#: By protocol and field, as nft's JSON names them.
FIELDS: dict[str, dict[str, Field]] = {
    "ether": _fields("eth", "saddr=src:mac", "daddr=dst:mac", "type=type:ethertype"),
    "vlan": _fields("vlan", "id", "pcp", "dei", "cfi=dei", "type=etype:ethertype"),
    "arp": _fields("arp", "htype", "ptype=ptype:ethertype", "hlen", "plen", "operation=op:arp", "saddr ip=spa:addr",
                   "daddr ip=tpa:addr", "saddr ether=sha:mac", "daddr ether=tha:mac"),
    "ip": _fields("ip", "hdrlength=ihl", "dscp=dscp:dscp", "ecn=ecn:ecn", "length=len", "id", "ttl",
                  "protocol=proto:protocol", "checksum=csum", "saddr=src:addr", "daddr=dst:addr"),
    "ip6": _fields("ip6", "dscp=dscp:dscp", "ecn=ecn:ecn", "flowlabel=flow", "length=len", "nexthdr=next:protocol",
                   "hoplimit=hlim", "saddr=src:addr", "daddr=dst:addr"),
    "tcp": _fields("tcp", "sport", "dport", "sequence=seq", "ackseq", "doff=off", "flags=flags:flags", "window",
                   "checksum=csum", "urgptr"),
    "udp": _fields("udp", "sport", "dport", "length=len", "checksum=csum"),
    "sctp": _fields("sctp", "sport", "dport", "vtag"),
    "icmp": _fields("icmp", "type=type:icmp", "code=code:icmp code", "id", "sequence=seq", "mtu", "gateway"),
    "icmpv6": _fields("icmp6", "type=type:icmpv6", "code=code:icmpv6 code", "id", "sequence=seq", "mtu",
                      "max-delay=max_delay", "parameter-problem=pointer", "taddr=target:addr", "daddr=dst:addr"),
    "rt": _fields("routing", "nexthdr=next:protocol", "hdrlength=len", "type", "seg-left=seg_left"),
    "frag": _fields("frag", "nexthdr=next:protocol", "frag-off=offset", "more-fragments=mf", "id"),
}  # fmt: skip

PROTOCOLS = {
    "hopopt": 0, "icmp": 1, "igmp": 2, "ipencap": 4, "tcp": 6, "udp": 17, "dccp": 33, "ipv6": 41, "ipv6-route": 43,
    "ipv6-frag": 44, "gre": 47, "esp": 50, "ah": 51, "ipv6-icmp": 58, "icmpv6": 58, "ipv6-nonxt": 59, "ipv6-opts": 60,
    "ospf": 89, "pim": 103, "ipcomp": 108, "comp": 108, "vrrp": 112, "l2tp": 115, "sctp": 132, "udplite": 136,
}  # fmt: skip
_ICMP = {
    "echo-reply": 0, "destination-unreachable": 3, "source-quench": 4, "redirect": 5, "echo-request": 8,
    "router-advertisement": 9, "router-solicitation": 10, "time-exceeded": 11, "parameter-problem": 12,
    "timestamp-request": 13, "timestamp-reply": 14, "info-request": 15, "info-reply": 16, "address-mask-request": 17,
    "address-mask-reply": 18,
}  # fmt: skip
_ICMP6 = {
    "destination-unreachable": 1, "packet-too-big": 2, "time-exceeded": 3, "parameter-problem": 4, "echo-request": 128,
    "echo-reply": 129, "mld-listener-query": 130, "mld-listener-report": 131, "mld-listener-done": 132,
    "mld-listener-reduction": 132, "nd-router-solicit": 133, "nd-router-advert": 134, "nd-neighbor-solicit": 135,
    "nd-neighbor-advert": 136, "nd-redirect": 137, "router-renumbering": 138, "ind-neighbor-solicit": 141,
    "ind-neighbor-advert": 142, "mld2-listener-report": 143,
}  # fmt: skip
#: Words for values, by the kind of the field.
_WORDS: dict[str, dict[str, int]] = {
    "protocol": PROTOCOLS,
    "icmp": _ICMP,
    "icmpv6": _ICMP6,
    "icmp code": {"net-unreachable": 0, "host-unreachable": 1, "prot-unreachable": 2, "port-unreachable": 3,
                  "frag-needed": 4, "net-prohibited": 9, "host-prohibited": 10, "admin-prohibited": 13},
    "icmpv6 code": {"no-route": 0, "admin-prohibited": 1, "addr-unreachable": 3, "port-unreachable": 4,
                    "policy-fail": 5, "reject-route": 6},
    "ethertype": {"ip": 0x0800, "arp": 0x0806, "vlan": 0x8100, "8021q": 0x8100, "8021ad": 0x88A8, "ip6": 0x86DD},
    "arp": {"request": 1, "reply": 2, "rrequest": 3, "rreply": 4, "inrequest": 8, "inreply": 9, "nak": 10},
    "dscp": {"cs0": 0, "cs1": 8, "cs2": 16, "cs3": 24, "cs4": 32, "cs5": 40, "cs6": 48, "cs7": 56, "be": 0, "df": 0,
             "lephb": 1, "af11": 10, "af12": 12, "af13": 14, "af21": 18, "af22": 20, "af23": 22, "af31": 26,
             "af32": 28, "af33": 30, "af41": 34, "af42": 36, "af43": 38, "va": 44, "ef": 46},
    "ecn": {"not-ect": 0, "ect1": 1, "ect0": 2, "ce": 3},
    "flags": {"fin": 1, "syn": 2, "rst": 4, "psh": 8, "ack": 16, "urg": 32, "ecn": 64, "cwr": 128},
}  # fmt: skip


def value_of(field: Field, value: object) -> object:
    """A value of ``field`` as it is written here.  NotImported for a word that is not known."""
    if isinstance(value, bool) or field.kind in ("addr", "mac", "day", "time"):
        return value
    if isinstance(value, str):
        words = _WORDS.get(field.kind, {})
        if value in words:
            return words[value]
        try:
            return int(value, 0)
        except ValueError:
            raise NotImported(f"{value!r} is no value of {field.text} that is known here") from None
    return value

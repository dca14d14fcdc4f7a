"""Declared sets of every kind, and Hypothesis strategies for their members."""

import ipaddress

from hypothesis import strategies as st

from xdpkit import dst, eth, ip, ip6, src, tcp, udp, vlan
from xdpkit.language.sets import SetSpec, declare


def make_spec(name, *fields, **options) -> SetSpec:
    """A declaration, as Pipeline.set makes one."""
    defaults = {
        "capacity": 65_536, "intervals": None, "timeouts": False, "pinned": False, "actions": (), "members": (),
        "source": None,
    }  # fmt: skip
    return declare(name, fields, **(defaults | options))


INTERVAL_SPECS = (
    make_spec("four", ip.src),
    make_spec("six", ip6.src),
    make_spec("ports", udp.dport, intervals=True),
    make_spec("vlans", vlan.id, intervals=True),
    make_spec("port_nets", tcp.dport, ip.src, intervals=True),
    make_spec("net_ports", ip.src, tcp.dport, intervals=True),
    make_spec("mac_nets", eth.src, ip6.dst, intervals=True),
    make_spec("either", src),
    make_spec("port_either", tcp.dport, dst, intervals=True),
)
EXACT_SPECS = (
    make_spec("hosts", ip.src, intervals=False),
    make_spec("port", tcp.dport),
    make_spec("pairs", ip.src, tcp.dport),
    make_spec("macs", eth.src),
    make_spec("either_host", src, intervals=False),
    make_spec("flows", ip.src, ip.dst, tcp.sport, tcp.dport),
)
SPECS = INTERVAL_SPECS + EXACT_SPECS


def values(field):
    """Values that are near each other, so that they collide and miss by one."""
    top = (1 << field.bits) - 1
    pool = {0, 1, 2, 3, top, top - 1, top >> 1, (top >> 1) + 1, *(top >> 8 & ~0xFF | low for low in (0, 1, 127, 128))}
    return st.one_of(st.sampled_from(sorted(pool)), st.integers(0, top))


def written(field, value):
    """A value as people write it."""
    if field.kind == "ipv4":
        return str(ipaddress.IPv4Address(value))
    if field.kind == "ip" and value >> 32 == 0xFFFF:
        return str(ipaddress.IPv4Address(value & 0xFFFFFFFF))
    if field.kind in ("ipv6", "ip"):
        return str(ipaddress.IPv6Address(value))
    if field.kind == "mac":
        return ":".join(f"{b:02x}" for b in value.to_bytes(6))
    return str(value)


@st.composite
def members_of(draw, spec: SetSpec):
    """A member as a string, its last field a value, a prefix or a range where the set has intervals."""
    parts = [written(f, draw(values(f))) for f in spec.fields]
    last = spec.fields[-1]
    form = draw(st.sampled_from(["value", "prefix", "range"])) if spec.intervals else "value"
    if form == "range":
        low, high = sorted((draw(values(last)), draw(values(last))))
        parts[-1] = f"{written(last, low)}-{written(last, high)}"
    elif form == "prefix" and last.kind in ("ipv4", "ipv6", "ip"):
        length = draw(st.integers(0, last.bits))
        value = draw(values(last)) >> last.bits - length << last.bits - length
        parts[-1] = f"{written(last, value)}/{length}"
    return " . ".join(parts)

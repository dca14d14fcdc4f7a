"""Packets as people write them on a command line: ``"198.51.100.7:4000 > 203.0.113.5:443 tcp syn"``."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address

__all__ = ["EXAMPLE", "packet_of"]

EXAMPLE = "198.51.100.7:4000 > 203.0.113.5:443 tcp syn"
_FLAGS = {"fin": "F", "syn": "S", "rst": "R", "psh": "P", "ack": "A", "urg": "U", "ece": "E", "cwr": "C"}
_PORTS = ("tcp", "udp", "sctp")
#: Words of ICMP messages: type and code, over IPv4 and over IPv6.
_ICMP = {
    "echo-request": ((8, 0), (128, 0)), "echo-reply": ((0, 0), (129, 0)), "unreachable": ((3, 1), (1, 0)),
    "time-exceeded": ((11, 0), (3, 0)), "neighbour-solicitation": (None, (135, 0)),
    "neighbour-advertisement": (None, (136, 0)), "router-advertisement": (None, (134, 0)),
}  # fmt: skip
#: Options, with the largest value of each.
_OPTIONS = {
    "ttl": 255, "tos": 255, "vlan": 4095, "bytes": 9000, "type": 255, "code": 255, "id": 65535, "seq": 2**32 - 1,
    "ack": 2**32 - 1, "window": 65535, "proto": 255,
}  # fmt: skip
_MACS = ("02:00:00:00:00:02", "02:00:00:00:00:01")


def packet_of(text: str) -> bytes:
    """The frame, from the destination MAC address on, that ``text`` describes: SOURCE > DESTINATION, each an address
    with a port behind a colon (IPv6 in brackets then); a protocol, tcp, udp, sctp, icmp, arp or ``proto=N``; flags of
    TCP or a word of ICMP; options as ``ttl=1``, ``vlan=5``, ``bytes=100`` (of payload), ``src=MAC``, ``dst=MAC``.  Or
    the frame itself in hexadecimal digits.  ValueError says what is wrong, in one line."""
    if re.fullmatch(r"(?:[0-9a-fA-F]{2}[\s:]*){14,}", text.strip()):
        return bytes.fromhex(re.sub(r"[\s:]", "", text))
    parts = re.split(r"\s+>\s+|\s*->\s*", text.strip(), maxsplit=1)
    if len(parts) != 2:
        raise ValueError(f"packet {text!r}: write it as {EXAMPLE!r}")
    target, *words = re.split(r"[\s,]+", parts[1].strip())
    if parts[0].startswith("arp "):
        words, parts[0] = ["arp", *words], parts[0][4:].strip()
    source, sport = _end(parts[0])
    destination, dport = _end(target)
    if source.version != destination.version:
        raise ValueError(f"packet {text!r}: one address is IPv4 and the other IPv6")
    options: dict[str, int] = {}
    macs = list(_MACS)
    plain: list[str] = []
    for word in words:
        name, equals, value = word.partition("=")
        if equals and name in ("src", "dst"):
            macs[name == "src"] = _mac(value)
        elif equals:
            options[name] = _number(name, value)
        else:
            plain.append(word.lower())
    return _frame(source, destination, (sport, dport), plain, options, macs)


Address = IPv4Address | IPv6Address


def _end(text: str) -> tuple[Address, int | None]:
    """An address, and the port behind it."""
    match = re.fullmatch(r"\[([^\]]+)\](?::(\d+))?|([^:\s]+):(\d+)|([^\s]+)", text)
    address, port = ("", None) if match is None else (match[1] or match[3] or match[5], match[2] or match[4])
    try:
        found = ip_address(address)
    except ValueError:
        raise ValueError(f"{text!r} is no address, as in 198.51.100.7:4000 or [2001:db8::1]:4000") from None
    if port is not None and int(port) > 65535:
        raise ValueError(f"port {port}: 0 to 65535")
    return found, None if port is None else int(port)


def _mac(text: str) -> str:
    if not re.fullmatch(r"(?:[0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}", text):
        raise ValueError(f"{text!r} is no MAC address, as in 02:00:00:00:00:01")
    return text


def _number(name: str, value: str) -> int:
    if name not in _OPTIONS:
        raise ValueError(f"{name}={value}: options are {', '.join([*_OPTIONS, 'src', 'dst'])}")
    try:
        number = int(value, 0)
    except ValueError:
        number = -1
    if not 0 <= number <= _OPTIONS[name]:
        raise ValueError(f"{name}={value}: a number of 0 to {_OPTIONS[name]}")
    return number


def _frame(
    source: Address, destination: Address, ports: tuple[int | None, int | None], words: list[str],
    options: dict[str, int], macs: list[str],
) -> bytes:  # fmt: skip
    from scapy.layers.inet import IP
    from scapy.layers.inet6 import IPv6
    from scapy.layers.l2 import ARP, Dot1Q, Ether
    from scapy.packet import Raw

    ether = Ether(dst=macs[0], src=macs[1])
    if "vlan" in options:
        ether = ether / Dot1Q(vlan=options["vlan"])
    if words[:1] == ["arp"]:
        return bytes(
            ether / ARP(op=2 if "reply" in words else 1, hwsrc=macs[1], psrc=str(source), pdst=str(destination))
        )
    four = source.version == 4
    network = (IP if four else IPv6)(src=str(source), dst=str(destination))
    if "ttl" in options:
        setattr(network, "ttl" if four else "hlim", options["ttl"])
    if "tos" in options:
        setattr(network, "tos" if four else "tc", options["tos"])
    above = _transport(four, ports, words, options)
    if above is None:
        if "proto" not in options:
            raise ValueError(f"which protocol? one of {', '.join(_PORTS)}, icmp, arp, or proto=NUMBER")
        setattr(network, "proto" if four else "nh", options["proto"])
        above = Raw()
    return bytes(ether / network / above / Raw(bytes(options.get("bytes", 0))))


def _transport(four: bool, ports: tuple[int | None, int | None], words: list[str], options: dict[str, int]) -> object:
    """The layer above IP; None where no word names one."""
    from scapy.layers.inet import ICMP, TCP, UDP
    from scapy.layers.inet6 import ICMPv6Unknown
    from scapy.layers.sctp import SCTP

    kinds = [word for word in words if word in (*_PORTS, "icmp", "icmp6")]
    if len(kinds) > 1:
        raise ValueError(f"{' and '.join(kinds)}: one protocol")
    kind = kinds[0] if kinds else "tcp" if any(word in _FLAGS for word in words) else ""
    rest = [word for word in words if word not in kinds]
    known = list(_FLAGS) if kind == "tcp" else list(_ICMP) if kind.startswith("icmp") else []
    wrong = next((word for word in rest if word not in known), None)
    if wrong is not None:
        hint = f"known behind {kind}: {', '.join(known)}" if known else f"write it as {EXAMPLE!r}"
        raise ValueError(f"{wrong!r} says nothing here; {hint}")
    if kind in _PORTS:
        if None in ports:
            raise ValueError(f"{kind} has ports: write them behind the addresses, as in {EXAMPLE!r}")
        layer = {"tcp": TCP, "udp": UDP, "sctp": SCTP}[kind](sport=ports[0], dport=ports[1])
        if kind == "tcp":
            layer.flags = "".join(_FLAGS[word] for word in rest) if rest else 0
            for name in ("seq", "ack", "window"):
                if name in options:
                    setattr(layer, name, options[name])
        return layer
    if ports != (None, None):
        raise ValueError(f"ports, and which protocol? one of {', '.join(_PORTS)}")
    if not kind:
        return None
    number = next((_ICMP[word][not four] for word in rest), (8, 0) if four else (128, 0))
    if number is None:
        raise ValueError(f"{rest[0]} is a message of IPv6")
    type_, code = options.get("type", number[0]), options.get("code", number[1])
    if four:
        return ICMP(type=type_, code=code, id=options.get("id", 0), seq=options.get("seq", 0) & 0xFFFF)
    body = options.get("id", 0).to_bytes(2) + (options.get("seq", 0) & 0xFFFF).to_bytes(2)
    return ICMPv6Unknown(type=type_, code=code) / body

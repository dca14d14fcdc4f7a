"""The headers and fields that users write conditions with: ``udp.dport == 53``, ``ip & ~tcp``, ``inner.ip.src``.

The objects are made from the table in ``fields.py``; comparing a field makes a condition (``expr.py``).
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from contextlib import suppress
from typing import NoReturn, overload

from .errors import PipelineError
from .expr import Always, EitherFamily, Expr, Keyed, Named, Present, Test, complement, here, merge
from .fields import (
    EITHER,
    FIELDS,
    HEADERS,
    INNER,
    MAPPED,
    PAYLOAD_MAX_OFFSET,
    PAYLOAD_MAX_SIZE,
    TCP_FLAGS,
    FieldSpec,
    field_named,
)

_WRITTEN = (int, str, bytes, ipaddress.IPv4Address, ipaddress.IPv6Address)


def parse_value(spec: FieldSpec, value: object) -> int:
    """``value`` as the integer that the field holds.  PipelineError says how to write a value of this field."""
    if isinstance(value, bool) or not isinstance(value, _WRITTEN):
        raise PipelineError(f"{spec.name} compares with {_form(spec)}, not {value!r}", here())
    try:
        number = _number(spec, value)
    except ValueError:
        if spec.kind in ("ipv6", "ip") and "%" in str(value):
            said = f"{value!r}: an address with a zone means one interface of one machine, and packets carry no zone"
            raise PipelineError(said, here()) from None
        said = f"{spec.name} compares with {_form(spec)}, not {value!r}{_named(spec, value)}"
        raise PipelineError(said, here()) from None
    if not 0 <= number <= spec.maximum:
        raise PipelineError(f"{spec.name} is {spec.bits} bits wide: {value!r} can never match", here())
    return number


#: IANA's numbers of the protocols that have a header of the same name in this module.
_PROTOCOLS = {"tcp": 6, "udp": 17, "icmp": 1, "icmp6": 58, "sctp": 132, "gre": 47, "ah": 51}


def _named(spec: FieldSpec, value: object) -> str:
    """A hint for an error message: the number to write for the name of a service or a protocol."""
    if not isinstance(value, str):
        return ""
    name = value.strip().lower()
    if spec.name.endswith((".proto", ".next")) and name in _PROTOCOLS:
        return f": write {_PROTOCOLS[name]}, or the header alone, as in pipe.rule({name}, DROP)"
    if spec.name.endswith("port"):
        with suppress(OSError, ValueError):
            return f": write {socket.getservbyname(name)}"
    return ""


def _number(spec: FieldSpec, value: object) -> int:
    if isinstance(value, int):
        return value
    if spec.kind == "bytes" or isinstance(value, bytes):
        if spec.kind != "bytes" or not isinstance(value, bytes) or len(value) != spec.size:
            raise ValueError(value)
        return int.from_bytes(value)
    if spec.kind in ("ipv6", "ip") and "%" in str(value):
        raise ValueError(value)
    if spec.kind == "ipv4":
        return int(ipaddress.IPv4Address(value))
    if spec.kind == "ipv6":
        return int(ipaddress.IPv6Address(value))
    if spec.kind == "ip":
        address = ipaddress.ip_address(value)  # type: ignore[arg-type]
        return int(address) | MAPPED if address.version == 4 else int(address)
    text = str(value)
    if spec.kind == "day":
        return _day(text)
    if spec.kind == "time" and ":" in text:
        return _seconds(text)
    if spec.kind == "flags" and not text[:1].isdigit():
        return sum({_flag(name.strip()) for name in re.split(r"[|,]", text)})
    if spec.kind == "mac":
        if not re.fullmatch(r"[0-9a-fA-F]{2}([:-][0-9a-fA-F]{2}){5}", text):
            raise ValueError(text)
        return int(re.sub("[:-]", "", text), 16)
    return int(text, 0)


def _flag(name: str) -> int:
    if name.lower() not in TCP_FLAGS:
        raise ValueError(name)
    return 1 << TCP_FLAGS.index(name.lower())


#: Days by their number in ``meta.day``.
DAYS = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")


def _day(text: str) -> int:
    """The number of a day: its name, or its first three letters."""
    found = [n for n, day in enumerate(DAYS) if text.strip().lower() in (day.lower(), day[:3].lower())]
    return found[0] if found else int(text, 0)


def _seconds(text: str) -> int:
    """Seconds since midnight of "17:30" or "17:30:15"."""
    match = re.fullmatch(r"\s*([01]?\d|2[0-3]):([0-5]\d)(?::([0-5]\d))?\s*", text)
    if not match:
        raise ValueError(text)
    return int(match[1]) * 3600 + int(match[2]) * 60 + int(match[3] or 0)


def _form(spec: FieldSpec) -> str:
    return {
        "ipv4": "an IPv4 address such as '192.0.2.1'",
        "ipv6": "an IPv6 address such as '2001:db8::1'",
        "ip": "an address such as '192.0.2.1' or '2001:db8::1'",
        "flags": "flags such as 'syn|ack' or a whole number",
        "bytes": f"{spec.size} bytes or a whole number",
        "mac": "a MAC address such as '02:00:00:00:00:01'",
        "day": "a day such as 'Monday'",
        "time": "a time such as '17:30' (UTC)",
    }.get(spec.kind, "a whole number")


class Field(Named):
    """A field of a header, as rules name it: ``udp.dport == 53``, ``ip.src.within("192.0.2.0/24")``.  A field of one
    bit may stand alone: ``tcp.syn & ~tcp.ack``.

    Comparisons and methods raise PipelineError for a value that the field cannot hold, and where no packet could
    match."""

    def __init__(self, spec: FieldSpec):
        self.spec: FieldSpec = spec
        self.__doc__ = f"{spec.name}: {spec.doc} ({spec.bits} bits)"

    def __repr__(self) -> str:
        return self.spec.name

    def __hash__(self) -> int:
        return object.__hash__(self)

    def condition(self) -> Expr:
        """The condition of the field alone: its one bit is set.  PipelineError for a field that must be compared."""
        if self.spec.alone is None:
            raise PipelineError(
                f"{self.spec.name} is no condition: compare it with something, in brackets beside & and |", here()
            )
        return Test(self.spec, (self.spec.alone,), self.spec.name, where=here())

    @overload
    def __and__(self, other: int) -> Masked: ...  # type: ignore[overload-overlap]
    @overload
    def __and__(self, other: object) -> Expr: ...
    def __and__(self, other: object) -> Masked | Expr:
        if isinstance(other, int) and not isinstance(other, bool):
            return Masked(self.spec, parse_value(self.spec, other))
        return super().__and__(other)  # type: ignore[no-any-return]

    def has(self, *names: str) -> Expr:
        """All of the named flags are set, whatever the others are: ``tcp.flags.has("syn", "ack")``.  PipelineError for
        an unknown flag and a field without flags."""
        if self.spec.kind != "flags" or not names:
            raise PipelineError(f"{self.spec.name}.has: names of flags are wanted, of a field that has them", here())
        mask = parse_value(self.spec, "|".join(map(str, names)))
        return Test(self.spec, ((mask, mask),), f"{self.spec.name}.has({_commas(names)})", mask, where=here())

    def _test(self, intervals: Iterable[tuple[int, int]], text: str) -> Test:
        merged = merge(intervals)
        if not merged:
            raise PipelineError(f"{text} can never match", here())
        return Test(self.spec, merged, text, where=here())

    def _compare(self, operator: str, value: object, low: int, high: int) -> Test:
        return self._test([(low, high)] if low <= high else [], f"{self.spec.name} {operator} {value}")

    def __eq__(self, value: object) -> Test:  # type: ignore[override]
        number = parse_value(self.spec, value)
        return self._compare("==", value, number, number)

    def __ne__(self, value: object) -> Test:  # type: ignore[override]
        number = parse_value(self.spec, value)
        return self._test(complement(((number, number),), self.spec.maximum), f"{self.spec.name} != {value}")

    def __lt__(self, value: object) -> Test:
        return self._compare("<", value, 0, parse_value(self.spec, value) - 1)

    def __le__(self, value: object) -> Test:
        return self._compare("<=", value, 0, parse_value(self.spec, value))

    def __gt__(self, value: object) -> Test:
        return self._compare(">", value, parse_value(self.spec, value) + 1, self.spec.maximum)

    def __ge__(self, value: object) -> Test:
        return self._compare(">=", value, parse_value(self.spec, value), self.spec.maximum)

    def between(self, low: object, high: object) -> Expr:
        """low <= field <= high.  PipelineError if ``low`` is above ``high``, or the field cannot hold one of them."""
        a, b = parse_value(self.spec, low), parse_value(self.spec, high)
        if a > b:
            raise PipelineError(f"{self.spec.name}.between({low}, {high}) is empty: the lower bound goes first", here())
        return self._test([(a, b)], f"{self.spec.name}.between({low!r}, {high!r})")

    def within(self, *prefixes: object) -> Expr:
        """The address lies in one of ``prefixes`` ("192.0.2.0/24", "2001:db8::/32", a network object, or a string
        "low-high")."""
        return self._test([self._prefix(p) for p in prefixes], f"{self.spec.name}.within({_commas(prefixes)})")

    def isin(self, values: Iterable[object] | Keyed) -> Expr:
        """The field equals one of ``values``, or is in a set.  PipelineError for values that the field cannot hold."""
        if isinstance(values, Keyed):
            return values.match(self)
        if isinstance(values, str) or not isinstance(values, Iterable):
            raise PipelineError(f"{self.spec.name}.isin wants a list of values, not {values!r}", here())
        values = tuple(values)
        numbers = [parse_value(self.spec, v) for v in values]
        return self._test([(n, n) for n in numbers], f"{self.spec.name}.isin([{_commas(values)}])")

    def _prefix(self, prefix: object) -> tuple[int, int]:
        text = str(prefix)
        if isinstance(prefix, str) and "-" in text and self.spec.kind != "mac":
            low, _, high = text.partition("-")
            a, b = parse_value(self.spec, low.strip()), parse_value(self.spec, high.strip())
            if a <= b:
                return a, b
            raise PipelineError(f"the range {text} is empty: the lower bound goes first", here())
        if self.spec.kind == "ip":
            return self._either_prefix(text)
        if self.spec.kind not in ("ipv4", "ipv6"):
            raise PipelineError(f"{self.spec.name} is no address: use .between(low, high) or .isin([...])", here())
        version = ipaddress.IPv4Network if self.spec.kind == "ipv4" else ipaddress.IPv6Network
        try:
            net = version(text)
        except ValueError as error:
            hint = ""
            if "host bits" in str(error):
                hint = f": did you mean {version(text, strict=False)}?"
            elif (self.spec.kind == "ipv4") == (":" in text):
                hint = ": ip is IPv4, ip6 is IPv6"
            raise PipelineError(f"{text!r} is no prefix for {self.spec.name}{hint}", here()) from None
        return int(net.network_address), int(net.broadcast_address)

    def _either_prefix(self, text: str) -> tuple[int, int]:
        try:
            net = ipaddress.ip_network(text)
        except ValueError as error:
            hint = f": did you mean {ipaddress.ip_network(text, strict=False)}?" if "host bits" in str(error) else ""
            raise PipelineError(f"{text!r} is no prefix for {self.spec.name}{hint}", here()) from None
        mapped = MAPPED if net.version == 4 else 0
        return int(net.network_address) | mapped, int(net.broadcast_address) | mapped


class EitherField(Field):
    """The source or destination address of a packet, IPv4 or IPv6: ``src.within("192.0.2.0/24", "2001:db8::/32")``,
    ``limit("10/second", per=src)``, ``pipe.set("blocked", src)``.  On a packet that is neither every test is false."""

    def _test(self, intervals: Iterable[tuple[int, int]], text: str) -> Expr:  # type: ignore[override]
        merged = merge(intervals)
        if not merged:
            raise PipelineError(f"{text} can never match", here())
        four, six = (field_named(f"{header}.{self.spec.name}") for header in ("ip", "ip6"))
        top = MAPPED | four.maximum
        inside = tuple((max(a, MAPPED) - MAPPED, min(b, top) - MAPPED) for a, b in merged if a <= top and b >= MAPPED)
        terms = [Test(spec, part, text, where=here()) for spec, part in ((four, inside), (six, merged)) if part]
        return EitherFamily(tuple(terms), text, where=here())

    def _compare(self, operator: str, value: object, low: int, high: int) -> NoReturn:
        raise PipelineError(f"{self.spec.name} {operator} {value}: an address of either family has no order", here())

    def __eq__(self, value: object) -> Expr:  # type: ignore[override]
        number = parse_value(self.spec, value)
        return self._test([(number, number)], f"{self.spec.name} == {value}")

    @overload
    def __and__(self, other: int) -> NoReturn: ...
    @overload
    def __and__(self, other: object) -> Expr: ...
    def __and__(self, other: object) -> Expr:
        if isinstance(other, int):
            raise PipelineError(f"{self.spec.name} & {other}: an address of either family has no bits to test", here())
        return super().__and__(other)

    def __hash__(self) -> int:
        return object.__hash__(self)


def _commas(values: Iterable[object]) -> str:
    return ", ".join(repr(v) if isinstance(v, (str, int)) else repr(str(v)) for v in values)


class Masked:
    """Some bits of a field: ``(tcp.flags & 0x12) == 0x02``."""

    def __init__(self, spec: FieldSpec, mask: int):
        if not mask:
            raise PipelineError(f"{spec.name} & 0 leaves nothing to test", here())
        self.spec: FieldSpec = spec
        self.mask: int = mask

    def __repr__(self) -> str:
        return f"({self.spec.name} & {self.mask:#x})"

    def __hash__(self) -> int:
        return object.__hash__(self)

    def __bool__(self) -> NoReturn:
        raise PipelineError(f"{self} is no condition: compare it, as in {self} != 0", here())

    def _refuse(self, other: object) -> NoReturn:
        raise PipelineError(f"{self} is no condition: compare it, in brackets beside & and |", here())

    def __and__(self, other: object) -> NoReturn:
        self._refuse(other)

    def __rand__(self, other: object) -> NoReturn:
        self._refuse(other)

    def __or__(self, other: object) -> NoReturn:
        self._refuse(other)

    def __ror__(self, other: object) -> NoReturn:
        self._refuse(other)

    def _value(self, value: object) -> int:
        number = parse_value(self.spec, value)
        if number & ~self.mask:
            raise PipelineError(f"{self} == {value} can never match: it has bits that the mask has not", here())
        return number

    def __eq__(self, value: object) -> Test:  # type: ignore[override]
        number = self._value(value)
        return Test(self.spec, ((number, number),), f"{self} == {value}", self.mask, where=here())

    def __ne__(self, value: object) -> Test:  # type: ignore[override]
        number = self._value(value)
        rest = complement(((number, number),), self.spec.maximum)
        return Test(self.spec, rest, f"{self} != {value}", self.mask, where=here())

    def isin(self, values: Iterable[object]) -> Expr:
        """The bits are those of one of ``values``."""
        values = tuple(values)
        numbers = merge((n, n) for n in map(self._value, values))
        if not numbers:
            raise PipelineError(f"{self}.isin([]) can never match", here())
        return Test(self.spec, numbers, f"{self}.isin([{_commas(values)}])", self.mask, where=here())


class Header(Named):
    """A header: ``udp.dport`` is a field of it, ``udp.present`` (or plain ``udp`` beside & | ~) asks whether it is
    there."""

    def __init__(self, name: str, fields: dict[str, Field], doc: str):
        self._name, self._fields = name, fields
        self.__doc__ = doc

    def __getattr__(self, name: str) -> Field:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self._fields[name]
        except KeyError:
            has = f"it has {', '.join(self._fields)}" if self._fields else "it has none"
            raise PipelineError(f"{self._name} has no field {name!r}; {has}", here()) from None

    def __dir__(self) -> list[str]:
        return [*self._fields, "present"]

    def __repr__(self) -> str:
        return self._name

    @property
    def present(self) -> Expr:
        """The condition that the packet has the whole header.  PipelineError for ``meta``, which is no header."""
        if self._name == "meta":
            raise PipelineError("meta is no header: meta.hash >= 0 asks whether a packet has one of its fields", here())
        return Present(self._name, where=here()) if self._name in HEADERS else Always(where=here())

    def condition(self) -> Expr:
        """The header is there."""
        return self.present

    def _refuse(self, other: object) -> NoReturn:
        raise PipelineError(f"{self._name} is a header: compare one of its fields, {', '.join(self._fields)}", here())

    def __eq__(self, other: object) -> NoReturn:
        self._refuse(other)

    def __ne__(self, other: object) -> NoReturn:
        self._refuse(other)

    def __lt__(self, other: object) -> NoReturn:
        self._refuse(other)

    def __le__(self, other: object) -> NoReturn:
        self._refuse(other)

    def __gt__(self, other: object) -> NoReturn:
        self._refuse(other)

    def __ge__(self, other: object) -> NoReturn:
        self._refuse(other)

    def __hash__(self) -> int:
        return object.__hash__(self)


class Payload:
    """Bytes behind the TCP or UDP header, padding of short frames among them: ``payload[0:4] == b"GET "`` compares 4
    bytes at offset 0, ``payload[2:2] == 0x0100`` 2 bytes at offset 2 in network order, ``payload[7] > 3`` one byte."""

    def __init__(self, name: str):
        self._name = name

    def __repr__(self) -> str:
        return self._name

    def __getitem__(self, key: object) -> Field:
        if isinstance(key, slice) and key.step is None:
            offset, size = 0 if key.start is None else key.start, key.stop
        else:
            offset, size = key, 1
        if (
            isinstance(offset, int)
            and isinstance(size, int)
            and 0 <= offset <= PAYLOAD_MAX_OFFSET
            and 1 <= size <= PAYLOAD_MAX_SIZE
        ):
            return Field(field_named(f"{self._name}[{offset}:{size}]"))
        raise PipelineError(
            f"{self._name}[offset:size]: offset 0 to {PAYLOAD_MAX_OFFSET}, size 1 to {PAYLOAD_MAX_SIZE} bytes", here()
        )


class Inner:
    """The headers inside a tunnel: ``inner.ip.dst``, ``inner.tcp``, ``inner.payload[0:4]``."""

    def __init__(self, headers: dict[str, Header]):
        self._headers = headers
        self.payload: Payload = Payload(INNER + "payload")

    def __getattr__(self, name: str) -> Header:
        if name in self._headers:
            return self._headers[name]
        if name.startswith("_"):
            raise AttributeError(name)
        raise PipelineError(f"inner has no header {name!r}; it has {', '.join(self._headers)}", here())

    def __dir__(self) -> list[str]:
        return [*self._headers, "payload"]


def _headers() -> dict[str, Header]:
    parts = ("payload", INNER + "payload")
    fields: dict[str, dict[str, Field]] = {
        name: {} for name in HEADERS if "." not in name.removeprefix(INNER) and name not in parts
    }
    for spec in FIELDS:
        header, _, name = spec.name.rpartition(".")
        fields.setdefault(header, {})[name] = Field(spec)
    return {
        header: Header(header, named, "; ".join(f"{f.spec.name}: {f.spec.doc}" for f in named.values()))
        for header, named in fields.items()
    }


#: Every header by its name, those inside a tunnel as ``inner.ip``.
HEADER_OBJECTS = _headers()
inner: Inner = Inner({name.removeprefix(INNER): h for name, h in HEADER_OBJECTS.items() if name.startswith(INNER)})
"""The headers inside a tunnel: ``inner.ip``, ``inner.tcp`` and so on."""
payload: Payload = Payload("payload")
"""The bytes behind the last header that was found: ``payload[0:4]``."""
eth: Header = HEADER_OBJECTS["eth"]
"""The Ethernet header."""
vlan: Header = HEADER_OBJECTS["vlan"]
"""The outer VLAN tag (802.1Q or 802.1ad)."""
vlan2: Header = HEADER_OBJECTS["vlan2"]
"""The inner VLAN tag, behind the outer one."""
arp: Header = HEADER_OBJECTS["arp"]
"""ARP for IPv4 over Ethernet."""
ip: Header = HEADER_OBJECTS["ip"]
"""The IPv4 header."""
ip6: Header = HEADER_OBJECTS["ip6"]
"""The IPv6 header."""
hopopts: Header = HEADER_OBJECTS["hopopts"]
"""The IPv6 hop-by-hop options header."""
routing: Header = HEADER_OBJECTS["routing"]
"""The IPv6 routing header."""
frag: Header = HEADER_OBJECTS["frag"]
"""The IPv6 fragment header."""
ah: Header = HEADER_OBJECTS["ah"]
"""The IPsec authentication header."""
dstopts: Header = HEADER_OBJECTS["dstopts"]
"""The IPv6 destination options header."""
tcp: Header = HEADER_OBJECTS["tcp"]
"""The TCP header."""
udp: Header = HEADER_OBJECTS["udp"]
"""The UDP header."""
icmp: Header = HEADER_OBJECTS["icmp"]
"""The ICMP header (IPv4)."""
icmp6: Header = HEADER_OBJECTS["icmp6"]
"""The ICMPv6 header."""
sctp: Header = HEADER_OBJECTS["sctp"]
"""The SCTP common header."""
gre: Header = HEADER_OBJECTS["gre"]
"""The GRE header."""
vxlan: Header = HEADER_OBJECTS["vxlan"]
"""The VXLAN header."""
geneve: Header = HEADER_OBJECTS["geneve"]
"""The Geneve header."""
gtpu: Header = HEADER_OBJECTS["gtpu"]
"""The GTP-U header."""
mpls: Header = HEADER_OBJECTS["mpls"]
"""The first MPLS label."""
pkt: Header = HEADER_OBJECTS["pkt"]
"""The packet as a whole: its length and the queue that it came in on."""
meta: Header = HEADER_OBJECTS["meta"]
"""What the kernel knows of a packet besides its bytes: time, hash, and a VLAN tag that the device took out."""

src: EitherField = EitherField(EITHER[0])
"""The source address, IPv4 or IPv6."""
dst: EitherField = EitherField(EITHER[1])
"""The destination address, IPv4 or IPv6."""


def field_object(name: str) -> Field:
    """The field of that name, as it is written: "inner.tcp.dport"."""
    spec = field_named(name)
    return EitherField(spec) if spec in EITHER else Field(spec)

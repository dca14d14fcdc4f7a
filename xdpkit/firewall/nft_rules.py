"""Conditions of nftables as conditions here, in Python text: the part of the import that knows what a test means."""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from .nft_fields import FIELDS, PROTOCOLS, Field, NotImported, value_of

__all__ = ["Condition", "Conditions", "Path", "identifier", "joined", "literal"]

#: Protocol numbers with a header here.
_HEADERS = {6: "tcp", 17: "udp", 1: "icmp", 58: "icmp6", 132: "sctp", 47: "gre"}
_STATES = ("new", "established", "related", "invalid")
_IPV4_FRAGMENT = {0x1FFF: "ip.frag_offset", 0x3FFF: "ip.fragment", 0x2000: "ip.mf", 0x4000: "ip.df"}
#: Why what stands in a rule is not known at XDP and TC.
_UNKNOWN_META = {
    "skuid": "the socket's owner is not known at XDP and TC",
    "skgid": "the socket's owner is not known at XDP and TC",
    "cgroup": "the socket's control group is not known at XDP and TC",
    "ibrname": "bridges of Linux are not asked: xdpkit is the bridge",
    "obrname": "bridges of Linux are not asked: xdpkit is the bridge",
    "iifgroup": "groups of devices are not known: name the devices",
    "oifgroup": "groups of devices are not known: name the devices",
}
_DEVICES = ("iif", "iifname", "oif", "oifname")


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition as Python: ``text``; ``bare``: it needs no brackets beside ``&``; ``counts``: it takes tokens or
    draws, so it must be tried once; ``operator``: "&" or "|" where it is several conditions that are joined by it."""

    text: str
    bare: bool = False
    counts: bool = False
    operator: str = ""

    def term(self, operator: str = "") -> str:
        """As it stands beside ``operator``."""
        return self.text if self.bare or (operator and operator == self.operator) else f"({self.text})"

    def negated(self, header: str = "") -> Condition:
        """Its opposite, where ``header`` is there."""
        opposite = f"~{self.term()}"
        if not header:
            return Condition(opposite, bare=True, counts=self.counts)
        return Condition(f"{header} & {opposite}", counts=self.counts, operator="&")


def joined(conditions: Iterable[Condition], operator: str = "&") -> Condition:
    """All of them, or with "|" one of them."""
    found = list(conditions)
    if len(found) == 1:
        return found[0]
    text = f" {operator} ".join(c.term(operator) for c in found)
    return Condition(text, counts=any(c.counts for c in found), operator=operator)


@dataclass(frozen=True, slots=True)
class Path:
    """Which way the packets take that are judged: ``hook`` (input, forward, output, ingress); ``outside`` and
    ``inside``: the devices of a bridge, empty where it is none."""

    hook: str
    outside: str = ""
    inside: str = ""

    def device(self, key: str, name: str) -> Condition:
        """The packet came in by, or leaves by, the device ``name``."""
        if "*" in name or "?" in name:
            raise NotImported(f"{key} {name}: a name with a wildcard; write each device's name")
        leaves = key.startswith("oif")
        if self.outside and self.hook == "forward":
            sides = {self.outside: ("dev.inside", "dev.outside"), self.inside: ("dev.outside", "dev.inside")}
            if name in sides:
                return Condition(sides[name][0 if leaves else 1], bare=True)
        if leaves != (self.hook == "output"):
            where = "leaves by" if leaves else "came from"
            raise NotImported(
                f"{key} {name}: the device that a packet {where} is not known here; a bridge of two devices knows it: "
                "--bridge OUTSIDE,INSIDE"
                if leaves
                else f"{key} {name}: the device that a packet {where} is not known where it leaves"
            )
        return Condition(f"dev.name == {literal(name)}")


@dataclass(slots=True)
class Conditions:
    """Turns matches into conditions.  ``sets``: what is declared, by name: nft's object; ``variable``: what a set is
    called in the file; ``used``: the sets that are asked, with the fields they are keyed by; ``names``: what the
    conditions use of xdpkit; ``protocols``: those that the rule has asked for so far, by number."""

    path: Path
    sets: dict[str, dict[str, Any]]
    variable: Callable[[str], str]
    used: dict[str, tuple[Field, ...]] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    tracks: bool = False
    protocols: tuple[int, ...] = ()

    def start_rule(self) -> None:
        """The rule begins: no protocol is asked for yet."""
        self.protocols = ()

    def match(self, left: dict[str, Any], operator: str, right: Any) -> Condition:
        """``left operator right``.  NotImported where it has no meaning here."""
        kind, what = next(iter(left.items()))
        if kind == "meta":
            return self._meta(what["key"], operator, right)
        if kind == "ct":
            return self._ct(what, operator, right)
        if kind == "fib":
            raise NotImported("fib asks the routing table, which is not known at XDP and TC")
        if kind == "concat":
            return self._concat(what, operator, right)
        if kind == "numgen":
            return self._numgen(what, operator, right)
        if kind == "&":
            return self._masked(what[0], what[1], operator, right)
        if kind == "exthdr" and "field" not in what:
            return self._header_there(what["name"], right)
        fields = self.fields(left)
        return self._any(fields, operator, right)

    def fields(self, expression: dict[str, Any]) -> list[Field]:
        """The fields that an expression stands for: one, or for ``th dport`` one of each protocol."""
        kind, what = next(iter(expression.items()))
        if kind == "payload":
            return self._payload(what)
        if kind == "exthdr":
            names = FIELDS.get(what["name"], {})
            if what.get("field") in names:
                return [self._use(names[what["field"]])]
            raise NotImported(f"exthdr {what['name']} {what.get('field', '')}: there is no such field here")
        if kind == "tcp option":
            if (what["name"], what.get("field")) == ("maxseg", "size"):
                return [self._use(Field("tcp.mss", "tcp"))]
            raise NotImported(f"tcp option {what['name']}: only maxseg size is read here")
        if kind == "meta":
            key = what["key"]
            known = {
                "length": Field("pkt.len", ""), "mark": Field("meta.mark", ""),
                "priority": Field("meta.priority", ""), "day": Field("meta.day", "", "day"),
                "hour": Field("meta.hour", "", "time"),
            }  # fmt: skip
            if key in known:
                return [self._use(known[key])]
            if key == "l4proto":
                return [
                    self._use(Field("ip.proto", "ip", "protocol")),
                    self._use(Field("ip6.proto", "ip6", "protocol")),
                ]
            if key == "protocol":
                return [self._use(Field("eth.type", "eth", "ethertype"))]
            raise NotImported(_UNKNOWN_META.get(key, f"meta {key} is not known here"))
        raise NotImported(f"{kind} is not known here")

    def _use(self, what: Field) -> Field:
        self.names.add(what.text.partition(".")[0])
        return what

    def _payload(self, what: dict[str, Any]) -> list[Field]:
        if "base" in what:
            raise NotImported(
                f"@{what['base']},{what['offset']},{what['len']}: raw bytes; pcap() strings can ask for them"
            )
        protocol, name = what["protocol"], what["field"]
        if protocol == "th" and name in ("sport", "dport"):
            numbers = [n for n in self.protocols if n in (6, 17, 132)] or [6, 17]
            return [self._use(Field(f"{_HEADERS[n]}.{name}", _HEADERS[n])) for n in numbers]
        if protocol == "ip" and name == "frag-off":
            raise NotImported("ip frag-off without a mask: ask for ip frag-off & 0x1fff")
        fields = FIELDS.get(protocol)
        if fields is None:
            raise NotImported(f"the header of {protocol} is not read here")
        if name not in fields:
            raise NotImported(f"{protocol} {name}: there is no such field here")
        return [self._use(fields[name])]

    def _any(self, fields: list[Field], operator: str, right: Any) -> Condition:
        return joined((self._test(f, operator, right) for f in fields), "|")

    def _note_protocol(self, right: Any) -> None:
        values = right.get("set", [right]) if isinstance(right, dict) else [right]
        known = [PROTOCOLS.get(v, v) if isinstance(v, str) else v for v in values]
        self.protocols += tuple(v for v in known if isinstance(v, int))

    def _test(self, f: Field, operator: str, right: Any) -> Condition:
        if f.kind == "protocol" and operator in ("==", "in"):
            self._note_protocol(right)
        if isinstance(right, str) and right.startswith("@"):
            found = self.member(right[1:], (f,))
            return found.negated(f.header) if operator == "!=" else found
        if f.kind == "flags":
            return self._flags(f, operator, right)
        values = _values(right)
        if operator in ("<", ">", "<=", ">="):
            return Condition(f"{f.text} {operator} {literal(value_of(f, values[0]))}")
        found = self._equal(f, values)
        if operator in ("==", "in"):
            return found
        if operator == "!=":
            if len(values) == 1 and not isinstance(values[0], dict):
                return Condition(f"{f.text} != {literal(value_of(f, values[0]))}")
            return found.negated(f.header)
        raise NotImported(f"the operator {operator} of {f.text} is not known here")

    def _equal(self, f: Field, values: list[Any]) -> Condition:
        single = [value_of(f, v) for v in values if not isinstance(v, dict)]
        wide = [v for v in values if isinstance(v, dict)]
        if f.kind == "addr" and wide:
            return Condition(f"{f.text}.within({', '.join(literal(_address(v)) for v in values)})", bare=True)
        found = []
        if len(single) == 1:
            found.append(Condition(f"{f.text} == {_written(f, single[0])}"))
        elif single:
            found.append(Condition(f"{f.text}.isin([{', '.join(map(literal, single))}])", bare=True))
        for v in wide:
            if "range" not in v:
                raise NotImported(f"{f.text}: {v} is no value that is known here")
            low, high = (value_of(f, end) for end in v["range"])
            if f.kind == "time" and str(low) > str(high):
                found.append(Condition(f"({f.text} >= {literal(low)}) | ({f.text} <= {literal(high)})", operator="|"))
            else:
                found.append(Condition(f"{f.text}.between({literal(low)}, {literal(high)})", bare=True))
        return joined(found, "|")

    def _flags(self, f: Field, operator: str, right: Any) -> Condition:
        if isinstance(right, dict) and "set" in right:  # one of several combinations
            wanted = [_mask(v) for v in right["set"]]
            found = Condition(f"{f.text}.isin([{', '.join(hex(w) for w in wanted)}])", bare=True)
            return found.negated(f.header) if operator == "!=" else found
        mask = _mask(right)
        if operator == "in":  # any of them
            names = [n for n, bit in _FLAG_BITS.items() if mask == bit]
            return Condition(f"tcp.{names[0]}", bare=True) if names else Condition(f"({f.text} & {mask:#x}) != 0")
        if operator == "!":
            return Condition(f"({f.text} & {mask:#x}) == 0")
        if operator in ("==", "!="):
            return Condition(f"{f.text} {operator} {mask:#x}")
        raise NotImported(f"tcp flags {operator} is not known here")

    def _masked(self, left: dict[str, Any], mask: Any, operator: str, right: Any) -> Condition:
        what = left.get("payload", {})
        bits, value = _mask(mask), _mask(right) if not isinstance(right, dict) else None
        if operator == "in":
            operator, value = "!=", 0
        if operator not in ("==", "!=") or value is None:
            raise NotImported(f"a test of some bits by {operator} with a set is not known here")
        if (what.get("protocol"), what.get("field")) == ("ip", "frag-off"):
            if bits not in _IPV4_FRAGMENT:
                raise NotImported(f"ip frag-off & {bits:#x} is not known here")
            self.names.add("ip")
            shift = {0x2000: 13, 0x4000: 14}.get(bits, 0)
            return Condition(f"{_IPV4_FRAGMENT[bits]} {operator} {value >> shift}")
        if "meta" in left and left["meta"]["key"] in _DEVICES:
            raise NotImported("some bits of a device's index are not known here")
        if "ct" in left:
            raise NotImported(f"ct {left['ct']['key']} is not known here")
        f = self.fields(left)[0]
        if f.kind == "addr":
            raise NotImported(f"{f.text}: some bits of an address; write a prefix")
        return Condition(f"({f.text} & {bits:#x}) {operator} {value:#x}")

    def _header_there(self, name: str, right: Any) -> Condition:
        header = {"hbh": "hopopts", "rt": "routing", "frag": "frag", "dst": "dstopts", "mh": ""}.get(name, "")
        if not header:
            raise NotImported(f"exthdr {name} is not walked here")
        self.names.add(header)
        found = Condition(header, bare=True)
        return found if right else found.negated()

    def _meta(self, key: str, operator: str, right: Any) -> Condition:
        if key in _DEVICES:
            return self._device(key, operator, right)
        if key == "nfproto":
            found = Condition(self._use(Field({"ipv4": "ip", "ipv6": "ip6"}[str(right)], "")).text, bare=True)
            return found.negated() if operator == "!=" else found
        if key == "pkttype":
            return self._packet_type(operator, right)
        if key in ("protocol", "l4proto"):
            if isinstance(right, str) and right.startswith("@"):
                return self._any(self.fields({"meta": {"key": key}}), operator, right)
            found = joined((self._protocol(key, v) for v in _values(right)), "|")
            if key == "l4proto" and operator == "==":
                self._note_protocol(right)
            return found.negated() if operator == "!=" else found
        if key == "length":
            self.names.add("pkt")
            values = _values(right)
            if operator == "!=" or len(values) > 1:
                raise NotImported("meta length: compare it by <, > or one range")
            link = 14  # nft counts from the network header on
            if isinstance(values[0], dict):
                low, high = values[0]["range"]
                return Condition(f"pkt.len.between({low + link}, {high + link})", bare=True)
            return Condition(f"pkt.len {operator.replace('in', '==')} {int(values[0]) + link}")
        return self._any(self.fields({"meta": {"key": key}}), operator, right)

    def _protocol(self, key: str, value: Any) -> Condition:
        if isinstance(value, dict):
            raise NotImported(f"a range of {key} is not known here")
        if key == "protocol":
            header = {"ip": "ip", "ip6": "ip6", "arp": "arp", "vlan": "vlan", "8021q": "vlan", "8021ad": "vlan"}.get(
                str(value)
            )
            if header:
                return Condition(self._use(Field(header, "")).text, bare=True)
            return Condition(f"{self._use(Field('eth.type', '')).text} == {literal(value)}")
        number = PROTOCOLS.get(value, value) if isinstance(value, str) else value
        if number in _HEADERS:
            return Condition(self._use(Field(_HEADERS[number], "")).text, bare=True)
        if not isinstance(number, int):
            raise NotImported(f"the protocol {value!r} is not known here")
        self.names |= {"ip", "ip6"}
        return Condition(f"(ip.proto == {number}) | (ip6.proto == {number})", operator="|")

    def _packet_type(self, operator: str, right: Any) -> Condition:
        self.names.add("eth")
        all_ones, group = 'eth.dst == "ff:ff:ff:ff:ff:ff"', "(eth.dst & 0x010000000000) != 0"
        kinds = {
            "broadcast": Condition(all_ones),
            "multicast": Condition(f"({group}) & ~({all_ones})"),
            "host": Condition("(eth.dst & 0x010000000000) == 0"),
            "unicast": Condition("(eth.dst & 0x010000000000) == 0"),
        }
        values = [str(v) for v in _values(right)]
        if any(v not in kinds for v in values):
            raise NotImported(f"pkttype {', '.join(values)} is not known here")
        both = {"broadcast", "multicast"} == set(values)
        found = Condition(group) if both else joined((kinds[v] for v in values), "|")
        return found.negated() if operator == "!=" else found

    def _device(self, key: str, operator: str, right: Any) -> Condition:
        if isinstance(right, str) and right.startswith("@"):
            right = {"set": self.sets[right[1:]].get("elem", [])} if right[1:] in self.sets else right
        names, found = [str(v) for v in _values(right)], []
        for name in names:
            try:
                found.append(self.path.device(key, name))
            except NotImported:
                if not (self.path.outside and len(names) > 1):
                    raise
        if not found:
            raise NotImported(f"{key} {', '.join(names)}: none of them is a device of the bridge")
        self.names.add("dev")
        plain = [n for n, c in zip(names, found, strict=False) if c.text.startswith("dev.name ==")]
        if len(plain) == len(names) > 1:
            result = Condition(f"dev.name.isin([{', '.join(map(literal, plain))}])", bare=True)
        else:
            result = joined({c.text: c for c in found}.values(), "|")
        if operator == "!=":
            return Condition(f"dev.name != {literal(plain[0])}") if len(plain) == len(names) == 1 else result.negated()
        return result

    def _ct(self, what: dict[str, Any], operator: str, right: Any) -> Condition:
        key = what["key"]
        if key == "direction" and operator in ("==", "!="):
            self._track()
            found = Condition(f"ct.{right}", bare=True)
            return found.negated() if operator == "!=" else found
        if key != "state":
            raise NotImported(f"ct {key} is not tracked here")
        states = [str(v) for v in _values(right)]
        for state in states:
            if state not in _STATES:
                raise NotImported(f"ct state {state}: every packet is tracked here")
        self._track()
        found = joined((Condition(f"ct.{state}", bare=True) for state in states), "|")
        if operator in ("!=", "!"):
            return found.negated()
        return found

    def _track(self) -> None:
        self.tracks = True
        self.names.add("ct")

    def _numgen(self, what: dict[str, Any], operator: str, right: Any) -> Condition:
        if what.get("offset"):
            raise NotImported("numgen with an offset")
        self.names.add("numgen")
        text = f"numgen({literal(what['mode'])}, {what['mod']})"
        values = _values(right)
        if len(values) == 1 and not isinstance(values[0], dict):
            return Condition(f"{text} {'==' if operator == 'in' else operator} {values[0]}", counts=True)
        numbers: list[int] = []
        for v in values:
            numbers += range(v["range"][0], v["range"][1] + 1) if isinstance(v, dict) else [v]
        found = Condition(f"{text}.isin({numbers})", bare=True, counts=True)
        return found.negated() if operator == "!=" else found

    def _concat(self, parts: list[dict[str, Any]], operator: str, right: Any) -> Condition:
        if isinstance(right, str) and right.startswith("@"):
            fields = [self.fields(part) for part in parts]
            ways = max(map(len, fields))
            if any(len(f) not in (1, ways) for f in fields):
                raise NotImported("a concatenation with several protocols and address families")
            keys = [tuple(f[n] if len(f) > 1 else f[0] for f in fields) for n in range(ways)]
            found = joined((self.member(right[1:], key) for key in keys), "|")
            return found.negated() if operator == "!=" else found
        found = joined((self.element(parts, e) for e in _values(right)), "|")
        return found.negated() if operator == "!=" else found

    def element(self, parts: list[dict[str, Any]], element: Any) -> Condition:
        """The parts of a concatenation are those of ``element``."""
        values = element["concat"] if isinstance(element, dict) and "concat" in element else [element]
        if len(values) != len(parts):
            raise NotImported("an element that has not as many parts as the key")
        before = self.protocols
        made = [self.match(part, "==", value) for part, value in zip(parts, values, strict=True)]
        self.protocols = before
        return joined(made)

    def member(self, name: str, key: tuple[Field, ...]) -> Condition:
        """The fields ``key`` are in the set of that name."""
        declared = self.sets.get(name)
        if declared is None:
            raise NotImported(f"@{name} is not declared")
        kinds = declared["type"] if isinstance(declared["type"], list) else [declared["type"]]
        if len(kinds) != len(key):
            raise NotImported(f"@{name} is keyed by {len(kinds)} fields, and asked for {len(key)}")
        first = self.used.setdefault(name, key)
        if first == key:
            return Condition(self.variable(name), bare=True)
        for f in key:
            self._use(f)
        if len(key) == 1:
            return Condition(f"{key[0].text}.isin({self.variable(name)})", bare=True)
        return Condition(f"{self.variable(name)}.match({', '.join(f.text for f in key)})", bare=True)


_FLAG_BITS = {"fin": 1, "syn": 2, "rst": 4, "psh": 8, "ack": 16, "urg": 32, "ece": 64, "cwr": 128}
_BITS = _FLAG_BITS | {"ecn": 64}


def _mask(value: Any) -> int:
    """Bits: a number, a flag, several of them."""
    if isinstance(value, list):
        return sum({_mask(v) for v in value})
    if isinstance(value, dict) and "|" in value:
        total = 0
        for part in value["|"]:
            total |= _mask(part)
        return total
    if isinstance(value, str) and value in _BITS:
        return _BITS[value]
    try:
        return int(str(value), 0)
    except ValueError:
        raise NotImported(f"{value} is no number that is known here") from None


def _values(right: Any) -> list[Any]:
    """The values that ``right`` stands for: one, those of a set, or those of a list."""
    if isinstance(right, dict) and "set" in right:
        inside = right["set"]
        return [_element(v) for v in (inside if isinstance(inside, list) else [inside])]
    return [_element(v) for v in right] if isinstance(right, list) else [_element(right)]


def _element(value: Any) -> Any:
    return value["elem"]["val"] if isinstance(value, dict) and "elem" in value else value


def _address(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    if "prefix" in value:
        return f"{value['prefix']['addr']}/{value['prefix']['len']}"
    if "range" in value:
        return f"{value['range'][0]}-{value['range'][1]}"
    raise NotImported(f"{value} is no address that is known here")


def _written(f: Field, value: object) -> str:
    return f"{value:#06x}" if f.kind == "ethertype" and isinstance(value, int) else literal(value)


def literal(value: object) -> str:
    """A value as Python writes it, strings between double quotes."""
    return json.dumps(value) if isinstance(value, str) else repr(value)


def identifier(name: str) -> str:
    """``name`` as the name of a variable."""
    made = re.sub(r"\W", "_", name)
    if not made or made[0].isdigit() or made in RESERVED:
        made = f"_{made}" if made[:1].isdigit() else f"{made}_"
    return made


#: Names that the file has already.
RESERVED = frozenset({
    "pipe", "ip", "ip6", "tcp", "udp", "icmp", "icmp6", "sctp", "gre", "eth", "vlan", "arp", "pkt", "meta", "dev", "ct",
    "src", "dst", "frag", "routing", "hopopts", "dstopts", "limit", "quota", "numgen", "log", *keyword.kwlist,
})  # fmt: skip

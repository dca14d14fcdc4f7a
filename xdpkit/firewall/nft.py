"""nftables rulesets as pipelines: ``nft -j list ruleset`` becomes a Python file that reads well.

:func:`read` takes the JSON (libnftables-json(5)), :func:`translate` makes the file.  Of the base chains it takes those
that a packet meets on its way to one hook: ``input`` (ingress, prerouting, input) for a host, ``forward`` for a bridge,
``output`` for what a host sends (at TC egress).  With several of them, accept in one leads to the next, as in nftables;
the last one's accept is PASS.

What cannot be said here is written as a comment at its place, with the reason, and reported.  NAT, changes of packets,
sockets' owners, routing tables and connection helpers are among it: packets are judged here, not changed.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from ..language.errors import XdpkitError
from .nft_fields import Field, NotImported, value_of
from .nft_rules import RESERVED, Condition, Conditions, identifier, joined, literal
from .nft_rules import Path as Way
from .nft_text import rule_text, statements_of

__all__ = ["HOOKS", "Imported", "NftError", "Outcome", "read", "translate"]

#: Hooks that can be imported, each with those that a packet passes on the way to it.
HOOKS = {
    "input": ("ingress", "prerouting", "input"),
    "forward": ("ingress", "prerouting", "forward", "postrouting"),
    "ingress": ("ingress",),
    "output": ("output", "postrouting", "egress"),
}
_STANDARD = {"raw": -300, "mangle": -150, "dstnat": -100, "filter": 0, "security": 50, "srcnat": 100, "out": 100}
#: Statements that change packets or hand them to something that is not here, with the reason.
_REFUSED = {
    "snat": "NAT: packets are judged here, not changed",
    "dnat": "NAT: packets are judged here, not changed",
    "masquerade": "NAT: packets are judged here, not changed",
    "redirect": "NAT: packets are judged here, not changed",
    "mangle": "it changes the packet or its mark: packets are judged here, not changed",
    "tproxy": "it hands packets to a local socket",
    "queue": "it hands packets to user space: Redirect() does that with AF_XDP",
    "notrack": "every packet is tracked here, or none",
    "dup": "it sends a copy out of a device: Mirror() gives copies to user space",
    "flow": "flowtables are not here: what is accepted does not go through the stack anyway",
    "synproxy": "SYN proxies are declared here, not written as rules",
    "ct helper": "connection helpers are not here",
    "ct timeout": "time-outs are declared with pipe.track(timeouts=...)",
    "ct expectation": "connection helpers are not here",
    "ct count": "connections of one source are not counted here: limit(per=src) limits how fast they come",
    "xt": "it is a match of iptables that nftables cannot say itself",
    "secmark": "security marks are not here",
    "osf": "operating systems are not recognised here",
}
_REJECTS = {
    "port-unreachable": "icmp-port-unreachable", "admin-prohibited": "icmp-admin-prohibited",
    "host-unreachable": "icmp-host-unreachable", "addr-unreachable": "icmp-host-unreachable",
    "net-unreachable": "icmp-net-unreachable", "no-route": "icmp-net-unreachable",
    "prot-unreachable": "icmp-proto-unreachable", "net-prohibited": "icmp-net-prohibited",
    "host-prohibited": "icmp-host-prohibited", "policy-fail": "icmp-policy-fail",
    "reject-route": "icmp-reject-route",
}  # fmt: skip
_PERIODS = ("second", "minute", "hour", "day")
_NAME = re.compile(r"[^\x20-\x7e]")


class NftError(XdpkitError, ValueError):
    """The input is no ruleset that can be imported."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one rule: its ``table`` and ``chain``, its ``text`` in nft's words, and the ``reason`` why it is
    not imported, empty where it is.  ``elsewhere``: it is imported with that other hook, as this one does not meet
    it."""

    table: str
    chain: str
    text: str
    reason: str = ""
    elsewhere: str = ""

    @property
    def done(self) -> bool:
        """The rule is imported, with this hook or another."""
        return not self.reason

    def __str__(self) -> str:
        return f"{self.table} {self.chain}: {self.text}: {self.reason or self.elsewhere or 'imported'}"


@dataclass(frozen=True, slots=True)
class Imported:
    """A file, ``python``, for ``hook``, and what became of every rule of the ruleset."""

    python: str
    hook: str
    outcomes: tuple[Outcome, ...]

    @property
    def refused(self) -> tuple[Outcome, ...]:
        """The rules that no hook can import."""
        return tuple(o for o in self.outcomes if not o.done)

    @property
    def elsewhere(self) -> tuple[Outcome, ...]:
        """The rules of other hooks."""
        return tuple(o for o in self.outcomes if o.done and o.elsewhere)


@dataclass(slots=True)
class Ruleset:
    """The objects of a ruleset: chains by (table, name), rules by chain, and sets, maps, limits, quotas by table."""

    chains: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    rules: dict[tuple[str, str], list[dict[str, Any]]] = field(default_factory=dict)
    objects: dict[str, dict[str, dict[str, dict[str, Any]]]] = field(default_factory=dict)

    def of(self, table: str, kind: str) -> dict[str, dict[str, Any]]:
        """The objects of a kind in a table, by name."""
        return self.objects.get(table, {}).get(kind, {})


def read(text: str) -> Ruleset:
    """The ruleset that ``nft -j list ruleset`` printed.  NftError if it is something else."""
    try:
        items = json.loads(text)["nftables"]
        found = Ruleset()
        for item in items:
            kind, what = next(iter(item.items()))
            if kind in ("metainfo", "table"):
                continue
            table = f"{what['family']} {what['table']}"
            if kind == "chain":
                found.chains[table, what["name"]] = what
            elif kind == "rule":
                found.rules.setdefault((table, what["chain"]), []).append(what)
            elif "name" in what:
                found.objects.setdefault(table, {}).setdefault(kind, {})[what["name"]] = what
    except (ValueError, LookupError, TypeError, AttributeError, StopIteration) as error:
        said = "" if text.lstrip().startswith("{") else ": it is no JSON"
        raise NftError(f"no ruleset of nftables{said} ({error}): write one with nft -j list ruleset > FILE") from None
    return found


def hooks_of(ruleset: Ruleset) -> list[str]:
    """The hooks that a ruleset can be imported for, the one that is meant most likely first."""
    there = {c["hook"] for c in _bases(ruleset)}
    return [hook for hook in HOOKS if hook in there] or (["input"] if "prerouting" in there else [])


def _bases(ruleset: Ruleset) -> list[dict[str, Any]]:
    return [c for c in ruleset.chains.values() if c.get("type") == "filter"]


def translate(ruleset: Ruleset, *, hook: str = "", bridge: tuple[str, str] | None = None, name: str = "") -> Imported:
    """The file for ``hook`` (by default the first that the ruleset has of input, forward, ingress, output).
    ``bridge``: the devices outside and inside, so that the device by which a packet leaves is known.  ``name``: of the
    pipeline.  NftError for a ruleset without a chain at that hook."""
    known = hooks_of(ruleset)
    if not known:
        raise NftError("the ruleset has no filter chain at a hook: input, forward, ingress or output")
    hook = hook or known[0]
    if hook not in known:
        raise NftError(f"the ruleset has no filter chain at the hook {hook}: it has {', '.join(known)}")
    sides = bridge or ("", "")
    files = {each: _File(ruleset, Way(each, *sides), name or each) for each in dict.fromkeys([hook, *known])}
    python = {each: file.written() for each, file in files.items()}
    outcomes = []
    for key, rules in ruleset.rules.items():
        for number, rule in enumerate(rules):
            outcomes.append(_outcome(ruleset, key, number, rule, hook, files))
    return Imported(python[hook], hook, tuple(outcomes))


def _outcome(
    ruleset: Ruleset, key: tuple[str, str], number: int, rule: dict[str, Any], hook: str, files: dict[str, _File]
) -> Outcome:
    """What became of a rule, with the chosen hook or the first other one that meets it."""
    met = {each: file.results[key, number] for each, file in files.items() if (key, number) in file.results}
    text = rule_text(rule)
    if not met:
        return Outcome(*key, text, _off_way(ruleset, key, rule))
    first = hook if hook in met else next(iter(met))
    reason = met[first]
    if reason and any(not other for other in met.values()):
        first, reason = next((each, "") for each, other in met.items() if not other)
    return Outcome(*key, text, reason, "" if first == hook else f"hook {first}")


def _off_way(ruleset: Ruleset, key: tuple[str, str], rule: dict[str, Any]) -> str:
    """Why no hook meets a rule."""
    for statement in rule.get("expr", ()):
        if (kind := next(iter(statement))) in _REFUSED:
            return _REFUSED[kind]
    kind = ruleset.chains.get(key, {}).get("type", "")
    return {"nat": _REFUSED["snat"], "route": _REFUSED["mangle"]}.get(kind, "no rule at a hook leads to its chain")


class _File:
    """One file on its way: the base chains of a path, the chains that they lead to, and what each rule became."""

    def __init__(self, ruleset: Ruleset, way: Way, name: str):
        self.ruleset, self.way, self.name = ruleset, way, name
        #: Of each rule that is met, why it is not imported; empty where it is.
        self.results: dict[tuple[tuple[str, str], int], str] = {}
        self.names = {"Pipeline", "DROP", "PASS"}
        self.tracks = False
        self.sets: dict[tuple[str, str], tuple[Field, ...]] = {}
        on_way = HOOKS[way.hook]
        bases = [c for c in _bases(ruleset) if c["hook"] in on_way]
        self.bases = sorted(bases, key=lambda c: (on_way.index(c["hook"]), _priority(c)))
        self.taken = set(RESERVED)
        self.variables: dict[tuple[str, ...], str] = {}

    def written(self) -> str:
        """The whole file."""
        bodies = []
        for number, base in enumerate(self.bases):
            bodies.append(self._base(number, base))
        declared = self._declared()
        last = self.bases[-1]
        default = "DROP" if last.get("policy") == "drop" else "PASS"
        lines = [f'"""{self._title()}"""', "", self._import(), ""]
        lines.append(f"pipe = Pipeline({literal(_pipeline_name(self.name))}, default={default})")
        if self.tracks:
            lines.append("pipe.track(loose=True)  # as Linux tracks: a connection may be picked up in its middle")
        lines += [*declared, *self._chain_lines()]
        for body in bodies:
            lines += ["", *body]
        return "\n".join(lines).rstrip() + "\n"

    def _title(self) -> str:
        chains = ", ".join(f"{c['family']} {c['table']} {c['name']}" for c in self.bases)
        how = {"output": "Attach it with --mode tc_egress.", "forward": "It is for a bridge of two devices."}
        use = how.get(self.way.hook, "Attach it to the device that packets come from.")
        return f"Imported from nftables: {chains}.\n\n{use}\n"

    def _import(self) -> str:
        names = sorted(self.names, key=lambda n: (n.islower(), n[0].islower(), n))
        text = f"from xdpkit import {', '.join(names)}"
        if len(text) <= 100:
            return text
        return "from xdpkit import (\n" + "".join(f"    {n},\n" for n in names) + ")"

    def variable(self, kind: str, table: str, name: str) -> str:
        """The variable of a chain or a set: its name, or one beside it where that is taken."""
        key = (kind, table, name)
        if key not in self.variables:
            made = base = identifier(name)
            number = 2
            while made in self.taken:
                made, number = f"{base}_{number}", number + 1
            self.taken.add(made)
            self.variables[key] = made
        return self.variables[key]

    # ---- chains

    def _base(self, number: int, base: dict[str, Any]) -> list[str]:
        """A base chain and those that only it leads to; what accept means differs from base chain to base chain."""
        table, name = f"{base['family']} {base['table']}", base["name"]
        last = number == len(self.bases) - 1
        accept = "PASS" if last else f"{self._base_variable(number + 1)}.goto"
        owner = "pipe" if number == 0 else self._base_variable(number)
        scope = _Scope(self, table, accept, str(number) if len(self.bases) > 1 else "")
        policy = "DROP" if base.get("policy") == "drop" else accept
        lines = [
            f"# ---- {table}: chain {name}, hook {base['hook']}, policy {base.get('policy', 'accept')}",
        ]
        lines += self._others(base["family"], owner, accept)
        lines += scope.chain(name, owner, returns=policy)
        if not last or number:
            lines.append(f"{owner}.rule({self._everything()}, {policy}, name={literal(f'{name} policy')})")
        done = set[str]()
        while todo := [c for c in scope.called if c not in done]:
            for chain in todo:
                done.add(chain)
                lines += ["", f"# ---- chain {chain}"]
                lines += scope.chain(chain, scope.chain_variable(chain), returns="RETURN")
        return lines

    def _others(self, family: str, owner: str, accept: str) -> list[str]:
        """The rule for packets that tables of this family do not see in nftables."""
        headers = {"inet": ("ip", "ip6"), "ip": ("ip",), "ip6": ("ip6",), "arp": ("arp",)}.get(family, ())
        if not headers:
            return []
        self.names.update(headers)
        seen = " | ".join(headers)
        condition = f"~({seen})" if len(headers) > 1 else f"~{seen}"
        return [
            f"# tables of the family {family} see no other packets",
            f"{owner}.rule({condition}, {accept}, name={literal(f'not {family}')})",
        ]

    def _everything(self) -> str:
        self.names.add("pkt")
        return "pkt"

    def _base_variable(self, number: int) -> str:
        base = self.bases[number]
        table = f"{base['family']} {base['table']}"
        return self.variable("base", table, base["name"])

    def _chain_lines(self) -> list[str]:
        chains = [(key, made) for key, made in self.variables.items() if key[0] in ("base", "chain")]
        lines = [f"{made} = pipe.chain({literal(made)})" for _, made in chains]
        return ["", *lines] if lines else []

    # ---- sets

    def _declared(self) -> list[str]:
        lines = []
        for (table, name), key in self.sets.items():
            try:
                lines.append(self._set(table, name, key))
            except NotImported as error:
                lines.append(f"# set {name} is not as it was: {error}")
                names = ", ".join(f.text for f in key)
                lines.append(f"{self.variable('set', table, name)} = pipe.set({literal(name)}, {names})")
        return ["", *lines] if lines else []

    def _set(self, table: str, name: str, key: tuple[Field, ...]) -> str:
        what = self.ruleset.of(table, "set")[name]
        flags = what.get("flags", [])
        flags = [flags] if isinstance(flags, str) else flags
        members, intervals = [], "interval" in flags
        for element in what.get("elem", ()):
            inner = element["elem"]["val"] if isinstance(element, dict) and "elem" in element else element
            parts = inner["concat"] if isinstance(inner, dict) and "concat" in inner else [inner]
            if any(isinstance(p, dict) for p in parts[:-1]):
                raise NotImported("prefixes and ranges stand in its last field only here")
            members.append(" . ".join(_member(f, p) for f, p in zip(key, parts, strict=True)))
        fields = ", ".join(f.text for f in key)
        more = [f"intervals={intervals}"] if intervals != (len(key) == 1 and key[0].kind == "addr") else []
        more += [f"capacity={what['size']}"] if what.get("size") else []
        more += ["timeouts=True"] if "timeout" in flags else []
        head = f"{self.variable('set', table, name)} = pipe.set({', '.join([literal(name), fields, *more])}"
        if not members:
            return head + ")"
        inline = f"{head}, members=[{', '.join(map(literal, members))}])"
        if len(inline) <= 100:
            return inline
        return "\n".join([f"{head}, members=[", *(f"    {literal(m)}," for m in members), "])"])


class _Scope:
    """The chains of one table as one base chain leads to them: ``accept`` is what accept means."""

    def __init__(self, file: _File, table: str, accept: str, suffix: str):
        self.file, self.table, self.accept, self.suffix = file, table, accept, suffix
        self.called: dict[str, None] = {}
        self.rule_names: dict[str, set[str]] = {}

    def chain_variable(self, name: str) -> str:
        """The variable of a chain that is jumped to."""
        return self.file.variable("chain", f"{self.table}/{self.suffix}", name)

    def chain(self, name: str, owner: str, returns: str) -> list[str]:
        """The rules of a chain, appended to ``owner``."""
        lines: list[str] = []
        if (self.table, name) not in self.file.ruleset.chains:
            return [f"# chain {name} is not in the ruleset"]
        for number, rule in enumerate(self.file.ruleset.rules.get((self.table, name), ())):
            lines.append(f"# {rule_text(rule)}")
            try:
                made = _Rule(self, name, owner, returns).made(rule)
            except NotImported as error:
                self.file.results.setdefault(((self.table, name), number), str(error))
                lines.append(f"# NOT IMPORTED: {error}")
                continue
            self.file.results[(self.table, name), number] = ""
            lines += made
        return lines

    def rule_name(self, owner: str, wanted: str) -> str:
        """``wanted``, or with a number behind it where another rule of the chain has it."""
        names = self.file_names(owner)
        made, number = wanted, 2
        while made in names:
            made, number = f"{wanted} {number}", number + 1
        names.add(made)
        return made

    def file_names(self, owner: str) -> set[str]:
        """The names that the rules of ``owner`` have."""
        return self.rule_names.setdefault(owner, {"default", "flow table full"})


class _Rule:
    """One rule on its way: conditions so far, steps so far, lines that are done."""

    def __init__(self, scope: _Scope, chain: str, owner: str, returns: str):
        self.scope, self.file, self.chain, self.owner, self.returns = scope, scope.file, chain, owner, returns
        declared = self.file.ruleset.of(scope.table, "set")
        used = {name: key for (table, name), key in self.file.sets.items() if table == scope.table}
        self.conditions = Conditions(self.file.way, declared, self._set_variable, used)
        self.tests: list[Condition] = []
        self.steps: list[str] = []
        self.lines: list[str] = []
        self.names = set[str]()
        self.label = ""

    def _set_variable(self, name: str) -> str:
        return self.file.variable("set", self.scope.table, name)

    def made(self, rule: dict[str, Any]) -> list[str]:
        """The lines of a rule.  NotImported if one of its statements cannot be said."""
        self.label = _NAME.sub("?", str(rule.get("comment", ""))).strip()
        called = dict(self.scope.called)
        try:
            self._statements(rule.get("expr", []))
        except NotImported:
            self.scope.called = called
            raise
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            self.scope.called = called
            raise NotImported(f"it is written in a way that is not known here ({error!r})") from None
        self.file.names |= self.names | self.conditions.names
        self.file.tracks |= self.conditions.tracks
        for name, key in self.conditions.used.items():
            self.file.sets.setdefault((self.scope.table, name), key)
        return self.lines

    def _statements(self, statements: list[dict[str, Any]]) -> None:
        for statement in statements:
            kind, what = next(iter(statement.items()))
            if kind in _REFUSED:
                raise NotImported(_REFUSED[kind])
            if kind == "counter":
                continue  # every rule counts
            if kind == "match":
                self._add(self.conditions.match(what["left"], what["op"], what["right"]))
            elif kind in ("limit", "quota"):
                self._add(self._limit(what) if kind == "limit" else self._quota(what))
            elif kind in ("set", "meter"):
                self._set_statement(kind, what)
            elif kind == "log":
                self._log(what or {})
            elif kind == "vmap":
                self._vmap(what)
                return
            else:
                self._end(self._verdict(kind, what), self.label)
                return
        self._end("", self.label)

    def _add(self, condition: Condition) -> None:
        """One more condition; steps in front of it are done whether it holds or not."""
        if self.steps:
            if any(c.counts for c in self.tests):
                raise NotImported("a condition behind a step behind a limit")
            self._end("", self.label)
        self.tests.append(condition)

    def _end(self, verdict: str, label: str, extra: Condition | None = None) -> None:
        tests = [*self.tests, *([extra] if extra is not None else [])]
        condition = joined(tests).text if tests else self.file._everything()
        then = [*self.steps, *([verdict] if verdict else [])]
        if not then:
            self.names.add("COUNT")
            then = ["COUNT"]
        wanted = label or f"{self.chain} {len(self.scope.file_names(self.owner)) - 1}"
        name = self.scope.rule_name(self.owner, wanted)
        arguments = [condition, *then, f"name={literal(name)}"]
        line = f"{self.owner}.rule({', '.join(arguments)})"
        if len(line) > 110:
            line = f"{self.owner}.rule(\n" + "".join(f"    {a},\n" for a in arguments) + ")"
        self.lines.append(line)
        self.steps = []

    def _verdict(self, kind: str, what: Any) -> str:
        if kind == "accept":
            return self.scope.accept
        if kind == "drop":
            return "DROP"
        if kind == "continue":
            return ""
        if kind == "return":
            if self.returns == "RETURN":
                self.names.add("RETURN")
            return self.returns
        if kind in ("jump", "goto"):
            self.scope.called.setdefault(what["target"])
            return f"{self.scope.chain_variable(what['target'])}.{kind}"
        if kind == "reject":
            return self._reject(what or {})
        if kind == "fwd" and isinstance(what.get("dev"), str):
            self.names.add("Forward")
            return f"Forward({literal(what['dev'])})"
        raise NotImported(f"the statement {kind} is not known here")

    def _reject(self, what: dict[str, Any]) -> str:
        if what.get("type") == "tcp reset":
            answer = "tcp-rst"
        else:
            code = what.get("expr", "port-unreachable")
            if code not in _REJECTS:
                raise NotImported(f"reject with {what.get('type')} {code}: there is no such answer here")
            answer = _REJECTS[code]
        if answer == "icmp-port-unreachable":
            self.names.add("REJECT")
            return "REJECT"
        self.names.add("Reject")
        return f"Reject({literal(answer)})"

    def _log(self, what: dict[str, Any]) -> None:
        self.names.add("log")
        self.steps.append("log()")
        self.label = self.label or str(what.get("prefix", "")).strip(" :")

    # ---- what counts

    def _named(self, kind: str, what: Any) -> tuple[dict[str, Any], str]:
        """The declaration of a limit or quota, and its name if it has one."""
        if not isinstance(what, str):
            return what, ""
        objects = self.file.ruleset.of(self.scope.table, kind)
        if what not in objects:
            raise NotImported(f"{kind} {what!r} is not declared")
        return objects[what], what

    def _limit(self, what: Any, per: str = "") -> Condition:
        what, name = self._named("limit", what)
        if name and self._times_used("limit", name) > 1:
            raise NotImported(f"limit {name!r} is shared by several rules; each limit is its own here")
        if what["per"] not in _PERIODS:
            raise NotImported(f"a limit per {what['per']}")
        unit = what.get("rate_unit", "packets")
        rate = f"{what['rate']}/{what['per']}" if unit == "packets" else f"{what['rate']} {unit}/{what['per']}"
        burst = what.get("burst", 5 if unit == "packets" else 0)
        scale = {"bytes": 1, "kbytes": 1 << 10, "mbytes": 1 << 20}.get(what.get("burst_unit", "bytes"), 1)
        more = [f"burst={burst * (1 if unit == 'packets' else scale)}"] if burst else []
        more += [f"per={per}"] if per else []
        self.names.add("limit")
        found = Condition(f"limit({', '.join([literal(rate), *more])})", bare=True, counts=True)
        return found.negated() if what.get("inv") else found

    def _times_used(self, kind: str, name: str) -> int:
        rules = (rule for rules in self.file.ruleset.rules.values() for rule in rules)
        return sum(statement.get(kind) == name for rule in rules for statement in rule.get("expr", ()))

    def _quota(self, what: Any) -> Condition:
        what, name = self._named("quota", what)
        size = what.get("val", what.get("bytes"))
        text = f"{size} {what.get('val_unit', 'bytes')}"
        self.names.add("quota")
        more = f", name={literal(name)}" if name else ""
        found = Condition(f"quota({literal(text)}{more})", bare=True, counts=True)
        return found.negated() if what.get("inv") else found

    def _set_statement(self, kind: str, what: dict[str, Any]) -> None:
        """add and update of a set, and meters: a member, or a limit for each key."""
        key = what["elem"] if kind == "set" else what["key"]
        timeout = None
        if "elem" in key:
            timeout, key = key["elem"].get("timeout"), key["elem"]["val"]
        fields = self._key(key)
        limits = [s for s in statements_of(what) if "counter" not in s]
        if any(next(iter(s)) not in ("limit", "quota") for s in limits):
            wrong = next(iter(next(s for s in limits if next(iter(s)) not in ("limit", "quota"))))
            raise NotImported(_REFUSED.get(wrong, f"{wrong} for each member of a set"))
        if limits:
            per = fields[0].text if len(fields) == 1 else f"({', '.join(f.text for f in fields)})"
            for each in limits:
                if "quota" in each:
                    raise NotImported("a quota for each member of a set")
                found = self._limit(each["limit"], per)
                headers = list(dict.fromkeys(f.header for f in fields if f.header))
                if each["limit"].get("inv"):
                    found = Condition(" & ".join([*headers, found.text]), counts=True, operator="&")
                self._add(found)
            return
        if kind == "meter" or what["op"] == "delete":
            raise NotImported(f"{what.get('op', 'a meter without a limit')} of a set's members")
        name = what["set"].removeprefix("@")
        declared = self.conditions.sets.get(name)
        if declared is None:
            raise NotImported(f"{what['set']} is not declared")
        first = self.conditions.used.setdefault(name, tuple(fields))
        timed = "timeout" in declared.get("flags", [])
        timeout = timeout if timeout is not None else declared.get("timeout")
        arguments = [] if first == tuple(fields) else [f.text for f in fields]
        arguments += [f"timeout={timeout}"] if timeout and timed else []
        self.steps.append(f"{self._set_variable(name)}.add({', '.join(arguments)})")

    def _key(self, key: dict[str, Any]) -> list[Field]:
        parts = key.get("concat", [key])
        found = [self.conditions.fields(part) for part in parts]
        if any(len(f) != 1 for f in found):
            raise NotImported("a key that is a field of several protocols")
        return [f[0] for f in found]

    def _vmap(self, what: dict[str, Any]) -> None:
        """A verdict map: a rule for each of its elements."""
        if any(c.counts for c in self.tests):
            raise NotImported("a limit in front of a verdict map")
        if self.steps:
            self._end("", self.label)
        data = what["data"]
        if isinstance(data, str):
            maps = self.file.ruleset.of(self.scope.table, "map")
            if data.removeprefix("@") not in maps:
                raise NotImported(f"map {data} is not declared")
            elements = maps[data.removeprefix("@")].get("elem", [])
        else:
            elements = data["set"] if isinstance(data["set"], list) else [data["set"]]
        key = what["key"]
        if "numgen" in key:
            raise NotImported("a verdict map over numgen: each condition here counts by itself")
        before = self.conditions.protocols
        for element, verdict in elements:
            self.conditions.protocols = before
            extra = self._key_is(
                key, element["elem"]["val"] if isinstance(element, dict) and "elem" in element else element
            )
            self._end(self._verdict(*next(iter(verdict.items()))), self.label, extra)

    def _key_is(self, key: dict[str, Any], element: Any) -> Condition:
        if "concat" in key:
            return self.conditions.element(key["concat"], element)
        return self.conditions.match(key, "==", element)


def _member(f: Field, value: Any) -> str:
    if isinstance(value, dict):
        if "prefix" in value:
            return f"{value['prefix']['addr']}/{value['prefix']['len']}"
        if "range" in value:
            return "-".join(str(value_of(f, end)) for end in value["range"])
        raise NotImported(f"a member {value}")
    return str(value_of(f, value))


def _priority(base: dict[str, Any]) -> int:
    value = base.get("prio", 0)
    return value if isinstance(value, int) else _STANDARD.get(str(value), 0)


def _pipeline_name(name: str) -> str:
    made = re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:63]
    return made if made and (made[0].isalpha() or made[0] == "_") else f"_{made}"[:63]

"""Pipelines: an ordered list of rules, first match wins, and a default.

A pipeline is a value: it does no I/O and knows no kernel.  ``load_file`` is the one exception, for the command line:
it runs a Python file and finds the pipeline that it declares.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from .actions import (
    CONTINUE,
    COUNT,
    DROP,
    OTHER,
    PASS,
    Across,
    Action,
    Forward,
    Inspect,
    Redirect,
    Shadow,
    Step,
    Verdict,
    across,
)
from .chains import Calls, ChainSpec, Goto, Jump, Return
from .check import Finding, PipelineWarning, Seen, findings_of_chains, lacking_keys, refuse_impossible
from .counted import Draw, Quota
from .devices import MAX_DEVICES, devices_of
from .errors import PipelineError, Where
from .expr import Always, And, Expr, Not, Or, as_expr, here
from .fields import families
from .headers import arp, dst, icmp6, src, tcp
from .limits import Bucket, Limit, Log, Sample, limit
from .metadata import metadata_fields
from .neighbours import protocols
from .rule import Rule
from .sets import DEFAULT_CAPACITY, Add, Feed, Member, Set, SetSpec, declare
from .tracking import Timeouts, Tracking, is_about_flows, tracking

__all__ = ["Chain", "Pipeline", "load_file"]

#: Counters of pairs of verdicts, of a pipeline and its shadow: 8 times 8.
MATRIX = 64
#: classify() packs the rule into 16 bits, and the device or socket group into 10.
MAX_RULES = 65_535
MAX_TARGETS = 1023
#: Answers to rejected packets, at most.
DEFAULT_REJECTS = "1000/second"
#: Fields whose value depends on the time.
CLOCK = ("meta.day", "meta.hour")
DEFAULT_NAME = "default"
#: The outcome of packets that a rule lets go and that find no room in the table of flows.
FULL_NAME = "flow table full"


class Pipeline:
    """A named, ordered list of rules with a ``default`` action for packets that no rule takes.  PipelineError for a
    wrong name, default or limit of rejects.

    >>> pipe = Pipeline("dns")
    >>> pipe.rule(udp.dport == 53, REDIRECT, name="dns")
    """

    def __init__(self, name: str, *, default: Action = PASS, rejects: str = DEFAULT_REJECTS):
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,62}", name):
            raise PipelineError(f"pipeline name {name!r}: letters, digits, '_', '.', '-', at most 63", here())
        self.name: str = name
        self.default: Action = _action(default)
        #: The limit on what REJECT answers, for all rules together; what is over it is dropped without an answer.
        self.rejects: Limit = _reject_limit(rejects)
        self.where: Where = here()
        self._otherwise = Rule(DEFAULT_NAME, Always(where=self.where), self.default, self.where)
        #: The pipeline's own rules under "", and those of each chain under its name.
        self._rules: dict[str, list[Rule]] = {"": []}
        self._chains: dict[str, ChainSpec] = {}
        self._calls = Calls()
        self._names: set[str] = {DEFAULT_NAME}
        self._sets: dict[str, SetSpec] = {}
        self._targets, self._devices = set[str](), dict[str, None]()
        self._tracking: Tracking | None = None
        #: The shadow, whose rules see every packet and act on none: see :meth:`with_shadow`.
        self.shadowed: Pipeline | None = None
        self._seen, self._findings = dict[str, Seen](), list[Finding]()

    def set(
        self, name: str, *fields: object, capacity: int = DEFAULT_CAPACITY, intervals: bool | None = None,
        timeouts: bool = False, pinned: bool = False, members: Iterable[object] = (), source: str | None = None,
        feed: Feed | None = None,
    ) -> Set:  # fmt: skip
        """Declare a set keyed by ``fields``.  As a condition it is true if the packet's own values are in the set.

        ``intervals``: members may be prefixes and ranges of the last field (default: for a single address field);
        otherwise each is one value, and looked up faster.  ``timeouts``: members may have one.  ``capacity``: members
        at most; a range counts as the prefixes that cover it.  ``members``: those it starts with; ``source``: a file of
        more, beside this one, read when the pipeline is attached; ``feed``: a list that others publish, which
        ``xdpkit firewall`` reads again and again.  ``pinned``: it is shared, by its name, with all
        pipelines of this machine that say so, and outlives them."""
        return self._declare(
            name, fields, capacity=capacity, intervals=intervals, timeouts=timeouts, pinned=pinned, actions=(),
            members=members, source=source, feed=feed,
        )  # fmt: skip

    def bans(self, *, capacity: int = 100_000, members: Iterable[object] = ()) -> Set:
        """Declare the set ``bans``: sources, IPv4 and IPv6, addresses and prefixes, each for a time or for ever.
        People change it with ``xdpkit firewall ban``, rules with ``.add(timeout=...)``."""
        return self.set("bans", src, capacity=capacity, intervals=True, timeouts=True, members=members)

    def management(self, *sources: str, ports: Iterable[int] = (22,)) -> tuple[Rule, ...]:
        """Declare who manages the machine, so that no later rule can cut them off: packets between ``sources``
        (addresses and prefixes, IPv4 or IPv6) and these TCP ports pass, in both directions, and so do ARP and IPv6
        neighbour discovery, without which nothing gets through.

        PipelineError if a rule that may drop a packet, or lead it to a chain, stands before it."""
        before = next(
            (r for r in self._rules[""] if r.action != CONTINUE and r.action.verdict is not Verdict.PASS), None
        )
        if before is not None:
            said = f"rule {before.name!r} ({before.where}) could cut management off: declare management before it"
            raise PipelineError(said, here())
        numbers = tuple(ports)
        if not sources or not numbers:
            raise PipelineError("management: which sources, and which TCP ports?", here())
        neighbours = arp.present | icmp6.type.between(133, 136)
        return (
            self.rule(src.within(*sources) & tcp.dport.isin(numbers), PASS, name="management"),
            self.rule(dst.within(*sources) & tcp.sport.isin(numbers), PASS, name="management-replies"),
            self.rule(neighbours, PASS, name="management-neighbours"),
        )

    def neighbours(
        self, *, arp: bool | None = True, nd: bool | None = True, lldp: bool | None = False,
        stp: bool | None = False, multicast: bool | None = None,
    ) -> tuple[Rule, ...]:  # fmt: skip
        """Declare what becomes of the protocols by which neighbours find each other, before the rules that think of
        addresses and ports: True passes them, False drops them, None leaves them to the rules behind.

        ``arp``: ARP.  ``nd``: IPv6 neighbour discovery and router advertisements (RFC 4861), with a hop limit of 255.
        ``lldp``: LLDP (IEEE 802.1AB).  ``stp``: spanning tree (IEEE 802.1D, and Cisco's PVST+).  ``multicast``: IGMP,
        MLD, and all IPv4 and IPv6 packets to multicast addresses.  The rules are ``neighbours-arp`` and so on.
        PipelineError for another value."""
        wanted = {"arp": arp, "nd": nd, "lldp": lldp, "stp": stp, "multicast": multicast}
        for name, passes in wanted.items():
            if passes not in (True, False, None):
                raise PipelineError(f"neighbours: {name} is True, False or None, not {passes!r}", here())
        return tuple(
            self.rule(condition, PASS if wanted[name] else DROP, name=f"neighbours-{name}")
            for name, condition in protocols().items()
            if wanted[name] is not None
        )

    def vmap(
        self, name: str, *fields: object, actions: Iterable[Action] | None = None, capacity: int = DEFAULT_CAPACITY,
        intervals: bool | None = None, timeouts: bool = False, pinned: bool = False,
        members: dict[Any, Action] | Iterable[object] = (), source: str | None = None,
    ) -> Set:  # fmt: skip
        """Declare a verdict map: a set whose members each have one of ``actions``; :meth:`apply` makes it act.  By
        default ``actions`` are PASS, DROP and those of ``members``.  The other arguments and errors (PipelineError) are
        those of :meth:`set`."""
        if actions is None:
            theirs = members.values() if isinstance(members, dict) else ()
            actions = (PASS, DROP, *(action for action in theirs if isinstance(action, Action)))
        known = tuple(dict.fromkeys(map(_rule_action, actions)))
        if not known:
            raise PipelineError(f"verdict map {name!r}: which actions may its members have?", here())
        return self._declare(
            name, fields, capacity=capacity, intervals=intervals, timeouts=timeouts, pinned=pinned, actions=known,
            members=members, source=source,
        )  # fmt: skip

    def _declare(self, name: str, fields: Iterable[object], **options: Any) -> Set:
        spec = declare(name, fields, **options)
        if name in self._sets:
            raise PipelineError(f"set {name!r} is declared already", here())
        self._sets[name] = spec
        return Set(spec)

    def track(
        self, *, capacity: int = 100_000, half_open: int = 65_536, full: Action = DROP, loose: bool = False,
        count: bool = False, timeouts: Timeouts | Mapping[str, float] | None = None,
    ) -> Tracking:  # fmt: skip
        """Track connections, so that rules can ask for ``ct.new``, ``ct.established``, ``ct.related`` and
        ``ct.invalid``.  Once for a pipeline, before the rules that ask.

        ``capacity``: flows that were seen in both directions; no flood takes their place.  ``half_open``: flows that
        were not answered yet; the least recently used gives way.  ``full``: the verdict, DROP or PASS, of a packet
        that would complete a flow for which there is no room; a dropped one is counted as "flow table full".
        ``loose``: a TCP packet in the middle of an unknown connection is new, not invalid.  ``count``: packets and
        bytes of each flow.  ``timeouts``: :class:`Timeouts`, or those that differ by name, in seconds.  Raises
        PipelineError."""
        if self._tracking is not None:
            raise PipelineError(f"the pipeline tracks already, since {self._tracking.where}", here())
        made = tracking(capacity, half_open, full, loose, count, timeouts)
        self._follow(made)
        return made

    def _follow(self, made: Tracking) -> None:
        if FULL_NAME in self._names:
            raise PipelineError(f"rule name {FULL_NAME!r} is taken: a pipeline that tracks counts by it", here())
        self._tracking = made
        self._names.add(FULL_NAME)

    def chain(self, name: str) -> Chain:
        """Declare a chain: a list of rules of its own that other rules jump to, ``pipe.rule(tcp, web.jump)``.  Its
        rules are counted as ``NAME/RULE``.  PipelineError for a name that is taken or is no name."""
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,62}", name):
            raise PipelineError(f"chain name {name!r}: letters, digits, '_', '.', '-', at most 63", here())
        if name in self._chains:
            raise PipelineError(f"chain {name!r} is declared already", here())
        spec = self._chains[name] = ChainSpec(name, here())
        self._rules[name] = []
        return Chain(self, spec)

    def rule(self, condition: object, *then: object, name: str | None = None) -> Rule:
        """Append a rule.  ``then`` is an action, or steps (COUNT, Mirror, Mark, log(), set.add()) with or without an
        action behind them.  A rule without an action counts the packet and does its steps; then the next rule is tried.
        Actions are the verdicts (PASS, DROP, TX, REDIRECT, Forward), RETURN, and ``jump`` and ``goto`` of a chain.
        ``name`` is the name of the rule's counters: unique, by default ``rule-N``.

        Raises PipelineError if the rule is wrong or its condition can never hold.  Warns with PipelineWarning, at the
        line of the caller, if an earlier rule takes all that this one could match (see :meth:`check`)."""
        return self._rule("", condition, then, name)

    def _rule(self, chain: str, condition: object, then: tuple[object, ...], name: str | None) -> Rule:
        name = self._name(name, chain)
        expr = as_expr(condition)
        steps, action = _then(then)
        self._owns(expr, steps)
        expr, steps = _named_buckets(expr, steps, name)
        rule = Rule(name, expr, action, here(), steps, chain=chain)
        refuse_impossible(rule.expr)
        self._warn_of_lacking_keys(rule)
        return self._append(rule)

    @staticmethod
    def _warn_of_lacking_keys(rule: Rule) -> None:
        """Warn of a rule that takes packets because they have no key for a negated limit or set.  Such a rule is mostly
        a mistake that cuts off IPv4 or IPv6."""
        for keyed, needs in lacking_keys(rule.expr):
            hint = " (or key it by src or dst, which serve IPv4 and IPv6)" if needs in ("ip", "ip6") else ""
            said = (
                f"rule {rule.name!r}: {Not(keyed, where=rule.where)} is also true of every packet without {needs}, "
                f"because such a packet has no key: add `{needs} &` in front{hint}"
            )
            warnings.warn_explicit(said, PipelineWarning, rule.where.file, rule.where.line)
            return

    def apply(self, vmap: Set, *, when: object = None, name: str | None = None) -> tuple[Rule, ...]:
        """Append a verdict map: a packet whose key is in the map, and for which ``when`` holds, meets the action of its
        key; other packets go on to the next rule.  The counters show a rule for each action, ``NAME:ACTION``.  Raises
        PipelineError where ``vmap`` is no verdict map of this pipeline, or ``when`` has a limit or a sample."""
        return self._apply("", vmap, when, name)

    def _apply(self, chain: str, vmap: Set, when: object, name: str | None) -> tuple[Rule, ...]:
        if not isinstance(vmap, Set) or not vmap.spec.actions:
            raise PipelineError(f"apply wants a verdict map, made by pipe.vmap, not {vmap!r}", here())
        name = self._name(name if name is not None else vmap.name, chain)
        base = () if when is None else (as_expr(when),)
        if any(isinstance(node, (Bucket, Draw, Sample)) for expr in base for node in expr.nodes()):
            raise PipelineError("apply: a limit or sample goes into a rule of its own, not into `when`", here())
        condition = vmap.condition()
        lookup = condition if isinstance(condition, Member) else None  # an address of either family has two look-ups
        self._owns(condition, ())
        made = []
        for number, action in enumerate(vmap.spec.actions):
            member = vmap.with_action(number)
            expr = And((*base, member), where=here()) if base else member
            made.append(self._append(Rule(f"{name}:{action}", expr, action, here(), (), lookup, chain)))
        return tuple(made)

    def _name(self, name: str | None, chain: str) -> str:
        if sum(map(len, self._rules.values())) >= MAX_RULES:
            raise PipelineError(f"more than {MAX_RULES} rules", here())
        name = name if name is not None else f"rule-{len(self._rules[chain]) + 1}"
        if not isinstance(name, str) or not name or not name.isprintable():
            raise PipelineError(f"rule name {name!r}: a printable string is wanted", here())
        name = f"{chain}/{name}" if chain else name
        if name in self._names:
            raise PipelineError(f"rule name {name!r} is taken: counters are known by name", here())
        return name

    def _owns(self, expr: Expr, steps: tuple[Step, ...]) -> None:
        """The sets in a rule must be this pipeline's own, and what it asks of flows must be known."""
        about = next(filter(is_about_flows, expr.nodes()), None)
        if about is not None and self._tracking is None:
            raise PipelineError(f"{about} needs a pipeline that tracks: call pipe.track() before this rule", here())
        used = [node.set for node in expr.nodes() if isinstance(node, Member)]
        used += [step.set for step in steps if isinstance(step, Add)]
        for spec in used:
            if self._sets.get(spec.name) is not spec:
                raise PipelineError(f"set {spec.name!r} was declared for another pipeline", here())

    def _append(self, rule: Rule) -> Rule:
        name = rule.name
        if name in self._names:
            raise PipelineError(f"rule name {name!r} is taken: counters are known by name", here())
        if isinstance(rule.action, Jump):
            self._calls_chain(rule, rule.action)
        self._names.add(name)
        self._rules[rule.chain].append(rule)
        if isinstance(rule.action, (Forward, Redirect)):
            self._targets.add(str(rule.action))
            if len(self._targets) > MAX_TARGETS:
                raise PipelineError(f"more than {MAX_TARGETS} devices and socket groups", rule.where)
        self._devices |= dict.fromkeys(devices_of(rule.nodes()))
        if len(self._devices) > MAX_DEVICES:
            raise PipelineError(f"more than {MAX_DEVICES} names of devices in conditions", rule.where)
        if rule.action == CONTINUE:
            return rule  # the packet reaches the rules behind it all the same
        finding = self._seen.setdefault(rule.chain, Seen()).add(name, rule.expr, rule.where, takes=rule.leaves)
        if finding:
            self._findings.append(finding)
            said = f"rule {name!r} is {finding.kind}: {finding.by!r} before it takes all that it could match"
            warnings.warn_explicit(said, PipelineWarning, rule.where.file, rule.where.line)
        return rule

    def _calls_chain(self, rule: Rule, action: Jump) -> None:
        """The chain must be this pipeline's own, and not lead back here."""
        if self._chains.get(action.chain.name) is not action.chain:
            said = f"{action}: chain {action.chain.name!r} ({action.chain.where}) is not one of pipeline {self.name!r}"
            raise PipelineError(f"{said}: declare it with pipe.chain({action.chain.name!r})", rule.where)
        self._calls.add(rule.chain, action.chain.name, rule.where)

    def check(self) -> list[Finding]:
        """The rules that never match because of an earlier one, or because no packet that they want comes to their
        chain, and the chains that no packet comes to.  Each finding is certain, but not every such rule is found."""
        return [*self._findings, *self.chain_findings()]

    def chain_findings(self) -> list[Finding]:
        """Those of :meth:`check` that only the whole pipeline shows: compiling it warns of them."""
        return list(findings_of_chains(self._chains.values(), self.rules)) if self._chains else []

    def declared_at(self, where: Where) -> None:
        """Note the line that declared the pipeline and its default, as a built file has it."""
        self.where = where
        self._otherwise = replace(self._otherwise, where=where)

    def restore(
        self, rules: Iterable[Rule], sets: Iterable[SetSpec] = (), chains: Iterable[ChainSpec] = (),
        tracked: Tracking | None = None,
    ) -> None:  # fmt: skip
        """Append rules, sets and chains that were declared before, and what is tracked, as a built file has them.
        PipelineError for a rule of a chain, or one that jumps to a chain, that is not there."""
        self._sets |= {spec.name: spec for spec in sets}
        for spec in chains:
            self._chains[spec.name] = spec
            self._rules.setdefault(spec.name, [])
        if tracked is not None:
            self._follow(tracked)
        for rule in rules:
            missing = next((c for c in (rule.chain, rule.target) if c and c not in self._chains), None)
            if missing is not None:
                raise PipelineError(f"rule {rule.name!r}: there is no chain {missing!r}", rule.where)
            if rule.target is not None:
                self._calls.add(rule.chain, rule.target, rule.where)
            self._rules[rule.chain].append(rule)
            self._names.add(rule.name)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules as declared: the pipeline's own, and then those of each chain.  The default is not among them."""
        return tuple(rule for rules in self._rules.values() for rule in rules)

    @property
    def chains(self) -> tuple[ChainSpec, ...]:
        """The declared chains."""
        return tuple(self._chains.values())

    def rules_of(self, chain: str = "") -> tuple[Rule, ...]:
        """The rules of a chain, by its name, or the pipeline's own.  Raises KeyError where there is no such chain."""
        return tuple(self._rules[chain])

    @property
    def outcomes(self) -> tuple[Rule, ...]:
        """The rules, the outcome of packets that find the table of flows full (where those are dropped), and, last, the
        default as a rule that takes every packet: one counter each."""
        return (*self.rules, *self._full, self._otherwise)

    @property
    def _full(self) -> tuple[Rule, ...]:
        if self._tracking is None or self._tracking.full == PASS:
            return ()
        where = self._tracking.where
        return (Rule(FULL_NAME, Not(Always(where=where), where=where), self._tracking.full, where),)

    @property
    def tracking(self) -> Tracking | None:
        """What :meth:`track` declared, None where the pipeline does not track."""
        return self._tracking

    @property
    def full_outcome(self) -> int | None:
        """The number, in :attr:`outcomes`, of the one of packets that find the table of flows full; None where they
        pass."""
        return len(self.rules) if self._full else None

    @property
    def verdicts(self) -> frozenset[str]:
        """The names of all verdicts that the pipeline can give."""
        actions = [rule.action for rule in self.outcomes if not rule.goes_on]
        crossing = [Across() for a in actions if isinstance(a.fallback, Across) or isinstance(a, Inspect)]
        return frozenset(action.verdict.name for action in (*actions, *crossing))

    @property
    def sets(self) -> tuple[SetSpec, ...]:
        """The declared sets and verdict maps, including those of a shadow."""
        theirs = {spec.name: spec for spec in self.shadowed.sets} if self.shadowed is not None else {}
        return tuple((theirs | self._sets).values())

    @property
    def limits(self) -> tuple[Bucket, ...]:
        """Every limit, quota and counter in the rules; those of one name in ``bucket`` have the same bucket."""
        return tuple(node for rule in self.every_rule for node in rule.nodes() if isinstance(node, Bucket))

    @property
    def remembers(self) -> bool:
        """Whether the verdict on a packet may depend on the packets before it."""
        return bool(self.limits) or Add in self.steps or self._tracking is not None

    @property
    def is_timed(self) -> bool:
        """Whether a verdict may depend on time or chance."""
        nodes = (node for rule in self.every_rule for node in rule.nodes())
        if any(isinstance(node, (Bucket, Draw, Sample)) for node in nodes) or any(s.timeouts for s in self.sets):
            return True
        return self._tracking is not None or not self.headerless_fields.isdisjoint(CLOCK)

    @property
    def headerless_fields(self) -> frozenset[str]:
        """The names of the fields that rules test and that belong to no header: ``pkt.len``, ``meta.mark``,
        ``meta.hour``."""
        return frozenset(spec.name for rule in self.every_rule for spec in rule.fields() if spec.header is None)

    @property
    def devices(self) -> tuple[str, ...]:
        """The names of devices that conditions ask for, the sides of a bridge (``/inside``) among them."""
        return devices_of(node for rule in self.every_rule for node in rule.nodes())

    @property
    def steps(self) -> frozenset[type[Step]]:
        """The kinds of steps in the rules."""
        return frozenset(type(step) for rule in self.rules for step in rule.steps)

    def targets(self, kind: type[Forward] | type[Redirect]) -> tuple[str, ...]:
        """The devices that rules FORWARD to, or the socket groups that rules REDIRECT to, in the order of the rules.
        The first group is always "", that of the ordinary sockets; the other device of a bridge is the first device."""
        actions = [rule.action for rule in self.outcomes if isinstance(rule.action, kind)]
        names = [a.device if isinstance(a, Forward) else a.group for a in actions if isinstance(a, (Forward, Redirect))]
        if kind is Redirect:
            return tuple(dict.fromkeys(["", *names]))
        crosses = any(isinstance(a, Across) for rule in self.outcomes for a in (rule.action, rule.action.fallback))
        return tuple(dict.fromkeys([OTHER, *names] if crosses else names))

    @property
    def every_rule(self) -> tuple[Rule, ...]:
        """The outcomes, then those of a shadow: the order in which the program numbers them."""
        return self.outcomes + (self.shadowed.outcomes if self.shadowed is not None else ())

    def with_shadow(self, other: Pipeline) -> Pipeline:
        """These rules with ``other`` as their shadow: both judge each packet, and only these rules act.  Sets of the
        same name are shared.  Raises PipelineError if two such sets are of different kinds."""
        mine = {spec.name: spec for spec in self._sets.values()}
        for spec in other.sets:
            if spec.name in mine and mine[spec.name].kind != spec.kind:
                kinds = f"{mine[spec.name].kind} in {self.name!r}, and {spec.kind} in its shadow"
                raise PipelineError(f"set {spec.name!r} is {kinds}: give it another name", spec.where)
        both = Pipeline(self.name, default=self.default, rejects=self.rejects.text)
        both.where, both._otherwise = self.where, self._otherwise
        follows = replace(other._tracking, full=PASS) if other._tracking is not None else None  # it must not drop
        both.restore(self.rules, self._sets.values(), self.chains, self._tracking or follows)
        both.shadowed = other.shadow()
        if len(both.every_rule) > MAX_RULES - MATRIX:
            raise PipelineError(f"more than {MAX_RULES - MATRIX} rules, with those of the shadow", other.where)
        if len(both.devices) > MAX_DEVICES:
            raise PipelineError(f"more than {MAX_DEVICES} names of devices, with those of the shadow", other.where)
        return both

    def across(self) -> Pipeline:
        """The same pipeline for a bridge: what it passes goes out of the other device (:class:`Across`)."""
        wire = copy(self)
        wire.default = across(self.default)
        wire._otherwise = replace(self._otherwise, action=wire.default)
        wire._rules = {
            chain: [replace(rule, action=across(rule.action)) for rule in rules] for chain, rules in self._rules.items()
        }
        wire.shadowed = self.shadowed.across() if self.shadowed is not None else None
        return wire

    def shadow(self) -> Pipeline:
        """The same rules as a shadow: they are evaluated and counted, but every packet passes, and steps only count."""
        shadow = Pipeline(self.name, default=Shadow(would=self.default))
        shadow.where = self.where
        shadow._otherwise = replace(self._otherwise, action=shadow.default)
        follows = replace(self._tracking, full=PASS) if self._tracking is not None else None
        shadow.restore(map(_shadow, self.rules), self.sets, self.chains, follows)
        return shadow

    @property
    def metadata(self) -> dict[str, Where]:
        """The metadata fields that rules test (``meta.hash``), each with the first line that does."""
        return metadata_fields(self.every_rule)

    def digest(self) -> str:
        """SHA-256, as hexadecimal digits, of what the pipeline means: names, sets, conditions and actions, but not
        files and lines."""
        text = "\n".join(f"{r.name}\0{r}" for r in self.outcomes)
        text += "".join(f"\nchain {chain.name}" for chain in self.chains)
        text += "".join(
            f"\n{s.name}\0{s.kind}\0{s.capacity}\0{s.pinned}\0{s.source}\0{s.feed}\0{s.members}" for s in self.sets
        )
        if self._tracking is not None:
            text += f"\n{self._tracking}"
        if self.rejects.text != DEFAULT_REJECTS:
            text += f"\nrejects {self.rejects.text}"
        return hashlib.sha256(f"{self.name}\n{text}".encode()).hexdigest()

    def __repr__(self) -> str:
        return f"<Pipeline {self.name}: {len(self.rules)} rules, default {self.default}>"


class Chain:
    """A chain of a pipeline, made by :meth:`Pipeline.chain`: rules are appended to it as to the pipeline, and
    ``web.jump`` and ``web.goto`` are the actions that lead to it.

    >>> web = pipe.chain("web")
    >>> web.rule(tcp.syn & ~limit("100/second", per=src), DROP, name="flood")
    >>> pipe.rule(tcp.dport == 80, web.jump)
    """

    def __init__(self, pipeline: Pipeline, spec: ChainSpec):
        self._pipeline: Pipeline = pipeline
        #: What actions that lead to it hold.
        self.spec: ChainSpec = spec

    @property
    def name(self) -> str:
        """The name it was declared by."""
        return self.spec.name

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Its rules."""
        return self._pipeline.rules_of(self.name)

    @property
    def jump(self) -> Jump:
        """The action: try the rules of this chain; a packet that none of them takes comes to the rule behind."""
        return Jump(self.spec)

    @property
    def goto(self) -> Goto:
        """The action: try the rules of this chain; a packet that none of them takes goes where the end of the chain
        that it came from leads."""
        return Goto(self.spec)

    def rule(self, condition: object, *then: object, name: str | None = None) -> Rule:
        """As :meth:`Pipeline.rule`; the rule is counted as ``CHAIN/NAME``."""
        return self._pipeline._rule(self.name, condition, then, name)

    def apply(self, vmap: Set, *, when: object = None, name: str | None = None) -> tuple[Rule, ...]:
        """As :meth:`Pipeline.apply`."""
        return self._pipeline._apply(self.name, vmap, when, name)

    def __repr__(self) -> str:
        return f"<Chain {self.name} of {self._pipeline.name}: {len(self.rules)} rules>"


def _reject_limit(rate: str) -> Limit:
    """The limit on answers that ``rate`` means."""
    made = limit(rate)
    if not isinstance(made, Limit) or made.in_bytes:
        raise PipelineError(f"rejects={rate!r}: how many answers, not bytes", here())
    return replace(made, bucket="rejects")


def _shadow(rule: Rule) -> Rule:
    """``rule`` as a shadow has it: it only counts, and its limits have buckets of their own."""
    expr, _ = _named_buckets(rule.expr, (), rule.name, "shadow of ")
    action = rule.action if rule.goes_on else Shadow(would=rule.action)
    return replace(rule, expr=expr, action=action, steps=(COUNT,) * (rule.action == CONTINUE))


def _action(action: object) -> Action:
    if not isinstance(action, Action) or action.verdict is Verdict.CONTINUE:
        raise PipelineError(f"{action!r} is no action: PASS, DROP, REJECT, TX, REDIRECT or Forward(device)", here())
    return action


def _rule_action(action: object) -> Action:
    """What may end a rule: a verdict, or a way into or out of a chain."""
    return action if isinstance(action, (Jump, Return)) else _action(action)


def _then(then: tuple[object, ...]) -> tuple[tuple[Step, ...], Action]:
    """The steps and the action that a rule declares, checked; CONTINUE if it declares no action."""
    if not then:
        raise PipelineError("a rule wants an action (PASS, DROP, ...) or steps (COUNT, Mirror(64), ...)", here())
    *first, last = then
    ends = isinstance(last, Action)
    steps = tuple(step for step in (first if ends else then) if isinstance(step, Step))
    if len(steps) != len(then) - ends:
        wrong = next(x for x in (first if ends else then) if not isinstance(x, Step))
        if isinstance(wrong, Action):
            raise PipelineError(f"{wrong} ends the rule: nothing can stand behind it", here())
        if isinstance(wrong, Chain):
            raise PipelineError(f"{wrong!r} is no action: write chain.jump or chain.goto", here())
        raise PipelineError(f"{wrong!r} is no action (PASS, DROP, TX, REDIRECT, Forward(device)) and no step", here())
    return tuple(each for step in steps for each in _each_family(step)), _rule_action(last) if ends else CONTINUE


def _each_family(step: Step) -> Iterator[Step]:
    """The step itself; a step that adds an address of either family becomes two, for IPv4 and for IPv6."""
    if isinstance(step, Add):
        yield from (replace(step, fields=fields) for _, fields in families(step.fields))
    else:
        yield step


def _named_buckets(expr: Expr, steps: tuple[Step, ...], name: str, owner: str = "") -> tuple[Expr, tuple[Step, ...]]:
    """``expr`` and ``steps`` with a name for the bucket of every limit, so that no two rules share a bucket; quotas of
    one name do.  ``owner``: what stands in front of all names."""
    count = 0

    def bind(node: Expr) -> Expr:
        nonlocal count
        if isinstance(node, Quota) and node.shared:
            own = f"{owner}quota {node.shared} per {', '.join(f.name for f in node.per)}"
            return replace(node, bucket=own)
        if isinstance(node, Bucket):
            count += 1
            return replace(node, bucket=f"{owner}{name}/{count}")
        if isinstance(node, (And, Or)):
            return replace(node, terms=tuple(map(bind, node.terms)))
        return replace(node, term=bind(node.term)) if isinstance(node, Not) else node

    if any(isinstance(node, Bucket) for node in expr.nodes()):
        expr = bind(expr)
    logs = {n: f"{owner}{name}/log{n}" for n in range(len(steps))}
    bound = (Log(replace(s.limit, bucket=logs[n])) if isinstance(s, Log) else s for n, s in enumerate(steps))
    return expr, tuple(bound)


def load_file(path: str | Path) -> Pipeline:
    """The pipeline that a Python file declares: its variable ``pipe``, or the only Pipeline among its variables.

    Raises OSError if the file cannot be read and PipelineError, with the line, if it cannot be run.
    """
    path = Path(path)
    source = path.read_bytes()  # compile() knows what encoding a Python file declares
    scope: dict[str, object] = {"__name__": "__pipeline__", "__file__": str(path)}
    try:
        exec(compile(source, str(path.absolute()), "exec"), scope)
    except PipelineError:
        raise
    except SyntaxError as error:
        raise PipelineError(f"{error.msg}", Where(str(path), error.lineno or 0)) from error
    except (Exception, SystemExit) as error:
        raise PipelineError(f"{type(error).__name__}: {error}", _line_of(error, str(path.absolute()))) from error
    if isinstance(scope.get("pipe"), Pipeline):
        return scope["pipe"]  # type: ignore[return-value]
    found = list(_unique(v for v in scope.values() if isinstance(v, Pipeline)))
    if len(found) != 1:
        raise PipelineError(f"declares {len(found)} pipelines: call the one to use 'pipe'", Where(str(path), 1))
    return found[0]


def _unique(pipelines: Iterable[Pipeline]) -> Iterable[Pipeline]:
    return {id(p): p for p in pipelines}.values()


def _line_of(error: BaseException, file: str) -> Where:
    line, trace = 0, error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    return Where(file, line)

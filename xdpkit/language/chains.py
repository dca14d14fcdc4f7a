"""Chains: lists of rules that other rules jump to, with nftables' meaning.

``JUMP`` to a chain tries its rules; a packet that none of them takes comes back, to the rule behind the one that
jumped.  ``GOTO`` does not come back here: behind the chain the packet goes on where the chain that it left would have
gone on.  ``RETURN`` leaves a chain before its end.  In the pipeline's own rules, where nothing is left to come back to,
RETURN and the end of a GOTO's chain mean the default.

The action holds the chain's declaration, a :class:`ChainSpec`; the rules of a chain are the pipeline's, each with the
name of its chain (:attr:`xdpkit.Rule.chain`).  No chain comes back to itself, so a packet is in each at most once at a
time, and an end comes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .actions import Action, Verdict
from .errors import PipelineError, Where

__all__ = ["RETURN", "ChainSpec", "Goto", "Jump", "Return"]

#: Lists of rules that a packet is in at once, the pipeline's own among them: as many as in nftables
#: (NFT_JUMP_STACK_SIZE).
MAX_DEPTH = 16
#: Chains that are written out in a program, each as often as rules jump to it: see compiler/plan.py.
MAX_COPIES = 4096


@dataclass(frozen=True, slots=True)
class ChainSpec:
    """A declared chain: its name, and the line that declared it."""

    name: str
    where: Where = field(compare=False)


@dataclass(frozen=True, slots=True, init=False)
class Jump(Action):
    """Try the rules of ``chain``; a packet that none of them takes comes to the next rule.  Made by
    :attr:`xdpkit.Chain.jump`."""

    chain: ChainSpec

    def __init__(self, chain: ChainSpec, *, verdict: Verdict = Verdict.CONTINUE):
        object.__setattr__(self, "verdict", verdict)
        object.__setattr__(self, "chain", chain)

    def __str__(self) -> str:
        return f"JUMP {self.chain.name}"


@dataclass(frozen=True, slots=True, init=False)
class Goto(Jump):
    """Try the rules of ``chain``; a packet that none of them takes does not come to the rules behind this one, but to
    where the end of this chain leads.  Made by :attr:`xdpkit.Chain.goto`."""

    def __str__(self) -> str:
        return f"GOTO {self.chain.name}"


@dataclass(frozen=True, slots=True)
class Return(Action):
    """Leave the chain, as at its end; in the pipeline's own rules the default takes the packet."""

    verdict: Verdict = Verdict.CONTINUE

    def __str__(self) -> str:
        return "RETURN"


RETURN: Return = Return()
"""The packet leaves the chain, as at the chain's end; in the pipeline's own rules the default takes it."""


class Calls:
    """Which list of rules leads to which, by name; "" is the pipeline's own."""

    def __init__(self) -> None:
        self._to: dict[str, dict[str, None]] = {}

    def add(self, source: str, target: str, where: Where) -> None:
        """Note that a rule of ``source`` jumps to ``target``.  PipelineError where a packet could come back to
        ``source``, or be in more than MAX_DEPTH lists of rules."""
        known = self._to.setdefault(source, {})
        if target in known:
            return
        way = self._way(target, source)
        if way:
            said = " -> ".join([source, *way])
            raise PipelineError(f"chain {source!r} would come back to itself: {said}", where)
        known[target] = None
        deepest = self._deepest("", {})
        if len(deepest) > MAX_DEPTH:
            del known[target]
            said = " -> ".join(["the pipeline", *deepest[1:]])
            raise PipelineError(f"chains are too deep: {said}; nftables and xdpkit allow {MAX_DEPTH - 1}", where)

    def _way(self, source: str, target: str) -> list[str]:
        """The chains from ``source`` to ``target``, both among them; none if there is no way."""
        before: dict[str, str | None] = {source: None}
        todo = [source]
        while todo:
            at: str | None = todo.pop()
            if at == target:
                way = []
                while at is not None:
                    way.append(at)
                    at = before[at]
                return way[::-1]
            for further in self._to.get(at or "", ()):
                if further not in before:
                    before[further] = at
                    todo.append(further)
        return []

    def _deepest(self, source: str, known: dict[str, list[str]]) -> list[str]:
        """The longest way down from ``source``."""
        if source not in known:
            below = [self._deepest(target, known) for target in self._to.get(source, ())]
            known[source] = [source, *max(below, key=len, default=[])]
        return known[source]

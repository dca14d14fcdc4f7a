"""A rule: a condition, steps and an action, with the name that its counters are known by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .actions import CONTINUE, Action, Step, Verdict
from .chains import Goto, Jump
from .errors import Where
from .expr import Expr, Test
from .fields import FieldSpec
from .limits import Bucket, Log
from .sets import Add, Member

__all__ = ["Rule"]


@dataclass(frozen=True, slots=True, repr=False)
class Rule:
    """One rule of a pipeline.  ``action`` is CONTINUE where the rule has none and the next rule is tried; ``where`` is
    the line that declared it.  ``lookup``: set in the rules that :meth:`Pipeline.apply` makes of a verdict map, one for
    each action.  It is the look-up that they share: the condition of each ends with it, restricted to the rule's own
    action.  ``chain``: the name of the chain that the rule is in, "" for the pipeline's own rules."""

    name: str
    expr: Expr
    action: Action
    where: Where
    steps: tuple[Step, ...] = ()
    lookup: Member | None = None
    chain: str = ""

    @property
    def goes_on(self) -> bool:
        """The packet goes on, to the next rule or in or out of a chain; the rule does not decide what becomes of it."""
        return self.action.verdict is Verdict.CONTINUE

    @property
    def leaves(self) -> bool:
        """The packet does not come to the rules behind this one in its chain."""
        return self.action != CONTINUE and (isinstance(self.action, Goto) or not isinstance(self.action, Jump))

    @property
    def target(self) -> str | None:
        """The name of the chain that the rule jumps or goes to."""
        return self.action.chain.name if isinstance(self.action, Jump) else None

    @property
    def then(self) -> str:
        """Steps and action as text."""
        parts = [str(step) for step in self.steps] + ([] if self.action == CONTINUE else [str(self.action)])
        return ", ".join(parts)

    def nodes(self) -> Iterator[Expr]:
        """The condition, its terms and their terms in turn, and the limits of the steps."""
        yield from self.expr.nodes()
        yield from (step.limit for step in self.steps if isinstance(step, Log))

    def fields(self) -> Iterator[FieldSpec]:
        """The fields that its conditions and steps read, and those of the packets that it remembers."""
        for node in self.nodes():
            match node:
                case Test():
                    yield node.spec
                case Member():
                    yield from node.fields
                case Bucket():
                    yield from node.per
        for step in self.steps:
            if isinstance(step, Add):
                yield from step.fields

    def __str__(self) -> str:
        return f"{self.expr} -> {self.then}"

    def __repr__(self) -> str:
        return f"Rule({self.name!r}, {self})"

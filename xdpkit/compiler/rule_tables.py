"""Tables: a run of many plain rules as decision trees in the object's read-only data, instead of a chain of tests.

This module finds the runs and builds their trees; lower_tables.py writes the code that goes down the trees.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..language.rule import Rule
from .boxes import FEW_WORDS, MANY_HEADERS, MAX_WORDS, Boxes, Run, runs
from .compiled import TableInfo
from .tree import Tree, build

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: So many plain rules in a row or more become a table; docs/design.md has the measurement.
LEAST = 16
#: Most trees of one table, because every packet goes down each of them.
MAX_TREES = 6
#: Tables of one pipeline, the longest runs, and of one that reads many headers: the verifier goes through each for
#: every way through the headers that a rule asks for.  Tables whose rules all ask for the same headers have one way
#: alone: of these there may be more, as pipelines with many chains have them.
MAX_TABLES, FEW_TABLES, MAX_TABLES_OF_ONE_WAY = 6, 1, 128


@dataclass(frozen=True, slots=True)
class Table:
    """A run of rules as ``trees`` over ``boxes``."""

    rules: list[tuple[int, Rule]]
    boxes: Boxes
    trees: list[Tree]

    def info(self) -> TableInfo:
        """The description of the table for users."""
        return TableInfo(
            first=self.rules[0][0],
            last=self.rules[-1][0],
            boxes=len(self.boxes.rule),
            trees=len(self.trees),
            entries=sum(len(tree.entries) for tree in self.trees),
            depth=sum(tree.depth for tree in self.trees),
        )


def tables(
    chains: dict[str, list[tuple[int, Rule]]], headers: int = 0
) -> dict[str, list[Table | list[tuple[int, Rule]]]]:
    """For the rules of each chain, in order: tables, and between them the rules that are left to code.  ``headers``:
    how many headers all of them read."""
    many = headers > MANY_HEADERS
    found = {name: list(runs(rules, LEAST, FEW_WORDS if many else MAX_WORDS)) for name, rules in chains.items()}
    plain = [run for mine in found.values() for run in mine if run.boxes is not None]
    plain.sort(key=lambda run: -len(run.rules))
    for number, run in enumerate(plain):
        most = FEW_TABLES if many else MAX_TABLES
        if number >= (MAX_TABLES_OF_ONE_WAY if run.has_one_way else most):
            run.boxes = None
    return {name: list(_parts(mine)) for name, mine in found.items()}


def _parts(found: Iterable[Run]) -> Iterator[Table | list[tuple[int, Rule]]]:
    """The runs as tables, and what is between them in one piece."""
    code: list[tuple[int, Rule]] = []
    for run in found:
        for part in _made(run) if run.boxes is not None else [run.rules]:
            if isinstance(part, list):
                code += part
                continue
            if code:
                yield code
            code = []
            yield part
    if code:
        yield code


def _made(run: Run) -> Iterator[Table | list[tuple[int, Rule]]]:
    """A run as a table.  A run that is too large for one table becomes two of half its length; a run that is too short
    for a table is left to code."""
    boxes = run.made()
    trees = _trees(boxes, np.arange(len(boxes.rule)), MAX_TREES)
    if trees is not None:
        yield Table(run.rules, boxes, trees)
    elif len(run.rules) < 2 * max(LEAST, 1):
        yield run.rules
    else:
        for half in run.halves():
            yield from _made(half)


def _trees(boxes: Boxes, rows: NDArray[np.int64], limit: int) -> list[Tree] | None:
    """Trees of the boxes ``rows``: one tree, if it is not too large.  Otherwise the boxes are divided into those that
    constrain a word and the others, and both parts get trees.  None if there are more than ``limit`` trees."""
    low, high, top = boxes.low[rows], boxes.high[rows], boxes.top
    tree = build(low, high, boxes.rule[rows], top)
    if tree is not None:
        return [tree]
    asks = (low > 0) | (high < top)
    shares = np.minimum(asks.sum(0), (~asks).sum(0))
    if limit < 2 or not shares.any():
        return None
    chosen = asks[:, shares.argmax()]
    first = _trees(boxes, rows[chosen], limit - 1)
    second = _trees(boxes, rows[~chosen], limit - len(first)) if first is not None else None
    return None if first is None or second is None else first + second

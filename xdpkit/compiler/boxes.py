"""Rules as boxes, from which decision trees are built.

The alternatives of a plain rule (``check.alternatives``: headers present or absent, intervals of fields) become boxes.
A box has an interval for each *word*.  A word is 32 bits of what is known of a packet: a field (or its bits under a
mask), 32 bits of a longer field, or 1 and 0 for a header that is present or absent.  A field of an absent header counts
as 0; the word of the header tells it from a value of 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from ..language.check import Alternative, alternatives, implied
from ..language.expr import Always
from ..language.fields import FieldSpec, field_named
from ..language.rule import Rule

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MAX_WORDS", "Boxes", "Run", "Word", "plain", "runs"]

#: Most words of one table.  The words are on the stack, and where rules read many headers little of the stack is left.
MAX_WORDS, MANY_HEADERS, FEW_WORDS = 32, 10, 16
#: Most boxes of one rule; a rule with more is left to code.
MAX_BOXES = 256
#: Most boxes of one table.
MAX_RUN_BOXES = 1 << 17
WORD_BITS = 32

Interval = tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Word:
    """One word.  If ``spec`` is None: whether ``header`` is present (1) or absent (0).  Otherwise 32 bits of the field
    ``spec``, from bit ``shift`` up, under ``mask``."""

    header: str | None
    spec: FieldSpec | None = None
    mask: int | None = None
    shift: int = 0

    @property
    def maximum(self) -> int:
        """The largest value."""
        return 1 if self.spec is None else int(min(self.spec.maximum >> self.shift, (1 << WORD_BITS) - 1))


Box = dict[Word, Interval]


@dataclass(frozen=True, slots=True)
class Boxes:
    """Boxes as arrays.  ``low``, ``high``: int64[boxes, words], closed intervals.  ``rule``: int64[boxes], ascending;
    the first box that holds a packet decides its rule.  ``words``: the columns.  ``guard``: the headers that every box
    requires; they have no column."""

    words: tuple[Word, ...]
    guard: frozenset[str]
    low: NDArray[np.int64]
    high: NDArray[np.int64]
    rule: NDArray[np.int64]

    @property
    def headers(self) -> frozenset[str]:
        """The headers that the boxes ask for."""
        return self.guard | {word.header for word in self.words if word.header is not None}

    @property
    def top(self) -> NDArray[np.int64]:
        """int64[words]: the largest values."""
        return np.array([word.maximum for word in self.words], np.int64)


@dataclass(slots=True)
class Run:
    """Consecutive rules with their numbers in the pipeline, and their boxes if all of them are plain."""

    rules: list[tuple[int, Rule]] = field(default_factory=list)
    boxes: list[list[tuple[Alternative, Box]]] | None = None
    words: set[Word] = field(default_factory=set)
    count: int = 0

    @property
    def has_one_way(self) -> bool:
        """All rules ask for the same headers, and for none to be absent."""
        found = [alternative for rule in self.boxes or () for alternative, _ in rule]
        return all(each.there == found[0].there and not each.absent for each in found)

    def made(self) -> Boxes:
        """The boxes as arrays."""
        assert self.boxes is not None
        alike = [alternative.there for rule in self.boxes for alternative, _ in rule]
        guard = frozenset.intersection(*alike)
        words = tuple(
            sorted(
                (w for w in self.words if w.spec is not None or w.header not in guard),
                key=lambda w: (w.header or "", w.spec.name if w.spec else "", w.mask or 0, -w.shift),
            )
        )
        column = {word: at for at, word in enumerate(words)}
        low = np.zeros((self.count, len(words)), np.int64)
        high = np.tile(np.array([word.maximum for word in words], np.int64), (self.count, 1))
        cells = [
            (row, column[word], interval[0], interval[1])
            for row, (_, box) in enumerate(pair for rule in self.boxes for pair in rule)
            for word, interval in box.items()
            if word in column
        ]
        if cells:
            at = np.array(cells, np.int64)
            low[at[:, 0], at[:, 1]], high[at[:, 0], at[:, 1]] = at[:, 2], at[:, 3]
        numbers = np.repeat(np.arange(len(self.boxes)), [len(rule) for rule in self.boxes])
        return Boxes(words, guard, low, high, numbers)

    def halves(self) -> tuple[Run, Run]:
        """The first and the second half of the rules."""
        assert self.boxes is not None
        middle = len(self.rules) // 2
        made = []
        for part in (slice(middle), slice(middle, None)):
            boxes = self.boxes[part]
            words = {word for rule in boxes for _, box in rule for word in box}
            made.append(Run(self.rules[part], boxes, words, sum(map(len, boxes))))
        return made[0], made[1]


def runs(rules: Iterable[tuple[int, Rule]], least: int, most_words: int = MAX_WORDS) -> Iterator[Run]:
    """``rules`` in order, divided into runs.  A run with boxes has at least ``least`` plain rules and may become a
    table; the rules between such runs are runs without boxes."""
    code = Run()
    for run in _plain_runs(rules, most_words):
        if run.boxes is None or len(run.rules) < max(least, 1):
            code.rules += run.rules
            continue
        if code.rules:
            yield code
            code = Run()
        yield run
    if code.rules:
        yield code


def _plain_runs(rules: Iterable[tuple[int, Rule]], most_words: int) -> Iterator[Run]:
    """Runs of plain rules, each as long as one table may be, and runs of the other rules."""
    run = Run(boxes=[])
    for index, rule in rules:
        found = plain(rule)
        words = {word for _, box in found for word in box} if found is not None else set[Word]()
        if len(words) > most_words:
            found = None
        if found is None or len(run.words | words) > most_words or run.count + len(found) > MAX_RUN_BOXES:
            if run.rules:
                yield run
            run = Run(boxes=[])
        if found is None:
            yield Run([(index, rule)])
            continue
        assert run.boxes is not None
        run.rules.append((index, rule))
        run.boxes.append(found)
        run.words |= words
        run.count += len(found)
    if run.rules:
        yield run


def plain(rule: Rule) -> list[tuple[Alternative, Box]] | None:
    """The boxes of ``rule``, each with its alternative.  None if the rule is not plain: it takes every packet, has
    steps, leads into or out of a chain, tests something else than headers and fields, or has more than MAX_BOXES
    boxes."""
    if isinstance(rule.expr, Always) or rule.steps or rule.goes_on:
        return None
    form = alternatives(rule.expr)
    if form is None:
        return None
    found: list[tuple[Alternative, Box]] = []
    for alternative in form:
        size = 1
        parts: list[list[Box]] = []
        for (name, mask), intervals in alternative.values.items():
            if field_named(name).deep:
                return None  # the packet may end before these bytes, and no word says so
            words = _field_words(name, mask)
            parts.append([box for interval in intervals for box in _split(words, interval)])
            size *= len(parts[-1])
            if len(found) + size > MAX_BOXES:
                return None
        there: Box = {header_word(h): (1, 1) for h in alternative.there - implied(alternative.there)}
        there |= {header_word(h): (0, 0) for h in alternative.absent}
        for some in product(*parts):
            box = dict(there)
            for part in some:
                box |= part
            found.append((alternative, box))
    return found


@cache
def header_word(header: str) -> Word:
    """The word that says if ``header`` is there."""
    return Word(header)


@cache
def _field_words(name: str, mask: int | None) -> tuple[Word, ...]:
    """The words of a field, the highest first."""
    spec = field_named(name)
    shifts = range((spec.bits - 1) // WORD_BITS * WORD_BITS, -1, -WORD_BITS)
    return tuple(Word(spec.header, spec, mask, shift) for shift in shifts)


def _split(words: tuple[Word, ...], interval: Interval) -> list[Box]:
    """``interval`` of a field as boxes of the field's words.  A value or a prefix is one box; any other interval has up
    to two more boxes for each word behind the first."""
    if len(words) == 1:
        return [{words[0]: interval}]
    return [dict(zip(words, pieces, strict=False)) for pieces in _pieces(*interval, [word.shift for word in words])]


def _pieces(low: int, high: int, shifts: list[int]) -> list[tuple[Interval, ...]]:
    shift, *rest = shifts
    if not rest:
        return [((low, high),)]
    full = (1 << shift) - 1
    first, last, below, above = low >> shift, high >> shift, low & full, high & full
    if first == last:
        return [((first, last), *tail) for tail in _pieces(below, above, rest)]
    found: list[tuple[Interval, ...]] = []
    if below:
        found += [((first, first), *tail) for tail in _pieces(below, full, rest)]
        first += 1
    if above != full:
        found += [((last, last), *tail) for tail in _pieces(0, above, rest)]
        last -= 1
    if first <= last:
        found.append(((first, last),))  # the words behind it may have any value
    return found

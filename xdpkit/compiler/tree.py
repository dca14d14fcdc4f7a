"""Decision trees over boxes, as an array of entries that ``descend`` (bpf/table.h) walks.

A tree is built level by level, all nodes of a level at once, in numpy.  Each node has a region of the space and the
boxes that reach into it, in the order of the rules.  A node is

* *final* if one test decides: the first box covers the region (or none is left), or would but for one word;
* a *list* if it has few boxes and no cut would tell them well apart: the tests of each, one after the other; a test
  that fails *jumps* to those of the next box.  Boxes that overlap crosswise would else be copied into every corner;
* otherwise a *cut*: the part of one word's values where boxes end (their hull) is cut into equal pieces of 2^shift
  values; values outside it, on either side, see the same boxes and share a child.

Equal pieces, and not a search for the right one, because an index is computed in a few cycles whatever the number of
pieces: 10,000 ports are one step.  Pieces are about as many as there are boxes with an end in the hull, fewer if boxes
that span the hull would be copied into all of them.  The word to cut is the one that leaves the fewest pairs of boxes
together.  Few boxes are often told apart best by the range of the first one, or by a value in
the middle: those are cuts with one piece.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ENTRY", "NO_RULE", "Tree", "build", "descend"]

Array: TypeAlias = "NDArray[np.int64]"
#: struct entry in bpf/table.h, as a dtype; here and below none is made before a tree is: numpy is imported late.
ENTRY = [
    ("lo", "<u4"), ("last", "<u4"), ("next", "<u4"), ("word", "u1"), ("shift", "u1"), ("final", "u1"), ("jump", "u1"),
]  # fmt: skip
NO_RULE = 0xFFFF
#: Entries on the longest way, in a tree, and there for each box given; boxes in all nodes of a level for each given.
MAX_DEPTH, MAX_ENTRIES, ENTRIES, SPREAD = 128, 1 << 18, 64, 24
#: Up to so many boxes are listed where the best cut leaves more than this part of their pairs together.
LISTED, WORTH = 8, 0.6
#: How much better a cut is that settles its word for all boxes.
SETTLED = 0.3
#: So many boxes before it are looked at for one that contains a box.
COMPARED = 12
#: Pieces for each box that ends in the hull.
PIECES = 2
#: Up to this many boxes, cuts with one piece are considered too.
FEW = 64
_FAR = 1 << 40


@dataclass(frozen=True, slots=True)
class Tree:
    """``entries``: of dtype ENTRY, the root first; ``depth``: entries on the longest way."""

    entries: NDArray[np.void]
    depth: int


@dataclass(slots=True)
class Level:
    """``nodes`` regions, low and high int64[nodes, words]; the boxes in them, clipped, ordered by node and rule."""

    region_low: Array
    region_high: Array
    owner: Array
    low: Array
    high: Array
    rule: Array

    def take(self, keep: NDArray[np.bool_], owner: Array) -> None:
        """Only the boxes ``keep``; all now belong to ``owner``."""
        self.owner, self.low, self.high, self.rule = owner[keep], self.low[keep], self.high[keep], self.rule[keep]

    def open(self) -> NDArray[np.bool_]:
        """bool[boxes, words]: the box ends inside its node's region."""
        spans = (self.low <= self.region_low[self.owner]) & (self.high >= self.region_high[self.owner])
        return ~spans


def build(low: Array, high: Array, rule: Array, top: Array) -> Tree | None:
    """The tree of boxes ``low``..``high`` (int64[boxes, words], closed) of ``rule`` (int64[boxes], ascending, below
    NO_RULE) in a space of words 0..``top``.  None if it gets larger than the limits above."""
    boxes = len(rule)
    level: Level | None = Level(
        np.zeros((1, len(top)), np.int64), top[None].copy(), np.zeros(boxes, np.int64), low, high, rule
    )
    done: list[NDArray[np.void]] = []
    total = depth = 0
    while level is not None:
        grown = _grow(level, total)
        done.append(grown.entries)
        total += len(grown.entries)
        depth = max(depth, len(done) - 1 + grown.depth)
        level = grown.following
        if depth > MAX_DEPTH or total > min(MAX_ENTRIES, ENTRIES * boxes + 4096):
            return None
        if level is not None and len(level.owner) > SPREAD * boxes + 4096:
            return None
    return Tree(np.concatenate(done), depth)


@dataclass(frozen=True, slots=True)
class Grown:
    """The entries of a level, how many of them a packet looks at, and the level below."""

    entries: NDArray[np.void]
    depth: int
    following: Level | None


def _grow(level: Level, base: int) -> Grown:
    """A level, whose first entry has the number ``base``."""
    nodes = len(level.region_low)
    unresolved = _prune(level)
    entries = np.zeros(nodes, ENTRY)
    counts = np.bincount(level.owner, minlength=nodes)
    starts = np.cumsum(counts) - counts
    widths = np.append(unresolved.sum(1), 0)  # one more, for nodes without a box at the end
    first = np.minimum(starts, len(level.rule))
    second = np.minimum(starts + 1, len(level.rule))
    rules = np.append(level.rule, NO_RULE)
    width = np.where(counts > 0, widths[first], 0)
    final = (counts == 0) | (width == 0) | ((width == 1) & (counts == 1))
    final |= (width == 1) & (counts == 2) & (widths[second] == 0)
    inside = np.where(counts > 0, rules[first], NO_RULE)
    outside = np.where(width == 0, inside, np.where(counts > 1, rules[second], NO_RULE))
    entries["final"] = final
    entries["next"] = np.where(final, inside | outside << 16, 0)
    test = np.flatnonzero(final & (width == 1))
    word = unresolved[first[test]].argmax(1) if len(test) else np.zeros(0, np.int64)
    entries["lo"][test] = level.low[first[test], word]
    entries["last"][test] = level.high[first[test], word] - level.low[first[test], word]
    entries["word"][test] = 4 * word
    below = base + nodes
    if final.all():
        return Grown(entries, 1, None)
    number = np.cumsum(~final) - 1
    kept = ~final[level.owner]
    level.take(kept, number[level.owner])
    level.region_low, level.region_high = level.region_low[~final], level.region_high[~final]
    unresolved = unresolved[kept]
    choice = _choose(level, unresolved)
    counts = counts[~final]
    listed = (counts == 1) | ((counts <= LISTED) & (choice.score > WORTH * counts))
    own = np.flatnonzero(~final)
    lists, heads, longest = _lists(level, unresolved, listed, below)
    entries[own[listed]] = lists[heads]
    below += len(lists)
    following = None
    if not listed.all():
        kept = ~listed[level.owner]
        level.take(kept, (np.cumsum(~listed) - 1)[level.owner])
        level.region_low, level.region_high = level.region_low[~listed], level.region_high[~listed]
        choice = choice.of(~listed)
        slots = choice.pieces + choice.beyond
        at = np.cumsum(slots) - slots
        cut = own[~listed]
        entries["lo"][cut], entries["last"][cut] = choice.low, choice.high - choice.low
        entries["word"][cut], entries["shift"][cut] = 4 * choice.word, choice.shift
        entries["next"][cut] = below + at - ~choice.beyond
        following = _below(level, choice, at, int(slots.sum()))
    return Grown(np.concatenate([entries, lists]), 1 + longest, following)


def _lists(
    level: Level, unresolved: NDArray[np.bool_], listed: NDArray[np.bool_], base: int
) -> tuple[NDArray[np.void], Array, int]:
    """The nodes ``listed`` as lists: for each box, in order, its tests, each of which goes on to the next box if it
    fails, and its rule; a last entry for none.  Entries, the first of which has the number ``base``; the index of the
    first of each list; how many there are in the longest."""
    rows = np.flatnonzero(listed[level.owner])
    unresolved, owner = unresolved[rows], level.owner[rows]
    widths = unresolved.sum(1)
    ends = np.append(owner[1:] != owner[:-1], True) if len(owner) else np.zeros(0, np.bool_)
    lengths = widths + 1 + (ends & (widths > 0))  # behind the last box of a node, unless it covers the region: none
    starts = np.cumsum(lengths) - lengths
    entries = np.zeros(int(lengths.sum()), ENTRY)
    entries["final"] = 1
    entries["next"] = NO_RULE | NO_RULE << 16
    entries["next"][starts + widths] = level.rule[rows] * 0x10001
    box, word = np.nonzero(unresolved)
    low, high = level.low[rows[box], word], level.high[rows[box], word]
    narrow = (high - low) / (level.region_high[owner[box], word] - level.region_low[owner[box], word] + 1)
    order = np.lexsort((narrow, box))  # the test that most likely fails first
    box, word, low, high = box[order], word[order], low[order], high[order]
    at = starts[box] + np.arange(len(box)) - (np.cumsum(widths) - widths)[box]
    entries["lo"][at], entries["last"][at], entries["word"][at], entries["shift"][at] = low, high - low, 4 * word, 32
    entries["next"][at], entries["jump"][at], entries["final"][at] = base + at, starts[box] + widths[box] + 1 - at, 0
    after = np.append(widths[1:] == 0, False) & ~ends  # the next covers the region
    last = np.flatnonzero((widths > 0) & (ends | after))  # no test behind its own: the last of them decides
    at, rule = starts[last] + widths[last] - 1, np.append(level.rule[rows], NO_RULE)
    entries["final"][at] = 1
    entries["next"][at] = rule[last] | np.where(after[last], rule[last + 1], NO_RULE) << 16
    first = np.append(True, owner[1:] != owner[:-1]) if len(owner) else np.zeros(0, np.bool_)
    longest = int(np.add.reduceat(lengths, np.flatnonzero(first)).max()) if len(owner) else 0
    return entries, starts[first], longest


def _prune(level: Level) -> NDArray[np.bool_]:
    """Drop the boxes behind one that covers the region of its node, and those inside one of a few before them.  What
    open() says of those that stay."""
    unresolved = level.open()
    covers = np.flatnonzero(~unresolved.any(1))
    limit = np.full(len(level.region_low), len(level.owner), np.int64)
    np.minimum.at(limit, level.owner[covers], covers)
    keep = np.arange(len(level.owner)) <= limit[level.owner]
    low, high = np.ascontiguousarray(level.low.T), np.ascontiguousarray(level.high.T)
    for back in range(1, min(COMPARED, len(keep) - 1) + 1):
        inside = np.flatnonzero(level.owner[back:] == level.owner[:-back])
        for word in range(len(low)):
            inside = inside[low[word, inside] <= low[word, inside + back]]
            inside = inside[high[word, inside] >= high[word, inside + back]]
        keep[inside + back] = False
    level.take(keep, level.owner)
    return unresolved[keep]


@dataclass(slots=True)
class Choice:
    """For each node: the hull ``low``..``high`` in ``word``, cut into ``pieces`` of 2^``shift`` values; ``beyond``:
    there are values outside it."""

    word: Array
    low: Array
    high: Array
    shift: Array
    pieces: Array
    beyond: NDArray[np.bool_]
    score: NDArray[np.float64]

    def of(self, nodes: NDArray[np.bool_]) -> Choice:
        """That of some nodes."""
        return Choice(*(getattr(self, name)[nodes] for name in self.__slots__))

    def better(self, other: Choice) -> None:
        """Take over what ``other`` does better."""
        wins = other.score < self.score
        for name in self.__slots__:
            getattr(self, name)[wins] = getattr(other, name)[wins]


def _choose(level: Level, unresolved: NDArray[np.bool_]) -> Choice:
    """How to cut each node; each has a box, and the first of it does not cover the region."""
    nodes = len(level.region_low)
    counts = np.bincount(level.owner, minlength=nodes)
    starts = np.cumsum(counts) - counts
    word, low, high, shift, pieces = np.zeros((5, nodes), np.int64)
    best = Choice(word, low, high, shift, pieces, np.zeros(nodes, np.bool_), np.full(nodes, np.inf))
    few = (counts <= FEW).any()
    for number in range(level.low.shape[1]):
        ends = unresolved[:, number]
        if ends.any():
            best.better(_equal(level, number, ends, counts, starts))
            if few:
                best.better(_first(level, number, ends, counts, starts))
                best.better(_middle(level, number, ends, counts, starts))
    return best


def _equal(level: Level, word: int, ends: NDArray[np.bool_], counts: Array, starts: Array) -> Choice:
    """The hull of the boxes that end in the region, in equal pieces."""
    low, high = level.low[:, word], level.high[:, word]
    ending = np.add.reduceat(ends.astype(np.int64), starts)
    hull_low = np.minimum.reduceat(np.where(ends, low, _FAR), starts)
    hull_high = np.maximum.reduceat(np.where(ends, high, -1), starts)
    useful = ending > 0
    hull_low, hull_high = np.where(useful, hull_low, 0), np.where(useful, hull_high, 0)
    beyond = (hull_low > level.region_low[:, word]) | (hull_high < level.region_high[:, word])
    wanted = np.minimum(PIECES * ending, 4 * ending // (counts - ending + 1))
    wanted = np.maximum(wanted, np.where(beyond, 1, 2))
    size = hull_high - hull_low + 1
    shift = np.ceil(np.log2(-(-size // wanted))).astype(np.int64)
    single = shift >= np.ceil(np.log2(size))
    shift = np.where(single & ~beyond & (size > 1), shift - 1, shift)  # at least two pieces where nothing lies outside
    single &= beyond
    shift[single] = 32
    cut_low = np.where(single, hull_low, hull_low >> np.minimum(shift, 32) << np.minimum(shift, 32))
    pieces = np.where(useful, (hull_high - cut_low >> shift) + 1, 1)
    score = _score(level, word, Choice(starts, cut_low, hull_high, shift, pieces, beyond, np.zeros(0)), counts)
    mask = (1 << np.minimum(shift, 32)[level.owner]) - 1
    whole = ends & ((low - cut_low[level.owner] & mask) == 0)  # a number of whole pieces: no more to ask of this word
    whole &= ((high - cut_low[level.owner] + 1 & mask) == 0) | (high == hull_high[level.owner])
    score *= 1 - SETTLED * np.add.reduceat(whole.astype(np.float64), starts) / counts
    word_ = np.full(len(counts), word, np.int64)
    return Choice(word_, cut_low, hull_high, shift, pieces, beyond, np.where(useful, score, np.inf))


def _first(level: Level, word: int, ends: NDArray[np.bool_], counts: Array, starts: Array) -> Choice:
    """The range of the first box alone."""
    useful = ends[starts] & (counts <= FEW)
    return _alone(level, word, level.low[starts, word], level.high[starts, word], useful, counts, starts)


def _middle(level: Level, word: int, ends: NDArray[np.bool_], counts: Array, starts: Array) -> Choice:
    """All values up to the middle one of those at which a box ends, or behind which one begins."""
    few = counts[level.owner] <= FEW
    floor, ceiling = level.region_low[:, word], level.region_high[:, word]
    upper = few & ends & (level.high[:, word] < ceiling[level.owner])
    lower = few & ends & (level.low[:, word] > floor[level.owner])
    owner = np.concatenate([level.owner[upper], level.owner[lower]])
    value = np.concatenate([level.high[upper, word], level.low[lower, word] - 1])
    value = value[np.lexsort((value, owner))]
    number = np.bincount(owner, minlength=len(counts))
    useful = number > 0
    middle = np.minimum(np.cumsum(number) - number + number // 2, len(value) - 1)
    high = np.where(useful, value[middle], ceiling) if len(value) else ceiling
    return _alone(level, word, floor, high, useful, counts, starts)


def _alone(
    level: Level, word: int, low: Array, high: Array, useful: NDArray[np.bool_], counts: Array, starts: Array
) -> Choice:
    """One range for each node."""
    owner, mine_low, mine_high = level.owner, level.low[:, word], level.high[:, word]
    inside = (mine_low <= high[owner]) & (mine_high >= low[owner])
    outside = (mine_low < low[owner]) | (mine_high > high[owner])
    a = np.add.reduceat(inside.astype(np.int64), starts)
    b = np.add.reduceat(outside.astype(np.int64), starts)
    score = np.where(useful, 0.9 * (a * a + b * b) / counts, np.inf)
    ones = np.ones(len(counts), np.int64)
    return Choice(word * ones, low, high, 32 * ones, ones, ones > 0, score)


def _score(level: Level, word: int, cut: Choice, counts: Array) -> NDArray[np.float64]:
    """The squares of the numbers of boxes in the children, over that in the node: what stays together, and copies."""
    slots = cut.pieces + 1
    at = np.cumsum(slots) - slots
    first, last = _reach(level, cut, np.full(len(counts), word, np.int64))
    total = int(slots.sum()) + 1
    change = np.bincount(at[level.owner] + 1 + first, minlength=total)
    change = change - np.bincount(at[level.owner] + 2 + last, minlength=total)[: len(change)]
    held = np.cumsum(change)[:-1]
    low, high = level.low[:, word], level.high[:, word]
    passes = (low < cut.low[level.owner]) | (high > cut.high[level.owner])
    held[at] = np.bincount(level.owner, passes, len(counts)) * cut.beyond
    return np.asarray(np.add.reduceat(held.astype(np.float64) ** 2, at) / counts)


def _reach(level: Level, cut: Choice, word: Array) -> tuple[Array, Array]:
    """First and last piece that each box reaches into, as far as it reaches into the hull."""
    owner = level.owner
    rows = np.arange(len(owner))
    low = np.maximum(level.low[rows, word[owner]], cut.low[owner]) - cut.low[owner]
    high = np.minimum(level.high[rows, word[owner]], cut.high[owner]) - cut.low[owner]
    return low >> cut.shift[owner], high >> cut.shift[owner]


def _below(level: Level, cut: Choice, at: Array, nodes: int) -> Level:
    """The children: for each node the values outside, if there are any, then the pieces."""
    owner = level.owner
    rows = np.arange(len(owner))
    low, high = level.low[rows, cut.word[owner]], level.high[rows, cut.word[owner]]
    within = (low <= cut.high[owner]) & (high >= cut.low[owner])
    outside = np.flatnonzero(cut.beyond[owner] & ((low < cut.low[owner]) | (high > cut.high[owner])))
    first, last = _reach(level, cut, cut.word)
    copies = np.where(within, last - first + 1, 0)
    total = int(copies.sum())
    source = np.repeat(rows, copies)
    step = np.arange(total) - np.repeat(np.cumsum(copies) - copies, copies)
    child = at[owner[source]] + cut.beyond[owner[source]] + first[source] + step
    source, child = np.concatenate([outside, source]), np.concatenate([at[owner[outside]], child])
    order = np.lexsort((source, child))
    source, child = source[order], child[order]

    slots = cut.pieces + cut.beyond
    parent = np.repeat(np.arange(len(slots)), slots)
    piece = np.arange(nodes) - at[parent] - cut.beyond[parent]
    region_low, region_high = level.region_low[parent], level.region_high[parent]
    word, rows = cut.word[parent], np.arange(nodes)
    now_low, now_high = region_low[rows, word], region_high[rows, word]
    piece_low = cut.low[parent] + (np.maximum(piece, 0) << np.minimum(cut.shift[parent], 32))
    piece_high = np.minimum(cut.high[parent], piece_low + (1 << cut.shift[parent]) - 1)
    beyond = piece < 0  # its region is what is left, where that is one range; else that of the parent
    above = beyond & (cut.low[parent] <= now_low)
    below = beyond & (cut.high[parent] >= now_high)
    region_low[rows, word] = np.where(
        above, cut.high[parent] + 1, np.where(beyond, now_low, np.maximum(piece_low, now_low))
    )
    region_high[rows, word] = np.where(
        below, cut.low[parent] - 1, np.where(beyond, now_high, np.minimum(piece_high, now_high))
    )
    box_low, box_high = (
        np.maximum(level.low[source], region_low[child]),
        np.minimum(level.high[source], region_high[child]),
    )
    return Level(region_low, region_high, child, box_low, box_high, level.rule[source])


def descend(tree: Tree, words: Array) -> Array:
    """What ``descend`` in bpf/table.h returns, for int64[packets, words]: int64[packets] of rules, NO_RULE for none."""
    at, result = np.zeros(len(words), np.int64), np.full(len(words), NO_RULE, np.int64)
    for _ in range(tree.depth):
        entry = tree.entries[at]
        start = (words[np.arange(len(words)), entry["word"] // 4] - entry["lo"]) & 0xFFFFFFFF
        outside = start > entry["last"]
        ahead = entry["next"].astype(np.int64)
        answer = np.where(outside, ahead >> 16, ahead & 0xFFFF)
        final = entry["final"] != 0
        result = np.where(final, answer, result)
        at = np.where(final, at, ahead + np.where(outside, entry["jump"], 1 + (start >> entry["shift"])))
    return result

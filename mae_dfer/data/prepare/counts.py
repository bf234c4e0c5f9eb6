"""How many clips of each class are in each split of each fold."""

from __future__ import annotations

from collections import Counter, defaultdict

from mae_dfer.data.prepare.layout import ABSENT, PRETRAIN, TEST, TRAIN, Layout
from mae_dfer.data.prepare.store import Store

Counts = dict[tuple[int, str], Counter[int]]
"""For (index of the fold, split), and for :data:`ALL`: how many clips each label has."""

ALL = (-1, "all")

_LISTED = "SELECT splits, label, count(*) FROM clips GROUP BY splits, label"
_READABLE = "SELECT splits, label, count(*) FROM clips JOIN inspections USING (path) WHERE fault = '' GROUP BY 1, 2"


def splits_of(layout: Layout) -> list[tuple[int, str]]:
    """(index of the fold, split) of each list that a set has, in the order in which they are shown."""
    if layout.set == "voxceleb2":
        return [(0, PRETRAIN)]
    return [(fold, split) for fold in range(max(layout.folds, 1)) for split in (TRAIN, TEST)]


def count_clips(layout: Layout, store: Store, *, readable: bool = False) -> Counts:
    """The clips that the set lists, or those of them that can be read. Every split of the set has a key."""
    counts: Counts = defaultdict(Counter, {key: Counter() for key in (ALL, *splits_of(layout))})
    for splits, label, number in store.ask(_READABLE if readable else _LISTED):
        counts[ALL][label] += number
        for fold, split in enumerate(splits.split(",")):
            if split != ABSENT:
                counts[fold, split][label] += number
    return dict(counts)


def part_name(layout: Layout, fold: int, split: str = "") -> str:
    """``fold 2 test``, ``fold 2``, or ``test`` of a set without folds; ``fold`` is an index."""
    return " ".join(part for part in (f"fold {fold + 1}" if layout.folds and fold >= 0 else "", split) if part)

"""How many clips each data set has by what was published, to compare a download with.

A number is here only if it has a source. Where none is known there is None, or nothing, and nothing is compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mae_dfer.data.prepare.counts import Counts
from mae_dfer.data.prepare.layout import TEST, TRAIN
from mae_dfer.data.sets import CLASSES

Numbers = tuple[int | None, ...]


@dataclass(frozen=True)
class Part:
    """One split of one fold, or a whole set.

    Attributes:
        clips: how many.
        per_class: how many of each class, None where it is unknown; empty where none is known.
    """

    clips: int
    per_class: Numbers = ()


@dataclass(frozen=True)
class Published:
    """What is known of a data set.

    Attributes:
        parts: for (number of the fold, split); a set without folds has fold 1, and all clips are (0, "all").
        source: where the numbers are from.
    """

    parts: dict[tuple[int, str], Part]
    source: str


_UNKNOWN = (None,)
_LISTS = "the lists of the published code (github.com/sunlicai/MAE-DFER, saved/data)"


def _folds(whole: Part, *tests: Part) -> dict[tuple[int, str], Part]:
    """All clips, and for each fold the test split and the training split, which is the rest."""
    parts = {(0, "all"): whole}
    for fold, test in enumerate(tests, start=1):
        parts |= {(fold, TRAIN): _rest(whole, test), (fold, TEST): test}
    return parts


def _rest(whole: Part, test: Part) -> Part:
    if not test.per_class:
        return Part(whole.clips - test.clips)
    everywhere = whole.per_class or _UNKNOWN * len(test.per_class)
    rest = (
        None if of_all is None or of_test is None else of_all - of_test
        for of_all, of_test in zip(everywhere, test.per_class, strict=True)
    )
    return Part(whole.clips - test.clips, tuple(rest))


# The lines of a published list have one length (or nearly, see there): its size in characters tells their number.
PUBLISHED: dict[str, Published] = {
    "dfew": Published(  # lines of 54 characters
        _folds(
            Part(11_697),
            Part(2_341, (489, 379, 534, 435, 294, 29, 181)),  # from the log's confusion matrix
            Part(2_341),
            Part(2_340),
            Part(2_339),
            Part(2_336),
        ),
        f"{_LISTS} and log of fold 1 (logs/dfew.out)",
    ),
    "ferv39k": Published(
        {
            (0, "all"): Part(38_935),
            (1, TRAIN): Part(31_088),
            (1, TEST): Part(7_847, (1_473, 1_393, 1_958, 1_487, 638, 467, 431)),  # from the log's confusion matrix
        },
        "the paper of the set (CVPR 2022) and the published log (github.com/sunlicai/MAE-DFER, logs/ferv39k.out)",
    ),
    # Lines of 53 characters, or 54 for disappointment, whose label is 10. Of all ways in which the sizes of the five
    # test lists are made up of such lines, one has 9,172 lines in all.
    "mafw": Published(
        _folds(
            Part(9_172, (*_UNKNOWN * 10, 182)),
            Part(1_839, (*_UNKNOWN * 10, 37)),
            Part(1_837, (*_UNKNOWN * 10, 37)),
            Part(1_833, (278, 128, 125, 248, 228, 294, 214, 47, 183, 52, 36)),  # from the log's confusion matrix
            Part(1_832, (*_UNKNOWN * 10, 36)),
            Part(1_831, (*_UNKNOWN * 10, 36)),
        ),
        f"{_LISTS} and log of fold 3 (logs/mafw.out)",
    ),
    # Each of 24 actors says two sentences twice, neutrally with one intensity and otherwise with two.
    "ravdess": Published(
        _folds(Part(1_440, (96, *(192,) * 7)), *(Part(240, (16, *(32,) * 7)),) * 6),
        f"the design of the set and {_LISTS}",
    ),
    # Lines of 67 characters. By design an actor has 82 clips: 12 neutral ones, and 14 of each other emotion. Folds 3
    # and 4 have all clips of their 18 actors; the other folds lack 20, whose classes are not known.
    "crema-d": Published(
        _folds(
            Part(7_442, (1_271, 1_271, 1_271, 1_271, 1_087, 1_271)),
            Part(1_463),
            Part(1_470),
            Part(1_476, (252, 252, 252, 252, 216, 252)),
            Part(1_476, (252, 252, 252, 252, 216, 252)),
            Part(1_557),
        ),
        f"the names of the set's files (github.com/CheyneyComputerScience/CREMA-D) and {_LISTS}",
    ),
    # By design a subject says five sentences with each emotion. The size of each test list is that of the names so
    # made, give or take 16 characters, less than a line; that of fold 3 lacks just three lines of happiness.
    "enterface05": Published(
        _folds(
            Part(1_287, (215, 215, 215, 212, 215, 215)),
            Part(270, (45,) * 6),
            Part(270, (45,) * 6),
            Part(267, (45, 45, 45, 42, 45, 45)),
            Part(270, (45,) * 6),
            Part(210, (35,) * 6),
        ),
        f"the design of the set and {_LISTS}",
    ),
    "voxceleb2": Published(
        {(0, "all"): Part(1_092_009)},
        "the paper of the set (Interspeech 2018), development set; the published pre-training read 1,091,726 of them",
    ),
}


@dataclass(frozen=True)
class Difference:
    """A count that is not the published one.

    Attributes:
        fold: its number, from 1; 0 for all clips of the set.
        name: of the class; empty for all classes.
    """

    fold: int
    split: str
    name: str
    found: int
    published: int


def published_count(set_name: str, fold: int, split: str, label: int | None) -> int | None:
    """The published number of clips of a class, or of all classes (None), in a split; None where it is not known.

    Args:
        fold: its number, from 1; 0 for all clips of the set.
    """
    part = PUBLISHED[set_name].parts.get((fold, split)) if set_name in PUBLISHED else None
    if part is None or label is None:
        return part.clips if part else None
    return part.per_class[label] if part.per_class else None


def compare(set_name: str, counts: Counts) -> Iterator[Difference]:
    """Every count of ``counts`` whose published number is known and another."""
    for (fold, split), found in sorted(counts.items()):
        for label, name in [(None, ""), *enumerate(CLASSES.get(set_name, ()))]:
            number = found.total() if label is None else found[label]
            expected = published_count(set_name, fold + 1, split, label)
            if expected is not None and number != expected:
                yield Difference(fold + 1, split, name, number, expected)

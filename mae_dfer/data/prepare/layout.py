"""What the reader of an official data set hands on: its clips, and what is wrong with its lists."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mae_dfer.data.labels import UNLABELLED
from mae_dfer.errors import UserError

PRETRAIN, TRAIN, TEST, ABSENT = "pretrain", "train", "test", ""
INSPECTIONS = "inspection.sqlite3"
MANY = 200  # folders in a folder; where there are more, they are taken for clips, and no data is looked for in them
_ABOVE = 3
_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Entry:
    """One clip of a data set.

    Attributes:
        path: of the video file or folder of frames, from the root on, with ``/`` between its parts.
        label: index of its class; ``UNLABELLED`` for none.
        splits: for each fold (one for a set without folds), ``train``, ``test``, ``pretrain`` or empty.
        subject: who is seen, where the set tells it; else empty.
    """

    path: str
    label: int = UNLABELLED
    splits: tuple[str, ...] = (TRAIN,)
    subject: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a person should know about a data set.

    Attributes:
        text: one sentence.
        is_fault: whether the set is unfit for training until it is mended.
        examples: a few paths or lines that show it.
    """

    text: str
    is_fault: bool = True
    examples: tuple[str, ...] = ()


@dataclass
class Layout:
    """A data set as it was found on disk.

    Attributes:
        convention: which of several forms of the clips was taken; empty where a set has one.
        root: the folder that the paths of ``entries`` start from.
        folds: how many; 0 for a set with one split of its own.
        entries: the clips. They are read once: a set of a million files is never held in memory.
        findings: what is wrong with the lists; complete once ``entries`` were read.
        stride: every how many frames the published training takes one, for this convention.
        is_cropped: whether the frames are faces that were cut out.
        cropped_by: who cut them out.
    """

    set: str
    root: Path
    entries: Iterable[Entry]
    folds: int = 0
    convention: str = ""
    stride: int = 4
    is_cropped: bool = True
    findings: list[Finding] = field(default_factory=list)
    cropped_by: str = "the set"


class Wrong:
    """Gathers what is wrong by kind: a thousand wrong lines are one finding."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, bool], list[str]] = {}
        self._counts: dict[tuple[str, bool], int] = {}
        self._notes: list[Finding] = []

    def note(self, text: str, examples: Sequence[str] = ()) -> None:
        """Notes something that is no fault."""
        self._notes.append(Finding(text, False, tuple(examples[:_EXAMPLES])))

    def count(self, what: str, found: Sequence[str]) -> None:
        """Notes how many clips are of a kind, if there are any."""
        if found:
            self.note(f"{what}: {len(found):,}", found)

    def add(self, where: str, what: str, *, is_fault: bool = True) -> None:
        """Notes one case: ``where`` is a path, or a line of a list ("set_1.csv:12"), and ``what`` its kind."""
        kind = (what, is_fault)
        self._counts[kind] = self._counts.get(kind, 0) + 1
        places = self._found.setdefault(kind, [])
        if len(places) < _EXAMPLES:
            places.append(where)

    def findings(self) -> list[Finding]:
        found = []
        for (what, is_fault), places in self._found.items():
            more = self._counts[what, is_fault] - 1
            others = f" and {more:,} more" if more else ""
            found.append(Finding(f"{places[0]}{others}: {what}", is_fault, tuple(places)))
        return [*found, *self._notes]


class FoldLists:
    """Gathers the lines of a set's train and test lists to one :class:`Entry` for each clip."""

    def __init__(self, folds: int, wrong: Wrong) -> None:
        self._folds = max(folds, 1)
        self._wrong = wrong
        self._labels: dict[str, int] = {}
        self._splits: dict[str, list[str]] = {}

    def add(self, path: str, label: int, split: str, fold: int = 1, *, where: str) -> None:
        """Notes one line of a list; ``where`` names it ("set_1.csv:12"). What contradicts an earlier line is found."""
        if self._labels.setdefault(path, label) != label:
            self._wrong.add(where, "the clip has another label in an earlier line, which is taken")
        splits = self._splits.setdefault(path, [ABSENT] * self._folds)
        if splits[fold - 1] == split:
            self._wrong.add(where, "the clip is in this list twice, and is taken once", is_fault=False)
        elif splits[fold - 1]:
            self._wrong.add(where, f"the clip is in the {splits[fold - 1]} list of the same fold, where it is left")
        else:
            splits[fold - 1] = split

    def entries(self) -> list[Entry]:
        """In the order in which the clips were first listed."""
        return [Entry(path, label, tuple(self._splits[path])) for path, label in self._labels.items()]


def find_folder(root: Path, *names: str, depth: int = 5, above: bool = False) -> Path | None:
    """The folder of one of ``names``: ``root`` itself, or the nearest below it; None where there is none.

    A name may have several parts ("Clip/original") and is compared without regard to case. Of a folder in a folder of
    the same name, as archives leave it, the inner one is meant.

    Args:
        above: look in the three folders above ``root``, too, if there is none below.

    Raises:
        UserError: two folders lie equally near.
    """
    root = root.resolve()
    folders = _nearest(root, names, depth)
    for parent in root.parents[:_ABOVE] if above else ():
        folders = folders or [parent for name in names if _ends_in(parent, name)]
        folders = folders or [found for name in names if (found := _descend(parent, name))]
    folders = list(dict.fromkeys(folder.resolve() for folder in folders))
    if len(folders) > 1:
        raise UserError(f"{folders[0]} and {folders[1]} may both be meant; give one of them, or its parent, as --root")
    if not folders:
        return None
    (folder,) = folders
    while (inner := folder / folder.name).is_dir():
        folder = inner
    return folder


def _nearest(root: Path, names: Sequence[str], depth: int) -> list[Path]:
    level = open_ones = [root]
    for _ in range(depth + 1):
        found = [folder for folder in level if any(_ends_in(folder, name) for name in names)]
        if found:
            return found
        families = [subfolders(folder) for folder in open_ones]
        level = [child for family in families for child in family]
        open_ones = [child for family in families if len(family) <= MANY for child in family]
    return []


def _ends_in(folder: Path, name: str) -> bool:
    return f"/{folder.as_posix()}".casefold().endswith(f"/{name}".casefold())


def _descend(folder: Path, name: str) -> Path | None:
    for part in name.casefold().split("/"):
        child = next((child for child in subfolders(folder) if child.name.casefold() == part), None)
        if child is None:
            return None
        folder = child
    return folder


def subfolders(folder: Path) -> list[Path]:
    """In order of their names; without hidden ones, those that hold no data, and folders that this package wrote."""
    try:
        found = children(folder)
    except OSError:
        return []
    return [folder / name for name, is_folder in found if is_folder and not is_prepared(folder / name)]


def children(folder: Path) -> list[tuple[str, bool]]:
    """(name, whether it is a folder) of what a folder holds, in order of the names, without what is hidden.

    Raises OSError where it cannot be read.
    """
    with os.scandir(folder) as entries:
        return sorted((entry.name, _is_folder(entry)) for entry in entries if is_visible(entry.name))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # of a link that leads to itself
        return False


def is_visible(name: str) -> bool:
    """False for hidden files and those that macOS adds to archives."""
    return not name.startswith(".") and name != "__MACOSX"


def is_prepared(folder: Path) -> bool:
    """Whether this package wrote the folder."""
    try:
        return any((folder / name).is_file() for name in (INSPECTIONS, "dataset.json"))
    except OSError:  # it may not be looked into
        return False

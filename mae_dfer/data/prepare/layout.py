"""What the reader of an official data set hands on: its clips, and what is wrong with its lists."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mae_dfer.data.labels import UNLABELLED
from mae_dfer.errors import UserError

PRETRAIN, TRAIN, TEST, ABSENT = "pretrain", "train", "test", ""


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
        is_cropped: whether the frames are faces that were cut out, as the set hands them out.
    """

    set: str
    root: Path
    entries: Iterable[Entry]
    folds: int = 0
    convention: str = ""
    stride: int = 4
    is_cropped: bool = True
    findings: list[Finding] = field(default_factory=list)


class FoldLists:
    """Gathers the lines of a set's train and test lists to one :class:`Entry` for each clip."""

    def __init__(self, folds: int) -> None:
        self._folds = max(folds, 1)
        self._labels: dict[str, int] = {}
        self._splits: dict[str, list[str]] = {}
        self.findings: list[Finding] = []

    def add(self, path: str, label: int, split: str, fold: int = 1, *, where: str) -> None:
        """Notes one line of a list; ``where`` names it ("set_1.csv:12"). What contradicts an earlier line is found."""
        known = self._labels.setdefault(path, label)
        if known != label:
            self.findings.append(Finding(f"{where} gives {path} the label {label}, an earlier line {known}"))
        splits = self._splits.setdefault(path, [ABSENT] * self._folds)
        if splits[fold - 1] == split:
            self.findings.append(Finding(f"{where} lists {path} a second time in the {split} list"))
        elif splits[fold - 1]:
            self.findings.append(Finding(f"{where} lists {path} for {split}, which is in {splits[fold - 1]} as well"))
        else:
            splits[fold - 1] = split

    def entries(self, subjects: dict[str, str] | None = None) -> Iterator[Entry]:
        """In the order in which the clips were first listed."""
        for path, label in self._labels.items():
            yield Entry(path, label, tuple(self._splits[path]), (subjects or {}).get(path, ""))


def find_folder(root: Path, *names: str, depth: int = 3) -> Path | None:
    """The folder of one of ``names`` (which may have several parts): ``root`` itself, or the nearest below it.

    Names are compared without regard to case. Raises UserError where two lie equally near.
    """
    wanted = [name.casefold() for name in names]

    def fits(folder: Path) -> bool:
        return any(f"/{folder.as_posix()}".casefold().endswith(f"/{name}") for name in wanted)

    level = [root.resolve()]
    for _ in range(depth + 1):
        found = [folder for folder in level if fits(folder)]
        if len(found) > 1:
            raise UserError(f"{found[0]} and {found[1]} may both be meant; give one of them, or its parent, as --root")
        if found:
            return found[0]
        level = [child for folder in level for child in _folders_in(folder)]
    return None


def _folders_in(folder: Path) -> list[Path]:
    try:
        return sorted(Path(child.path) for child in os.scandir(folder) if child.is_dir())
    except OSError:
        return []

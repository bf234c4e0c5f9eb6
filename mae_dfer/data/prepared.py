"""What a dataset folder holds beside its lists: dataset.json, which describes it, and the folders of its folds."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields
from pathlib import Path

from mae_dfer.cli import Bounds, option
from mae_dfer.errors import UserError
from mae_dfer.settings_check import read_settings

FILE = "dataset.json"
_FOLD = re.compile(r"fold-(\d{1,9})")


@dataclass(frozen=True)
class Description:
    """What dataset.json says of a prepared folder; None for what it does not say. Folders without the file have none.

    Attributes:
        set: the data set, by a name of :mod:`mae_dfer.data.sets`, or ``voxceleb2``.
        clips: which of the set's conventions its clips follow, where it comes in several.
        root: the folder that relative paths in the lists start from, relative to the dataset folder.
        stride: every how many frames the published runs take one of such clips.
        faces: who cropped the faces.
        verdict: the last line of the report on the set.
    """

    set: str | None = option(None, "the data set")
    clips: str | None = option(None, "the convention of its clips")
    root: str | None = option(None, "the folder that paths start from")
    stride: int | None = option(None, "frames from one that is taken to the next", bounds=Bounds(1, 10**9))
    faces: str | None = option(None, "who cropped the faces")
    verdict: str | None = option(None, "whether the set is fit for training", may_be_empty=True)


def read_description(folder: Path) -> Description:
    """What ``dataset.json`` in ``folder`` says; nothing where there is no such file. Other names in it are skipped.

    Raises:
        UserError: the file cannot be read, is no JSON object, or a value is of another type than it must be.
    """
    path = folder / FILE
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        return Description()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # of what is no text, too, and of too long numbers
        raise UserError(f"{path}: not valid JSON ({error}); prepare the set again, or delete the file") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a JSON object; prepare the set again, or delete the file")
    known = {field.name for field in fields(Description)}
    try:
        return read_settings(Description, {name: value for name, value in values.items() if name in known})
    except UserError as error:
        raise UserError(f"{path}: {error}; correct it, or prepare the set again") from None


def find_folds(folder: Path) -> dict[int, Path]:
    """The folds of a dataset folder by their numbers: its folders ``fold-K`` that hold train.txt or test.txt.

    Raises:
        UserError: two folders of one number, such as ``fold-1`` and ``fold-01``.
    """
    folds: dict[int, Path] = {}
    for path in sorted(folder.glob("fold-*")):
        match = _FOLD.fullmatch(path.name)
        if match and any((path / name).is_file() for name in ("train.txt", "test.txt")):
            number = int(match[1])
            if number in folds:
                raise UserError(f"{folds[number]} and {path} are both fold {number}; rename one of them")
            folds[number] = path
    return dict(sorted(folds.items()))


def find_lists(folder: Path, stage: str, fold: int | None) -> dict[str, Path]:
    """The lists of a dataset folder, or of one of its folds, that there are: ``classes``, ``train``, ``test``, ….

    A fold has its own train.txt, test.txt and val.txt. It shares classes.txt, and pretrain.txt where it has none.

    Raises:
        UserError: a fold that is not there, no fold where the lists are in folds, or a list that ``stage`` needs is
            missing. A folder without any list is none of these where ``stage`` is ``pretrain``.
    """
    place = folder if fold is None else _choose_fold(folder, fold)
    lists = {name: place / f"{name}.txt" for name in ("train", "test", "val", "pretrain")}
    if not lists["pretrain"].is_file():
        lists["pretrain"] = folder / "pretrain.txt"
    lists = {name: path for name, path in {"classes": folder / "classes.txt", **lists}.items() if path.is_file()}
    if stage == "pretrain":
        missing = [] if lists.keys() & {"train", "pretrain"} else [place / "train.txt"]
    else:
        needed = {"evaluate": ("classes", "test")}.get(stage, ("classes", "train", "test"))
        missing = [(folder if name == "classes" else place) / f"{name}.txt" for name in needed if name not in lists]
    if missing and fold is None:
        folds = find_folds(folder)
        if folds:
            raise UserError(
                f"the lists of {folder} are in folds: give one as --fold ({_name(folds)}), or train one after the "
                "other with --folds all"
            )
    if missing and (fold is not None or stage != "pretrain"):
        names = ", ".join(str(path.relative_to(folder)) for path in missing)
        raise UserError(
            f"{folder} is not a dataset folder: {names} missing; it needs classes.txt (one class name per line), "
            "train.txt and test.txt ('path label' per line; in folders fold-1, fold-2 … where the set has folds); "
            "only --stage pretrain takes a folder of videos"
        )
    return lists


def _choose_fold(folder: Path, fold: int) -> Path:
    folds = find_folds(folder)
    if not folds:
        raise UserError(
            f"{folder} has no folds, which are folders fold-1, fold-2 … with train.txt and test.txt; "
            f"leave out --fold {fold}"
        )
    if fold not in folds:
        raise UserError(f"{folder} has no fold {fold}; --fold takes one of {_name(folds)}")
    return folds[fold]


def _name(folds: dict[int, Path]) -> str:
    return ", ".join(map(str, folds))

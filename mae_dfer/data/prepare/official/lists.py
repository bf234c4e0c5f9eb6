"""Reads the train and test lists of a set, as they are handed out and as people save them."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from mae_dfer.data.lines import names_columns
from mae_dfer.data.prepare.layout import TEST, TRAIN, Entry, FoldLists, Wrong, is_visible, subfolders
from mae_dfer.data.sets import CLASSES
from mae_dfer.data.text import cut, read_lines, unquote
from mae_dfer.errors import UserError

Key = TypeVar("Key", bound=Hashable)

_SPLIT = re.compile(r"train|test", re.IGNORECASE)
_FOLD = re.compile(r"(?:set|fold|split)[ _-]?0*(\d+)", re.IGNORECASE)
_NUMBER = re.compile(r"(-?\d{1,12})(?:\.0*)?")
_DEPTH = 3
_SHEETS = (".xlsx", ".xls", ".ods")


def find_lists(folder: Path, folds: int, wrong: Wrong) -> dict[tuple[str, int], Path]:
    """The list of each split and fold in ``folder`` and below. One that is missing goes to ``wrong``.

    Args:
        folds: 0 for a set with one split of its own.

    Raises:
        UserError: no list, two that differ for the same fold, or a spreadsheet.
    """
    found: dict[tuple[str, int], Path] = {}
    sheets: dict[tuple[str, int], Path] = {}
    for path in _files(folder, _DEPTH):
        name = path.relative_to(folder).as_posix()
        splits, numbers = _SPLIT.findall(name), _FOLD.findall(name)
        if not splits:
            continue
        fold = int(numbers[-1]) if folds and numbers else 1
        if bool(folds) != bool(numbers) or fold > max(folds, 1):
            continue
        key = (splits[-1].lower(), fold)
        suffix = path.suffix.lower()
        if suffix in _SHEETS:
            sheets[key] = path
        elif suffix in (".csv", ".txt") and found.setdefault(key, path).read_bytes() != path.read_bytes():
            raise UserError(f"{found[key]} and {path} may both be the {key[0]} list of fold {fold}; remove one of them")
    wanted = [(split, fold) for fold in range(1, max(folds, 1) + 1) for split in (TRAIN, TEST)]
    for key in wanted:
        if key not in found and key in sheets:
            raise UserError(f"{sheets[key]} is a spreadsheet; save it as CSV (UTF-8) beside it, and run again")
    if not found:
        raise UserError(f"{folder} holds no train and test lists (CSV or text); download them with the set")
    for split, fold in wanted:
        if (split, fold) not in found:
            what = f"the {split} list of fold {fold}" if folds else f"the {split} list"
            wrong.add(_missing(found, split, fold), f"{what} is missing; download it again")
    return {key: found[key] for key in wanted if key in found}


def _files(folder: Path, depth: int) -> Iterator[Path]:
    yield from sorted(path for path in folder.iterdir() if is_visible(path.name) and path.is_file())
    for child in subfolders(folder) if depth else ():
        yield from _files(child, depth - 1)


def _missing(found: Mapping[tuple[str, int], Path], split: str, fold: int) -> str:
    """Where a list would lie: the place of another one, with the names changed."""
    (other, _), path = next(iter(found.items()))
    name = re.sub(other, split, "/".join(path.parts[-2:]), flags=re.IGNORECASE)
    return _FOLD.sub(lambda match: match[0].replace(match[1], str(fold)), name)


def read_entries(
    title: str,
    folder: Path,
    folds: int,
    key_of: Callable[[str], Key | None],
    clips: Mapping[Key, str],
    spell: Callable[[Key, str], str],
    wrong: Wrong,
    *,
    first_label: int | None = None,
) -> list[Entry]:
    """The clips of all lists in ``folder``.

    Args:
        title: the set, as in :data:`mae_dfer.data.sets.CLASSES`.
        key_of: what identifies a clip, from how a line names it; None where that is no name of a clip.
        clips: paths of the clips that are there.
        spell: where a clip that is missing would lie, from its key and how a line names it.
        first_label: number of the first class in the lists; None for lists that name their classes.
    """
    lists = FoldLists(folds, wrong)
    for (split, fold), path in find_lists(folder, folds, wrong).items():
        for where, name, label in _rows(path, folder, CLASSES[title], first_label, wrong):
            key = key_of(name)
            if key is None:
                wrong.add(where, "no clip of the set is named; the line is left out")
            else:
                lists.add(clips.get(key) or spell(key, name), label, split, fold, where=where)
    entries = lists.entries()
    if not entries:
        first = wrong.findings()[0].text
        raise UserError(f"the lists in {folder} name no clip that can be taken; {first}")
    wrong.count("clips left out because no list names them", sorted({*clips.values()} - {e.path for e in entries}))
    return entries


def _rows(
    path: Path, folder: Path, classes: tuple[str, ...], first: int | None, wrong: Wrong
) -> Iterator[tuple[str, str, int]]:
    """(place, name of the clip, index of its class) of each line; a header is skipped."""
    short = path.relative_to(folder).as_posix()
    lines = read_lines(path, comments=False)
    if not lines:
        raise UserError(f"{path} is empty; download it again")
    for number, line in lines:
        where = f"{short}:{number}"
        cuts = cut(line.rstrip(" \t,;"), 1)
        name, text = cuts[0] if cuts else (line, "")
        label = _label(unquote(text) or text, classes, first)
        if label is not None:
            yield where, unquote(name) or name, label
        elif number != lines[0][0] or not names_columns(line):
            known = ", ".join(classes) if first is None else f"{first} … {first + len(classes) - 1}"
            if first and text.strip() == "0":
                raise UserError(f"{path}:{number}: labels seem to be counted from 0, and the set's start at {first}; "
                                "take its own lists")  # fmt: skip
            wrong.add(where, f"label {text!r} is none of {known}; the line is left out")


def _label(text: str, classes: tuple[str, ...], first: int | None) -> int | None:
    """The index of a class; None where ``text`` is neither the name of one nor, in lists with numbers, its number."""
    names = [name.casefold() for name in classes]
    if text.strip().casefold() in names:
        return names.index(text.strip().casefold())
    number = _NUMBER.fullmatch(text.strip()) if first is not None else None
    index = int(number[1]) - (first or 0) if number else -1
    return index if 0 <= index < len(classes) else None

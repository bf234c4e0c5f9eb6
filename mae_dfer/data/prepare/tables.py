"""The files of a prepared folder: class names, lists of each fold, the table of clips, and what they were made from."""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from mae_dfer import __version__
from mae_dfer.data.images import is_frame
from mae_dfer.data.labels import UNLABELLED
from mae_dfer.data.prepare.layout import PRETRAIN, TEST, TRAIN, Layout, is_prepared
from mae_dfer.data.prepare.store import Store
from mae_dfer.data.sets import CLASSES
from mae_dfer.errors import UserError
from mae_dfer.files import encodable, write_atomically

FACTS = "dataset.json"
_OWN = ("classes.txt", "train.txt", "test.txt", "pretrain.txt", "clips.csv", "fold-1", "report.html")
_LISTED = (
    "SELECT path, label, splits, subject, frames, width, height, rate, fault FROM clips JOIN inspections USING (path) "
    "ORDER BY number"
)


def check_output(layout: Layout, output: Path) -> None:
    """Raises UserError where the files of a prepared folder would lie among the clips, or replace those of another set.

    Within the folder of the downloaded set is a place like another.
    """
    place = output.resolve()
    holds_clips = place.is_dir() and any(is_frame(name) for name in os.listdir(place))
    if place == layout.root.resolve() or (place.is_relative_to(layout.root.resolve()) and holds_clips):
        raise UserError(f"--output {output} is the folder of the clips, or of one; give another for the lists")
    if not is_prepared(output):
        there = next((name for name in _OWN if (output / name).exists()), None)
        if there is not None:
            raise UserError(f"{output} holds {there}, which this command did not write; give another --output")
    try:
        facts = json.loads((output / FACTS).read_bytes())
    except (OSError, ValueError, RecursionError):
        return
    known = facts.get("set") if isinstance(facts, dict) else None
    if known != layout.set:
        raise UserError(f"{output} holds the lists of {known}; give another folder as --output for {layout.set}")


def write_tables(layout: Layout, store: Store, output: Path, verdict: str = "") -> None:
    """Writes the lists, ``clips.csv`` and, last, ``dataset.json``, with which the folder is whole.

    Clips that cannot be read are in ``clips.csv`` alone. A list of nothing is not written. Files that would not change
    are left as they are; where one changes, ``dataset.json`` is removed before, so that it never tells of other lists.
    """
    classes = CLASSES.get(layout.set, ())
    files: dict[str, Callable[[], Iterator[str]]] = {
        name: functools.partial(_lines, store, fold, split) for name, fold, split in _lists(layout)
    }
    if classes:
        files["classes.txt"] = lambda: (f"{name}\n" for name in classes)
    files["clips.csv"] = lambda: _table(layout, store, classes)
    hashes = {name: _hash(lines()) for name, lines in files.items()}
    changed = [name for name in files if hashes[name] != _hash_file(output / name)]
    if changed:
        (output / FACTS).unlink(missing_ok=True)
    for name in changed:
        if hashes[name] is None:
            (output / name).unlink()
        else:
            _write(output / name, files[name]())
    text = json.dumps(_facts(layout, store, hashes, output) | {"verdict": verdict}, indent=2) + "\n"
    if _hash_file(output / FACTS) != _hash([text]):
        _write(output / FACTS, [text])


def _place(root: Path, output: Path) -> str:
    """Relative where it is in the prepared folder, which may then be moved."""
    return root.relative_to(output).as_posix() if root.is_relative_to(output) else str(root)


def _facts(layout: Layout, store: Store, hashes: dict[str, str | None], output: Path) -> dict[str, Any]:
    (files,) = next(store.ask("SELECT count(*) FROM clips"))
    (broken,) = next(store.ask("SELECT count(*) FROM clips JOIN inspections USING (path) WHERE fault != ''"))
    lists = [name for name, _, _ in _lists(layout)]
    return {
        "set": layout.set,
        "clips": layout.convention or None,
        "root": _place(layout.root, output),
        "folds": layout.folds,
        "stride": layout.stride,
        "faces": f"cropped by {layout.cropped_by}" if layout.is_cropped else "whole frames",
        "files": files,
        "unreadable": broken,
        "lists_sha256": {name: hashes[name] for name in lists if hashes[name] is not None},
        "version": __version__,
    }


def _hash(lines: Iterable[str]) -> str | None:
    """None of nothing."""
    digest = hashlib.sha256()
    is_empty = True
    for line in lines:
        digest.update(line.encode())
        is_empty = False
    return None if is_empty else digest.hexdigest()


def _hash_file(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def _lists(layout: Layout) -> Iterator[tuple[str, int, str]]:
    """(name, index of the fold, split) of each list."""
    if layout.set == "voxceleb2":
        yield "pretrain.txt", 0, PRETRAIN
        return
    for fold in range(max(layout.folds, 1)):
        folder = f"fold-{fold + 1}/" if layout.folds else ""
        for split in (TRAIN, TEST):
            yield f"{folder}{split}.txt", fold, split


def _lines(store: Store, fold: int, split: str) -> Iterator[str]:
    for path, label, splits, *_, fault in store.ask(_LISTED):
        if not fault and splits.split(",")[fold] == split:
            yield f"{_quoted(path)}\n" if label == UNLABELLED else f"{_quoted(path)} {label}\n"


def _quoted(path: str) -> str:
    """A path as a list must hold it so that the same is read: in double quotes where it has separators."""
    if path.startswith("~"):  # else a user's home
        path = f"./{path}"
    plain = not any(character in ',;"#\ufeff' or character.isspace() for character in path)
    return path if plain else '"' + path.replace('"', '""') + '"'


def _table(layout: Layout, store: Store, classes: tuple[str, ...]) -> Iterator[str]:
    splits = [f"split_{fold + 1}" for fold in range(layout.folds)] or ["split"]
    yield _row("path", "label", *splits, "subject", "frames", "width", "height", "rate", "fault")
    for clip, label, listed, subject, frames, width, height, rate, fault in store.ask(_LISTED):
        name = "" if label == UNLABELLED else classes[label]
        shown = "" if rate is None else f"{rate:.6g}"
        yield _row(clip, name, *listed.split(","), subject, frames, width, height, shown, encodable(fault))


def _row(*cells: Any) -> str:
    text = io.StringIO()
    csv.writer(text).writerow(cells)
    return text.getvalue()


def _write(path: Path, lines: Iterable[str]) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            file.writelines(lines)

    write_atomically(path, write)

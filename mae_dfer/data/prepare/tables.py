"""The files of a prepared folder: class names, lists of each fold, the table of clips, and what they were made from."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mae_dfer import __version__
from mae_dfer.data.labels import UNLABELLED
from mae_dfer.data.prepare.layout import PRETRAIN, TEST, TRAIN, Layout
from mae_dfer.data.prepare.store import Store
from mae_dfer.data.sets import CLASSES
from mae_dfer.files import encodable, write_atomically

_LISTED = (
    "SELECT path, label, splits, subject, frames, width, height, rate, fault FROM clips JOIN inspections USING (path) "
    "ORDER BY number"
)


def write_tables(layout: Layout, store: Store, output: Path) -> None:
    """Writes the lists, ``clips.csv`` and, last, ``dataset.json``, with which the folder is whole.

    Clips that cannot be read are in ``clips.csv`` alone.
    """
    classes = CLASSES.get(layout.set, ())
    if classes:
        _write(output / "classes.txt", (f"{name}\n" for name in classes))
    hashes = {}
    for name, fold, split in _lists(layout):
        _write(output / name, _lines(store, fold, split))
        hashes[name] = hashlib.sha256((output / name).read_bytes()).hexdigest()
    write_atomically(output / "clips.csv", lambda temporary: _write_clips(temporary, layout, store, classes))
    (files,) = next(store.ask("SELECT count(*) FROM clips"))
    (broken,) = next(store.ask("SELECT count(*) FROM clips JOIN inspections USING (path) WHERE fault != ''"))
    facts = {
        "set": layout.set,
        "clips": layout.convention,
        "root": str(layout.root),
        "folds": layout.folds,
        "stride": layout.stride,
        "faces": "cropped by the set" if layout.is_cropped else "whole frames",
        "files": files,
        "unreadable": broken,
        "lists_sha256": hashes,
        "version": __version__,
    }
    _write(output / "dataset.json", [json.dumps(facts, indent=2) + "\n"])


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
    """In double quotes where a list would read another path."""
    plain = not any(character in path for character in ' \t,;"#')
    return path if plain else '"' + path.replace('"', '""') + '"'


def _write_clips(path: Path, layout: Layout, store: Store, classes: tuple[str, ...]) -> None:
    splits = [f"split_{fold + 1}" for fold in range(layout.folds)] or ["split"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", *splits, "subject", "frames", "width", "height", "rate", "fault"])
        for clip, label, listed, subject, frames, width, height, rate, fault in store.ask(_LISTED):
            name = "" if label == UNLABELLED else classes[label]
            shown = "" if rate is None else f"{rate:.6g}"
            writer.writerow(
                [clip, name, *listed.split(","), subject, frames, width, height, shown, encodable(fault)]
            )


def _write(path: Path, lines: Any) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            file.writelines(lines)

    os.makedirs(path.parent, exist_ok=True)
    write_atomically(path, write)

"""The folds of a set, one after the other: a run folder for each, and their scores together.

OUTPUT/
    fold-1/, fold-2/ …      run folders (see run.py)
    folds.json              the scores of the finished folds, their mean, and those of all test clips together
"""

from __future__ import annotations

import copy
import csv
import dataclasses
import functools
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from ..checkpoint.own import load_metadata
from ..cli import flag, spell
from ..config import TrainConfig
from ..data import DatasetFolder
from ..data.prepared import find_folds
from ..errors import UserError
from ..files import printable, write_atomically
from ..models import ModelConfig
from ..notes import Say, print_notes_once
from .checkpoints import find_weights, hash_file, list_checkpoints
from .hardware import Hardware
from .inputs import open_data
from .metrics import classification_report
from .progress import console
from .provenance import describe_data, hash_settings, settings_that_count
from .run import refuse_data, refuse_existing
from .stages import check_lists, run_one
from .weights import BEGINNINGS

_SHOWN = 3  # settings in a message
_SCORES = ("uar", "war", "macro_f1", "weighted_f1")


@dataclass(frozen=True)
class Fold:
    """One fold to train: its settings, its lists and how far its run folder is."""

    number: int
    config: TrainConfig
    data: DatasetFolder
    state: str  # new, begun or finished

    @property
    def path(self) -> Path:
        return Path(str(self.config.output_dir))


def run_folds(config: TrainConfig, model: ModelConfig, hardware: Hardware, given: Collection[str]) -> None:
    """Trains the folds that ``config.folds`` names, but for finished ones, and sums up what is finished of the set.

    A fold is finished where its metrics.json is of the same settings and lists. One that has begun goes on.

    Raises:
        UserError: before anything is trained: a fold that is not there, what a fold's run would refuse, or a run
            folder of other settings or lists.
    """
    wanted, known = choose_folds(config)
    output = Path(str(config.output_dir))
    hardware.decide(lambda: _refuse_output(output, Path(config.data)))
    say = print_notes_once()  # not for each fold
    folds = {number: _plan(config, number, hardware, say) for number in known}
    for number in wanted:
        fold = folds[number]
        if fold.state == "new":
            hardware.decide(lambda path=fold.path: refuse_existing(path))  # type: ignore[misc]
        if fold.state != "finished":
            resume = fold.path if fold.state == "begun" else None
            check_lists(fold.config, fold.data, model, hardware, given, resume, say)
    for place, number in enumerate(wanted, start=1):
        fold = folds[number]
        if hardware.is_main:
            state = {"finished": ": finished already", "begun": ": goes on", "new": ""}[fold.state]
            console.print(f"fold {number} ({place} of {len(wanted)}){state}", style="bold")
        if fold.state == "new":
            run_one(fold.config, fold.data, model, hardware, given)
        elif fold.state == "begun":  # which has used --init-from
            run_one(fold.config, fold.data, model, hardware, {*given} - {"init_from"}, resume=fold.path)
        hardware.decide(lambda: _write_summary(config, list(folds.values())))
    if hardware.is_main:
        _show_summary(output / "folds.json")


def _refuse_output(output: Path, data: Path) -> str:
    """Refuses a folder whose files are of something else."""
    refuse_data(output, data)
    if output.resolve() in [folder.resolve() for folder in find_folds(data.expanduser()).values()]:
        raise UserError(f"--output-dir {output} is a fold of --data; give another folder")
    if (output / "config.json").exists():
        raise UserError(f"--output-dir {output} holds a run; --folds takes a folder for several")
    try:
        values = json.loads((output / "folds.json").read_bytes())
    except FileNotFoundError:
        return ""
    except NotADirectoryError:
        raise UserError(f"--output-dir {output} is a file; --folds takes a folder") from None
    except (OSError, ValueError, RecursionError):
        values = None
    if not isinstance(values, dict) or "folds_of_the_set" not in values:
        raise UserError(f"{output / 'folds.json'} is not of this command; move it, or give another --output-dir")
    return ""


def choose_folds(config: TrainConfig) -> tuple[list[int], list[int]]:
    """The numbers that ``config.folds`` stands for, ``all`` or such as ``1,3``; and those of all folds of the set.

    Raises:
        UserError: anything else, a fold that is not there, or a folder without folds.
    """
    folder, wanted = Path(config.data).expanduser(), str(config.folds)
    known = [] if config.data == "demo" else list(find_folds(folder))
    if not known:
        raise UserError(
            f"--folds: {config.data} has no folds, which are folders fold-1, fold-2 … with train.txt and test.txt"
        )
    if wanted.strip().lower() == "all":
        return known, known
    try:
        numbers = list(dict.fromkeys(int(part) for part in wanted.split(",")))
    except ValueError:
        raise UserError(f"--folds is {printable(wanted)!r}; give all, or numbers such as 1,3") from None
    for number in numbers:
        if number not in known:
            raise UserError(f"{folder} has no fold {number}; --folds takes some of {','.join(map(str, known))}, or all")
    return numbers, known


def _plan(config: TrainConfig, number: int, hardware: Hardware, say: Say) -> Fold:
    path = Path(str(config.output_dir)) / f"fold-{number}"
    own = dataclasses.replace(copy.deepcopy(config), fold=number, folds=None, output_dir=str(path))
    data = open_data(own, hardware, say)
    return Fold(number, own, data, hardware.decide(lambda: _find_state(own, data, path)))


def _find_state(config: TrainConfig, data: DatasetFolder, path: Path) -> str:
    """How far the run folder of a fold is. Raises UserError where it is of other settings or lists."""
    if not (path / "config.json").exists():
        return "new"
    _compare(TrainConfig.load(path / "config.json"), config, path)
    _compare_data(path, data, config)
    try:
        scores = json.loads((path / "metrics.json").read_bytes())
        origin = scores["provenance"]
        settings, lists = origin["settings_sha256"], origin["data"]["lists"]
        sound = all(scores[name] is None or isinstance(scores[name], float) for name in _SCORES)
        if settings != hash_settings(config) or not sound or scores["clips"] != len(data.test):
            return "begun"  # such as where it was scored otherwise since
        changed = [name for name in ("train", "test") if lists[name] != describe_data(data, (name,))["lists"][name]]
        _read_predictions(path / "predictions.csv", data)
    except (OSError, ValueError, RecursionError, TypeError, KeyError, UserError):
        return "begun"  # what is damaged is scored again
    if changed:
        raise _other_lists(path, data, changed)
    return "finished"


def _compare_data(path: Path, data: DatasetFolder, config: TrainConfig) -> None:
    """Raises UserError where the run's newest classifier is of other clips, classes or weights to begin from."""
    found = list_checkpoints(path, "finetune")
    if not found:
        return
    metadata = load_metadata(found[-1].weights)
    if metadata.get("classes", data.classes) != data.classes:
        raise UserError(
            f"{path} was trained on the classes {', '.join(metadata['classes'])}, and {data.folder} has "
            f"{', '.join(data.classes)}; restore classes.txt, or give another --output-dir"
        )
    trained = (metadata.get("trained_on") or {}).get("lists", {})
    now = describe_data(data, ("train",))["lists"]
    if "train" in trained and trained["train"] != now["train"]:
        raise _other_lists(path, data, ["train"])
    init = metadata.get("init") or {}
    # With stage all, it begins from the fold's own pre-training. What is gone can begin no other fold.
    if config.stage == "finetune" and init.get("sha256") and config.init_from and os.path.exists(config.init_from):
        source = find_weights(config.init_from, BEGINNINGS)
        if _hash_once(source, source.stat().st_mtime_ns) != init["sha256"]:
            raise UserError(
                f"{path} began from other weights than {source} holds now; all folds must begin from the same: "
                "give those as --init-from, or another --output-dir"
            )


@functools.cache
def _hash_once(path: Path, stamp: int) -> str:
    """Of a file that is the same for all folds."""
    return hash_file(path)


def _other_lists(path: Path, data: DatasetFolder, changed: list[str]) -> UserError:
    names = ", ".join(f"{name}.txt" for name in changed)
    return UserError(
        f"{path} was trained on other lists than fold {data.fold} of {data.folder} has now ({names}); "
        "restore them, or give another --output-dir"
    )


def _compare(before: TrainConfig, now: TrainConfig, path: Path) -> None:
    """Raises UserError that names what differs between the settings of a run and those that it is to go on with."""
    old, new = settings_that_count(before), settings_that_count(now)
    differ = [name for name in new if old[name] != new[name] and not _is_same_file(name, old[name], new[name])]
    if differ:
        texts = [f"{flag(name)} is {_show(old[name])} there and {_show(new[name])} here" for name in differ[:_SHOWN]]
        more = f", and {len(differ) - _SHOWN} more differ" if len(differ) > _SHOWN else ""
        raise UserError(
            f"{path} is a run with other settings: {'; '.join(texts)}{more}; "
            "give the same ones to go on, or another --output-dir to start again"
        )


def _is_same_file(name: str, old: Any, new: Any) -> bool:
    return name == "init_from" and None not in (old, new) and os.path.realpath(old) == os.path.realpath(new)


def _show(value: Any) -> str:
    return "not given" if value is None else printable(spell(value))


def _write_summary(config: TrainConfig, folds: list[Fold]) -> str:
    """Writes folds.json of those of ``folds``, all of the set, that are finished: by other processes, too."""
    finished = [fold for fold in folds if _find_state(fold.config, fold.data, fold.path) == "finished"]
    if not finished:  # another process has just begun to score the only one again
        return ""
    scores = {fold.number: json.loads((fold.path / "metrics.json").read_bytes()) for fold in finished}
    means = {}
    for name in _SCORES:
        values = [score[name] for score in scores.values()]
        means[name] = None if None in values else float(np.mean(values))
    summary = {
        "data": config.data,
        "recipe": config.recipe,
        "folds_of_the_set": [fold.number for fold in folds],
        "folds": {str(number): {name: score[name] for name in (*_SCORES, "clips")} for number, score in scores.items()},
        "mean_over_folds": means,
        "pooled_over_clips": _pool(finished, config.protocol),
        "published_scores_are": "mean_over_folds",
    }
    text = json.dumps(summary, indent=2) + "\n"
    path = Path(str(config.output_dir)) / "folds.json"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return ""


def _pool(folds: list[Fold], protocol: str) -> dict[str, Any]:
    """The scores of the test clips of all folds together, from each predictions.csv."""
    parts = [_read_predictions(fold.path / "predictions.csv", fold.data) for fold in folds]
    labels, predictions, probabilities = (np.concatenate(part) for part in zip(*parts, strict=True))
    return classification_report(labels, predictions, folds[0].data.classes, probabilities, protocol=protocol)


def _read_predictions(path: Path, data: DatasetFolder) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels and predictions, int64 (clips,), and probabilities, float64 (clips, classes), of the test clips.

    Raises UserError where the file holds something else.
    """
    classes = data.classes
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = list(csv.reader(file))[1:]
        labels, predictions = ([classes.index(row[column]) for row in rows] for column in (1, 2))
        probabilities = np.array([[float(value) for value in row[3:]] for row in rows]).reshape(-1, len(classes))
    except (OSError, ValueError, IndexError, csv.Error) as error:
        raise UserError(f"{path} does not hold the predictions that were written ({error})") from None
    names = [os.path.basename(row[0]) for row in rows]
    if (names, labels) != ([os.path.basename(sample.path) for sample in data.test], [one.label for one in data.test]):
        raise UserError(f"{path} holds predictions of other clips than the test list")
    if not np.isfinite(probabilities).all():
        raise UserError(f"{path} holds probabilities that are no numbers")
    return np.array(labels, dtype=np.int64), np.array(predictions, dtype=np.int64), probabilities


def _show_summary(path: Path) -> None:
    """Prints folds.json as a table."""
    summary = json.loads(path.read_bytes())
    folds, known = summary["folds"], summary["folds_of_the_set"]
    table = Table("", "UAR", "WAR", "test clips")
    for number, scores in folds.items():
        table.add_row(f"fold {number}", *_cells(scores))
    table.add_section()
    of = "" if len(folds) == len(known) else f" {', '.join(folds)} of {len(known)}"
    table.add_row(f"mean over folds{of} (as published scores are)", *_cells(summary["mean_over_folds"]))
    table.add_row("all test clips pooled", *_cells(summary["pooled_over_clips"]))
    console.print(table, soft_wrap=False)
    console.print(f"results in {path}")


def _cells(scores: Mapping[str, Any]) -> list[str]:
    shown = ["undefined" if scores[name] is None else f"{scores[name]:.4f}" for name in ("uar", "war")]
    return [*shown, str(scores.get("clips", ""))]

"""The folder of one run: settings, log, checkpoints, results.

runs/<name>/
    config.json             every setting
    log.jsonl               one record per event and epoch
    metrics.json            the score; predictions.csv, one line per test clip
    *.png                   reconstruction, confusion matrix
    checkpoints/<stage>-epoch-0012.state.pt           optimiser and position
    checkpoints/<stage>-epoch-0012.safetensors        weights, written last: with them, the checkpoint exists
    checkpoints/set-aside-1/                          what could not be resumed, or was trained again
    tensorboard/
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import save_weights
from ..config import TrainConfig
from ..data.prepared import find_folds
from ..errors import UserError
from ..files import write_atomically
from ..models import VideoModel
from ..recipes import flatten
from .checkpoints import Checkpoint, hash_file, is_checkpoint, list_checkpoints, save_state, weights_beside
from .curves import Curves
from .failures import explained
from .hardware import Hardware
from .lock import RunLock
from .progress import console

# Of write_atomically for the files of a run, and of the safetensors library.
_TEMPORARY = re.compile(
    r"\.(config|metrics|predictions|bad_files|reconstruction|confusion_matrix|\.holder|\.redo|"
    r"(pretrain|finetune)-epoch-\d+(-step-\d+)?(\.state)?)\.\d+\.tmp(\.[a-z]+)?|\.tmp[A-Za-z0-9]{6}"
)
_WRITTEN = (
    "checkpoints", "log.jsonl", "metrics.json", "predictions.csv", "bad_files.txt", "tensorboard", "reconstruction.png",
    "confusion_matrix.png",
)  # fmt: skip
_REDO = ".redo"
_RESULTS = ("metrics.json", "predictions.csv", "confusion_matrix.png")


class RunFolder:
    """Paths, log and checkpoints of a run. Only the main process writes.

    Attributes:
        settings: what config.json is to say once something was done with them; None where it does already.
        changed: the settings that are others than config.json says.
    """

    def __init__(self, path: Path, *, write: bool = True) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.write = write
        self.settings: TrainConfig | None = None
        self.changed: list[str] = []
        self._curves: Curves | None = None
        self._lock: RunLock | None = None
        if write:
            self.checkpoints.mkdir(parents=True, exist_ok=True)

    @staticmethod
    def open(config: TrainConfig, resume: Path | None, hardware: Hardware) -> RunFolder:
        """A new folder with config.json in it, or that of the run to resume; locked until :meth:`close`.

        Raises:
            UserError: on every process, where the folder cannot be made, is in use, or holds a run already.
        """
        path = resume or Path(config.output_dir or _new_name(config.recipe or config.preset))
        held: list[RunLock] = []

        def claim() -> str:
            with explained(path):
                if resume is None:
                    refuse_existing(path)
                    refuse_data(path, Path(config.data))
                    if config.data_root is not None:
                        refuse_data(path, Path(config.data_root))
                    path.mkdir(parents=True, exist_ok=True)
                held.append(RunLock(path, console.print))
                if resume is None:
                    refuse_existing(path)  # once more, now that no other process can make one
                    config.save(path / "config.json")
                return str(path)

        try:
            # One process makes the folder: others would find it there, or name it a second later.
            run = RunFolder(Path(hardware.decide(claim)), write=hardware.is_main)
            if hardware.is_main:
                run._lock = held[0]
                run._remove_leftovers()
            # An evaluation takes settings from the classifier, and is no reason to change those of a run that trains.
            if (resume is None) == (config.stage == "evaluate"):
                run.settings = config
            if resume is not None and run.settings is not None:
                run.changed = _compare(TrainConfig.load(path / "config.json"), config)
            return run
        except BaseException:
            for lock in held:
                lock.release()
            raise

    def _remove_leftovers(self) -> None:
        """Removes what a kill has left: temporary files, and states whose weights were never written."""
        states = (path for path in self.checkpoints.glob("*.state.pt") if is_checkpoint(weights_beside(path)))
        leftovers = [path for path in states if not weights_beside(path).exists()]
        for folder in (self.path, self.checkpoints):
            leftovers += [path for path in folder.iterdir() if _TEMPORARY.fullmatch(path.name) and not path.is_dir()]
        for path in leftovers:
            path.unlink(missing_ok=True)

    def remove_if_unused(self) -> None:
        """Takes back a folder in which nothing has happened yet, so that the next try may have its name."""
        if not self.write or (self.path / "log.jsonl").exists():
            return
        (self.path / "config.json").unlink(missing_ok=True)
        self._release()
        for folder in (self.checkpoints, self.path):
            with contextlib.suppress(OSError):  # it holds something: then it stays
                folder.rmdir()

    def read_json(self, name: str) -> dict[str, Any]:
        """What :meth:`write_json` wrote, or nothing."""
        try:
            values = json.loads((self.path / name).read_text())
        except (OSError, ValueError):
            return {}
        return values if isinstance(values, dict) else {}

    def log(self, event: str, **values: Any) -> None:
        """Appends a record to log.jsonl; numbers also go to TensorBoard when the record has a ``step``."""
        if not self.write:
            return
        self._check_place()
        record = {"time": round(time.time(), 3), "event": event, **values}
        with (self.path / "log.jsonl").open("ab+") as file:
            # A line that a kill cut short stays what it is, and spoils no other.
            if file.tell() and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n":
                file.write(b"\n")
            file.write(json.dumps(record).encode() + b"\n")
        if "step" in values:
            self._curves = self._curves or Curves(self.path / "tensorboard")
            for name, value in values.items():
                if isinstance(value, (int, float)) and name not in ("step", "epoch"):
                    self._curves.add(f"{event}/{name}", value, values["step"])

    def note_bad_files(self, reasons: dict[str, str]) -> None:
        """Adds paths and reasons to bad_files.txt, which holds those of all stages."""
        if not self.write:
            return
        path = self.path / "bad_files.txt"
        before = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        lines = dict.fromkeys([*before, *(f"{name}\t{reason}" for name, reason in reasons.items())])
        text = "".join(f"{line}\n" for line in lines)
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def say(self, text: str) -> None:
        """Prints what the user should know."""
        if self.write:
            console.print(text, style="yellow")

    def write_json(self, name: str, values: Any) -> None:
        self._check_place()
        text = json.dumps(values, indent=2) + "\n"
        write_atomically(self.path / name, lambda temporary: temporary.write_text(text))

    def save_settings(self) -> None:
        """Writes config.json where it does not say yet what the run does."""
        if self.write and self.settings is not None:
            self.settings.save(self.path / "config.json")
            self.settings = None

    @contextlib.contextmanager
    def _settings_written(self) -> Iterator[None]:
        """Has the settings in config.json, and takes them back where what follows fails.

        So a kill may leave them ahead of the checkpoints, with which they are asked for again, but never behind.
        """
        before, pending = TrainConfig.load(self.path / "config.json") if self.settings else None, self.settings
        self.save_settings()
        try:
            yield
        except BaseException:
            if before is not None:
                self.settings = pending
                with contextlib.suppress(OSError):
                    before.save(self.path / "config.json")
            raise

    def tell_changes(self) -> None:
        """Says which settings change, and records it."""
        if self.changed:
            self.say(f"settings that change from here on: {', '.join(self.changed)}")
            self.log("settings", changed=self.changed)

    @property
    def redo_pending(self) -> bool:
        """Whether fine-tuning was to begin again, and has no checkpoint yet."""
        return (self.path / _REDO).exists()

    def begin_redo(self, starts_anew: bool) -> None:
        """Notes that fine-tuning is to begin again, until it has a checkpoint.

        Args:
            starts_anew: whether from the weights of --init-from, though the run has pre-training of its own.
        """
        if self.write:
            write_atomically(self.path / _REDO, lambda path: path.write_text(json.dumps(starts_anew) + "\n"))

    def redo_starts_anew(self, default: bool) -> bool:
        """What :meth:`begin_redo` noted; ``default`` where no redo is pending."""
        with contextlib.suppress(OSError, ValueError):
            return bool(json.loads((self.path / _REDO).read_text())) or default
        return default

    def list_checkpoints(self, stage: str) -> list[Checkpoint]:
        """Oldest first."""
        return list_checkpoints(self.path, stage)

    def save(
        self,
        stage: str,
        epoch: int,
        step: int,
        model: VideoModel,
        state: dict[str, Any],
        metadata: dict[str, Any],
        keep: int,
    ) -> None:
        """Writes the trainer state, then the weights, with which the checkpoint exists; then drops the oldest ones.

        Settings that change with it are in config.json before it is.

        Raises:
            OSError: they cannot be written, as where the disk is full. The checkpoints before are as they were.
        """
        if not self.write:
            return
        self._check_place()
        name = f"{stage}-epoch-{epoch:04d}" + (f"-step-{step:06d}" if step else "")
        checkpoint = Checkpoint(stage, epoch, step, self.checkpoints / f"{name}.safetensors")
        write_atomically(checkpoint.state, lambda temporary: save_state(state, temporary))
        place = {"stage": stage, "epoch": epoch, "step": step, "state_sha256": hash_file(checkpoint.state)}
        with self._settings_written():
            save_weights(model, checkpoint.weights, metadata | place)
        if stage == "finetune":
            (self.path / _REDO).unlink(missing_ok=True)
        for old in self.list_checkpoints(stage)[: -max(keep, 1)]:
            old.weights.unlink(missing_ok=True)
            old.state.unlink(missing_ok=True)

    def set_aside(self, checkpoints: Iterable[Checkpoint], reason: str, *, results: bool = False) -> None:
        """Moves files of checkpoints into a folder of their own, where they stay and no command looks for them.

        Args:
            results: whether to move the scores of the run with them.
        """
        # Weights last, since a state that a kill leaves without weights is removed.
        files = [self.path / name for name in _RESULTS if results]
        files += [file for checkpoint in checkpoints for file in (checkpoint.state, checkpoint.weights)]
        files = [file for file in files if file.exists()]
        if not files or not self.write:
            return
        number = 1
        while (folder := self.checkpoints / f"set-aside-{number}").exists():
            number += 1
        folder.mkdir()
        names = [file.name for file in files]
        self.log("set_aside", reason=reason, folder=str(folder), files=names)
        for file in files:
            file.rename(folder / file.name)
        self.say(f"{reason}: set aside in {folder}: {', '.join(names)}")

    def load_latest(
        self, stage: str, device: torch.device
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, Any]] | None:
        """Weights, trainer state and metadata of the newest checkpoint that is whole, or None where there is none.

        A damaged one is named, set aside, and the one before it is taken.

        Raises:
            UserError: there are checkpoints, and none is whole: to begin again is for the user to decide.
        """
        listed = self.list_checkpoints(stage)
        damaged: list[Checkpoint] = []
        reason = ""
        for checkpoint in reversed(listed):
            try:
                found = checkpoint.load(device)
            except (OSError, MemoryError, torch.OutOfMemoryError):  # which say nothing about the file
                raise
            except Exception as error:  # torch.load raises many kinds for a damaged file
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                self.say(f"checkpoint {checkpoint.weights.name} cannot be resumed ({reason})")
                damaged.append(checkpoint)
            else:
                # Else they would count as the newest when old ones are dropped.
                self.set_aside(damaged, "damaged checkpoints")
                return found
        if listed:
            raise UserError(
                f"{self.checkpoints}: none of its {stage} checkpoints can be read ({reason}); "
                "move them elsewhere to train the stage from its beginning"
            )
        return None

    def _check_place(self) -> None:
        """Raises UserError where the folder was moved: what is written to its old name would be in another."""
        if self._lock is not None:
            self._lock.check_place()

    def close(self) -> None:
        """Lets another process go on with the run."""
        if self._curves is not None:
            self._curves.close()
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def refuse_existing(path: Path) -> str:
    """Refuses a folder in which a run would replace something, or take it for its own."""
    if (path / "config.json").exists():
        raise UserError(
            f"{path} already holds a run; --resume {path} goes on with it, --output-dir takes another folder"
        )
    run = next((folder for folder in path.resolve().parents if _is_run(folder)), None)
    if run is not None:
        raise UserError(f"{path} lies in the folder of a run, {run}; give another folder as --output-dir")
    there = next((name for name in _WRITTEN if (path / name).exists()), None)
    if there is not None:
        raise UserError(f"{path} holds {there}, which a run would write; give another folder as --output-dir")
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; --output-dir takes a folder")
    return ""


def _compare(before: TrainConfig, now: TrainConfig) -> list[str]:
    """The settings that differ, as ``finetune.lr 0.001 → 0.002``."""
    old, new = flatten(before), flatten(now)
    return [f"{name} {old[name]} → {value}" for name, value in new.items() if old[name] != value]


def _is_run(folder: Path) -> bool:
    return (folder / "config.json").exists() and (folder / "checkpoints").is_dir()


def refuse_data(path: Path, data: Path) -> None:
    """Refuses a run among the clips: its pictures would be clips of the next one."""
    data = data.expanduser()
    lists = any((data / f"{name}.txt").exists() for name in ("train", "pretrain", "test")) or bool(find_folds(data))
    inside = [path.resolve(), *(() if lists else path.resolve().parents)]
    if data.resolve() in inside:
        raise UserError(f"{path} lies among the clips of --data {data}; give another folder as --output-dir")


def _new_name(settings: str) -> str:
    """Of a run that was not given one; ``settings``: the preset or recipe."""
    name = f"runs/{settings}-{datetime.now():%Y%m%d-%H%M%S}"
    others = (f"{name}-{number}" for number in itertools.count(2))
    return next(one for one in itertools.chain([name], others) if not Path(one).exists())

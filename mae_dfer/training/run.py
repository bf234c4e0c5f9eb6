"""The folder of one run: settings, log, checkpoints, results.

runs/<name>/
    config.json             every setting
    log.jsonl               one record per event and epoch
    metrics.json            the score; predictions.csv, one line per test clip
    *.png                   reconstruction, confusion matrix
    checkpoints/<stage>-epoch-0012.safetensors        weights
    checkpoints/<stage>-epoch-0012.state.pt           optimiser and position, written after the weights
    tensorboard/
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from ..checkpoint import load_weights, save_weights
from ..config import TrainConfig
from ..errors import UserError
from ..files import write_atomically
from ..models import VideoModel
from .progress import console

_NAME = re.compile(r"(?P<stage>pretrain|finetune)-epoch-(?P<epoch>\d+)(-step-(?P<step>\d+))?\.safetensors")


@dataclass
class Checkpoint:
    """Weights of a stage after ``epoch`` whole epochs and ``step`` steps of the next."""

    stage: str
    epoch: int
    step: int
    weights: Path

    @property
    def state(self) -> Path:
        return self.weights.with_name(self.weights.name.removesuffix(".safetensors") + ".state.pt")


class RunFolder:
    """Paths, log and checkpoints of a run. Only the main process writes."""

    def __init__(self, path: Path, *, write: bool = True) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.write = write
        self._board: SummaryWriter | None = None
        if write:
            self.checkpoints.mkdir(parents=True, exist_ok=True)

    @staticmethod
    def create(config: TrainConfig) -> Path:
        """Makes a new folder with config.json in it; an existing run is never written over."""
        if config.output_dir is None:
            path = Path("runs") / f"{config.preset}-{datetime.now():%Y%m%d-%H%M%S}"
        else:
            path = Path(config.output_dir)
        if (path / "config.json").exists():
            raise UserError(
                f"{path} already holds a run; --resume {path} goes on with it, "
                "--output-dir takes another folder"
            )
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file; --output-dir takes a folder")
        config.save(path / "config.json")
        return path

    def remove_if_unused(self) -> None:
        """Takes back a folder in which nothing has happened yet, so that the next try may have its name."""
        if not self.write or (self.path / "log.jsonl").exists():
            return
        (self.path / "config.json").unlink(missing_ok=True)
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
        record = {"time": round(time.time(), 3), "event": event, **values}
        with (self.path / "log.jsonl").open("ab+") as file:
            # A line that a kill cut short stays what it is, and spoils no other.
            if file.tell() and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n":
                file.write(b"\n")
            file.write(json.dumps(record).encode() + b"\n")
        if "step" in values:
            self._board = self._board or SummaryWriter(str(self.path / "tensorboard"))
            for name, value in values.items():
                if isinstance(value, (int, float)) and name not in ("step", "epoch"):
                    self._board.add_scalar(f"{event}/{name}", value, values["step"])
            self._board.flush()

    def write_json(self, name: str, values: Any) -> None:
        text = json.dumps(values, indent=2) + "\n"
        write_atomically(self.path / name, lambda temporary: temporary.write_text(text))

    def list_checkpoints(self, stage: str) -> list[Checkpoint]:
        """Oldest first."""
        found = []
        for path in self.checkpoints.glob(f"{stage}-*.safetensors") if self.checkpoints.is_dir() else ():
            match = _NAME.fullmatch(path.name)
            if match:
                found.append(Checkpoint(stage, int(match["epoch"]), int(match["step"] or 0), path))
        return sorted(found, key=lambda checkpoint: (checkpoint.epoch, checkpoint.step))

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
        """Writes weights, then the trainer state that makes them resumable, then drops the oldest pairs."""
        if not self.write:
            return
        name = f"{stage}-epoch-{epoch:04d}" + (f"-step-{step:06d}" if step else "")
        checkpoint = Checkpoint(stage, epoch, step, self.checkpoints / f"{name}.safetensors")
        save_weights(model, checkpoint.weights, metadata | {"stage": stage, "epoch": epoch})
        write_atomically(checkpoint.state, lambda temporary: torch.save(state, temporary))
        for old in self.list_checkpoints(stage)[: -max(keep, 1)]:
            old.state.unlink(missing_ok=True)
            old.weights.unlink(missing_ok=True)

    def load_latest(
        self, stage: str, device: torch.device
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, Any]] | None:
        """Weights, trainer state and metadata of the newest checkpoint that is whole, or None where there is none.

        A damaged one is named and the one before it is taken.

        Raises:
            UserError: there are checkpoints, and none is whole: to begin again is for the user to decide.
        """
        listed = self.list_checkpoints(stage)
        for checkpoint in reversed(listed):
            try:
                weights, metadata = load_weights(checkpoint.weights)
                state = torch.load(checkpoint.state, map_location=device, weights_only=True)
                return weights, state, metadata
            except Exception as error:  # torch.load raises many kinds for a damaged file
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                if self.write:
                    console.print(
                        f"checkpoint {checkpoint.weights.name} cannot be resumed ({reason})", style="yellow"
                    )
        if listed:
            raise UserError(
                f"{self.checkpoints}: none of its {stage} checkpoints can be read; delete them to begin the stage anew"
            )
        return None

    def close(self) -> None:
        if self._board is not None:
            self._board.close()


def find_weights(path: Path | str, stages: tuple[str, ...] = ("finetune", "pretrain")) -> Path:
    """The weights that a run folder or file name stands for: the newest of the first stage that has any.

    Raises:
        UserError: nothing there, a folder without such weights, or the trainer's state instead of the weights.
    """
    path = Path(path)
    if path.is_file():
        weights = path.with_name(path.name.removesuffix(".state.pt") + ".safetensors")
        if path.name.endswith(".state.pt") and weights.is_file():
            raise UserError(f"{path} is the optimiser's state; the weights are in {weights}")
        return path
    if not path.exists():
        raise UserError(f"{path}: no such file or run folder")
    run = RunFolder(path, write=False)
    for stage in stages:
        found = run.list_checkpoints(stage)
        if found:
            return found[-1].weights
    if run.list_checkpoints("pretrain"):
        raise UserError(
            f"{path} holds pre-training checkpoints alone; "
            "fine-tune from it first: python -m mae_dfer.train --stage finetune --init-from it --data FOLDER"
        )
    raise UserError(
        f"{path}: no {' or '.join(stages)} checkpoint in it; a run folder holds checkpoints/*.safetensors"
    )

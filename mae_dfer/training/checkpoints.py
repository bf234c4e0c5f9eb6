"""The checkpoints of a run: two files each, the trainer's state and the weights, and where they lie."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import load_weights
from ..errors import UserError

_NAME = re.compile(r"(?P<stage>pretrain|finetune)-epoch-(?P<epoch>\d+)(-step-(?P<step>\d+))?\.safetensors")
_STATE = {"position", "optimizers", "scaler"}


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

    @property
    def is_whole(self) -> bool:
        """Whether training can go on from it. Weights alone are of an earlier version, or their state was removed."""
        return self.state.is_file()

    def load(self, device: torch.device) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, Any]]:
        """Weights on the CPU, trainer state on ``device``, and metadata.

        Raises:
            Exception: of many kinds, where one of the two files is damaged, or of another checkpoint than the other.
        """
        weights, metadata = load_checkpoint(self.weights)
        # Checkpoints of earlier versions have no checksum.
        if "state_sha256" in metadata and metadata["state_sha256"] != hash_file(self.state):
            raise UserError(f"{self.state.name} is damaged, or of another checkpoint")
        state = torch.load(self.state, map_location=device, weights_only=True)
        if not isinstance(state, dict) or not state.keys() >= _STATE:
            raise UserError(f"{self.state.name} holds no trainer state")
        return weights, state, metadata


def list_checkpoints(run: Path, stage: str) -> list[Checkpoint]:
    """Those of a stage in a run folder, oldest first."""
    found = []
    folder = run / "checkpoints"
    for path in folder.glob(f"{stage}-*.safetensors") if folder.is_dir() else ():
        match = _NAME.fullmatch(path.name)
        if match:
            found.append(Checkpoint(stage, int(match["epoch"]), int(match["step"] or 0), path))
    return sorted(found, key=lambda checkpoint: (checkpoint.epoch, checkpoint.step))


def is_checkpoint(path: Path) -> bool:
    """Whether a file has the name of a run's weights."""
    return _NAME.fullmatch(path.name) is not None


def weights_beside(state: Path) -> Path:
    return state.with_name(state.name.removesuffix(".state.pt") + ".safetensors")


def save_state(state: dict[str, Any], path: Path) -> None:
    try:
        # Into an open file: given a path, torch.save does not say why it cannot write.
        with path.open("wb") as file:
            torch.save(state, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal, as the tool ``sha256sum`` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """``load_weights`` for a file that may be of a run: then it must hold the weights that its name says.

    Raises:
        UserError: a file that ``load_weights`` refuses, or the weights of another stage, epoch or step.
    """
    weights, metadata = load_weights(path)
    if match := _NAME.fullmatch(path.name):
        named = {"stage": match["stage"], "epoch": int(match["epoch"]), "step": int(match["step"] or 0)}
        held = {name: metadata.get(name, value) for name, value in named.items()}
        if held != named:
            raise UserError(
                f"{path} holds the weights of {held['stage']} epoch {held['epoch']}, step {held['step']}: "
                "it was given the name of another checkpoint; give it its own"
            )
    return weights, metadata


def find_weights(path: Path | str, stages: tuple[str, ...] = ("finetune", "pretrain")) -> Path:
    """The weights that a run folder or file name stands for: the newest of the first stage that has any.

    Raises:
        UserError: nothing there, a folder without such weights, or the trainer's state instead of the weights.
    """
    path = Path(path)
    if path.is_file():
        weights = weights_beside(path)
        if path.name.endswith(".state.pt") and weights.is_file():
            raise UserError(f"{path} is the optimiser's state; the weights are in {weights}")
        if (path.parent / "checkpoints").is_dir() and path.suffix in (".json", ".jsonl", ".csv", ".png", ".txt"):
            raise UserError(f"{path} holds no weights; give the run folder itself, {path.parent}")
        return path
    if not path.exists():
        raise UserError(f"{path}: no such file or run folder")
    if path.name == "checkpoints" and not (path / "checkpoints").exists():
        raise UserError(f"{path} lies in a run folder; give that one, {path.parent}")
    for stage in stages:
        found = list_checkpoints(path, stage)
        if found:
            return found[-1].weights
    if list_checkpoints(path, "pretrain"):
        raise UserError(
            f"{path} holds pre-training checkpoints alone; "
            "fine-tune from it first: python -m mae_dfer.train --stage finetune --init-from it --data FOLDER"
        )
    raise UserError(
        f"{path}: no {' or '.join(stages)} checkpoint in it; a run folder holds checkpoints/*.safetensors"
    )

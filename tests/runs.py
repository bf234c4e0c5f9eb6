"""Short runs to resume: how they begin, where their files are, and what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train_refusals import SMALL

from mae_dfer.checkpoint import load_weights
from mae_dfer.train import main as train

EPOCHS = ["--pretrain-epochs=2", "--finetune-epochs=2"]


def begin(folder: Path, path: Path, *options: str) -> int:
    return train(["--data", str(folder), "--output-dir", str(path), *SMALL, *EPOCHS, *options])


def weights(run: Path, stage: str = "finetune", epoch: int = 2) -> Path:
    return run / "checkpoints" / f"{stage}-epoch-{epoch:04d}.safetensors"


def state(run: Path, stage: str = "finetune", epoch: int = 2) -> Path:
    return weights(run, stage, epoch).with_suffix(".state.pt")


def assert_same_end(run: Path, whole: Path) -> None:
    for stage in ("pretrain", "finetune"):
        ours, theirs = (load_weights(weights(path, stage))[0] for path in (run, whole))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs), stage
    figures = [json.loads((path / "metrics.json").read_text()) for path in (run, whole)]
    assert figures[0]["confusion_matrix"] == figures[1]["confusion_matrix"]


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str], command: Any = train) -> str:
    capsys.readouterr()
    assert command(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    return error


def settings(run: Path) -> dict[str, Any]:
    return json.loads((run / "config.json").read_text())

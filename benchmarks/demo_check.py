"""Is the demo set a real test of *dynamic* expression recognition? Checks a trained model against three shortcuts.

    python benchmarks/demo_check.py RUN [--output FILE.json]

RUN is a run folder of ``python -m mae_dfer.train`` on the demo set. The checks, on its test clips:

1. one frame repeated 16 times must lose at least 10 UAR points, whichever moment of the clip is shown;
2. reversed frames, and shuffled frames, must each lose at least 15 points on the classes that motion defines;
3. a linear probe on mean colour must stay at or below 0.30 UAR (chance is 0.14).

Exit code 0 when all hold, 1 when one does not.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mae_dfer.cli import Parser, command
from mae_dfer.config import TrainConfig
from mae_dfer.data import ClipDataset, DatasetFolder, Sample
from mae_dfer.data.demo import MOTION_DEFINED
from mae_dfer.errors import UserError
from mae_dfer.files import write_atomically
from mae_dfer.models import VideoModel
from mae_dfer.training.hardware import open_hardware
from mae_dfer.training.inputs import clip_config, open_data
from mae_dfer.training.metrics import classification_report
from mae_dfer.training.weights import load_classifier

STILL_LOSS, ORDER_LOSS, COLOUR_BOUND = 0.10, 0.15, 0.30


def load_clips(samples: list[Sample], config: TrainConfig, model: VideoModel) -> torch.Tensor:
    """(clips, 3, T, H, W), the first view of each test clip as the model sees it."""
    dataset = ClipDataset(samples, clip_config(config, model.config), mode="test", seed=config.seed)
    clips: dict[int, torch.Tensor] = {}
    for position in range(len(dataset)):
        item = dataset[(0, position)]
        clips.setdefault(item["index"], item["clip"])
    return torch.stack([clips[index] for index in range(len(samples))])


@torch.no_grad()
def recalls(
    model: VideoModel,
    clips: torch.Tensor,
    labels: np.ndarray,
    classes: list[str],
    change: Callable[[torch.Tensor], torch.Tensor] = lambda clip: clip,
) -> dict[str, float]:
    """Recall of each class when every batch of clips goes through ``change`` first."""
    predictions = np.concatenate([model(change(part)).argmax(1).numpy() for part in clips.split(16)])
    return classification_report(labels, predictions, classes)["per_class_recall"]


def uar(recall: dict[str, float], names: Sequence[str] | None = None) -> float:
    return float(np.mean([recall[name] for name in names or recall]))


def shuffle(clips: torch.Tensor) -> torch.Tensor:
    order = torch.randperm(clips.shape[2], generator=torch.Generator().manual_seed(0))
    return clips[:, :, order]


def colour_probe(config: TrainConfig, model: VideoModel, data: DatasetFolder) -> float:
    """Test UAR of logistic regression on the mean colour of a clip."""
    features, labels = [], []
    for samples in (data.train, data.test):
        features.append(load_clips(samples, config, model).mean(dim=(2, 3, 4)).numpy())
        labels.append(np.array([sample.label for sample in samples]))
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(features[0], labels[0])
    return classification_report(labels[1], probe.predict(features[1]), data.classes)["uar"]


def check(run: Path) -> dict[str, object]:
    """All figures, and for each check whether it holds."""
    config = TrainConfig.load(run / "config.json")
    if config.data != "demo":
        raise UserError(f"{run} was trained on {config.data}; this check is about the demo set")
    config.device = "cpu"
    data = open_data(config, open_hardware(config))
    model, _ = load_classifier(run)
    labels = np.array([sample.label for sample in data.test])
    clips = load_clips(data.test, config, model)

    whole = recalls(model, clips, labels, data.classes)
    length = clips.shape[2]
    stills = {
        frame: uar(
            recalls(
                model,
                clips,
                labels,
                data.classes,
                lambda c, f=frame: c[:, :, f : f + 1].expand(-1, -1, length, -1, -1),
            )
        )
        for frame in range(0, length, 3)
    }
    backwards = recalls(model, clips, labels, data.classes, lambda clip: clip.flip(2))
    shuffled = recalls(model, clips, labels, data.classes, shuffle)
    motion = uar(whole, MOTION_DEFINED)
    figures = {
        "clips": len(labels),
        "uar": uar(whole),
        "uar_one_frame_repeated": {f"frame {frame}": value for frame, value in stills.items()},
        "uar_best_single_frame": max(stills.values()),
        "motion_classes": list(MOTION_DEFINED),
        "motion_uar": motion,
        "motion_uar_reversed": uar(backwards, MOTION_DEFINED),
        "motion_uar_shuffled": uar(shuffled, MOTION_DEFINED),
        "uar_mean_colour_probe": colour_probe(config, model, data),
    }
    holds = {
        "one frame repeated loses at least 10 points": figures["uar"] - max(stills.values()) >= STILL_LOSS,
        "reversed loses at least 15 points on motion classes": motion - figures["motion_uar_reversed"]
        >= ORDER_LOSS,
        "shuffled loses at least 15 points on motion classes": motion - figures["motion_uar_shuffled"]
        >= ORDER_LOSS,
        "mean colour stays at or below 0.30": figures["uar_mean_colour_probe"] <= COLOUR_BOUND,
    }
    return figures | {"holds": holds}


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="python benchmarks/demo_check.py", description="Checks the demo set against shortcuts."
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder trained on the demo set")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the figures as JSON")
    options = parser.parse_args(argv)
    figures = check(options.run)
    text = json.dumps(figures, indent=2)
    print(text)
    if options.output:
        write_atomically(options.output, lambda temporary: temporary.write_text(text + "\n"))
    return 0 if all(figures["holds"].values()) else 1  # type: ignore[attr-defined]


if __name__ == "__main__":
    sys.exit(main())

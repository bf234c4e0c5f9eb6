"""Scores a classifier on the test list: views of a clip are averaged, the table is written."""

from __future__ import annotations

import csv
import io
import itertools
import math
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from ..config import TrainConfig
from ..data import ClipDataset, EpochSampler, Sample, make_loader
from ..errors import UserError
from ..files import write_atomically
from ..models import VideoModel
from .hardware import Hardware
from .inputs import clip_config, num_workers
from .metrics import classification_report
from .progress import stage_bar
from .run import RunFolder


@torch.no_grad()
def predict_samples(
    model: VideoModel, samples: list[Sample], config: TrainConfig, hardware: Hardware, source: str = "the classifier"
) -> np.ndarray:
    """Class probabilities (clips, classes): the mean softmax over each clip's views. Every file must be readable.

    Raises:
        UserError: a clip that cannot be read, or one for which ``source``, the classifier's file, has no finite output.
    """
    dataset = ClipDataset(samples, clip_config(config, model.config), mode="test", seed=config.seed)
    sampler = EpochSampler(
        len(dataset),
        seed=config.seed,
        epoch=0,
        shuffle=False,
        rank=hardware.rank,
        world_size=hardware.world_size,
    )
    loader = make_loader(
        dataset,
        sampler,
        config.finetune.batch_size,
        num_workers=num_workers(config),
        pin_memory=hardware.device.type == "cuda",
    )
    model = model.to(hardware.device).eval()
    found: list[tuple[np.ndarray, np.ndarray]] = []
    done = 0
    with stage_bar("evaluate", len(sampler), enabled=hardware.is_main) as bar:
        for batch in loader:
            if batch["failures"]:
                first = batch["failures"][0]
                raise UserError(
                    f"{first.path}: {first.reason}; every test clip must be readable "
                    "(python -m mae_dfer.data.check LIST names all that are not)"
                )
            with hardware.autocast():
                logits = model(batch["clip"].to(hardware.device))
            finite = logits.isfinite().all(-1, keepdim=True)
            rows = logits.float().softmax(-1).where(finite, math.nan)
            found.append((batch["index"].numpy(), rows.cpu().numpy()))
            done += len(logits)
            bar.update(done, "")
    probabilities = mean_over_views(itertools.chain.from_iterable(hardware.gather(found)), len(samples))
    broken = np.flatnonzero(np.isnan(probabilities).any(1))
    if len(broken):
        raise UserError(
            f"{source}: its outputs are not finite for {len(broken)} of {len(samples)} clips, the first "
            f"{samples[broken[0]].path}; its training diverged, or --amp is too coarse for it: try --amp off"
        )
    return probabilities


def mean_over_views(parts: Iterable[tuple[np.ndarray, np.ndarray]], clips: int) -> np.ndarray:
    """Each clip's mean over its views.

    Args:
        parts: pairs of the clips' indices, (n,), and a row for each, (n, classes). Each view comes once.

    Returns:
        (clips, classes).
    """
    indices, rows = (np.concatenate(values) for values in zip(*parts, strict=True))
    total = np.zeros((clips, rows.shape[1]))
    np.add.at(total, indices, rows)
    return total / np.bincount(indices, minlength=clips)[:, None]


def evaluate(
    model: VideoModel,
    samples: list[Sample],
    classes: list[str],
    config: TrainConfig,
    run: RunFolder,
    hardware: Hardware,
    source: str = "the classifier",
) -> dict[str, Any]:
    """Scores ``model``; the main process writes predictions.csv.

    Args:
        source: the file of ``model``, for messages.
    """
    started = time.monotonic()
    probabilities = predict_samples(model, samples, config, hardware, source)
    labels = np.array([sample.label for sample in samples])
    report = classification_report(
        labels, probabilities.argmax(1), classes, probabilities, protocol=config.protocol
    )
    report["evaluate_clips_per_second"] = len(samples) / (time.monotonic() - started)
    if hardware.is_main:
        _write_predictions(samples, probabilities, classes, run)
    return report


def _write_predictions(
    samples: list[Sample], probabilities: np.ndarray, classes: list[str], run: RunFolder
) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["path", "label", "prediction", *classes])
    for sample, row in zip(samples, probabilities, strict=True):
        writer.writerow(
            [sample.path, classes[sample.label], classes[int(row.argmax())], *(f"{p:.6f}" for p in row)]
        )
    content = text.getvalue().encode()
    write_atomically(run.path / "predictions.csv", lambda temporary: temporary.write_bytes(content))

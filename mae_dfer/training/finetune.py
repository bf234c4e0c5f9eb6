"""Supervised training of the classifier."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from .. import create_classifier
from ..config import TrainConfig
from ..data import ClipDataset, DatasetFolder, Sample
from ..models import VideoClassifier, VideoModel
from .hardware import Hardware
from .inputs import TrainingClips, clip_config, steps_per_epoch
from .mixing import Mix
from .provenance import describe_data


class FinetuneTask:
    """Cross-entropy with label smoothing, mixup and cutmix (paper, section 4.1)."""

    name = "finetune"

    def __init__(self, config: TrainConfig, data: DatasetFolder, hardware: Hardware) -> None:
        self.config, self.hardware = config, hardware
        self.settings = config.finetune
        torch.manual_seed(config.seed + 1)
        self.model: VideoModel = build_classifier(config, len(data.classes))
        self.metadata: dict[str, Any] = {
            "data": config.data,
            "trained_on": describe_data(data, ("train",)),
            "classes": data.classes,
            "stride": config.stride,
            "num_segments": config.num_segments,
            "protocol": config.protocol,
        }
        samples = shuffled_labels(data.train, config.seed) if config.shuffle_labels else data.train
        self.dataset = ClipDataset(samples, clip_config(config, self.model.config), mode="finetune", seed=config.seed)
        self._clips = TrainingClips(self.dataset, config, self.settings.batch_size, hardware)
        self._mixup = _make_mixup(config, len(data.classes))

    def steps_per_epoch(self) -> int:
        return steps_per_epoch(len(self.dataset), self.settings.batch_size, "--finetune-batch-size")

    def loader(self, epoch: int, start_step: int) -> Iterable[dict[str, Any]]:
        return self._clips.epoch(epoch, start_step)

    def fingerprint(self) -> str:
        return self._clips.fingerprint()

    def blank_batch(self) -> tuple[torch.Tensor, ...]:
        return self._clips.blank_batch()

    def loss(self, model: torch.nn.Module, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """``loss``; and, without mixup, ``accuracy`` on the training clips."""
        clip, label = batch["clip"], batch["label"]
        if self.settings.still_mix:
            clip = blend_still(clip, self.settings.still_mix)
        if self._mixup is not None and len(clip) % 2 == 0:
            mixed, target = self._mixup(clip, label)
            return {"loss": F.cross_entropy(model(mixed).float(), target)}
        # Mixup pairs clips; a batch that an unreadable video left odd goes without.
        logits = model(clip)
        loss = F.cross_entropy(logits.float(), label, label_smoothing=self.settings.label_smoothing)
        if self._mixup is not None:
            return {"loss": loss}
        return {"loss": loss, "accuracy": (logits.argmax(1) == label).float().mean()}


def build_classifier(config: TrainConfig, num_classes: int) -> VideoClassifier:
    """The classifier these settings describe, freshly initialised."""
    overrides = config.model_overrides(pretraining=False)
    overrides |= {"num_classes": num_classes, "drop_path_rate": config.finetune.drop_path}
    return create_classifier(config.model, **overrides)


def shuffled_labels(samples: list[Sample], seed: int) -> list[Sample]:
    """The control experiment: the same clips, the same labels, dealt out at random."""
    order = np.random.default_rng([seed, 7]).permutation(len(samples))
    return [Sample(sample.path, samples[other].label) for sample, other in zip(samples, order, strict=True)]


def blend_still(clip: torch.Tensor, strongest: float) -> torch.Tensor:
    """Blends each clip with one frame of another clip of the batch, at a share drawn from [0, ``strongest``].

    A still picture changes what a clip looks like and not how it moves, so a classifier cannot tell training
    clips by their looks alone. After the static frames of arXiv 2009.05769 (there of the same clip).

    Args:
        clip: (B, 3, frames, height, width).
    """
    count, frames = clip.shape[0], clip.shape[2]
    share = strongest * torch.rand(count, 1, 1, 1, 1, device=clip.device, dtype=clip.dtype)
    other = torch.randperm(count, device=clip.device)
    frame = torch.randint(frames, (count,), device=clip.device)
    return torch.lerp(clip, clip[other, :, frame].unsqueeze(2), share)


def _make_mixup(config: TrainConfig, num_classes: int) -> Mix | None:
    settings = config.finetune
    if not settings.mixup and not settings.cutmix:
        return None
    return Mix(num_classes, settings.mixup, settings.cutmix, settings.label_smoothing)

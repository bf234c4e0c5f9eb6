"""Masked auto-encoding of unlabelled clips: the task, and the picture of what it learnt."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from .. import create_autoencoder
from ..config import TrainConfig
from ..data import ClipDataset, DatasetFolder, Sample
from ..losses import reconstruct_frames, reconstruction_loss, reconstruction_targets
from ..models import VideoModel
from .hardware import Hardware
from .inputs import TrainingClips, clip_config, steps_per_epoch
from .pictures import draw_reconstruction
from .provenance import describe_data
from .run import RunFolder


class PretrainTask:
    """Reconstruction of appearance and motion of the masked tokens (paper, section 3.1)."""

    name = "pretrain"

    def __init__(self, config: TrainConfig, data: DatasetFolder, hardware: Hardware) -> None:
        self.config, self.hardware = config, hardware
        self.settings = config.pretrain
        torch.manual_seed(config.seed)
        self.model: VideoModel = create_autoencoder(
            f"mae_{config.model}", **config.model_overrides(pretraining=True)
        )
        self.metadata: dict[str, Any] = {
            "data": config.data,
            "trained_on": describe_data(data, ("pretrain",)),
            "protocol": config.protocol,
        }
        self._clip_config = clip_config(config, self.model.config)
        self.dataset = ClipDataset(data.pretrain, self._clip_config, mode="pretrain", seed=config.seed)
        self._clips = TrainingClips(self.dataset, config, self.settings.batch_size, hardware)

    def steps_per_epoch(self) -> int:
        return steps_per_epoch(len(self.dataset), self.settings.batch_size, "--pretrain-batch-size")

    def loader(self, epoch: int, start_step: int) -> Iterable[dict[str, Any]]:
        return self._clips.epoch(epoch, start_step)

    def fingerprint(self) -> str:
        return self._clips.fingerprint()

    def blank_batch(self) -> tuple[torch.Tensor, ...]:
        return self._clips.blank_batch()

    def loss(self, model: torch.nn.Module, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """``loss``, and ``zero``: the loss of predicting zero everywhere, the mean of the normalised targets."""
        clip, mask, sizes = batch["clip"], batch["mask"], self.model.config
        target = reconstruction_targets(clip, mask, sizes.patch_size, sizes.tubelet_size)
        weight = self.settings.appearance_weight
        loss = reconstruction_loss(model(clip, mask), target, weight)
        with torch.no_grad():
            zero = reconstruction_loss(torch.zeros_like(target), target, weight)
        return {"loss": loss, "zero": zero}

    @torch.no_grad()
    def draw(self, samples: list[Sample], run: RunFolder) -> None:
        """Writes reconstruction.png: input, masked input, reconstruction and motion of a few clips."""
        dataset = ClipDataset(samples, self._clip_config, mode="pretrain", seed=self.config.seed)
        step = max(len(samples) // 3, 1)
        drawn = (dataset[(0, index)] for index in range(0, len(samples), step))
        items = [item for item in drawn if isinstance(item, dict)][:3]
        if not items:
            return
        clip = torch.stack([item["clip"] for item in items]).to(self.hardware.device)
        mask = torch.stack([item["mask"] for item in items]).to(self.hardware.device)
        model = self.model.eval()
        with self.hardware.autocast():
            prediction = model(clip, mask).float()
        frames = reconstruct_frames(
            clip, mask, prediction, model.config.patch_size, model.config.tubelet_size
        )
        draw_reconstruction(frames, run.path / "reconstruction.png", model.config.tubelet_size)

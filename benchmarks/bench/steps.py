"""Whole training steps of the base models: forward, backward and AdamW, on a batch that is there already.

Stages: ``pretrain`` (MAE-DFER's masked autoencoder, a tenth of the tokens visible) and ``finetune`` (the classifier).
In bfloat16 parameters stay float32 and autocast is on, as in training.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.encoders import CLIP, LGI, VIT, compile_blocks, draw_weights, with_sdpa
from mae_dfer import create_model
from mae_dfer.data import masks
from mae_dfer.errors import UserError
from mae_dfer.losses import reconstruction_loss, reconstruction_targets
from mae_dfer.models import VideoModel
from mae_dfer.training.graphs import GraphedModel

STAGES, PARTS = ("pretrain", "finetune"), ("forward", "backward", "optimizer")
# Of one loss between two paths with the same weights, relative: a check of the set-up; the tests check the gradients.
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}


@dataclass
class TrainingStep:
    """One variant's model and optimiser, and its batch.

    ``times`` holds milliseconds of each part, a value a round.
    """

    variant: str
    stage: str
    model: VideoModel
    batch: tuple[Tensor, ...]
    dtype: str
    times: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})

    def __post_init__(self) -> None:
        self.device = self.batch[0].device
        self.called: nn.Module = self.model.train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6, fused=True)

    def loss(self) -> Tensor:
        clip, *rest = self.batch
        with self._autocast():
            if self.stage == "finetune":
                return F.cross_entropy(self.called(clip).float(), rest[0])
            sizes = self.model.config
            target = reconstruction_targets(clip, rest[0], sizes.patch_size, sizes.tubelet_size)
            return reconstruction_loss(self.called(clip, rest[0]), target, 0.5)

    def capture(self) -> None:
        """Has CUDA graphs do forward and backward.

        Raises:
            UserError: they cannot be captured, or compute another loss than the model.
        """
        expected, (clip, *rest) = self.loss_value(), self.batch
        sample = (clip.clone(), *rest[: self.stage == "pretrain"])  # a clip is copied to where the graphs read theirs
        with torch.cuda.device(self.device):
            self.called = GraphedModel(self.model, sample, self._autocast(cache=False))
        self.check_loss(expected)

    @torch.no_grad()
    def loss_value(self) -> float:
        return float(self.loss())

    def check_loss(self, expected: float) -> None:
        """Raises UserError where the loss is another than ``expected``, of the same model by another path."""
        found = self.loss_value()
        if not abs(found - expected) <= TOLERANCE[self.dtype] * abs(expected):
            name = f"{self.variant} {self.stage}"
            raise UserError(f"{name} is wrong in {self.dtype}: its loss is {found}, not {expected}")

    def run(self) -> None:
        """One step, untimed."""
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def timed(self) -> None:
        with self._part("forward"):
            loss = self.loss()
        with self._part("backward"):
            loss.backward()
        with self._part("optimizer"):
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    def _autocast(self, *, cache: bool = True) -> torch.autocast:
        low = self.dtype == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=low, cache_enabled=cache)

    @contextmanager
    def _part(self, name: str) -> Iterator[None]:
        self._wait()
        started = time.perf_counter()
        yield
        self._wait()
        self.times[name].append((time.perf_counter() - started) * 1e3)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def training_steps(stage: str, dtype: str, device: torch.device, clips: int, compiled: bool) -> list[TrainingStep]:
    """Every variant of a stage, with the same weights where the model is the same.

    Raises:
        UserError: the fused path's loss is not the eager path's.
    """
    prefix = "mae_" if stage == "pretrain" else ""
    torch.manual_seed(0)
    eager, fused = (draw_weights(create_model(f"{prefix}{LGI}", fused_attn=fused)) for fused in (False, True))
    fused.load_state_dict(eager.state_dict())
    models = {"eager": eager, "fused": fused, "vit-sdpa": with_sdpa(create_model(f"{prefix}{VIT}", fused_attn=False))}
    if compiled:
        models["compile-sdpa"] = compile_blocks(with_sdpa(copy.deepcopy(eager)))
    if device.type == "cuda":
        models["fused-graph"] = copy.deepcopy(fused)
    batch = draw_batch(stage, device, clips)
    steps = [TrainingStep(name, stage, model.to(device), batch, dtype) for name, model in models.items()]
    steps[1].check_loss(steps[0].loss_value())
    return steps


def draw_batch(stage: str, device: torch.device, clips: int) -> tuple[Tensor, ...]:
    """Clips, and the masks of pre-training (on the CPU, where the loader makes them) or the labels."""
    clip = torch.randn(clips, *CLIP).to(device)
    if stage == "finetune":
        return clip, torch.arange(clips, device=device) % 7
    rng = np.random.default_rng(0)
    return clip, torch.stack([masks.region_window_tube_mask((8, 10, 10), 0.9, (5, 10), rng) for _ in range(clips)])

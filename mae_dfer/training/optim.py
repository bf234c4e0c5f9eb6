"""Optimisers with their parameter groups (weight decay, layer decay), and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

from ..config import StageConfig
from ..models import VideoModel
from .muon import Muon

MUON_LR_SCALE = 4.0


def parameter_groups(
    model: VideoModel,
    weight_decay: float,
    layer_decay: float = 1.0,
    patch_embed_lr_scale: float = 1.0,
    *,
    decay_representatives: bool = False,
) -> list[dict[str, Any]]:
    """Groups by (decayed or not, factor on the learning rate).

    Not decayed: biases, other 1-D parameters and what ``model.no_weight_decay()`` names (tokens). The published
    pre-training decays the representative tokens, by a naming slip: ``decay_representatives`` does. ``lr_scale``
    of layer i is ``layer_decay ** (last - i)`` with the patch embedding as layer 0 and the head in the last; the
    patch embedding's is multiplied by ``patch_embed_lr_scale``.
    """
    exempt = model.no_weight_decay()
    if decay_representatives:
        exempt.discard("encoder.representative_tokens")
    groups: dict[tuple[bool, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        decayed = parameter.ndim > 1 and name not in exempt
        scale = layer_decay ** (model.num_layers - 1 - model.layer_index(name)) if layer_decay != 1.0 else 1.0
        if name.startswith("encoder.patch_embed."):
            scale *= patch_embed_lr_scale
        group = groups.setdefault(
            (decayed, scale),
            {"params": [], "weight_decay": weight_decay if decayed else 0.0, "lr_scale": scale},
        )
        group["params"].append(parameter)
    return list(groups.values())


class Optimizers:
    """AdamW over all parameters; or, with ``muon``, AdamW beside Muon for the weight matrices of the blocks.

    Muon (an orthogonalised momentum step for matrices) leaves MAE's slow start behind in a third of the steps;
    its step is scaled to AdamW's size, times ``MUON_LR_SCALE``.
    """

    def __init__(
        self,
        model: VideoModel,
        settings: StageConfig,
        muon_dtype: torch.dtype = torch.float32,
        *,
        decay_representatives: bool = False,
    ) -> None:
        groups = parameter_groups(
            model,
            settings.weight_decay,
            settings.layer_decay,
            settings.patch_embed_lr_scale,
            decay_representatives=decay_representatives,
        )
        matrices: set[int] = set()
        if settings.optimizer == "muon":
            named = model.named_parameters()
            matrices = {id(value) for name, value in named if value.ndim == 2 and ".blocks." in name}
        self.all: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(_keep(groups, lambda p: id(p) not in matrices), lr=0.0, betas=(0.9, settings.beta2),
                              fused=True)
        ]
        if matrices:
            chosen = _keep(groups, lambda p: id(p) in matrices)
            chosen = [group | {"lr_scale": group["lr_scale"] * MUON_LR_SCALE} for group in chosen]
            self.all.append(Muon(chosen, muon_dtype, lr=0.0))

    def set_rates(self, learning_rate: float, weight_decay: float) -> None:
        """Of the next step. Weight decay is set where a group has one."""
        for optimizer in self.all:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * group["lr_scale"]
                if group["weight_decay"]:
                    group["weight_decay"] = weight_decay

    def step(self, scaler: torch.amp.GradScaler, parameters: Iterable[torch.nn.Parameter], clip_grad: float) -> None:
        """Clips the gradient norm (0: does not) and steps; the gradients are spent."""
        if clip_grad:
            for optimizer in self.all:
                scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(parameters, clip_grad)
        for optimizer in self.all:
            scaler.step(optimizer)
        scaler.update()
        for optimizer in self.all:
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for optimizer in self.all]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Raises ValueError where the state is of other optimisers."""
        for optimizer, state in zip(self.all, states, strict=True):
            optimizer.load_state_dict(state)


def _keep(groups: list[dict[str, Any]], wanted: Callable[[torch.nn.Parameter], bool]) -> list[dict[str, Any]]:
    kept = [group | {"params": [p for p in group["params"] if wanted(p)]} for group in groups]
    return [group for group in kept if group["params"]]


def schedule(settings: StageConfig, step: int, steps_per_epoch: int) -> tuple[float, float]:
    """Learning rate (before the factor of a group) and weight decay of one step of a stage, counted from 0."""
    total, scale = settings.epochs * steps_per_epoch, settings.batch_size / 256
    warmup = int(settings.warmup_epochs * steps_per_epoch)
    rate = learning_rate(step, total, warmup, settings.lr * scale, settings.min_lr * scale)
    if settings.weight_decay_end is None:
        return rate, settings.weight_decay
    return rate, learning_rate(step, total, 0, settings.weight_decay, settings.weight_decay_end)


def learning_rate(step: int, total_steps: int, warmup_steps: int, peak: float, floor: float) -> float:
    """Linear warm-up ``linspace(0, peak, warmup_steps)``, then ``floor + ½(peak − floor)(1 + cos(πi/n))``."""
    if step < warmup_steps:
        return peak * step / max(warmup_steps - 1, 1)
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return floor + 0.5 * (peak - floor) * (1.0 + math.cos(math.pi * progress))

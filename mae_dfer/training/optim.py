"""AdamW parameter groups (weight decay, layer decay) and the learning-rate schedule."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..config import FinetuneConfig, PretrainConfig
from ..models import VideoModel


def parameter_groups(
    model: VideoModel, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Groups by (decayed or not, layer).

    Not decayed: biases, other 1-D parameters and what ``model.no_weight_decay()`` names (tokens). The published
    pre-training decays the representative tokens, by a naming slip; this does not. ``lr_scale`` of layer i is
    ``layer_decay ** (last - i)`` with the patch embedding as layer 0 and the head in the last.
    """
    exempt = model.no_weight_decay()
    groups: dict[tuple[bool, int], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        decayed = parameter.ndim > 1 and name not in exempt
        layer = model.layer_index(name) if layer_decay != 1.0 else 0
        scale = layer_decay ** (model.num_layers - 1 - layer) if layer_decay != 1.0 else 1.0
        group = groups.setdefault(
            (decayed, layer),
            {"params": [], "weight_decay": weight_decay if decayed else 0.0, "lr_scale": scale},
        )
        group["params"].append(parameter)
    return list(groups.values())


def make_optimizer(model: VideoModel, settings: PretrainConfig | FinetuneConfig) -> torch.optim.AdamW:
    groups = parameter_groups(model, settings.weight_decay, getattr(settings, "layer_decay", 1.0))
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, settings.beta2), fused=True)


def learning_rate(step: int, total_steps: int, warmup_steps: int, peak: float, floor: float) -> float:
    """Linear warm-up ``linspace(0, peak, warmup_steps)``, then ``floor + ½(peak − floor)(1 + cos(πi/n))``."""
    if step < warmup_steps:
        return peak * step / max(warmup_steps - 1, 1)
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return floor + 0.5 * (peak - floor) * (1.0 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value * group["lr_scale"]

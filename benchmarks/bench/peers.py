"""Attention of other packages, where they are installed: each a function of (R, H, S, D) queries, keys, values."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
NATTEN = (
    "its windows slide over a grid of tokens and have no representative token in front: it computes something else"
)


def peers(device: torch.device, dtype: str) -> tuple[dict[str, Attend], dict[str, str]]:
    """(what can run here, why the others cannot)."""
    found: dict[str, Attend] = {}
    reasons = {"natten": NATTEN}
    for name, package, make in (("flash-attn", "flash_attn", _flash), ("xformers", "xformers.ops", _xformers)):
        if device.type != "cuda":
            reasons[name] = "its kernels are for GPUs"
        elif name == "flash-attn" and dtype == "float32":
            reasons[name] = "it takes 16-bit tensors alone"
        else:
            try:
                found[name] = make(importlib.import_module(package))
            except ImportError as error:
                reasons[name] = f"not installed here ({error})"
    return found, reasons


def _flash(package: object) -> Attend:
    return _by_tokens(package.flash_attn_func)  # type: ignore[attr-defined]


def _xformers(package: object) -> Attend:
    return _by_tokens(package.memory_efficient_attention)  # type: ignore[attr-defined]


def _by_tokens(function: Callable[..., Tensor]) -> Attend:
    """Both take (R, S, H, D)."""

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return function(*(part.transpose(1, 2) for part in (query, key, value))).transpose(1, 2)

    return attend

"""What a model needs of memory at the least, by arithmetic: to be told before any of it is allocated."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from ..errors import UserError
from ..files import printable
from .config import ModelConfig

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container


def count_parameters(config: ModelConfig) -> int:
    """Elements of the model's weight matrices, which are nearly all of its parameters."""
    dim = config.embed_dim
    attentions = 1
    if not config.is_vit:
        attentions += config.global_attention and config.share_attention != "all"
        attentions += config.exchange != "none" and config.share_attention == "none"
    count = config.patch_dim * dim + config.depth * _block(dim, config.mlp_ratio, attentions)
    if not config.is_mae:
        return count + dim * config.num_classes
    width = config.decoder_embed_dim
    blocks = config.decoder_depth * _block(width, config.mlp_ratio, 1)
    return count + dim * width + blocks + width * config.patch_dim


def _block(dim: int, mlp_ratio: float, attentions: int) -> int:
    return 4 * dim * dim * attentions + 2 * dim * int(dim * mlp_ratio)


def bytes_to_make(config: ModelConfig) -> int:
    """To make the model: its weights, and its tables of positions, which are computed from four of float64."""
    widths = config.embed_dim + (config.decoder_embed_dim if config.is_mae else 0)
    return 4 * count_parameters(config) + 4 * 8 * config.num_tokens * widths


def check_fits_to_make(config: ModelConfig) -> None:
    """Raises :class:`UserError` where the model is larger than the memory of torch's default device."""
    hint = "give smaller sizes, or fewer blocks"
    check_fits(bytes_to_make(config), torch.get_default_device(), describe_size(config), hint)


def bytes_to_train(config: ModelConfig, batch_size: int, visible: float = 1.0) -> int:
    """To train it with AdamW: weights, gradients and two moments; the clips; and what enters each block, as bf16.

    Args:
        batch_size: clips that one process computes at a time.
        visible: the share of the tokens that the encoder sees.
    """
    clip = 4 * 3 * config.num_frames * config.img_size[0] * config.img_size[1]
    tokens = int(config.num_tokens * visible) * config.embed_dim * config.depth
    if config.is_mae:
        tokens += config.num_tokens * config.decoder_embed_dim * config.decoder_depth
    return max(4 * 4 * count_parameters(config) + batch_size * (clip + 2 * tokens), bytes_to_make(config))


def total_memory(device: torch.device) -> int | None:
    """Bytes of memory that a device has, or that this process's container may use; None where that is not known."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type != "cpu" or "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", ()):
        return None
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in _LIMITS:
        try:
            found.append(int(Path(name).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return min(found)


def check_fits(needed: int, device: torch.device, what: str, hint: str) -> None:
    """Raises :class:`UserError` where ``what`` needs more bytes than ``device`` has."""
    total = total_memory(device)
    if total is not None and needed > total:
        raise UserError(
            f"{what} needs at least {_gigabytes(needed)} of memory, and {device} has {_gigabytes(total)}; {hint}"
        )


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count < 10**12 else f"{count // 10**9:,} GB"


def describe_size(config: ModelConfig) -> str:
    """The model's size in words."""
    height, width = config.img_size
    return (
        f"{config.name} of {config.depth} blocks, {config.embed_dim} wide, for clips of {config.num_frames} frames of "
        f"{height} × {width} pixels ({config.num_tokens:,} tokens)"
    )


@contextlib.contextmanager
def tell_exhaustion() -> Iterator[None]:
    """Within, that memory runs out is a :class:`UserError`. Also to be used as a decorator."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # what PyTorch raises of a CPU is no kind of its own
        reason = (str(error).splitlines() or ["out of memory"])[0]
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "DefaultCPUAllocator" not in reason:
            raise
        advice = "give a smaller --batch-size, or smaller sizes"
        raise UserError(f"memory ran out ({printable(reason, 200)}); {advice}") from None

"""From run settings to clips: the data set, its clip settings and loaders."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from ..config import TrainConfig
from ..data import ClipConfig, ClipDataset, DatasetFolder, EpochSampler, make_loader, open_dataset
from ..data.demo import ensure_demo
from ..errors import UserError
from ..models import ModelConfig
from .hardware import Hardware


def open_data(config: TrainConfig, hardware: Hardware) -> DatasetFolder:
    """The folder of ``--data``; ``demo`` is generated first where it is missing (by the main process)."""
    if config.data != "demo":
        return open_dataset(config.data, root=config.data_root)
    if hardware.is_main:
        ensure_demo(progress=True)
    hardware.barrier()
    return open_dataset(ensure_demo(progress=False))


def clip_config(config: TrainConfig, model: ModelConfig) -> ClipConfig:
    """Frames, sizes, mask and augmentation of a run's clips."""
    finetune, pretrain = config.finetune, config.pretrain
    return ClipConfig(
        num_frames=model.num_frames,
        stride=config.stride,
        img_size=model.img_size,
        grid_size=model.grid_size,
        mask=pretrain.mask,
        mask_ratio=pretrain.mask_ratio,
        mask_window=model.region_size[1:],
        rand_augment=finetune.rand_augment,
        crop_scale=finetune.crop_scale,
        flip=finetune.flip,
        random_erasing=finetune.random_erasing,
        num_segments=config.num_segments,
    )


def num_workers(config: TrainConfig) -> int:
    return min(os.cpu_count() or 1, 8) if config.workers is None else config.workers


def steps_per_epoch(clips: int, batch_size: int, flag: str) -> int:
    """Whole batches in ``clips``; the rest of an epoch's random order is left for the next."""
    if batch_size < 1 or clips < batch_size:
        raise UserError(f"{clips} training clips do not fill one batch of {batch_size}; give a smaller {flag}")
    return clips // batch_size


def make_training_loader(dataset: ClipDataset, config: TrainConfig, batch_size: int, epoch: int, start_step: int,
                         hardware: Hardware) -> Iterable[dict[str, Any]]:
    """Batches of this process for one epoch, from ``start_step`` on."""
    if batch_size % hardware.world_size:
        raise UserError(f"a batch of {batch_size} clips does not divide among {hardware.world_size} processes")
    local = batch_size // hardware.world_size
    sampler = EpochSampler(len(dataset), seed=config.seed, epoch=epoch, shuffle=True, rank=hardware.rank,
                           world_size=hardware.world_size, start=start_step * local)
    return make_loader(dataset, sampler, local, num_workers=num_workers(config), drop_last=True,
                       pin_memory=hardware.device.type == "cuda")

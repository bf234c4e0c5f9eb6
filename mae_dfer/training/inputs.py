"""From run settings to clips: the data set, its clip settings and loaders."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from ..config import TrainConfig
from ..data import ClipConfig, ClipDataset, DatasetFolder, EpochSampler, make_loader, open_dataset
from ..data.lists import hash_samples
from ..errors import UserError
from ..models import ModelConfig
from ..notes import Say, keep_quiet, print_note
from .hardware import Hardware


def open_data(config: TrainConfig, hardware: Hardware, say: Say | None = None) -> DatasetFolder:
    """The folder of ``--data``; ``demo`` is generated first where it is missing (by the main process)."""
    if config.data != "demo":
        say = (say or print_note) if hardware.is_main else keep_quiet
        return open_dataset(config.data, stage=config.stage, fold=config.fold, root=config.data_root, say=say)
    if config.fold is not None:
        raise UserError(f"the demo set has no folds; leave out --fold {config.fold}, or give another --data")
    from ..data.demo import ensure_demo  # it draws with OpenCV, which runs on other data can do without

    if hardware.is_main:
        ensure_demo(progress=True)
    hardware.barrier()
    return open_dataset(ensure_demo(progress=False), stage=config.stage)


def clip_config(config: TrainConfig, model: ModelConfig) -> ClipConfig:
    """Frames, sizes, mask and augmentation of a run's clips."""
    finetune, pretrain = config.finetune, config.pretrain
    # A ViT has no regions whose visible tokens must be equally many.
    mask = "tube" if model.is_vit and pretrain.mask == "region_window_tube" else pretrain.mask
    return ClipConfig(
        num_frames=model.num_frames,
        stride=config.stride,
        img_size=model.img_size,
        grid=model.grid_size,
        mask=mask,
        mask_ratio=pretrain.mask_ratio,
        mask_window=model.region_size[1:],
        mask_symmetry=pretrain.mask_symmetry,
        crop_scales=pretrain.crop_scales,
        face_box=pretrain.face_box,
        rand_augment=finetune.rand_augment,
        crop_area=finetune.crop_area,
        crop_aspect=finetune.crop_aspect,
        flip_prob=finetune.flip_prob,
        erase_prob=finetune.erase_prob,
        num_segments=config.num_segments,
        cache_gb=config.cache_gb,
        protocol=config.protocol,
        video_decoder=config.video_decoder,
    )


def num_workers(config: TrainConfig, trains_on: torch.device | None = None) -> int:
    """``config.workers``; by default one process a core, at most 8.

    None where the CPU trains on videos that are kept in memory (``cache_gb``): there is little to decode, and
    decoding processes would take turns with the threads that compute (117 against 154 clips/s on two cores).
    """
    if config.workers is not None:
        return config.workers
    if config.cache_gb and trains_on is not None and trains_on.type == "cpu":
        return 0
    return min(os.cpu_count() or 1, 8)


def steps_per_epoch(clips: int, batch_size: int, flag: str) -> int:
    """Whole batches in ``clips``; the rest of an epoch's random order is left for the next."""
    if batch_size < 1 or clips < batch_size:
        raise UserError(
            f"{clips} training clips do not fill one batch of {batch_size}; give a smaller {flag}"
        )
    return clips // batch_size


class TrainingClips:
    """Batches of this process, epoch by epoch; the decoding processes live as long as this object."""

    def __init__(
        self, dataset: ClipDataset, config: TrainConfig, batch_size: int, hardware: Hardware
    ) -> None:
        if batch_size % hardware.world_size:
            raise UserError(
                f"a batch of {batch_size} clips does not divide among {hardware.world_size} processes"
            )
        self._dataset = dataset
        self._local_batch = batch_size // hardware.world_size
        self._sampler = EpochSampler(
            len(dataset), seed=config.seed, rank=hardware.rank, world_size=hardware.world_size
        )
        self._loader = make_loader(
            dataset,
            self._sampler,
            self._local_batch,
            num_workers=num_workers(config, hardware.device),
            drop_last=True,
            pin_memory=hardware.device.type == "cuda",
        )

    def epoch(self, epoch: int, start_step: int) -> Iterable[dict[str, Any]]:
        """The batches of ``epoch`` from ``start_step`` on."""
        self._sampler.set_epoch(epoch, start_step * self._local_batch)
        return self._loader

    def fingerprint(self) -> str:
        """SHA-256 of the clips that this trains on, in their order: of their labels, too, where it learns them."""
        return hash_samples(self._dataset.samples, labelled=self._dataset.mode != "pretrain")

    def blank_batch(self) -> tuple[torch.Tensor, ...]:
        """What the model takes of a whole batch, (clip,) or (clip, mask), with nothing to be seen on the clips."""
        clips = self._dataset.config
        clip = torch.zeros(self._local_batch, 3, clips.num_frames, *clips.size)
        mask = clips.draw_mask(np.random.default_rng(0)) if self._dataset.mode == "pretrain" else None
        return (clip,) if mask is None else (clip, mask.repeat(self._local_batch, 1))

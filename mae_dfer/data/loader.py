"""The order of an epoch and the loader that follows it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from mae_dfer.data.dataset import ClipDataset, collate
from mae_dfer.errors import UserError
from mae_dfer.signals import held_signals


class EpochSampler(Sampler[tuple[int, int]]):
    """(epoch, item) pairs of one rank, in an order that is a function of (seed, epoch).

    Ranks take every ``world_size``-th item. With ``even=True`` (default when shuffling) the last few items
    are left out so that all ranks get equally many, as training in step needs; no item comes twice in an
    epoch, and another epoch leaves out others. With ``even=False`` (default in order) every item comes
    exactly once over all ranks, which evaluation needs; ranks may then differ by one.

    ``start`` skips the items of this rank that were already used, to resume inside an epoch. Call
    :meth:`set_epoch` before each further epoch.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        seed: int = 0,
        epoch: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        even: bool | None = None,
    ) -> None:
        if num_samples < 1:
            raise UserError("an epoch needs at least one sample")
        if not 0 <= rank < world_size:
            raise UserError(f"rank {rank} does not lie in a world of {world_size}")
        self.num_samples, self.seed, self.shuffle = num_samples, seed, shuffle
        self.rank, self.world_size = rank, world_size
        self.even = shuffle if even is None else even
        if self.even and num_samples < world_size:
            raise UserError(f"{num_samples} samples cannot be shared evenly among {world_size} processes")
        self.set_epoch(epoch, start)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch, and where in this rank's share of it to begin."""
        if epoch < 0 or not 0 <= start <= self.share:
            raise UserError(f"epoch {epoch}, start {start}: the start must lie in 0 … {self.share}")
        self.epoch, self.start = epoch, start

    @property
    def share(self) -> int:
        """Items of this rank in a whole epoch."""
        if self.even:
            return self.num_samples // self.world_size
        return len(range(self.rank, self.num_samples, self.world_size))

    def __len__(self) -> int:
        return self.share - self.start

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch
        if self.shuffle:
            order = np.random.default_rng(np.random.SeedSequence([self.seed, epoch])).permutation(
                self.num_samples
            )
        else:
            order = np.arange(self.num_samples)
        mine = order[self.rank :: self.world_size][self.start : self.share]
        return ((epoch, int(item)) for item in mine)


class _Loader(DataLoader[Any]):
    """Starts its processes without being interrupted."""

    def __iter__(self) -> Any:
        with held_signals():
            return super().__iter__()


def _prepare_worker(worker: int) -> None:
    # Of torch's handler their end would be a failure, which the parent reports even where it is to end itself.
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
    torch.set_num_threads(1)
    sys.excepthook = _ignore_lost_parent


def _ignore_lost_parent(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A parent that ends while it fetches a clip breaks the connection: this process ends too, without a traceback."""
    if not issubclass(kind, (EOFError, ConnectionError)):
        sys.__excepthook__(kind, error, trace)


def make_loader(
    dataset: ClipDataset,
    sampler: EpochSampler,
    batch_size: int,
    *,
    num_workers: int = 0,
    drop_last: bool = False,
    pin_memory: bool | None = None,
    prefetch_factor: int = 2,
    persistent_workers: bool | None = None,
) -> DataLoader[Any]:
    """A loader of batches as :func:`mae_dfer.data.collate` makes them.

    Workers use one thread each. They stay alive between epochs where the sampler shuffles (training), and
    end with the pass where it does not (evaluation). Memory is pinned where CUDA is available.
    """
    if batch_size < 1 or num_workers < 0:
        raise UserError(
            f"batch size must be 1 or more and workers 0 or more, got {batch_size}, {num_workers}"
        )
    if len(dataset) != sampler.num_samples:
        raise UserError(f"the sampler counts {sampler.num_samples} items, the dataset has {len(dataset)}")
    num_workers = min(num_workers, -(-sampler.share // batch_size))  # others would have nothing to do
    return _Loader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate,
        drop_last=drop_last,
        pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
        worker_init_fn=_prepare_worker,
        # As Linux always did: from Python 3.14 on, each process would import torch again, and take Ctrl-C for its own.
        multiprocessing_context="fork" if num_workers and sys.platform == "linux" else None,
        prefetch_factor=prefetch_factor if num_workers else None,
        persistent_workers=bool(num_workers)
        and (sampler.shuffle if persistent_workers is None else persistent_workers),
    )

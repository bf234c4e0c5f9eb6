"""Find the broken files of a data set before a run does."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console
from rich.progress import track

from mae_dfer.data.dataset import Failure
from mae_dfer.data.lists import Sample
from mae_dfer.data.video import VideoError, open_video

_SLICE = 1024


def _probe(item: tuple[int, Sample]) -> Failure | None:
    index, sample = item
    try:
        with open_video(sample.path) as video:
            video.get([0])
            video.get([video.num_frames - 1])
    except VideoError as error:
        return Failure(error.path, error.reason, index)
    return None


def check_files(samples: Sequence[Sample], *, workers: int = 4, progress: bool = True) -> list[Failure]:
    """Open every file and decode its first and last frame; return those that fail, in list order.

    Damage between the two frames is found only while training, where it becomes a Failure of that clip.
    """
    items = list(enumerate(samples))
    with ThreadPoolExecutor(max_workers=workers) as pool:
        # In slices: the pool queues all that it is given, and lists may hold millions.
        slices = (items[at : at + _SLICE] for at in range(0, len(items), _SLICE))
        results = (result for part in slices for result in pool.map(_probe, part))
        console = Console(stderr=True)
        hidden = not (progress and console.is_terminal)
        shown = track(results, "checking files", len(samples), console=console, transient=True, disable=hidden)
        return [failure for failure in shown if failure is not None]

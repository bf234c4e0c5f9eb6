"""Find the broken files of a data set before a run does."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console
from rich.progress import track

from mae_dfer.data.dataset import Failure
from mae_dfer.data.lists import Sample
from mae_dfer.data.video import VideoError, as_video_error, open_video

_SLICE = 1024
_SHOWN_FROM = 500  # files that take long enough for a progress bar


def check_files(samples: Sequence[Sample], *, workers: int = 4, progress: bool = True) -> list[Failure]:
    """Open every file and decode its first and last frame; return those that fail, in list order.

    Damage between the two frames is found only while training, where it becomes a Failure of that clip.
    """
    return _find_failures(samples, _decode_ends, workers, progress)


def check_containers(samples: Sequence[Sample], *, workers: int = 8) -> list[Failure]:
    """Read what says which frames each file holds, and decode the first; return those that fail, in list order.

    Faster than :func:`check_files` by far on files whose frames only decoding tells.
    """
    return _find_failures(samples, check_container, workers, len(samples) >= _SHOWN_FROM)


def check_container(path: str) -> None:
    """Raises VideoError for what is wrong with a file, as far as that takes no decoding beyond the first frame."""
    from mae_dfer.data.images import IMAGE_SUFFIXES
    from mae_dfer.data.video_file import VideoFile

    if os.path.isfile(path) and not path.lower().endswith(IMAGE_SUFFIXES):
        with as_video_error(path):
            VideoFile(path, only_check=True).close()
    else:
        with open_video(path) as video:
            video.get([0])


def _decode_ends(path: str) -> None:
    with open_video(path) as video:
        video.get([0])
        video.get([video.num_frames - 1])


def _find_failures(
    samples: Sequence[Sample], look: Callable[[str], None], workers: int, progress: bool
) -> list[Failure]:
    def probe(item: tuple[int, Sample]) -> Failure | None:
        index, sample = item
        try:
            look(sample.path)
        except VideoError as error:
            return Failure(error.path, error.reason, index)
        return None

    items = list(enumerate(samples))
    with ThreadPoolExecutor(max_workers=workers) as pool:
        # In slices: the pool queues all that it is given, and lists may hold millions.
        slices = (items[at : at + _SLICE] for at in range(0, len(items), _SLICE))
        results = (result for part in slices for result in pool.map(probe, part))
        console = Console(stderr=True)
        hidden = not (progress and console.is_terminal)
        shown = track(results, "checking files", len(samples), console=console, transient=True, disable=hidden)
        return [failure for failure in shown if failure is not None]

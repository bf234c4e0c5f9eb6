"""Whether clips show faces that were cut out, or whole frames: found on a sample of them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from mae_dfer.data.prepare.inspection import Item, in_processes
from mae_dfer.data.prepare.layout import Finding, Layout
from mae_dfer.data.prepare.store import Store, first_paths
from mae_dfer.data.video import Frames, VideoError, open_video

if TYPE_CHECKING:
    from mae_dfer.data.faces import FaceDetector

SAMPLE = 200  # clips, evenly spread over the set
_MANY = 0.1  # of the sample
_SAMPLED = "clips JOIN inspections USING (path) WHERE fault = '' AND number % ? = 0"
_LOOKED_AT = "clips JOIN inspections USING (path) WHERE fault = '' AND face_share IS NOT NULL"


def look_for_faces(layout: Layout, store: Store, workers: int, advance: Callable[[int], None]) -> None:
    """Sets the column ``face_share`` of the sampled clips where an earlier call has not: 0 where there is no face.

    Args:
        advance: is called with how many more clips are done.
    """
    paths = [path for path, share in _sample(store) if share is None]
    advance(sample_size(store) - len(paths))
    items = [(os.path.join(layout.root, path), path, "") for path in paths]
    for done in in_processes(_look, items, workers, lost=lambda item: (None, item[1])):
        store.set("face_share", done)
        advance(len(done))


def sample_size(store: Store) -> int:
    return len(_sample(store))


def _sample(store: Store) -> list[tuple[str, float | None]]:
    (total,) = next(store.ask("SELECT count(*) FROM clips"))
    step = max(-(-total // SAMPLE), 1)
    return list(store.ask(f"SELECT path, face_share FROM {_SAMPLED} ORDER BY number", step))


def _look(item: Item) -> tuple[float | None, str]:
    """(how much of the frame the largest face fills, path), by the first of three frames that shows one.

    No face is a share of 0; None is a clip that can no longer be read.
    """
    full, path, _ = item
    try:
        with open_video(full) as video:
            for quarter in (2, 1, 3):
                share = share_of_face(video.get([(video.num_frames - 1) * quarter // 4])[0])
                if share is not None:
                    return share, path
    except VideoError:
        return None, path
    return 0.0, path


def share_of_face(frame: Frames) -> float | None:
    """How much of the frame's area its largest face fills; None without a face."""
    from mae_dfer.data.faces import largest_face_share

    return largest_face_share(frame, _detector())


@functools.cache
def _detector() -> FaceDetector:
    from mae_dfer.data.faces import FaceDetector

    return FaceDetector()


def least_share(layout: Layout) -> float:
    """What part of a frame the face in a crop fills at least.

    Of VoxCeleb2, training takes 160 × 160 of 224 × 224 pixels, of which a face fills that much more.
    """
    return 0.25 * (160 / 224) ** 2 if layout.set == "voxceleb2" else 0.25


def find_whole_frames(layout: Layout, store: Store) -> Iterator[Finding]:
    """Findings on the clips that :func:`look_for_faces` looked at."""
    least = least_share(layout)
    is_small = "face_share > 0 AND face_share < ?"
    query = f"SELECT count(*), total(face_share = 0), total({is_small}) FROM {_LOOKED_AT}"
    total, without, small = map(int, next(store.ask(query, least)))
    if small:
        are_whole = small > _MANY * (total - without)
        remedy = "take the crops, or use --crop-faces" if layout.is_cropped else "run this again with --crop-faces"
        found = f"the largest face fills less than {least:.0%} of the frame in {small:,} of {total:,} clips looked at"
        yield Finding(
            f"the frames are not cropped to faces; {found}; {remedy}" if are_whole else f"{found}; look at them",
            are_whole,
            first_paths(store, f"{_LOOKED_AT} AND {is_small}", least),
        )
    if without > _MANY * total:
        yield Finding(
            f"no face was found in {without:,} of {total:,} clips looked at; look at them, and at how they were cut",
            without > total / 2,
            first_paths(store, f"{_LOOKED_AT} AND face_share = 0"),
        )

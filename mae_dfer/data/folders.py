"""The clips in a folder: its videos, and its folders of frames."""

from __future__ import annotations

import os
from pathlib import Path

from mae_dfer.data.images import is_frame
from mae_dfer.data.video import VideoError, video_error
from mae_dfer.errors import UserError

VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".3gp", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".vob", ".wmv",
    ".asf", ".flv", ".ogv", ".mxf", ".dv", ".gif",
)  # fmt: skip


def find_clips(folder: Path) -> tuple[list[Path], list[VideoError]]:
    """The clips in ``folder`` and in the folders below it: videos, and each folder that holds images.

    Names that start with a full stop are hidden, and skipped. Links to folders are followed; a folder that several
    links lead to is taken once.

    Returns:
        The clips in order of their paths; and an error for each folder that cannot be read.

    Raises:
        UserError: a folder that holds images and other clips, so that it may be one clip or several.
    """
    clips: list[Path] = []
    failures: list[VideoError] = []
    seen: set[tuple[int, int]] = set()

    def fail(error: OSError) -> None:
        failures.append(video_error(error.filename, error))

    for parent, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        try:
            found = os.stat(parent)
        except OSError as error:
            fail(error)
            continue
        if (found.st_dev, found.st_ino) in seen:
            folders.clear()
            continue
        seen.add((found.st_dev, found.st_ino))
        if any(is_frame(name) for name in files):
            clips.append(Path(parent))
        clips += [Path(parent, name) for name in files if _is_video(name)]
    clips.sort()
    for clip, after in zip(clips, clips[1:], strict=False):
        if clip in after.parents:
            what = "videos and images" if _is_video(after.name) else "images and folders of images"
            raise UserError(f"{clip}: holds {what}; name the ones that you mean")
    return clips, failures


def _is_video(name: str) -> bool:
    return name.lower().endswith(VIDEO_SUFFIXES) and not name.startswith(".")

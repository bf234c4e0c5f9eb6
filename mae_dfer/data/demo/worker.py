"""Draws every n-th clip of the set: ``python -m mae_dfer.data.demo.worker FOLDER LIMIT SHARD SHARDS``.

Started by :func:`mae_dfer.data.demo.ensure_demo`, one per core, in place of ``multiprocessing``: a fresh
interpreter neither forks the caller's threads nor imports the caller's script. It prints a line per clip, so it
ends by a broken pipe when its parent is gone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2

from mae_dfer.errors import UserError

from .render import SPLITS, clips_of, write_clip
from .store import USER_ERROR


def main(argv: list[str]) -> int:
    folder, limit, shard, shards = Path(argv[0]), int(argv[1]), int(argv[2]), int(argv[3])
    cv2.setNumThreads(1)
    clips = [clip for split in SPLITS for clip in clips_of(split, limit if limit >= 0 else None)]
    try:
        for clip in clips[shard::shards]:
            write_clip(clip, folder)
            print(clip.file, flush=True)
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

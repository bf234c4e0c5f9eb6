"""CREMA-D: 7,442 clips of 91 actors who say twelve sentences with six emotions.

The repository's folder ``VideoFlash`` holds ``ID_SENT_EMO_LVL.flv``; some mirrors hold mp4 files. Whole frames.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from mae_dfer.data.folders import VIDEO_SUFFIXES
from mae_dfer.data.prepare.layout import TEST, TRAIN, Entry, Finding, Layout, find_folder
from mae_dfer.errors import UserError

FOLDS = 5
ACTORS = [str(number) for number in range(1001, 1092)]
EMOTIONS = ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")
_NAME = re.compile(r"(?P<actor>\d{4})_(?P<sentence>[A-Z]{3})_(?P<emotion>[A-Z]{3})_(?P<level>[A-Z]{2})", re.IGNORECASE)


def read(root: Path, clips: str | None) -> Layout:
    folder = find_folder(root, "VideoFlash", "VideoMP4", "video") or root
    layout = Layout("crema-d", folder, (), folds=FOLDS, is_cropped=False)
    layout.entries = _entries(folder, layout.findings)
    return layout


def _entries(folder: Path, findings: list[Finding]) -> Iterator[Entry]:
    names = sorted(name for name in os.listdir(folder) if name.lower().endswith(VIDEO_SUFFIXES))
    if not names:
        raise UserError(f"{folder} holds no videos; give the folder that VideoFlash lies in as --root")
    odd = []
    for name in names:
        match = _NAME.fullmatch(Path(name).stem)
        if match is None or match["emotion"].upper() not in EMOTIONS or match["actor"] not in ACTORS:
            odd.append(name)
            continue
        label = EMOTIONS.index(match["emotion"].upper())
        yield Entry(name, label, _splits(match["actor"]), match["actor"])
    if odd:
        findings.append(
            Finding(f"{len(odd)} files have no name of the set's form and are left out", False, tuple(odd[:5]))
        )


def _splits(actor: str) -> tuple[str, ...]:
    """Five folds of 18 actors in the order of their numbers; the last has 19."""
    held_out = min(ACTORS.index(actor) // 18, FOLDS - 1)
    return tuple(TEST if fold == held_out else TRAIN for fold in range(FOLDS))

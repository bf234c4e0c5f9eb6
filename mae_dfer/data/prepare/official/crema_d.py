"""CREMA-D: 7,442 clips of 91 actors who say twelve sentences with six emotions.

The repository's folder ``VideoFlash`` holds ``ID_SENT_EMO_LVL.flv``; some copies hold them as mp4 or avi. Whole frames;
copies with cropped faces hold folders of frames of these names.
"""

from __future__ import annotations

import re
from pathlib import Path

from mae_dfer.data.prepare.layout import TEST, TRAIN, Entry, Layout, Wrong
from mae_dfer.data.prepare.official.clips import stem
from mae_dfer.data.prepare.official.groups import choose_group

FOLDS = 5
ACTORS = [str(number) for number in range(1001, 1092)]
EMOTIONS = ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")
_NAME = re.compile(r"(?P<actor>\d{4})_(?P<sentence>[A-Z]{3})_(?P<emotion>[A-Z]{3})_[A-Z]{1,2}", re.IGNORECASE)


def read(root: Path, clips: str | None) -> Layout:
    wrong = Wrong()
    group = choose_group(
        "CREMA-D", root, clips, lambda name: bool(_NAME.fullmatch(name)), lambda name: name in ACTORS, wrong,
        expected="VideoFlash/1001_DFA_ANG_XX.flv", depth=4,
    )  # fmt: skip
    entries = _entries(group.paths, wrong)
    return Layout("crema-d", group.folder, entries, FOLDS, group.name, 4, group.is_cropped, wrong.findings())


def _entries(paths: list[str], wrong: Wrong) -> list[Entry]:
    entries: dict[str, Entry] = {}
    odd, twice = [], []
    for path in sorted(paths, key=lambda path: (not path.lower().endswith(".flv"), path)):  # as they are handed out
        name = stem(path.split("/")[-1]).upper()
        match = _NAME.fullmatch(name)
        if match is None or match["emotion"] not in EMOTIONS or match["actor"] not in ACTORS:
            odd.append(path)
        elif name in entries:
            twice.append(path)
        else:
            label = EMOTIONS.index(match["emotion"])
            entries[name] = Entry(path, label, _splits(match["actor"]), match["actor"])
    wrong.count("clips left out because their names are of no emotion or actor of the set", odd)
    wrong.count("clips left out because they are there twice", twice)
    return [entries[name] for name in sorted(entries)]


def _splits(actor: str) -> tuple[str, ...]:
    """Five folds of 18 actors in the order of their numbers; the last has 19."""
    held_out = min(ACTORS.index(actor) // 18, FOLDS - 1)
    return tuple(TEST if fold == held_out else TRAIN for fold in range(FOLDS))

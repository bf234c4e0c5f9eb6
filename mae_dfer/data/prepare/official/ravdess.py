"""RAVDESS: 1,440 spoken clips of 24 actors with eight emotions.

Archives unpack to ``Video_Speech_Actor_01/Actor_01/02-01-06-01-02-01-12.mp4`` or without the first folder. The parts of
a name are modality (01 video with sound, 02 video, 03 sound), channel (01 speech, 02 song), emotion, intensity,
statement, repetition and actor. Whole frames; copies with cropped faces hold folders of frames of these names.
"""

from __future__ import annotations

import re
from pathlib import Path

from mae_dfer.data.prepare.layout import TEST, TRAIN, Entry, Layout, Wrong
from mae_dfer.data.prepare.official.clips import stem
from mae_dfer.data.prepare.official.groups import choose_group

FOLDS = 6
ACTORS = 24
_NAME = re.compile(
    r"(?P<modality>0[123])-(?P<channel>0[12])-(?P<emotion>0[1-8])-0[12]-0[12]-0[12]-(?P<actor>0[1-9]|1\d|2[0-4])"
)
_LIKE = re.compile(r"\d\d(-\d\d){6}")
_PART = re.compile(r"((video|audio)_(speech|song)_)?actors?_\d\d(-\d\d)?", re.IGNORECASE)


def read(root: Path, clips: str | None) -> Layout:
    wrong = Wrong()
    group = choose_group(
        "RAVDESS", root, clips, lambda name: bool(_LIKE.fullmatch(name)), lambda name: bool(_PART.fullmatch(name)),
        wrong, expected="Actor_01/02-01-01-01-01-01-01.mp4",
    )  # fmt: skip
    entries = _entries(group.paths, wrong)
    return Layout("ravdess", group.folder, entries, FOLDS, group.name, 4, group.is_cropped, wrong.findings())


def _entries(paths: list[str], wrong: Wrong) -> list[Entry]:
    """Spoken clips, each once: without sound, as the published lists have them, or else with sound."""
    takes: dict[str, dict[str, str]] = {}  # paths by modality, for each take
    odd, songs, sounds, twice = [], [], [], []
    for path in paths:
        name = stem(path.split("/")[-1])
        match = _NAME.fullmatch(name)
        if match is None:
            odd.append(path)
        elif match["channel"] == "02":
            songs.append(path)
        elif match["modality"] == "03":
            sounds.append(path)
        elif match["modality"] in takes.setdefault(name[3:], {}):
            twice.append(path)
        else:
            takes[name[3:]][match["modality"]] = path
    silent = [take["02"] for take in takes.values() if "02" in take]
    with_sound = [take["01"] for take in takes.values() if "02" not in take]
    spare = [take["01"] for take in takes.values() if len(take) > 1]
    for what, found in {
        "clips left out because their names are of no emotion or actor of the set": odd,
        "clips left out because they are songs": songs,
        "clips left out because they are sound alone": sounds,
        "clips left out because they are there twice": twice,
        "clips with sound (01-…) left out because they are there without (02-…)": spare,
        "clips taken with sound (01-…) because they are not there without (02-…)": with_sound,
    }.items():
        wrong.count(what, found)
    return [_entry(path) for path in sorted(silent + with_sound)]


def _entry(path: str) -> Entry:
    match = _NAME.fullmatch(stem(path.split("/")[-1]))
    assert match is not None
    held_out = (int(match["actor"]) - 1) // (ACTORS // FOLDS)
    splits = tuple(TEST if fold == held_out else TRAIN for fold in range(FOLDS))
    return Entry(path, int(match["emotion"]) - 1, splits, match["actor"])

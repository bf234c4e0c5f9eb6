"""eNTERFACE05: 1,287 clips of 43 people who say five sentences for each of six emotions.

``enterface database/subject 1/anger/sentence 1/s1_an_1.avi``, in PAL DV of whole frames. Folders decide: some files are
named after another sentence or person. Subject 6 has one video for each emotion and is in no published list; of
subject 23, three sentences of happiness are missing. Copies with cropped faces hold folders of frames.
"""

from __future__ import annotations

import re
from pathlib import Path

from mae_dfer.data.prepare.layout import TEST, TRAIN, Entry, Layout, Wrong
from mae_dfer.data.prepare.official.clips import stem
from mae_dfer.data.prepare.official.groups import choose_group
from mae_dfer.data.sets import CLASSES

EMOTIONS = CLASSES["enterface05"]
TESTED = (range(1, 11), range(11, 20), range(20, 29), range(29, 38), range(38, 45))
"""The subjects in the test list of each fold."""
LEFT_OUT = 6

_NAME = re.compile(
    r"s?[ _]?(?P<subject>\d{1,2})[ _]?(?P<emotion>an|di|fe|ha|sa|su)[a-z]*[ _]?(?P<sentence>\d*)[ _]?", re.IGNORECASE
)
_SUBJECT = re.compile(r"subject[ _-]*(\d+)", re.IGNORECASE)
_SENTENCE = re.compile(r"sentence[ _-]*(\d+)", re.IGNORECASE)


def read(root: Path, clips: str | None) -> Layout:
    wrong = Wrong()
    group = choose_group(
        "eNTERFACE05", root, clips, lambda name: bool(_NAME.fullmatch(name)), _is_part, wrong,
        expected="subject 1/anger/sentence 1/s1_an_1.avi",
    )  # fmt: skip
    entries = _entries(group.paths, wrong)
    return Layout("enterface05", group.folder, entries, len(TESTED), group.name, 4, group.is_cropped, wrong.findings())


def _is_part(name: str) -> bool:
    return bool(_SUBJECT.fullmatch(name) or _SENTENCE.fullmatch(name) or name.casefold() in EMOTIONS)


def _entries(paths: list[str], wrong: Wrong) -> list[Entry]:
    entries: dict[tuple[str, str, str], Entry] = {}
    odd, twice, six = [], [], []
    for path in sorted(paths, key=lambda path: (not path.lower().endswith(".avi"), path)):  # as they are handed out
        subject, emotion, sentence = _describe(path)
        held_out = next((fold for fold, subjects in enumerate(TESTED) if int(subject) in subjects), None)
        if int(subject) == LEFT_OUT:
            six.append(path)
        elif held_out is None:
            odd.append(path)
        elif (subject, emotion, sentence) in entries:
            twice.append(path)
        else:
            splits = tuple(TEST if fold == held_out else TRAIN for fold in range(len(TESTED)))
            entries[subject, emotion, sentence] = Entry(path, EMOTIONS.index(emotion), splits, subject)
    for what, found in {
        "clips of subject 6 left out, as in the published lists": six,
        "clips left out because they are of no subject of the set (1 … 44)": odd,
        "clips left out because another clip is of the same sentence": twice,
    }.items():
        wrong.count(what, found)
    return sorted(entries.values(), key=lambda entry: entry.path)


def _describe(path: str) -> tuple[str, str, str]:
    """(subject, emotion, sentence), by the folders, and by the name where they do not tell."""
    *folders, name = path.split("/")
    match = _NAME.fullmatch(stem(name))
    assert match is not None
    subject = next((found[1] for folder in folders if (found := _SUBJECT.fullmatch(folder))), match["subject"])
    sentence = next((found[1] for folder in folders if (found := _SENTENCE.fullmatch(folder))), match["sentence"])
    named = next(emotion for emotion in EMOTIONS if emotion.startswith(match["emotion"].lower()))
    emotion = next((folder.casefold() for folder in folders if folder.casefold() in EMOTIONS), named)
    return str(int(subject)), emotion, sentence.lstrip("0")

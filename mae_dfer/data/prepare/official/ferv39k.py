"""FERV39k: 38,935 clips of 22 scenes with one of seven emotions, in one train and one test list.

Lists are ``4_setups/All_scenes/train_All.csv`` and ``test_All.csv``, with lines ``Action/Happy/0267 Happy``. Clips are
frames in ``2_ClipsforFaceCrop/Action/Happy/0267``, or videos and frames that are not cropped.
"""

from __future__ import annotations

import re
from pathlib import Path

from mae_dfer.data.prepare.layout import Layout, Wrong, find_folder
from mae_dfer.data.prepare.official.clips import Form, choose_form, index_clips, note_form, spell_number, walk_clips
from mae_dfer.data.prepare.official.lists import read_entries
from mae_dfer.errors import UserError

FORMS = (
    Form("2_ClipsforFaceCrop", ("2_ClipsforFaceCrop",), "frames of faces", True, stride=1),
    Form("3_ClipsforScenImages", ("3_ClipsforScenImages",), "whole frames", stride=1, is_cropped=False),
    Form("0_7_LabelClips", ("0_7_LabelClips",), "videos of whole frames", stride=1, is_cropped=False),
)
_NAME = re.compile(r"(?:.*[\\/])?([^\\/]+)[\\/]([^\\/]+)[\\/](\d{1,12})(?:\.\w+)?[\\/]?", re.DOTALL)

Clip = tuple[str, str, int]  # scene, emotion and number


def read(root: Path, clips: str | None) -> Layout:
    lists = find_folder(root, "All_scenes", "4_setups/All_scenes", above=True)
    if lists is None:
        raise UserError(
            f"{root} has no folder All_scenes, in which FERV39k's lists train_All.csv and test_All.csv are; give the "
            "folder that holds 4_setups as --root"
        )
    form, folder = choose_form("FERV39k", FORMS, clips, root, lists.parents[1])
    wrong = Wrong()
    found = [path for path, _ in walk_clips(folder, str.isdecimal, wrong, depth=4)]
    there = index_clips(found, _clip_of, wrong)
    if not there:
        raise UserError(f"{folder} holds no clips such as Action/Happy/0267; unpack it again")

    def spell(clip: Clip, name: str) -> str:
        scene, emotion, _ = re.split(r"[\\/]", name.rstrip("\\/"))[-3:]
        return f"{scene}/{emotion}/{spell_number(clip[2], found)}"

    entries = read_entries("ferv39k", lists, 0, _clip_of, there, spell, wrong)
    findings = note_form(form, FORMS) + wrong.findings()
    return Layout("ferv39k", folder, entries, 0, form.name, form.stride, form.is_cropped, findings)


def _clip_of(name: str) -> Clip | None:
    match = _NAME.fullmatch(name)
    return (match[1].casefold(), match[2].casefold(), int(match[3])) if match else None

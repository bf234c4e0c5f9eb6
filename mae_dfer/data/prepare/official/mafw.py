"""MAFW: 9,172 clips with one of eleven emotions, in five folds.

Lists are in ``single/no_caption`` of ``Train & Test Set``: ``set_1/train.txt`` and so on, with lines
``00521.mp4 anger``. Clips are frames ``data/frames/00521/0000.png``, or the videos ``data/clips/00521.mp4``.
"""

from __future__ import annotations

from pathlib import Path

from mae_dfer.data.prepare.layout import Layout, find_folder
from mae_dfer.data.prepare.official.clips import Form, choose_form
from mae_dfer.data.prepare.official.numbered import read_numbered
from mae_dfer.errors import UserError

FOLDS = 5
FORMS = (
    Form("frames", ("data/frames", "frames"), "frames of faces", True),
    Form("frames_crop_align_224", ("frames_crop_align_224",), "frames of faces, cut out and aligned by others"),
    Form("clips", ("data/clips", "clips"), "videos of whole frames", is_cropped=False),
)
_SPLITS = ("Train & Test Set", "Train_Test_Set", "split", "anno")


def read(root: Path, clips: str | None) -> Layout:
    names = ("single/no_caption", *(f"{name}/single/no_caption" for name in _SPLITS))
    lists = find_folder(root, *names, above=True)
    if lists is None:
        raise UserError(
            f"{root} has no folder single/no_caption, in which MAFW's lists of single emotions are; give the folder "
            "that holds 'Train & Test Set' and data as --root"
        )
    form, folder = choose_form("MAFW", FORMS, clips, root, lists.parents[2])
    return read_numbered("mafw", lists, FOLDS, form, FORMS, folder)

"""DFEW: 11,697 clips of films with one of seven emotions, in five folds.

Lists are in ``EmoLabel_DataSplit``: ``train(single-labeled)/set_1.csv`` and so on, ``video_name,label`` with labels
1 … 7. Clips are in ``Clip``, as frames in folders ``00001``, or as ``1.mp4`` in the original films' frames.
"""

from __future__ import annotations

from pathlib import Path

from mae_dfer.data.prepare.layout import Layout, find_folder
from mae_dfer.data.prepare.official.clips import Form, choose_form
from mae_dfer.data.prepare.official.numbered import read_numbered
from mae_dfer.errors import UserError

FOLDS = 5
FORMS = (
    Form("jpg_256", ("jpg_256", "clip_jpg_256"), "face crops of variable length: clip_224x224, renamed", True,
         renamed="clip_224x224"),  # fmt: skip
    Form("clip_224x224", ("clip_224x224",), "face crops of variable length", True, renamed="jpg_256"),
    Form("clip_224x224_avi", ("clip_224x224_avi",), "face crops of variable length as video files"),
    Form("clip_224x224_16f", ("clip_224x224_16f", "clip_224x16f"), "16 frames interpolated from each clip", stride=1),
    Form("original", ("Clip/original",), "whole frames", is_cropped=False),
)


def read(root: Path, clips: str | None) -> Layout:
    lists = find_folder(root, "EmoLabel_DataSplit", above=True)
    if lists is None:
        raise UserError(f"{root} has no folder EmoLabel_DataSplit, in which DFEW's lists are; give the one that has it")
    form, folder = choose_form("DFEW", FORMS, clips, root, lists.parent)
    return read_numbered("dfew", lists, FOLDS, form, FORMS, folder, first_label=1)

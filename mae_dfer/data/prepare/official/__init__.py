"""One file for each official data set: where its clips and lists lie, and what they say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mae_dfer.data.prepare.layout import Layout
from mae_dfer.data.prepare.official import crema_d, dfew, enterface05, ferv39k, mafw, ravdess, voxceleb2

READERS: dict[str, Callable[[Path, str | None], Layout]] = {
    "dfew": dfew.read,
    "ferv39k": ferv39k.read,
    "mafw": mafw.read,
    "ravdess": ravdess.read,
    "crema-d": crema_d.read,
    "enterface05": enterface05.read,
    "voxceleb2": voxceleb2.read,
}
"""For each set, the function ``(root, clips) -> Layout``; ``clips`` is the form asked for, or None.

They raise UserError for a folder that is not of the set, and for clips in several forms of which none was asked for.
"""

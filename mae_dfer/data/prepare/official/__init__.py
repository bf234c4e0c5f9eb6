"""One file for each official data set: where its clips and lists lie, and what they say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mae_dfer.data.prepare.layout import Layout
from mae_dfer.data.prepare.official import crema_d

READERS: dict[str, Callable[[Path, str | None], Layout]] = {
    "crema-d": crema_d.read,
}
"""For each set, the function ``(root, clips) -> Layout``; ``clips`` is the convention asked for, or None."""

"""Where the paths of a list lead on this machine."""

from __future__ import annotations

import os
from pathlib import Path


class Paths:
    """Joins the paths of one list to ``base``."""

    def __init__(self, base: Path, remap: tuple[str, str] | None) -> None:
        self.base, self._remap = str(base), remap

    def exists(self, path: str) -> bool:
        """Whether the file of the list's ``path`` is there."""
        return os.path.lexists(self.locate(path))

    def locate(self, path: str) -> str:
        """The path on this machine."""
        path = os.path.expanduser(self._remapped(path))
        return path if os.path.isabs(path) else os.path.normpath(os.path.join(self.base, path))

    def _remapped(self, path: str) -> str:
        if self._remap is None:
            return path
        old, new = self._remap[0].rstrip("/"), self._remap[1].rstrip("/")
        return new + path[len(old) :] if path == old or path.startswith(old + "/") else path

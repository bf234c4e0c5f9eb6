"""Writing files so that a kill at any moment leaves the old file or the new one, never half of one; and what was
saved in a file's place."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import UserError

_HEAD = 1024  # bytes that tell what a file is
_HTML = re.compile(r"<(!doctype\s+html|html|head|body|title|script)\b", re.IGNORECASE)
_SHOWN = 60  # characters


def write_atomically(path: Path | str, write: Callable[[Path], Any]) -> None:
    """Calls ``write(temporary_path)``, flushes the result to disk and renames it to ``path``."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: libraries choose a format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        write(temporary)
        descriptor = os.open(temporary, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Raises :class:`UserError` where a file could not be written to ``path``: better before long work than after."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the name of a file in it")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"cannot write {path}: {parent} is not a folder that may be written to")


def describe_impostor(path: Path | str) -> str | None:
    """What was saved under the name of a binary file instead of it, and what to do; None where nothing speaks for that.

    An empty file, a block of zeros, a Git LFS pointer, an HTML page, any other text.

    Returns:
        The rest of a sentence "FILE is …".

    Raises:
        OSError: a file that cannot be opened.
    """
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    if not head:
        return "empty; download or copy it again"
    if not head.strip(b"\0"):
        return "a block of zeros, as an unfinished download leaves it; download it again"
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return "a Git LFS pointer, which stands for the file; fetch the file itself with: git lfs pull"
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head).strip()  # the end may be half a character
    except UnicodeDecodeError:
        return None
    if not all(character.isprintable() or character.isspace() for character in text):
        return None
    if _HTML.search(text):
        return "an HTML page, such as a download page or an error message; download the file itself"
    return f"a text file ({printable(text, _SHOWN)}); download the file itself"


def printable(text: str, length: int = 100) -> str:
    """``text``, which came from a file, on one line, without control characters, at most ``length`` characters."""
    shown = "".join(character if character.isprintable() else " " for character in text[:length])
    return " ".join(shown.split()) + ("…" if len(text) > length else "")

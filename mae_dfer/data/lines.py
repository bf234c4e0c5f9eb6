"""What one line of a list says: the path of a clip and its label, or the names of columns."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from mae_dfer.data.labels import Labels, is_integer, is_number
from mae_dfer.data.paths import Paths
from mae_dfer.data.text import SEPARATOR, columns, cut, unquote
from mae_dfer.errors import UserError

_FRAMES = re.compile(r"[0-9]+|\"[0-9]+\"")
# In a list that needs no labels: what may be a label after a path, and at most how many words of it.
_WORDS = re.compile(r"[^./\\]*")
_MOST_WORDS = 3

_PATH_COLUMNS = frozenset(
    "path paths file files filename filenames filepath name video videos videoname videopath videofile videoid "
    "clip clips clipname clippath clipid image imagepath folder framedir directory dir id".split()
)
_FRAMES_COLUMNS = frozenset("frames numframes nframes totalframes framecount numberofframes length".split())
_LABEL_COLUMNS = frozenset(
    "label labels labelid labelname class classes classid classname classindex category target "
    "emotion emotions emotionlabel emotionid expression expressions y".split()
)

Kind = tuple[int, bool]
_WHOLE_LINE = -1  # words of a line that could end in a label, and is a path instead


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to read a line.

    ``label``: as it is written; None where there is none. ``words``: how many fields are taken for the label where a
    list needs none. ``frames``: whether a number of frames is taken to stand between path and label.
    """

    path: str
    label: str | None
    words: int = 0
    frames: bool = False

    @property
    def kind(self) -> Kind:
        return self.words, self.frames


def _quoted_path(text: str) -> str | None:
    path = unquote(text)
    if path == "":
        raise UserError("the path is empty; write 'path label' on each line")
    return path


def _read_path(text: str, label: str, words: int = 0) -> list[Reading]:
    """The readings of what stands before a label: with and without a number of frames at its end."""
    path = _quoted_path(text)
    if path:
        return [Reading(path, label, words)]
    rest = text.rstrip('"0123456789')
    fields = cut(text, 1) if SEPARATOR.fullmatch(rest[-1:]) else []
    if not fields or not _FRAMES.fullmatch(fields[0][1]):
        return [Reading(text, label, words)]
    path = _quoted_path(fields[0][0])
    if path:
        return [Reading(path, label, words, frames=True)]
    return [Reading(text, label, words), Reading(fields[0][0], label, words, frames=True)]


def read_line(line: str, labels: Labels) -> list[Reading]:
    """The ways to read a line, the longest path first; several where only the files can tell which is meant."""
    cuts = cut(line, labels.most_fields if labels.required else max(labels.most_fields, _MOST_WORDS))
    if labels.required:
        if not cuts or not cuts[0][1].strip("\"'"):
            raise UserError(f"no label after the path {line!r}; write 'path label' on each line")
        return _read_path(*labels.cut(cuts))
    if cuts and is_integer(cuts[0][1]):
        whole = [] if _quoted_path(cuts[0][0]) else [Reading(line, None, _WHOLE_LINE)]
        return whole + _read_path(*cuts[0])
    readings = [Reading(_quoted_path(line) or line, None)]
    for words, (before, label) in enumerate(cuts, start=1):
        if _WORDS.fullmatch(label) or is_number(label) or labels.find(label):
            found = _read_path(before, label, words)
            if _quoted_path(before):
                return found
            readings += found
    return readings


def choose(readings: list[Reading], paths: Paths, kinds: Counter[Kind]) -> Reading | None:
    """The first reading whose file is there. Without one: the last, if it is of a kind found before, else None.

    ``kinds``: how many lines were read in which way so far.
    """
    *others, last = readings
    for reading in others:
        if paths.exists(reading.path):
            return reading
    if not others or kinds[last.kind] or paths.exists(last.path):
        return last
    return None


def is_header(line: str, labels: Labels, paths: Paths) -> bool:
    """Whether a line names the columns path, or path and label, or path, frames and label, in words usual for them.

    It does not where its last word is a class name, or where there is a file of that name.
    """
    names = _column_names(line)
    expected = (_PATH_COLUMNS, _FRAMES_COLUMNS, _LABEL_COLUMNS) if len(names) == 3 else (_PATH_COLUMNS, _LABEL_COLUMNS)
    if len(names) > 3 or any(name not in column for name, column in zip(names, expected, strict=False)):
        return False
    return not (labels.find(columns(line)[-1]) or paths.exists(unquote(line) or line))


def names_columns(line: str) -> bool:
    """Whether a word of a line is usual in a header."""
    return not (_PATH_COLUMNS | _FRAMES_COLUMNS | _LABEL_COLUMNS).isdisjoint(_column_names(line))


def _column_names(line: str) -> list[str]:
    return [re.sub(r"[\s_-]", "", name).casefold() for name in columns(line)]

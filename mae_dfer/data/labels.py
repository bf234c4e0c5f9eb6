"""Labels of clips: indices of classes, or their names."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from mae_dfer.data.text import SEPARATOR, columns, read_lines, unquote
from mae_dfer.errors import UserError
from mae_dfer.files import printable
from mae_dfer.notes import Say, print_note

UNLABELLED = -1

_INTEGER = re.compile(r"[+-]?\d{1,18}")  # what int64 holds
_NUMBER = re.compile(r"[+-]?\d+\.?\d*|[+-]?\.\d+")
_WHOLE_NUMBER = re.compile(r"([+-]?\d{1,18})(?:\.0*)?")
_NUMBERED = (
    re.compile(r"(?P<number>\d{1,9})(?:\s*[,;:=]\s*|\s+)(?P<name>\S.*)"),
    re.compile(r"(?P<name>.*\S)(?:\s*[,;:=]\s*|\s+)(?P<number>\d{1,9})"),
)
_HEADER = frozenset("id index idx number label class name classid classname emotion expression category".split())
_SHOWN = 10


def _fold(name: str) -> str:
    # Names of files from a Mac may hold accents as characters of their own.
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _clean(label: str) -> str:
    label = label.strip()
    quoted = unquote(label)
    if quoted is None and len(label) > 1 and label[0] == label[-1] == "'":
        quoted = label[1:-1]
    return label if quoted is None else quoted.strip()


def is_integer(label: str) -> bool:
    return _INTEGER.fullmatch(_clean(label)) is not None


def is_number(label: str) -> bool:
    return _NUMBER.fullmatch(_clean(label)) is not None


class Labels:
    """Reads the labels of one list.

    Args:
        names: class names in the order of their indices; empty: only integers can be read.
        num_classes: integers must be below it; None: not checked.
        required: False reads a word that is no class name as ``UNLABELLED`` and allows -1.
    """

    def __init__(self, names: Sequence[str], num_classes: int | None, required: bool) -> None:
        self.names, self.num_classes, self.required = list(names), num_classes, required
        self._exact = {name: index for index, name in enumerate(self.names)}
        self._folded: dict[str, list[int]] = {}
        for index, name in enumerate(self.names):
            self._folded.setdefault(_fold(name), []).append(index)
        self.most_fields = 1 + max((len(SEPARATOR.findall(name)) for name in self.names), default=0)
        self._read: dict[str, int] = {}

    def find(self, label: str) -> list[int]:
        """Indices of the classes that ``label`` may name: of the exact spelling, else without regard to case."""
        name = _clean(label)
        return [self._exact[name]] if name in self._exact else self._folded.get(_fold(name), [])

    def cut(self, cuts: Sequence[tuple[str, str]]) -> tuple[str, str]:
        """(path, label) among the last cuts of a line: the longest label that is a class name, else the last field."""
        for before, after in reversed(cuts[1:]):
            if self.find(after):
                return before, after
        return cuts[0]

    def read(self, label: str) -> int:
        """The index of a class: ``3``, ``3.0`` or a class name. Raises UserError that names the label."""
        index = self._read.get(label)
        if index is None:
            index = self._read[label] = self._look_up(label)
        return index

    def _look_up(self, label: str) -> int:
        text = _clean(label)
        number = _WHOLE_NUMBER.fullmatch(text)
        if number:
            return self._check(int(number[1]), text)
        found = self.find(text)
        if len(found) == 1:
            return found[0]
        if not self.required:
            return UNLABELLED
        if found:
            names = " and ".join(repr(self.names[index]) for index in found)
            raise UserError(f"label {text!r} may mean {names}; write it as one of them, or as an integer")
        if is_number(text):
            raise UserError(f"label {text!r} is not the index of a class; labels are the integers 0, 1, 2, …")
        if not self.names:
            raise UserError(
                f"label {text!r} is not an integer, and no class names are known to look it up in; "
                "write labels as 0, 1, 2, …, or give the names of the classes (classes=)"
            )
        raise UserError(f"label {text!r} is not a class name; {self._suggest(text)}")

    def _suggest(self, text: str) -> str:
        near = difflib.get_close_matches(_fold(text), self._folded, n=1)
        if near:
            return f"did you mean {self.names[self._folded[near[0]][0]]!r}?"
        more = ", …" if len(self.names) > _SHOWN else ""
        return f"the classes are {', '.join(self.names[:_SHOWN])}{more}"

    def _check(self, label: int, text: str) -> int:
        if label == UNLABELLED and not self.required:
            return label
        named = self.find(text) or self.find(str(label))
        if self.required and named and named != [label]:
            raise UserError(
                f"label {text} may be the index {label} or the class named {self.names[named[0]]!r}, whose index is "
                f"{named[0]}; give the classes names that are not numbers"
            )
        if label < 0:
            raise UserError(f"label {label} is negative; labels start at 0")
        if self.num_classes is not None and label >= self.num_classes:
            raise UserError(
                f"label {label} is out of range for {self.num_classes} classes; "
                f"labels must be 0 … {self.num_classes - 1} (subtract 1 if they start at 1)"
            )
        return label


def read_classes(path: Path, *, say: Say = print_note) -> list[str]:
    """Read ``classes.txt``: one class name per line, in the order of the classes' indices; it has no comments.

    A column with the classes' numbers, 0 … n - 1 or 1 … n, before or after the names is left out, and ``say`` is told.

    Raises: UserError naming the file where it cannot be read, is empty or names a class twice.
    """
    lines = [line for _, line in read_lines(path, comments=False)]
    if not lines:
        raise UserError(f"{path} names no classes; write one class name per line")
    if len(lines) == 1 and len(columns(lines[0])) > 1:
        raise UserError(f"{path} has one line, {printable(lines[0], 60)}; write one class name per line")
    names = _names_of_numbered(lines, path, say) or lines
    names = [name if (quoted := unquote(name)) is None else quoted for name in names]
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise UserError(f"{path} names a class twice: {', '.join(twice)}")
    return names


def _names_of_numbered(lines: list[str], path: Path, say: Say) -> list[str] | None:
    """The names in the order of their numbers; None where not every line has a number of its own."""
    header = [column.casefold().replace("_", "") for column in columns(lines[0])]
    if len(header) == 2 and _HEADER.issuperset(header):
        lines = lines[1:]
    count = len(lines)
    for pattern in _NUMBERED:
        matches = [match for match in map(pattern.fullmatch, lines) if match]
        named = {int(match["number"]): match["name"] for match in matches}
        first = min(named, default=0)
        if len(matches) != count or count < 2 or set(named) != set(range(first, first + count)) or first > 1:
            continue
        names = [named[number] for number in sorted(named)]
        if len({_fold(name) for name in names}) < count:  # "stage 1", "stage 2": the number is part of the name
            continue
        note = f"; in lists, labels that are integers start at 0, which is {names[0]}" if first else ""
        say(f"{path} numbers its classes from {first}; the numbers are not part of the names{note}")
        return names
    return None

"""Sets whose clips are named by numbers, with or without leading zeros, in lists and on disk."""

from __future__ import annotations

import re
from pathlib import Path

from mae_dfer.data.prepare.layout import Layout, Wrong
from mae_dfer.data.prepare.official.clips import Form, index_clips, note_form, spell_number, walk_clips
from mae_dfer.data.prepare.official.lists import read_entries
from mae_dfer.errors import UserError

_NUMBER = re.compile(r"(?:.*[\\/,;\s])?(\d{1,12})(?:\.\w+)?[\\/]?", re.DOTALL)


def read_numbered(
    title: str,
    lists: Path,
    folds: int,
    form: Form,
    forms: tuple[Form, ...],
    folder: Path,
    *,
    first_label: int | None = None,
) -> Layout:
    """The layout of such a set.

    Args:
        lists: the folder of the lists.
        form: which of ``forms`` the clips in ``folder`` are.
        first_label: number of the first class in the lists; None for lists that name their classes.
    """
    wrong = Wrong()
    others = [name.split("/")[-1] for other in forms for name in other.folders]
    found = [path for path, _ in walk_clips(folder, str.isdecimal, wrong, depth=3, skip=others)]
    there = index_clips(found, number_of, wrong)
    if not there:
        raise UserError(f"{folder} holds no clips: folders or videos that are named by numbers; unpack it again")

    def spell(number: int, name: str) -> str:
        return spell_number(number, found)

    entries = read_entries(title, lists, folds, number_of, there, spell, wrong, first_label=first_label)
    findings = note_form(form, forms) + wrong.findings()
    return Layout(title, folder, entries, folds, form.name, form.stride, form.is_cropped, findings)


def number_of(name: str) -> int | None:
    """The number of a clip: the last part of a path, with or without suffix and leading zeros."""
    match = _NUMBER.fullmatch(name)
    return int(match[1]) if match else None

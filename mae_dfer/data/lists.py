"""Lists of clips and folders of lists: which files there are and what their labels say."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from mae_dfer.errors import UserError

UNLABELLED = -1

# The label is the last field, so a path may hold spaces, commas and tabs.
_LINE = re.compile(r"(?P<path>.*?\S)\s*[,\s]\s*(?P<label>[^\s,]+)")
_INTEGER = re.compile(r"[+-]?\d+")


@dataclass(frozen=True, slots=True)
class Sample:
    """One video (a file, a folder of frames, or an image) and its class; label -1 means none."""

    path: str
    label: int


@dataclass(frozen=True)
class DatasetFolder:
    """A folder with ``classes.txt``, ``train.txt``, ``test.txt`` and perhaps ``val.txt``, ``pretrain.txt``.

    ``val`` is None without its file: nothing is held out behind the user's back. ``pretrain`` is the
    training list without its file.
    """

    folder: Path
    classes: list[str]
    train: list[Sample]
    test: list[Sample]
    val: list[Sample] | None
    pretrain: list[Sample]


def _read_lines(path: Path) -> list[tuple[int, str]]:
    """(line number, text) of the lines that say something; ``#`` starts a comment line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"list file not found: {path} (check the path)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}; it must be a UTF-8 text file") from None
    lines = ((number, line.strip()) for number, line in enumerate(text.split("\n"), start=1))
    return [(number, line) for number, line in lines if line and not line.startswith("#")]


def _parse(line: str, where: str, labelled: bool) -> Sample:
    match = _LINE.fullmatch(line)
    field = match["label"] if match else ""
    if match and _INTEGER.fullmatch(field):
        return Sample(match["path"], int(field))
    if not labelled:
        return Sample(line, UNLABELLED)
    if not match:
        raise UserError(f"{where}: no label after the path {line!r}; write 'path label' on each line")
    raise UserError(
        f"{where}: label {field!r} is not an integer; write 'path label' with labels 0, 1, 2, … "
        "(remove a header line)"
    )


def _check_label(label: int, where: str, num_classes: int | None, labelled: bool) -> None:
    if label == UNLABELLED and not labelled:
        return
    if label < 0:
        raise UserError(f"{where}: label {label} is negative; labels start at 0")
    if num_classes is not None and label >= num_classes:
        raise UserError(
            f"{where}: label {label} is out of range for {num_classes} classes; "
            f"labels must be 0 … {num_classes - 1} (subtract 1 if they start at 1)"
        )


def _locate(path: str, base: Path, remap: tuple[str, str] | None) -> str:
    if remap is not None:
        old = remap[0].rstrip("/")
        if path == old or path.startswith(old + "/"):
            path = remap[1].rstrip("/") + path[len(old) :]
    path = os.path.expanduser(path)
    return path if os.path.isabs(path) else os.path.normpath(os.path.join(base, path))


def read_list(
    path: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    remap: tuple[str, str] | None = None,
    labelled: bool = True,
) -> list[Sample]:
    """Read a list of clips: one ``path label`` per line.

    The label is the last field; space, tab or comma before it, so paths may contain any of them. Blank
    lines and lines that start with ``#`` are skipped.

    Args:
        path: the list, UTF-8 text.
        root: folder that relative paths are joined to; default: the folder of the list.
        num_classes: labels must be below it; None: not checked.
        remap: (old prefix, new prefix) for absolute paths written on another machine.
        labelled: False allows lines without a label, as for pre-training (label -1). A last field that is
            an integer is still a label: write ``-1`` after a path that ends in " 123".

    Returns: the samples in file order. Files are not opened: see :func:`mae_dfer.data.check_files`.

    Raises: UserError naming file and line for a missing or empty list, a label that is no integer or out of
    range.
    """
    path = Path(path)
    base = path.parent if root is None else Path(root).expanduser()
    samples = []
    for number, line in _read_lines(path):
        where = f"{path}:{number}"
        sample = _parse(line, where, labelled)
        _check_label(sample.label, where, num_classes, labelled)
        samples.append(Sample(_locate(sample.path, base, remap), sample.label))
    if not samples:
        raise UserError(f"{path} lists no files; write 'path label' on each line")
    return samples


def read_classes(path: Path) -> list[str]:
    """Read ``classes.txt``: one class name per line, in the order of the labels.

    Raises: UserError naming the file where it cannot be read, is empty or names a class twice.
    """
    classes = [line for _, line in _read_lines(path)]
    if not classes:
        raise UserError(f"{path} names no classes; write one class name per line")
    if len(set(classes)) != len(classes):
        twice = sorted({name for name in classes if classes.count(name) > 1})
        raise UserError(f"{path} names a class twice: {', '.join(twice)}")
    return classes


def open_dataset(
    folder: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    remap: tuple[str, str] | None = None,
) -> DatasetFolder:
    """Open a dataset folder: ``classes.txt`` (one name per line), ``train.txt`` and ``test.txt``, optionally
    ``val.txt`` and ``pretrain.txt`` (labels may be missing there).

    Relative paths in the lists are joined to ``root``, by default to the folder itself.

    Raises: UserError when a file is missing or malformed.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"dataset folder not found: {folder} (check the path)")
    missing = [name for name in ("classes.txt", "train.txt", "test.txt") if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder} is not a dataset folder: {', '.join(missing)} missing; it needs classes.txt "
            "(one class name per line), train.txt and test.txt ('path label' per line)"
        )
    classes = read_classes(folder / "classes.txt")

    def read(name: str, labelled: bool = True) -> list[Sample]:
        return read_list(
            folder / name, root=root or folder, num_classes=len(classes), remap=remap, labelled=labelled
        )

    train = read("train.txt")
    return DatasetFolder(
        folder=folder,
        classes=classes,
        train=train,
        test=read("test.txt"),
        val=read("val.txt") if (folder / "val.txt").is_file() else None,
        pretrain=read("pretrain.txt", labelled=False) if (folder / "pretrain.txt").is_file() else train,
    )

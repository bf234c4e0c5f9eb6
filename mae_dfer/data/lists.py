"""Lists of clips and folders of lists: which files there are and what their labels say."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mae_dfer.data.folders import find_clips
from mae_dfer.data.labels import UNLABELLED, Labels, read_classes
from mae_dfer.data.lines import Kind, Reading, choose, is_header, names_columns, read_line
from mae_dfer.data.paths import Paths
from mae_dfer.data.prepared import Description, find_lists, read_description
from mae_dfer.data.text import read_lines
from mae_dfer.errors import UserError
from mae_dfer.notes import Say, print_note


@dataclass(frozen=True, slots=True)
class Sample:
    """One video (a file, a folder of frames, or an image) and its class; label -1 means none."""

    path: str
    label: int


@dataclass(frozen=True)
class DatasetFolder:
    """A folder with ``classes.txt``, ``train.txt``, ``test.txt`` and perhaps ``val.txt``, ``pretrain.txt``.

    ``val`` is None without its file: nothing is held out behind the user's back. ``pretrain`` is the
    training list without its file. What the stage that the folder was opened for has no use for is empty.
    ``fold`` is the fold that the lists are of, in a folder with folds. ``description`` is what dataset.json says.
    """

    folder: Path
    classes: list[str]
    train: list[Sample]
    test: list[Sample]
    val: list[Sample] | None
    pretrain: list[Sample]
    fold: int | None = None
    description: Description = field(default_factory=Description)


def hash_samples(samples: Sequence[Sample], *, labelled: bool = True) -> str:
    """SHA-256, in hexadecimal, of the clips in their order: what tells whether two lists are of the same clips.

    Of each clip, its path without the beginning that all have in common, so that folders may be moved; and its label,
    if ``labelled``.
    """
    paths = [os.path.abspath(sample.path) for sample in samples]
    start = len(os.path.commonprefix([os.path.dirname(path) for path in paths]))
    digest = hashlib.sha256()
    for sample, path in zip(samples, paths, strict=True):
        digest.update(f"{path[start:]}\0{sample.label if labelled else ''}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def read_list(
    path: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    remap: tuple[str, str] | None = None,
    labelled: bool = True,
    classes: Sequence[str] | None = None,
    say: Say = print_note,
) -> list[Sample]:
    """Read a list of clips: one ``path label`` per line.

    The label is the last field, so paths may contain separators: spaces, tabs, commas and semicolons. A field in
    double quotes is read as in CSV. A label is an index (``3`` or ``3.0``) or the name of a class, in any case; of
    several class names that a line may end in, the longest is the label. A number that is the index of one class and
    the name of another is refused. Blank lines, lines that start with ``#`` and a header (``path,label``) as the
    first line are skipped.

    ``path frames label``, as for folders of frames, is understood where the file system shows that it is meant: the
    path with the number is not there and the path without is. Paths written on Windows are looked up below ``root``
    on other systems: without the drive, and without further leading folders as far as necessary.

    Args:
        path: the list: UTF-8, or UTF-16 with a byte order mark.
        root: folder that relative paths are joined to; default: the folder of the list.
        num_classes: labels must be below it; default: the number of ``classes`` if labels are required, else any.
        remap: (old prefix, new prefix) for absolute paths written on another machine.
        labelled: False allows lines without a label, as for pre-training (label -1). A last field that is an
            integer is still a label: write ``-1`` after a path that ends in " 123". Another last field is a label
            where the path without it is there and the path with it is not; a word that is no class name gives -1.
        classes: class names in the order of their indices, to look words up in.
        say: is called with one line for a header that was skipped and for each reading that the files decided;
            default: print on stderr; ``mae_dfer.notes.keep_quiet`` drops them.

    Returns: the samples in file order. Files are not opened: see :func:`mae_dfer.data.check_files`.

    Raises: UserError naming file and line for a missing or empty list, a label that is no class, or a Windows path
    that leads to no file or to the file of another.
    """
    path = Path(path)
    if num_classes is None and classes is not None and labelled:
        num_classes = len(classes)
    labels = Labels(classes or (), num_classes, required=labelled)
    paths = Paths(path.parent if root is None else Path(root).expanduser(), remap)
    lines = read_lines(path)
    if lines and is_header(lines[0][1], labels, paths):
        number, line = lines.pop(0)
        say(f"{path}:{number}: skipped the header {line!r}")
    samples = _read_samples(path, lines, labels, paths, say)
    if not samples:
        raise UserError(f"{path} lists no files; write 'path label' on each line")
    return samples


def _read_samples(
    path: Path, lines: list[tuple[int, str]], labels: Labels, paths: Paths, say: Say
) -> list[Sample]:
    samples: list[Sample] = []
    kinds: Counter[Kind] = Counter()
    undecided: dict[int, list[Reading]] = {}  # by index

    def sample(reading: Reading, located: str) -> Sample:
        if reading.frames and labels.required and os.path.isfile(located):
            raise UserError(
                f"two columns follow the path of a file, {reading.path}, and either may be its label (a number of "
                "frames is understood only after a folder of frames); write 'path label' on each line"
            )
        kinds[reading.kind] += 1
        return Sample(located, UNLABELLED if reading.label is None else labels.read(reading.label))

    try:
        for index, (_, line) in enumerate(lines):
            readings = read_line(line, labels)
            reading = choose(readings, paths, kinds)
            located = paths.locate(reading.path) if reading else None
            if reading is None or located is None:
                undecided[index] = readings
                samples.append(Sample("", UNLABELLED))
            else:
                samples.append(sample(reading, located))
        for index, readings in undecided.items():  # their files are missing: they are read as most other lines are
            reading = max(readings, key=lambda reading: (kinds[reading.kind], reading.words >= 0))
            located = paths.locate(reading.path)
            if located is None:
                raise UserError(
                    f"no end of the Windows path {reading.path} exists under {paths.base}; "
                    "give the folder that holds the clips as --data-root"
                )
            samples[index] = sample(reading, located)
    except UserError as error:
        number, line = lines[index]
        hint = " (a header must name the columns path and label, or path, frames and label)"
        raise UserError(f"{path}:{number}: {error}{hint if index == 0 and names_columns(line) else ''}") from None
    _tell_kinds(path, kinds, say)
    return samples


def _tell_kinds(path: Path, kinds: Counter[Kind], say: Say) -> None:
    total = kinds.total()
    frames = sum(count for (_, with_frames), count in kinds.items() if with_frames)
    words = sum(count for (fields, _), count in kinds.items() if fields > 0)
    if frames:
        say(f"{path}: {frames} of {total} lines have a number of frames between path and label, which is not used")
    if words:
        say(f"{path}: {words} of {total} lines end in a label, which is left out of the path")


def open_dataset(
    folder: str | os.PathLike[str],
    *,
    stage: str = "all",
    fold: int | None = None,
    root: str | os.PathLike[str] | None = None,
    remap: tuple[str, str] | None = None,
    say: Say = print_note,
) -> DatasetFolder:
    """Open a dataset folder: ``classes.txt`` (one name per line), ``train.txt`` and ``test.txt``, optionally
    ``val.txt`` and ``pretrain.txt`` (labels may be missing there).

    A folder with folds has its lists in ``fold-1/``, ``fold-2/`` …, and classes.txt beside those folders; a
    pretrain.txt there is of all folds. Relative paths in all lists are joined to ``root``: by default that of
    ``dataset.json`` (see :class:`Description`), or the folder itself. ``say`` as in :func:`read_list`.

    Args:
        stage: what the folder is for. ``evaluate`` needs ``classes.txt`` and ``test.txt`` alone. ``pretrain`` needs no
            classes and no labels: ``pretrain.txt`` or ``train.txt``, or no list at all: then the clips are all videos
            and folders of frames in the folder and below.
        fold: which of its folds to open, for a folder with folds alone.

    Raises: UserError when a file is missing or malformed, or a fold is not there.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        if folder.is_file():
            raise UserError(f"{folder} is a file; give the folder that holds classes.txt, train.txt and test.txt")
        raise UserError(f"dataset folder not found: {folder} (check the path)")
    pretraining = stage == "pretrain"
    lists = find_lists(folder, stage, fold)
    if pretraining and not lists.keys() & {"train", "pretrain"}:
        return _open_without_lists(folder, root, say)
    description = read_description(folder)
    base = root or folder / Path(description.root or "").expanduser()
    classes = read_classes(lists["classes"], say=say) if "classes" in lists else []

    def read(name: str, labelled: bool = True) -> list[Sample]:
        return read_list(
            lists[name],
            root=base,
            num_classes=None if pretraining else len(classes),
            remap=remap,
            labelled=labelled,
            classes=classes,
            say=say,
        )

    train = read("train") if stage in ("finetune", "all") else []
    pretrain: list[Sample] = []
    if stage in ("pretrain", "all"):
        pretrain = read("pretrain", labelled=False) if "pretrain" in lists else train or read("train", labelled=False)
    return DatasetFolder(
        folder=folder,
        classes=classes,
        train=train,
        test=read("test", labelled=not pretraining) if "test" in lists else [],
        val=read("val") if "val" in lists and train else None,
        pretrain=pretrain,
        fold=fold,
        description=description,
    )


def _open_without_lists(folder: Path, root: str | os.PathLike[str] | None, say: Say) -> DatasetFolder:
    if root is not None:
        raise UserError(f"{folder} has no lists, whose paths --data-root is for; leave that out, or add pretrain.txt")
    clips, failures = find_clips(folder)
    for failure in failures:
        say(f"skipped {failure}")
    if not clips:
        raise UserError(f"{folder} holds no videos and no folders of frames; give such a folder, or write pretrain.txt")
    frames = sum(clip.is_dir() for clip in clips)
    say(f"{folder} has no lists: took its {len(clips) - frames:,} videos and {frames:,} folders of frames")
    found = [Sample(str(clip), UNLABELLED) for clip in clips]
    return DatasetFolder(folder=folder, classes=[], train=[], test=[], val=None, pretrain=found)

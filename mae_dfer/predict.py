"""``python -m mae_dfer.predict``: expressions over time, for videos that are already cropped to a face."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from .cli import Parser, RawHelp, add_options, command
from .config import TrainConfig
from .data import VideoError, read_list
from .data.folders import find_clips
from .data.sets import CLASSES
from .data.video import video_error
from .errors import UserError
from .files import check_writable, write_atomically
from .prediction import UNTOLD, Window, load, predict_clip
from .training.checkpoints import find_weights
from .training.progress import console, stage_bar

__all__ = ["Window", "main", "predict_clip", "write_csv"]

DESCRIPTION = """\
Class probabilities over time for videos of one face. The frames must already be cropped to the face, as in the
data the model was trained on: this command does not find faces. A folder stands for the videos and the folders of
frames in it; a folder that holds images is one clip itself. A list has a path on each line, with or without a label."""

EXAMPLES = """\
examples:
  python -m mae_dfer.predict video.mp4 --checkpoint runs/base
  python -m mae_dfer.predict my_clips/test.txt --checkpoint runs/base --output test.csv
  python -m mae_dfer.predict video.mp4 --checkpoint published.pth --classes dfew
"""

LIST_SUFFIXES = (".txt", ".csv")


# Of the CSV, before one for each class.
COLUMNS = ("path", "start_frame", "end_frame", "start_seconds", "end_seconds", "prediction")

# Further options that are arguments of `load`.
OF_LOAD = ("weights", "stride", "protocol")


def build_parser() -> Parser:
    parser = Parser(
        prog="python -m mae_dfer.predict", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=RawHelp
    )
    parser.add_argument(
        "clips",
        nargs="+",
        type=Path,
        metavar="CLIP",
        help="video files, images, folders of frames, folders of all these, or lists (.txt, .csv)",
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=Path,
        metavar="RUN",
        help="run folder of mae_dfer.train, one of its finetune .safetensors, or a published .pth",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("predictions.csv"),
        metavar="FILE",
        help="CSV to write (default: predictions.csv)",
    )
    parser.add_argument("--force", action="store_true", help="replace the CSV where there is one")
    parser.add_argument(
        "--data-root",
        type=Path,
        metavar="FOLDER",
        help="folder that relative paths in lists start from (default: that of the list)",
    )
    parser.add_argument(
        "--window-step",
        type=int,
        metavar="FRAMES",
        help="video frames from one prediction to the next (default: half a window)",
    )
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="windows computed at a time")
    parser.add_argument(
        "--device", default="auto", metavar="NAME", help="cpu, cuda … (auto: a GPU where there is one)"
    )
    published = parser.add_argument_group("for published checkpoints; those of mae_dfer.train hold all of this")
    published.add_argument(
        "--classes",
        metavar="SET",
        help=f"{', '.join(CLASSES)}, or a file with one class name per line, in the order of the outputs",
    )
    add_options(
        published,
        TrainConfig,
        skip=[name for name in TrainConfig.__dataclass_fields__ if name not in (*UNTOLD, *OF_LOAD)],
    )
    return parser


def gather_clips(inputs: Sequence[Path], root: Path | None) -> tuple[list[Path], list[VideoError]]:
    """The clips that the given paths stand for, and an error for each path that cannot be read.

    Raises:
        UserError: a path that does not exist, a folder without clips, or a list that cannot be read.
    """
    clips: list[Path] = []
    failures: list[VideoError] = []
    for path in inputs:
        try:
            is_folder = stat.S_ISDIR(os.stat(path).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{path}: no such file or folder") from None
        except OSError as error:
            failures.append(video_error(path, error))
            continue
        if is_folder:
            found, unreadable = find_clips(path)
            if not found and not unreadable:
                raise UserError(f"{path}: holds neither videos nor images")
            clips += found
            failures += unreadable
        elif path.suffix.lower() in LIST_SUFFIXES:
            clips += [Path(sample.path) for sample in read_list(path, root=root, labelled=False)]
        else:
            clips.append(path)
    return list(dict.fromkeys(clips)), failures


def check_result(path: Path, inputs: Sequence[Path], clips: Sequence[Path], checkpoint: Path, force: bool) -> None:
    """Raises UserError where the CSV would replace something that is needed, or another result without ``--force``."""

    def kept() -> Iterator[Path]:
        yield from inputs
        for clip in clips:
            yield clip
            if os.path.isdir(clip):
                with contextlib.suppress(OSError):  # it cannot be read: then it is no input
                    yield from clip.iterdir()
        yield checkpoint
        if checkpoint.parent.name == "checkpoints":
            yield from checkpoint.parent.iterdir()

    check_writable(path, kept())
    if path.exists() and not force:
        raise UserError(f"{path} exists; --force replaces it, --output takes another name")
    if path.exists() and not _is_result(path):
        raise UserError(f"{path} exists and is no result of this command; remove it, or give another --output")


def _is_result(path: Path) -> bool:
    """Whether a file is a CSV of this command."""
    head = ",".join(COLUMNS).encode()
    with path.open("rb") as file:
        return file.read(len(head)) == head


def write_csv(windows: list[Window], classes: list[str], path: Path) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([*COLUMNS, *classes])
    for window in windows:
        seconds = [f"{second:.3f}" for second in window.seconds] if window.seconds else ["", ""]
        writer.writerow(
            [
                window.path,
                window.start,
                window.end,
                *seconds,
                classes[int(window.probabilities.argmax())],
                *(f"{p:.6f}" for p in window.probabilities),
            ]
        )
    content = text.getvalue().encode()
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def print_table(windows: list[Window], classes: list[str]) -> None:
    table = Table("clip", "frames", "prediction", *classes)
    previous = None
    for window in windows:
        best = int(window.probabilities.argmax())
        cells = [Text(f"{p:.2f}", "bold" if i == best else "") for i, p in enumerate(window.probabilities)]
        name = window.path.name if window.path != previous else ""
        table.add_row(name, f"{window.start}–{window.end - 1}", classes[best], *cells)
        previous = window.path
    console.print(table)


@command
def main(argv: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    for name in ("window_step", "batch_size", "stride"):
        value = getattr(options, name, None)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1")
    from .training.hardware import choose_device

    device = choose_device(options.device)
    clips, failures = gather_clips(options.clips, options.data_root)
    checkpoint = find_weights(options.checkpoint, stages=("finetune",))
    check_result(options.output, options.clips, clips, checkpoint, options.force)
    given = vars(options)
    predictor = load(
        checkpoint,
        device=device,
        classes=options.classes,
        say=console.print,
        **{name: given[name] for name in (*UNTOLD, *OF_LOAD) if name in given},
    )
    windows: list[Window] = []
    with stage_bar("predict", len(clips)) as bar:
        for done, path in enumerate(clips, start=1):
            try:
                windows += predictor.predict(path, window_step=options.window_step, batch_size=options.batch_size)
            except VideoError as error:
                failures.append(error)
            bar.update(done, path.name)
    if not windows:
        raise failures[0]
    # Before the table, so that nothing that befalls standard output costs the results.
    write_csv(windows, predictor.classes, options.output)
    print_table(windows, predictor.classes)
    read = len({window.path for window in windows})
    console.print(f"{len(windows)} windows of {read} clips written to {options.output}")
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 2 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

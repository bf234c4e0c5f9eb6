"""``python -m mae_dfer.predict``: expressions over time, for videos that are already cropped to a face."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from rich.text import Text

from .checkpoint import is_own
from .cli import Parser, RawHelp, add_options, command
from .config import TrainConfig, preset
from .data import Video, open_video
from .data.images import IMAGE_SUFFIXES
from .data.sampling import window_indices, window_starts
from .data.sets import CLASSES, STRIDES, find_classes, find_set
from .data.transforms import TestTransform, to_channels_first
from .errors import UserError
from .files import check_writable, write_atomically
from .models import VideoClassifier, VideoModel
from .training.progress import console, stage_bar
from .training.run import find_weights
from .training.weights import load_classifier

DESCRIPTION = """\
Class probabilities over time for videos of one face. The frames must already be cropped to the face, as in the
data the model was trained on: this command does not find faces. A folder of videos means every video in it; a
folder of images is one clip."""

EXAMPLES = """\
examples:
  python -m mae_dfer.predict video.mp4 --checkpoint runs/base
  python -m mae_dfer.predict video.mp4 --checkpoint published.pth --classes dfew
"""

# Settings that the tensors of a published checkpoint do not tell.
MODEL_OPTIONS = ("preset", "model", "img_size", "num_frames", "region_size", "num_heads", "pool")

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv")


@dataclass(frozen=True)
class Window:
    """One prediction: ``probabilities`` (classes,) for the frames from ``start`` to before ``end``.

    ``seconds``: when the first of them is first shown, and when the last no longer is; None where that is not known.
    """

    path: Path
    start: int
    end: int
    seconds: tuple[float, float] | None
    probabilities: np.ndarray


def build_parser() -> Parser:
    parser = Parser(
        prog="python -m mae_dfer.predict", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=RawHelp
    )
    parser.add_argument(
        "clips",
        nargs="+",
        type=Path,
        metavar="CLIP_OR_FOLDER",
        help="video files, folders of videos, folders of frames, or images",
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
        skip=[name for name in TrainConfig.__dataclass_fields__ if name not in (*MODEL_OPTIONS, "weights", "stride")],
    )
    return parser


def load_model(options: argparse.Namespace) -> tuple[VideoClassifier, dict[str, Any]]:
    """The classifier of ``--checkpoint`` and its metadata: ``classes``, ``stride``."""
    given = vars(options)
    named = options.classes or ""
    classes = find_classes(named) if named else None
    config = preset(given.get("preset", "base"))
    config.stride = STRIDES.get(find_set(named) or "", config.stride)
    sizes = [name for name in MODEL_OPTIONS if name in given]
    for name in (*sizes, "weights", "stride"):
        if name in given:
            setattr(config, name, given[name])
    if config.stride < 1:
        raise UserError("--stride must be at least 1")
    path = find_weights(options.checkpoint, stages=("finetune",))
    if sizes and is_own(path):
        raise UserError(f"{path} says its own sizes; leave out --{sizes[0].replace('_', '-')}")
    model, metadata = load_classifier(
        path, config=config, classes=classes, classes_from=named, weights=config.weights
    )
    return model, metadata | ({"stride": config.stride} if "stride" in given else {})


def find_clips(inputs: Sequence[Path]) -> list[Path]:
    """Files and frame folders that the given paths stand for."""
    clips: list[Path] = []
    for path in inputs:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
        if not path.is_dir():
            clips.append(path)
            continue
        videos = sorted(p for p in path.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES)
        images = any(p.suffix.lower() in IMAGE_SUFFIXES for p in path.iterdir())
        if images and videos:
            raise UserError(f"{path}: holds videos and images; name the ones that you mean")
        if images:
            clips.append(path)
            continue
        if not videos:
            raise UserError(f"{path}: holds neither videos nor images")
        clips.extend(videos)
    return clips


@torch.no_grad()
def predict_clip(
    path: Path,
    model: VideoModel,
    stride: int,
    *,
    window_step: int | None = None,
    batch_size: int = 8,
    square_pixels: bool = False,
) -> list[Window]:
    """Slides the model's window over one clip. The last frame is repeated where the clip is shorter.

    ``square_pixels`` is that of :func:`mae_dfer.data.open_video`.
    """
    sizes, device = model.config, next(model.parameters()).device
    length, transform, windows = sizes.num_frames, TestTransform(sizes.img_size), []
    with open_video(path, square_pixels=square_pixels) as video:
        starts = window_starts(video.num_frames, length, stride, window_step or max(length * stride // 2, 1))
        for first in range(0, len(starts), batch_size):
            part = starts[first : first + batch_size]
            frames = [video.get(window_indices(video.num_frames, start, length, stride)) for start in part]
            batch = torch.stack([transform(to_channels_first(clip)) for clip in frames]).to(device)
            probabilities = model(batch).float().softmax(-1).cpu().numpy()
            for start, row in zip(part, probabilities, strict=True):
                end = min(start + length * stride, video.num_frames)
                windows.append(Window(path, start, end, _seconds(video, start, end), row))
    return windows


def _seconds(video: Video, start: int, end: int) -> tuple[float, float] | None:
    """When frame ``start`` is first shown, and when the one before ``end`` no longer is."""
    if video.times is None or video.end is None:
        return None
    return float(video.times[start]), float(video.times[end] if end < video.num_frames else video.end)


def write_csv(windows: list[Window], classes: list[str], path: Path) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(
        ["path", "start_frame", "end_frame", "start_seconds", "end_seconds", "prediction", *classes]
    )
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
    for name in ("window_step", "batch_size"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1")
    from .training.hardware import choose_device

    device = choose_device(options.device)
    check_writable(options.output)
    clips = find_clips(options.clips)
    model, metadata = load_model(options)
    model = model.to(device)
    if metadata.get("data") == "demo":
        console.print(
            "warning: this model learnt drawn faces (the demo set); what it says of real people means nothing",
            style="yellow",
        )
    windows: list[Window] = []
    failures: list[UserError] = []
    with stage_bar("predict", len(clips)) as bar:
        for done, path in enumerate(clips, start=1):
            try:
                windows += predict_clip(
                    path,
                    model,
                    metadata["stride"],
                    window_step=options.window_step,
                    batch_size=options.batch_size,
                    square_pixels=metadata.get("protocol") == "published",
                )
            except UserError as error:
                failures.append(error)
            bar.update(done, path.name)
    if not windows:
        raise failures[0]
    print_table(windows, metadata["classes"])
    write_csv(windows, metadata["classes"], options.output)
    good = len(clips) - len(failures)
    console.print(f"{len(windows)} windows of {good} clips written to {options.output}")
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 2 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

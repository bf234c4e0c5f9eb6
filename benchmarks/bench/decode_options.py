"""The command line of decode_bench, and the core that it keeps to."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.decoder_process import Place
from bench.decoders import PACKAGES
from mae_dfer.cli import Parser
from mae_dfer.errors import UserError

SIZES = [(224, 224), (1280, 720)]


def pin(asked: int | None) -> int | None:
    """Keeps this process, and those it starts, to one core: the last one that it may use, unless asked otherwise."""
    if not hasattr(os, "sched_setaffinity"):
        if asked is not None:
            raise UserError("--core works on Linux alone; leave it out")
        return None
    allowed = sorted(os.sched_getaffinity(0))
    core = allowed[-1] if asked is None else asked
    if core not in allowed:
        raise UserError(f"--core {core}: this process may use {', '.join(map(str, allowed))}")
    os.sched_setaffinity(0, {core})
    return core


def size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit()) or any(int(side) < 16 or int(side) % 2 for side in (width, height)):
        raise argparse.ArgumentTypeError(f"{text!r}: write WIDTHxHEIGHT, even numbers from 16 on, such as 224x224")
    return int(width), int(height)


def places_of(pythons: Sequence[str], folders: Sequence[str]) -> dict[str, Place]:
    """From values of --python and --path, by the names in them."""
    places: dict[str, Place] = {}
    for option, entries in (("--python", pythons), ("--path", folders)):
        for entry in entries:
            name, _, value = entry.partition("=")
            if name not in PACKAGES or not value:
                raise UserError(f"{option} {entry}: write NAME=…, NAME one of {', '.join(PACKAGES)}")
            if not Path(value).exists():
                raise UserError(f"{option} {entry}: there is no {value}")
            place, value = places.get(name, Place()), str(Path(value).absolute())
            change = {"python": value} if option == "--python" else {"folders": (*place.folders, value)}
            places[name] = place._replace(**change)
    return places


def parse(argv: Sequence[str] | None) -> Any:
    parser = Parser(
        prog="python benchmarks/decode_bench.py",
        description="Compares video decoders for training data loaders on one core: whether they give the right "
        "frames, and how fast. pyav: the package av; pyav-skip: the same, without decoding unwanted frames that no "
        "other frame refers to; mae-dfer: this project's reader; decord and decord2; torchcodec; "
        "torchcodec-approximate: the same, which computes timestamps where torchcodec reads them.",
        epilog="decord and decord2 are modules of one name, so each decoder runs in a process of its own. To add those "
        "that are not installed here: pip install --no-deps --target /tmp/decord2 decord2, then --path "
        "decord2=/tmp/decord2; or --python torchcodec=/path/to/venv/bin/python. torchcodec also needs FFmpeg's shared "
        "libraries (apt install ffmpeg). The machine should have nothing else to do.",
    )
    parser.add_argument("--decoders", nargs="+", choices=list(PACKAGES), default=list(PACKAGES), metavar="NAME",
                        help=f"of {', '.join(PACKAGES)}; those that are not installed are listed as such")  # fmt: skip
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="interpreter that a decoder's package is installed in; may be given more than once",
    )
    parser.add_argument(
        "--path",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="folder of pip install --target with a decoder's package; may be given more than once",
    )
    parser.add_argument(
        "--part",
        choices=("times", "difficult", "all"),
        default="all",
        help="times: check and time common videos; difficult: check difficult files; default: both",
    )
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=size,
        default=SIZES,
        metavar="WxH",
        help="of the timed videos (default: 224x224 1280x720)",
    )
    parser.add_argument("--core", type=int, metavar="N", help="core that everything runs on (default: the last one)")
    parser.add_argument("--quick", action="store_true", help="two rounds: a look, no measurement")
    parser.add_argument(
        "--json",
        nargs="?",
        type=Path,
        const=Path(),
        metavar="FILE",
        help="also write rows and verdicts as JSON; without FILE to benchmarks/results, by date",
    )
    return parser.parse_args(argv)

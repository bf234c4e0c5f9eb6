"""Whether a decoder gives the frames that FFmpeg shows: their number, their order, their pixels."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from bench.decoder_process import Crashed, DecoderProcess, Hung, Refused
from bench.decoders import PyAV

CLIP, STRIDE = 16, 4
SPAN = (CLIP - 1) * STRIDE + 1
RIGHT = "right"
# From bad to worse: a wrong frame that nothing reports is worse than an error.
STATUSES = (RIGHT, "refused", "wrong count", "wrong frames", "crashes", "hangs")


class Verdict(NamedTuple):
    """``status``: one of STATUSES, the worst of all requests. The differences are those of right frames."""

    status: str
    detail: str
    max_difference: int
    mean_difference: float


class Reference(NamedTuple):
    """All frames of a file as FFmpeg shows them, decoded from its start in one go by PyAV, upright, in a .npy file."""

    path: Path
    frames: int

    @classmethod
    def write(cls, video: Path, path: Path) -> Reference:
        with av.open(str(video)) as container:
            count = sum(1 for _ in container.decode(video=0))
        store: Any = None
        for index, part in enumerate(PyAV().whole(str(video))):
            if store is None:
                store = np.lib.format.open_memmap(path, "w+", dtype=np.uint8, shape=(count, *part.shape[1:]))
            store[index] = part[0]
        store.flush()
        return cls(path, count)


def clip_at(start: int, frames: int) -> list[int]:
    """Indices of a clip, fewer where the video ends."""
    return list(range(start, min(start + SPAN, frames), STRIDE))


def judge(process: DecoderProcess, video: Path, reference: Reference, seconds: float) -> Verdict:
    """Asks for the whole file, for clips from five places, and for the last frame; the file is opened for each."""
    worst, largest, means = (RIGHT, ""), 0, []
    for job, arguments in requests(reference.frames):
        status, detail = RIGHT, ""
        try:
            answer = process.ask(job, seconds, path=str(video), reference=str(reference.path), **arguments)
        except Refused as error:
            status, detail = "refused", str(error)
        except Crashed as error:
            status, detail = "crashes", str(error)
        except Hung as error:
            status, detail = "hangs", str(error)
        else:
            largest = max(largest, answer["max_difference"])
            means.append(answer["mean_difference"])
            if answer["wrong"]:
                asked, came = answer["first_wrong"][0]
                what = f"frame {came}" if came is not None else "a frame of another size"
                status, detail = "wrong frames", f"{answer['wrong']} of {answer['due']}; for frame {asked} came {what}"
            elif answer["frames"] != answer["due"]:
                status, detail = "wrong count", f"{answer['frames']} frames, not {answer['due']}"
        worst = max(worst, (status, detail), key=lambda found: STATUSES.index(found[0]))
        if status == "hangs":
            break  # one wait is enough
    return Verdict(*worst, largest, float(np.mean(means)) if means else 0.0)


def requests(frames: int) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "compare_whole", {}
    for start in np.linspace(0, max(frames - SPAN, 0), 5).astype(int).tolist():
        yield "compare_clip", {"indices": clip_at(start, frames)}
    yield "compare_clip", {"indices": [frames - 1]}


def confirm(video: Path) -> bool | None:
    """Whether the ffmpeg tool decodes the same frames as PyAV, bit for bit before conversion to RGB. None where the
    tool is missing or fails."""
    if shutil.which("ffmpeg") is None:
        return None
    command = ["ffmpeg", "-v", "error", "-noautorotate", "-i", str(video), "-map", "0:v:0", "-fps_mode", "passthrough"]
    found = subprocess.run([*command, "-f", "framemd5", "-"], capture_output=True, text=True)
    if found.returncode:
        return None
    sums = [line.rsplit(",", 1)[1].strip() for line in found.stdout.splitlines() if not line.startswith("#")]
    with av.open(str(video)) as container:
        ours = [hashlib.md5(frame.to_ndarray().tobytes()).hexdigest() for frame in container.decode(video=0)]
    return sums == ours

"""A process that decodes with one decoder on request: ``python -m bench.decode_worker NAME``.

Requests and answers are lines of JSON on its standard input and output. What libraries print goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from bench.decoders import Decoder, Frames, libavcodec, open_decoder

SAME = 3.0  # mean difference of pixels below which two frames are one, converted to RGB by different code
NAMED = 20  # wrong frames that an answer names


def serve(name: str) -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    decoder: Decoder | None = None
    for line in sys.stdin:
        request = json.loads(line)
        job = request.pop("job")
        try:
            if decoder is None:
                decoder = open_decoder(name)
            answer = JOBS[job](decoder, **request)
        except Exception as error:  # a library may raise anything, and the caller reports it
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def describe(decoder: Decoder) -> dict[str, Any]:
    return {"version": decoder.version, "libavcodec": libavcodec()}


def time_clip(decoder: Decoder, path: str, indices: list[int]) -> dict[str, Any]:
    return timed(lambda: len(decoder.clip(path, indices)))


def time_whole(decoder: Decoder, path: str) -> dict[str, Any]:
    return timed(lambda: sum(len(part) for part in decoder.whole(path)))


def timed(call: Callable[[], int]) -> dict[str, Any]:
    """Milliseconds by the wall clock, and of the processor: all threads of this process."""
    started, started_cpu = time.perf_counter(), time.process_time()
    frames = call()
    passed, passed_cpu = time.perf_counter() - started, time.process_time() - started_cpu
    return {"ms": passed * 1e3, "cpu_ms": passed_cpu * 1e3, "frames": frames}


def compare_clip(decoder: Decoder, path: str, indices: list[int], reference: str) -> dict[str, Any]:
    return compare([decoder.clip(path, indices)], np.load(reference, mmap_mode="r"), indices)


def compare_whole(decoder: Decoder, path: str, reference: str) -> dict[str, Any]:
    expected = np.load(reference, mmap_mode="r")
    return compare(decoder.whole(path), expected, range(len(expected)))


def compare(parts: Iterable[Frames], reference: Frames, indices: Sequence[int]) -> dict[str, Any]:
    """Frames against those of the ``reference`` at ``indices``.

    Returns: the number of frames that came and that were due; the largest and the mean difference of pixels over right
    frames; the number of wrong frames, and for the first of them the index that was asked for and the index of the
    frame that came (None: a frame of another size).
    """
    count, largest = 0, 0
    means: list[float] = []
    wrong: list[tuple[int, int | None]] = []
    for frame in (frame for part in parts for frame in part):
        if count < len(indices):
            index = indices[count]
            maximum, mean = difference(frame, reference[index])
            if mean < SAME:
                largest = max(largest, maximum)
                means.append(mean)
            else:
                wrong.append((index, nearest(frame, reference) if len(wrong) < NAMED else None))
        count += 1
    return {
        "frames": count, "due": len(indices), "max_difference": largest,
        "mean_difference": float(np.mean(means)) if means else 0.0, "wrong": len(wrong), "first_wrong": wrong[:NAMED],
    }  # fmt: skip


def difference(first: Frames, second: Frames) -> tuple[int, float]:
    """(largest, mean) absolute difference of pixels."""
    if first.shape != second.shape:
        return 255, 255.0
    apart = np.maximum(first, second) - np.minimum(first, second)
    return int(apart.max()), float(apart.mean())


def nearest(frame: Frames, reference: Frames) -> int | None:
    """Index of the frame of the reference that is most like this one."""
    if frame.shape != reference.shape[1:]:
        return None
    step = max(1, min(frame.shape[:2]) // 48)
    few = reference[:, ::step, ::step].astype(np.int16)
    return int(np.abs(few - frame[::step, ::step]).mean(axis=(1, 2, 3)).argmin())


JOBS: dict[str, Callable[..., dict[str, Any]]] = {
    job.__name__: job for job in (describe, time_clip, time_whole, compare_clip, compare_whole)
}

if __name__ == "__main__":
    serve(sys.argv[1])

"""The set on disk: where it lies, whether it is whole, and how it gets there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mae_dfer.errors import UserError

from .expression import CLASSES, FRAMES
from .render import FPS, SEED, SPLITS, Clip, clips_of, describe, write_clip
from .scene import SIZE

VERSION = 2
GENERATOR = "mae_dfer.data.demo"
_METADATA, _CLASSES, _CLIPS = "metadata.json", "classes.txt", "clips"
_LISTS = {split: f"{split}.txt" for split in SPLITS}
_FEW = 32  # clips drawn without starting another process
USER_ERROR = 3  # exit code of a worker whose message is for the user


def default_folder() -> Path:
    """``demo-v<version>`` in MAE_DFER_CACHE, or in ``mae_dfer`` under the user's cache directory."""
    if root := os.environ.get("MAE_DFER_CACHE"):
        return Path(root).expanduser() / f"demo-v{VERSION}"
    if os.name == "nt" and os.environ.get("LOCALAPPDATA"):
        cache = Path(os.environ["LOCALAPPDATA"])
    else:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "mae_dfer" / f"demo-v{VERSION}"


def ensure_demo(
    folder: Path | str | None = None,
    *,
    progress: bool = True,
    workers: int | None = None,
    limit: int | None = None,
) -> Path:
    """Returns the folder of the demo set, drawing it first where it is missing (under two minutes on two cores).

    The folder holds ``classes.txt``, ``train.txt``, ``test.txt``, ``clips/*.mp4`` (96 x 96, 36 frames at 16 frames
    per second) and ``metadata.json``, which says how each clip came about. Contents are a function of the version
    alone (files may differ in bytes between versions of the encoder). The set is drawn beside the folder and moved
    there when whole, under a lock: a kill leaves no half set, and of two processes one draws and the other waits.

    Args:
        folder: where; :func:`default_folder` if None. An older or broken demo set there is replaced.
        progress: show a progress bar on stderr.
        workers: processes; None takes one per core that this process may use.
        limit: at most this many clips of each split, for a quick look; None draws all of them.

    Raises:
        UserError: ``folder`` holds something else, or cannot be written; ``workers`` or ``limit`` is below 1.
    """
    for name, value in (("workers", workers), ("limit", limit)):
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, not {value}")
    folder = Path(os.path.abspath(Path(folder or default_folder()).expanduser()))
    if _is_whole(folder, limit):
        return folder
    _refuse_foreign(folder)
    _refuse_smaller(folder, limit)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(f".{folder.name}.lock"))
        with _acquire(lock, progress):
            if not _is_whole(folder, limit):
                partial = folder.with_name(f".{folder.name}.partial")
                shutil.rmtree(partial, ignore_errors=True)
                _generate(partial, limit, progress, workers)
                _move(partial, folder)
    except OSError as error:
        raise UserError(f"cannot write the demo set to {folder}: {error}; choose another folder") from error
    return folder


def _acquire(lock: FileLock, progress: bool) -> Any:
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        if not os.path.exists(lock.lock_file):  # nobody has it: it cannot be made here
            raise PermissionError(f"{lock.lock_file} cannot be made") from None
        if progress:
            Console(stderr=True).print("waiting for another process that draws the demo set")
        return lock.acquire()


# -- what is there ---------------------------------------------------------------------------------------------


def _read_metadata(folder: Path) -> dict[str, Any] | None:
    try:
        metadata = json.loads((folder / _METADATA).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    ours = isinstance(metadata, dict) and metadata.get("generator") == GENERATOR
    return metadata if ours else None


def _is_whole(folder: Path, limit: int | None) -> bool:
    metadata = _read_metadata(folder)
    if metadata is None or metadata.get("version") != VERSION or metadata.get("limit") != limit:
        return False
    files = [_CLASSES, *_LISTS.values(), *(clip.file for split in SPLITS for clip in clips_of(split, limit))]
    return all((folder / file).is_file() and (folder / file).stat().st_size > 0 for file in files)


def _refuse_foreign(folder: Path) -> None:
    """Nothing is ever deleted but what this module wrote."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; give a folder for the demo set")
    known = {_METADATA, _CLASSES, _CLIPS, *_LISTS.values()}
    foreign = [entry.name for entry in folder.iterdir() if entry.name not in known]
    if (folder / _CLIPS).is_dir():
        foreign += [f"{_CLIPS}/{entry.name}" for entry in (folder / _CLIPS).iterdir() if entry.suffix != ".mp4"]
    if foreign or (any(folder.iterdir()) and _read_metadata(folder) is None):
        what = f" ({foreign[0]})" if foreign else ""
        raise UserError(f"{folder} holds files that are not of the demo set{what}; give an empty or a new folder")


def _refuse_smaller(folder: Path, limit: int | None) -> None:
    """A quick look does not take the place of what took minutes to draw."""
    metadata = _read_metadata(folder)
    if limit is None or metadata is None or metadata.get("version") != VERSION:
        return
    there = metadata.get("limit")
    if _is_whole(folder, there) and (there is None or there > limit):
        raise UserError(f"{folder} holds a larger demo set; give another folder for one of {limit} clips a split")


def _move(partial: Path, folder: Path) -> None:
    if folder.exists():
        _refuse_foreign(folder)  # again: drawing takes a while
        shutil.rmtree(folder)
    os.replace(partial, folder)


# -- drawing it ------------------------------------------------------------------------------------------------


def _generate(folder: Path, limit: int | None, progress: bool, workers: int | None) -> None:
    clips = {split: clips_of(split, limit) for split in SPLITS}
    (folder / _CLIPS).mkdir(parents=True)
    every = [clip for split in SPLITS for clip in clips[split]]
    workers = min(workers or _cores(), max(1, len(every) // _FEW))
    bar = Progress(
        TextColumn("drawing the demo faces"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=Console(stderr=True), transient=True,
    )  # fmt: skip
    with bar if progress else nullcontext():
        task = bar.add_task("", total=len(every))
        if workers == 1:
            for clip in every:
                write_clip(clip, folder)
                bar.advance(task)
        else:
            _run_workers(folder, limit, workers, lambda: bar.advance(task))
    _write_lists(folder, clips, limit)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _run_workers(folder: Path, limit: int | None, workers: int, advance: Callable[[], None]) -> None:
    """One process per shard, one thread to read each; the first failure ends all."""
    root = str(Path(__file__).resolve().parents[3])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    running: list[subprocess.Popen[str]] = []
    guard = threading.Lock()
    stop = threading.Event()

    def run(shard: int) -> None:
        command = [sys.executable, "-m", f"{GENERATOR}.worker"]
        command += [str(folder), str(-1 if limit is None else limit), str(shard), str(workers)]
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
            with guard:
                if stop.is_set():
                    return
                process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
                running.append(process)
            assert process.stdout is not None
            for _ in process.stdout:
                advance()
            if process.wait() and not stop.is_set():
                stop_all()
                errors.seek(0)
                message = errors.read().strip()
                if process.returncode == USER_ERROR:
                    raise UserError(f"cannot draw the demo set: {message}")
                raise RuntimeError(f"a process drawing the demo set ended with code {process.returncode}:\n{message}")

    def stop_all() -> None:
        with guard:
            stop.set()
            for process in running:
                process.kill()

    with ThreadPoolExecutor(workers) as pool:
        jobs = [pool.submit(run, shard) for shard in range(workers)]
        try:
            for job in jobs:
                job.result()
        finally:
            stop_all()


def _write_lists(folder: Path, clips: dict[str, list[Clip]], limit: int | None) -> None:
    """The metadata comes last."""
    (folder / _CLASSES).write_text("".join(f"{name}\n" for name in CLASSES), encoding="utf-8")
    for split, name in _LISTS.items():
        lines = "".join(f"{clip.file} {clip.label}\n" for clip in clips[split])
        (folder / name).write_text(lines, encoding="utf-8")
    metadata = {
        "generator": GENERATOR,
        "version": VERSION,
        "seed": SEED,
        "limit": limit,
        "size": SIZE,
        "frames": FRAMES,
        "fps": FPS,
        "classes": list(CLASSES),
        "clips": [describe(clip) for split in SPLITS for clip in clips[split]],
    }
    (folder / _METADATA).write_text(json.dumps(metadata, indent=1) + "\n", encoding="utf-8")

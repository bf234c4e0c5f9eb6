"""Looks into every clip of a set, in several processes; goes on where an earlier call was ended."""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import multiprocessing.context
import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TypeVar

import cv2

from mae_dfer.data.images import is_frame
from mae_dfer.data.prepare.store import MISSING, Inspection, Store
from mae_dfer.data.video import VideoError, VideoWarning, open_video
from mae_dfer.files import encodable

_CHUNK = 32
_ASKING = 16  # threads
_PART = 2**16  # bytes of a file that its sample takes from its beginning, middle and end

Item = tuple[str, str, str]  # where a clip lies, its path in the lists, its stamp
Result = TypeVar("Result")
T = TypeVar("T")


def inspect_clips(root: Path, store: Store, workers: int, advance: Callable[[int], None]) -> None:
    """Inspects the clips of ``store`` that are new or have changed since the last call.

    Args:
        advance: is called with how many more clips are done.
    """
    store.set_root(root)
    for done in in_processes(_inspect, _changed(root, store, advance), workers, lost=_lost):
        store.save(done)
        advance(len(done))


def _changed(root: Path, store: Store, advance: Callable[[int], None]) -> Iterator[Item]:
    """The clips to inspect. Threads ask for their stamps: on a network, each answer takes its time."""
    with ThreadPoolExecutor(_ASKING) as pool:
        for pairs in _batched(store.stamps(), _CHUNK * _ASKING):
            items = [(os.path.join(root, path), path) for path, _ in pairs]
            stamps = pool.map(lambda item: _stamp(item[0]), items)
            found = [(*item, stamp) for item, stamp in zip(items, stamps, strict=True)]
            changed = [item for item, (_, known) in zip(found, pairs, strict=True) if item[2] != known]
            advance(len(pairs) - len(changed))
            yield from changed


def in_processes(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    lost: Callable[[Item], Result],
    chunk_size: int = _CHUNK,
) -> Iterator[list[Result]]:
    """``work`` on all items, in their order, some at a time; few of them are in memory at once.

    Args:
        lost: gives the result for an item whose decoding ends a process, as a defect of a decoder may.
        chunk_size: how many items a process is given at a time.
    """
    pool = _Pool(workers)
    waiting: deque[tuple[tuple[Item, ...], Future[list[Result]]]] = deque()
    try:
        for chunk in itertools.chain(_batched(items, chunk_size), [None]):
            if chunk is not None:
                waiting.append((chunk, pool.submit(work, chunk)))
            while waiting and (chunk is None or len(waiting) > 2 * workers):
                given, future = waiting.popleft()
                found = _result_of(future) or _result_of(pool.submit(work, given))
                yield found or [_alone(work, item, lost) for item in given]
    finally:
        pool.close()


def _result_of(future: Future[list[Result]]) -> list[Result] | None:
    """None where an item ended its process, or one that was worked on beside them did."""
    try:
        return future.result()
    except (BrokenProcessPool, CancelledError):
        return None


class _Pool:
    """Processes that are replaced when one of them ends; what was given to them is lost then."""

    def __init__(self, workers: int) -> None:
        self._workers, self._context = workers, _processes()
        self._pool = self._open()

    def _open(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self._workers, self._context, _prepare_process)  # starts none before there is work

    def submit(self, work: Callable[[Item], Result], items: tuple[Item, ...]) -> Future[list[Result]]:
        try:
            return self._pool.submit(_work_on, work, items)
        except BrokenProcessPool:
            self.close()
            self._pool = self._open()
            return self._pool.submit(_work_on, work, items)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def _processes() -> multiprocessing.context.BaseContext:
    """Not forked from this process, whose libraries have threads, but from one that has just imported them."""
    if sys.platform == "win32":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _prepare_process() -> None:
    """Ctrl-C ends the command, which ends its processes; where it is killed, they end by themselves."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore", VideoWarning)  # frames of different sizes are in the table
    cv2.setNumThreads(1)  # there is a process for each core
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=[parent], daemon=True).start()


def _end_with(process: BaseProcess) -> None:
    process.join()
    os._exit(1)


def _batched(items: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    iterator = iter(items)
    while batch := tuple(itertools.islice(iterator, size)):
        yield batch


def _work_on(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    return [work(item) for item in items]


def _alone(work: Callable[[Item], Result], item: Item, lost: Callable[[Item], Result]) -> Result:
    with ProcessPoolExecutor(1, _processes(), _prepare_process) as pool:
        try:
            return pool.submit(work, item).result()
        except BrokenProcessPool:
            return lost(item)


def _lost(item: Item) -> Inspection:
    _, path, stamp = item
    return Inspection(path, stamp, fault="the process that decoded it was ended: by a defect, or out of memory")


def _stamp(path: str) -> str:
    """Of a folder, its own time changes when files come or go."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return MISSING
    return f"{found.st_size} {found.st_mtime_ns}"


def _inspect(item: Item) -> Inspection:
    """Reads which frames a clip has, and decodes the first and the last."""
    full, path, stamp = item
    try:
        with open_video(full) as video:
            height, width, _ = video.get([0])[0].shape
            video.get([video.num_frames - 1])
            size, sample = _sample(full)
            return Inspection(path, stamp, video.num_frames, width, height, video.fps, size, sample)
    except VideoError as error:
        return Inspection(path, stamp, fault=error.reason)
    except OSError as error:  # it was removed meanwhile
        return Inspection(path, stamp, fault=f"it cannot be read ({encodable(error.strerror or str(error))})")


def list_files(full: str) -> list[str]:
    """The files that a clip consists of."""
    if not os.path.isdir(full):
        return [full]
    with os.scandir(full) as entries:
        return sorted(entry.path for entry in entries if is_frame(entry.name))


def _sample(full: str) -> tuple[int, str]:
    """The bytes of a clip, and a hash of a few parts of it, without reading it whole."""
    files = list_files(full)
    sizes = [os.path.getsize(file) for file in files]
    digest = hashlib.blake2b(repr(sizes).encode(), digest_size=16)
    for file in {0: files[0], 1: files[len(files) // 2], 2: files[-1]}.values():
        with open(file, "rb") as data:
            for start in (0, max(os.path.getsize(file) // 2 - _PART // 2, 0), max(os.path.getsize(file) - _PART, 0)):
                data.seek(start)
                digest.update(data.read(_PART))
    return sum(sizes), digest.hexdigest()


def hash_content(item: Item) -> tuple[str, str]:
    """(hash of the whole content, path) of a clip; an empty hash where it can no longer be read."""
    full, path, _ = item
    digest = hashlib.blake2b(digest_size=16)
    try:
        for file in list_files(full):
            with open(file, "rb") as data:
                while part := data.read(2**20):
                    digest.update(part)
            digest.update(b"\0")
    except OSError:
        return "", path
    return digest.hexdigest(), path


def find_duplicates(root: Path, store: Store, workers: int) -> None:
    """Hashes the whole content of clips whose samples are equal."""
    query = (
        "SELECT path FROM clips JOIN inspections USING (path) WHERE content IS NULL AND sample IN "
        "(SELECT sample FROM clips JOIN inspections USING (path) WHERE sample IS NOT NULL GROUP BY sample "
        "HAVING count(*) > 1)"
    )
    items = [(os.path.join(root, path), path, "") for (path,) in store.ask(query)]
    for done in in_processes(hash_content, items, workers, lost=lambda item: ("", item[1])):
        store.set("content", done)

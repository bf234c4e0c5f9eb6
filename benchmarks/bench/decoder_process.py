"""A decoder in a process of its own, with its own interpreter and path: decord and decord2 are modules of one name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from typing import Any, NamedTuple

from bench import ROOT

LOAD_SECONDS = 120.0  # an import of torch from a cold disk
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# glibc's names for what mae_dfer.training.hardware.keep_freed_memory sets.
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20)}


class Refused(Exception):
    """The decoder raised an error."""


class Hung(Exception):
    """No answer came in time; the process was killed."""


class Crashed(Exception):
    """The process ended without an answer."""


class Place(NamedTuple):
    """Where a package is installed: an interpreter, and folders that come first on its path."""

    python: str = sys.executable
    folders: tuple[str, ...] = ()


class DecoderProcess:
    """Answers one request at a time. It starts at the first, and again at the next after it hung or crashed."""

    def __init__(self, name: str, place: Place) -> None:
        self.name, self._place = name, place
        self._process: subprocess.Popen[str] | None = None

    def ask(self, job: str, seconds: float, **arguments: Any) -> dict[str, Any]:
        """The answer of a function of ``decode_worker``. Raises Refused, Hung, Crashed."""
        if self._process is None:
            self._process = self._start()
            self._exchange({"job": "describe"}, LOAD_SECONDS)
        return self._exchange({"job": job, **arguments}, seconds)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> subprocess.Popen[str]:
        path = [*self._place.folders, str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
        variables = os.environ | dict.fromkeys(THREADS, "1") | KEEP_MEMORY
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, path))
        return subprocess.Popen(
            [self._place.python, "-m", "bench.decode_worker", self.name], env=variables, encoding="utf-8",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def _exchange(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        process, late = self._process, threading.Event()
        assert process is not None and process.stdin is not None and process.stdout is not None

        def give_up() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(seconds, give_up)
        timer.start()
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if not line:
            self.close()
            raise Hung(f"no answer in {seconds:.0f} s") if late.is_set() else Crashed(f"exit code {process.returncode}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Refused(answer["error"])
        return answer

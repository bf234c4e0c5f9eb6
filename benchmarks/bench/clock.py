"""How long one call takes: of the device, and by the wall clock where Python launches it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch

MEASURE_MS = 2.0  # on a GPU: what lies between two events at least
MAX_REPEATS = 50
WARM_UPS = 3  # before a capture, as PyTorch's documentation has it
LONGEST_WAIT_MS = 50.0

Call = Callable[[int], object]


class Time(NamedTuple):
    """Milliseconds of one call: the device's work alone, and all of a call from Python, launching included."""

    device: float
    wall: float


class Clock(Protocol):
    """Times one call, which takes the number of a set of inputs."""

    @property
    def captured(self) -> bool:
        """Whether the device's time is that of a CUDA graph's replays."""

    def time(self) -> Time: ...


class CpuClock:
    """By the wall clock; where ``warm``, after an untimed call of the same."""

    captured = False

    def __init__(self, call: Call, warm: bool) -> None:
        self._call, self._warm = call, warm

    def time(self) -> Time:
        if self._warm:
            self._call(0)
        started = time.perf_counter()
        self._call(0)
        passed = (time.perf_counter() - started) * 1e3
        return Time(passed, passed)


class Recorder:
    """Captures calls into CUDA graphs, all of which share one pool of memory.

    That is safe, since replays take turns on one stream and nobody reads what a call leaves; and memory of their own
    for the graphs of a case would be that of all its variants together.
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def capture(self, call: Call, repeats: int) -> torch.cuda.CUDAGraph | None:
        """``repeats`` calls, each with the next inputs, as one graph; None where they cannot be captured."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(self._stream):  # comes back to the stream before, where the end of a capture fails
                for _ in range(WARM_UPS):
                    call(0)
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                    for turn in range(repeats):
                        call(turn)
            graph.replay()
            torch.cuda.synchronize()
        except Exception:  # torch.compile's code may do what a capture does not allow, and fails in many ways
            self._begin()
            return None
        return graph


class GpuClock:
    """By events around several calls, which take different inputs, replayed from a CUDA graph where they can be.

    Calls that cannot be captured are launched from Python: a kernel that only waits goes first, so that the processor
    is ahead. The launch queue holds some thousand kernels; beyond, the device waits for the processor all the same.
    """

    def __init__(self, call: Call, sets: int, recorder: Recorder) -> None:
        self._call, self._repeats = call, 1
        self._graph: torch.cuda.CUDAGraph | None = None
        call(0)
        self._host_ms = self._launch_ms()
        self._repeats = min(max(math.ceil(MEASURE_MS / max(self._device_ms(), 1e-3)), sets), MAX_REPEATS)
        self._graph = recorder.capture(call, self._repeats)
        self._host_ms = self._launch_ms()

    @property
    def captured(self) -> bool:
        return self._graph is not None

    def time(self) -> Time:
        return Time(self._device_ms(), self._wall_ms())

    def _launch(self) -> None:
        if self._graph is not None:
            self._graph.replay()
            return
        for turn in range(self._repeats):
            self._call(turn)

    def _launch_ms(self) -> float:
        torch.cuda.synchronize()
        started = time.perf_counter()
        self._launch()
        return (time.perf_counter() - started) * 1e3

    def _device_ms(self) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        # Cycles of a clock of at most some 2 GHz: longer than the launches below take.
        torch.cuda._sleep(int(2e6 * min(self._host_ms, LONGEST_WAIT_MS)) + 100_000)
        start.record()
        self._launch()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / self._repeats

    def _wall_ms(self) -> float:
        torch.cuda.synchronize()
        started = time.perf_counter()
        self._call(0)
        torch.cuda.synchronize()
        return (time.perf_counter() - started) * 1e3

"""How variants are checked, counted, timed, and how their memory is measured.

**Errors** of outputs and gradients are taken against float64, by root mean square. Ours may err twice as much as eager
PyTorch does in the same dtype, plus an eighth of a rounding. PyTorch's own variants are timed up to ten times that, and
noted: torch.compile's sums over many rows, for one, round more than eager's do.

**Times** are taken in rounds in which every variant runs once, in another order each round. On a CPU by the wall
clock; single operators after an untimed call of the same, so that the input is in the cache, where the step before
leaves it in a model, and not where the variant before has left it. On a GPU by events around a replay of a CUDA graph
of several calls, which take different inputs: the GPU's work, without the launching of it, which on a slow host takes
longer. Beside it stands the wall time of one call that Python launches. A variant that cannot be captured is launched
from Python in both, as far ahead of the GPU as the launch queue allows, and its row says so.

**Memory** is what a forward and backward add at their peak to what was there before: results, what is kept for the
backward, temporaries, gradients. On a GPU it is counted by torch's allocator (``max_memory_allocated``). On a CPU it
is the highest running sum of the allocations and releases that torch's profiler records of the CPU allocator,
which serves tensors inside torch's own kernels and in compiled graphs too. What no allocator of torch
hands out is not in it: the working memory of BLAS and oneDNN, and that of the C++ backend, which keeps some
ten to a few hundred KB for each thread.
"""

from __future__ import annotations

import gc
import math
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from bench.clock import Clock, CpuClock, GpuClock, Recorder, Time
from bench.variants import Case, Problem, Variant
from mae_dfer.errors import UserError

ROUGH = 10.0  # times what ours may err: rounding, not a wrong result


def check(case: Case, device: torch.device) -> None:
    """Leaves out PyTorch's variants that do not run or are wrong here.

    Raises:
        UserError: one of ours is wrong; nothing is to be timed then.
    """
    references: dict[int, tuple[list[Tensor], list[float]]] = {}
    right: list[Variant] = []
    for variant in case.variants:
        problem = variant.problem
        if id(problem) not in references:
            references[id(problem)] = tolerance(problem)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a kernel that cannot run says so in the reason, too
                share, complaint = worst_error(variant, *references[id(problem)])
        except Exception as error:
            if variant.ours:
                raise
            case.leave_out(problem, variant.name, f"does not run: {type(error).__name__}: {error}")
            if device.type == "cuda":
                torch.cuda.empty_cache()
            continue
        if share <= 1.0:
            right.append(variant)
        elif variant.ours:
            raise UserError(f"{variant.name} of {problem.op} is wrong at {problem.shape}, {problem.dtype}: {complaint}")
        elif share <= ROUGH:
            right.append(variant)
            what = f"{variant.name} of {problem.op}, {problem.dtype}"
            case.notes.append(f"{what}, rounds more than ours may: {complaint}")
        else:
            case.leave_out(problem, variant.name, f"wrong: {complaint}")
    case.variants = right


def tolerance(problem: Problem) -> tuple[list[Tensor], list[float]]:
    """The exact results, and the errors allowed."""
    exact = problem.exact()
    plain = problem.errors(Variant("eager", problem, problem.eager).both(), exact)
    return exact, [2 * error + torch.finfo(getattr(torch, problem.dtype)).eps / 8 for error in plain]


def worst_error(variant: Variant, exact: list[Tensor], allowed: list[float]) -> tuple[float, str]:
    """The largest error as a share of what is allowed, and in words. A forward without gradients may take another
    path: it is held against the same outputs."""
    results = variant.both()
    with torch.no_grad():
        alone = list(variant.forward())
    worst = (-1.0, "")
    for found in (results, alone):
        errors = variant.problem.errors(found, exact[: len(found)])
        for index, (error, bound) in enumerate(zip(errors, allowed, strict=False)):
            share = error / bound if math.isfinite(error) else math.inf  # NaN is wrong too
            place = f"of result {index} (outputs first, then gradients)"
            worst = max(worst, (share, f"relative error {error:.2e} {place}, allowed {bound:.2e}"))
    return worst


def count_macs(variant: Variant) -> int:
    """Multiply-accumulates of a forward pass, by torch's counter: two of its FLOPs are one."""
    call = variant.counted or variant.call
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call(*(tensor.detach() for tensor in variant.problem.inputs[0].tensors))
    return counter.get_total_flops() // 2


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Memory that a call adds at its peak; see above for what is counted."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@dataclass
class Times:
    """What was measured of one variant, a value a round; whether all of it was captured in CUDA graphs."""

    forward: list[Time] = field(default_factory=list)
    both: list[Time] = field(default_factory=list)
    captured: bool = False


def measure(
    variants: list[Variant],
    device: torch.device,
    *,
    rounds: int,
    least: int,
    seconds: float,
    warm: bool,
    tick: Callable[[], None],
) -> list[Times]:
    """Times of each variant: ``rounds`` rounds, or fewer, but ``least``, where ``seconds`` do not suffice.

    The check has warmed everything up, and compiled what is compiled. ``warm``: on a CPU, time each call
    after another one of the same. ``tick`` is called after every round.
    """
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        clocks = make_clocks(variants, device, warm)
        times = [Times(captured=all(clock.captured for clock in pair)) for pair in clocks]
        started = time.perf_counter()
        for turn in range(rounds):
            # Each begins a round in turn, and every other round goes backwards: no variant always follows the same one.
            for place in range(len(clocks))[:: -1 if turn % 2 else 1]:
                index = (place + turn) % len(clocks)
                forward, both = clocks[index]
                times[index].forward.append(forward.time())
                times[index].both.append(both.time())
            tick()
            if turn + 1 >= least and time.perf_counter() - started > seconds:
                break
    return times


def make_clocks(variants: list[Variant], device: torch.device, warm: bool) -> list[tuple[Clock, Clock]]:
    """Of each variant's forward without gradients, and of its forward and backward together."""
    calls = [(torch.no_grad()(variant.forward), variant.both) for variant in variants]
    if device.type != "cuda":
        return [(CpuClock(forward, warm), CpuClock(both, warm)) for forward, both in calls]
    recorder = Recorder()
    clocks: list[tuple[Clock, Clock]] = []
    for variant, calls_of_it in zip(variants, calls, strict=True):
        forward, both = (GpuClock(call, len(variant.problem.inputs), recorder) for call in calls_of_it)
        clocks.append((forward, both))
    for forward, both in clocks:  # a capture has given back the memory that calls from Python take anew
        forward.time()
        both.time()
    return clocks

"""Everything that needs a GPU, in one command of under eight minutes: build, tests, checkers, ceilings, benchmarks.

    python benchmarks/gpu_check.py [--results FOLDER] [--seconds N] [--stages NAME …]

Stages, each with its own budget of time; one that fails or runs out of it says so, and the others go on:

1. build: ``pip install -e . --no-build-isolation --no-deps`` (the dependencies are to be there);
2. tests: those that run kernels on the GPU. At least one must have put something on it;
3. memcheck and racecheck of compute-sanitizer on a small case of every operator and backend;
4. ceilings: copy bandwidth, rate of matrix products;
5. attn_bench, by level, and train_bench.

Writes ``<date>-<device>.json`` and ``.md`` to ``benchmarks/results/``, anew after every stage. Exit code 0 if every
stage passed or had nothing to run, 1 if not, 2 without a GPU.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from bench import ROOT
from bench.facts import environment
from bench.gpu_report import write_results
from bench.sanitizer import TOOLS, find_tool, parse_report
from bench.stages import FAILED, NOT_RUN, OUT_OF_TIME, PASSED, Outcome, Stage, judge, run_command, run_stages

from mae_dfer.cli import Parser, command
from mae_dfer.errors import UserError
from mae_dfer.files import check_writable
from mae_dfer.training.progress import console

HERE = Path(__file__).resolve().parent
TOTAL_S = 465.0
# Tests and cases that run kernels on a GPU where there is one bear the backend's name or the device's. So do some
# that compile or execute kernels without one, in minutes.
GPU_TESTS = " and not ".join(
    ["(triton or cuda or gpu)", "interpreter", "on_host", "cuda_compile", "triton_compile", "gpu_check"]
)
MODULES = {"PYTHONPATH": str(HERE)}  # for `python -m bench.…`


def build(seconds: float) -> Outcome:
    install = [sys.executable, "-m", "pip", "install", "-e", ".", "--no-build-isolation", "--no-deps"]
    outcome = judge(run_command(install, seconds, directory=ROOT), "installed in place")
    if outcome.status == PASSED:
        listed = run_command([sys.executable, "-m", "mae_dfer_kernels"], seconds, directory=ROOT).output
        outcome.figures = {"backends": listed.splitlines()}
        able = [line.split()[0] for line in listed.splitlines() if line.split()[1:2] == ["yes"]]
        outcome.detail = f"backends that can run: {', '.join(able)}"
    return outcome


def gpu_tests(seconds: float) -> Outcome:
    """Selected by name, counted by what they put on the GPU."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "bench.gpu_plugin"]
        run += ["--gpu-report", str(file), "-k", GPU_TESTS]
        if importlib.util.find_spec("xdist") is not None:  # compiling Triton's kernels is what takes long
            run += ["-n", str(max(1, min(14, (os.cpu_count() or 2) - 2)))]
        finished = run_command(run, seconds, directory=ROOT, variables=MODULES)
        counts = read_json(file)
    return judge_tests(judge(finished, "", **counts), counts)


def judge_tests(outcome: Outcome, counts: dict[str, Any]) -> Outcome:
    """Passed only if a test used the GPU; the numbers in words."""
    text = ", ".join(f"{counts.get(name, 0)} {name}" for name in ("passed", "failed", "skipped"))
    text += f"; {counts.get('used_gpu') or 'none'} used the GPU"
    if outcome.status == PASSED and not counts.get("used_gpu"):
        outcome.status = FAILED
    outcome.detail = f"{text}; {outcome.detail}" if outcome.detail else text
    return outcome


def sanitize(tool: str, seconds: float) -> Outcome:
    program = find_tool()
    if program is None:
        return Outcome(NOT_RUN, "compute-sanitizer is not installed on this machine")
    check = [program, "--tool", tool, "--target-processes", "application-only", sys.executable]
    check += ["-m", "bench.small_cases", "--backends", "triton", "cuda"]
    # torch's allocator hands out parts of large blocks, where an access beyond a tensor's end goes unseen.
    variables = {**MODULES, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    finished = run_command(check, seconds, directory=HERE, variables=variables)
    return judge_sanitizer(judge(finished, ""))


def judge_sanitizer(outcome: Outcome) -> Outcome:
    """From the tool's summary; a program that ran nothing has passed nothing."""
    report = parse_report(outcome.output)
    outcome.figures = {"errors": report.errors, "warnings": report.warnings, "problem": report.problem}
    if outcome.status == OUT_OF_TIME:
        return outcome
    if report.problem is not None:
        outcome.status, outcome.detail = NOT_RUN, f"nothing was checked: {report.problem}"
    elif report.errors:
        outcome.status, outcome.detail = FAILED, f"{report.errors} errors, {report.warnings} warnings"
    elif outcome.status == PASSED:
        ran = [line for line in outcome.output.splitlines() if line.endswith(" cases ran")]
        outcome.detail = f"0 errors, {report.warnings} warnings; {ran[-1] if ran else '0 cases ran'}"
        if not ran or ran[-1].startswith("0 "):
            outcome.status = FAILED
    return outcome


def measured(arguments: list[str], seconds: float, directory: Path = ROOT) -> Outcome:
    """A program that leaves its figures in the JSON file named last."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        finished = run_command([sys.executable, *arguments, str(file)], seconds, directory=directory, variables=MODULES)
        figures = read_json(file)
    outcome = judge(finished, "", **figures)
    if "rows" in figures:
        outcome.detail = f"{len(figures['rows'])} rows" + (f"; {outcome.detail}" if outcome.detail else "")
    return outcome


def ceilings(seconds: float) -> Outcome:
    return measured(["-m", "bench.ceilings"], seconds, HERE)


def attn_bench(level: str, seconds: float) -> Outcome:
    program = [str(HERE / "attn_bench.py"), "--device", "cuda", "--level", level, "--dtype", "bfloat16", "--json"]
    return measured(program, seconds)


def train_bench(seconds: float) -> Outcome:
    program = [str(HERE / "train_bench.py"), "--device", "cuda", "--dtype", "bfloat16", "--json"]
    return measured(program, seconds)


def read_json(file: Path) -> dict[str, Any]:
    """The object in the file, empty where there is none."""
    try:
        found = json.loads(file.read_text())
    except (OSError, json.JSONDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def stages() -> list[Stage]:
    """In this order; the budgets fill TOTAL_S."""
    return [
        Stage("build", 45, build),
        Stage("tests", 70, gpu_tests),
        *(Stage(tool, 30, lambda seconds, tool=tool: sanitize(tool, seconds)) for tool in TOOLS),
        Stage("ceilings", 15, ceilings),
        Stage("attn_bench op", 80, lambda seconds: attn_bench("op", seconds)),
        Stage("attn_bench block", 25, lambda seconds: attn_bench("block", seconds)),
        Stage("attn_bench encoder", 110, lambda seconds: attn_bench("encoder", seconds)),
        Stage("train_bench", 60, train_bench),
    ]


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python benchmarks/gpu_check.py", description="Builds, tests and measures on a GPU.")
    parser.add_argument("--results", type=Path, default=HERE / "results", metavar="FOLDER")
    parser.add_argument("--seconds", type=float, default=TOTAL_S, metavar="N", help="for all stages together")
    names = [stage.name for stage in stages()]
    parser.add_argument("--stages", nargs="+", choices=names, default=names, metavar="NAME",
                        help=f"these alone, of {', '.join(map(repr, names))}")  # fmt: skip
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        raise UserError("gpu_check needs an NVIDIA GPU, and torch sees none on this machine")
    check_writable(options.results / "any.json")
    facts = environment(torch.device("cuda", 0))

    def after(outcomes: list[Outcome]) -> None:
        last = outcomes[-1]
        console.print(f"{last.name:<20}{last.status:<13}{last.seconds:6.0f} s  {last.detail}")
        write_results(options.results, {"environment": facts, "stages": [o.to_dict() for o in outcomes]})

    chosen = [stage for stage in stages() if stage.name in options.stages]
    outcomes = run_stages(
        chosen, options.seconds, after, lambda name: print(f"{name} …", file=sys.stderr, flush=True)
    )
    files = write_results(options.results, {"environment": facts, "stages": [o.to_dict() for o in outcomes]})
    console.print("wrote " + ", ".join(map(str, files)))
    return 0 if all(outcome.status in (PASSED, NOT_RUN) for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Stages with a budget of time each: what runs out of it is stopped and said so, and the others go on."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from bench import ROOT

PASSED, FAILED, OUT_OF_TIME, NOT_RUN = "passed", "failed", "out of time", "not run"
TAIL = 4000  # characters of a stage's output that are kept


class Finished(NamedTuple):
    """A command's end: its exit code, or None where it was stopped at its limit."""

    code: int | None
    seconds: float
    output: str


@dataclass
class Outcome:
    """How a stage went. ``figures`` is what it measured; of a stage out of time, what it had by then."""

    status: str
    detail: str
    output: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the place where the tree lies on this machine."""
        texts = {"output": self.output[-TAIL:], "detail": self.detail}
        texts = {name: text.replace(str(ROOT), "…") for name, text in texts.items()}
        return asdict(self) | texts | {"seconds": round(self.seconds, 1)}


class Stage(NamedTuple):
    """``run(seconds)`` returns within about that time."""

    name: str
    budget_s: float
    run: Callable[[float], Outcome]


def run_command(
    command: Sequence[str], seconds: float, *, directory: Path, variables: Mapping[str, str] | None = None
) -> Finished:
    """Runs a command for at most ``seconds``; then it is killed with the processes that it started."""
    started = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, cwd=directory, env={**os.environ, **(variables or {})}, stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            code: int | None = process.wait(max(seconds, 0.1))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            # The group outlives its leader where a child was left behind.
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
        output.seek(0)
        text = output.read().decode(errors="replace")
    return Finished(code, time.monotonic() - started, text)


def judge(finished: Finished, detail: str, **figures: Any) -> Outcome:
    """The outcome of a stage that is one command."""
    if finished.code is None:
        return Outcome(OUT_OF_TIME, f"stopped after {finished.seconds:.0f} s", finished.output, figures)
    if finished.code != 0:
        return Outcome(FAILED, f"exit code {finished.code}: {last_line(finished.output)}", finished.output, figures)
    return Outcome(PASSED, detail, finished.output, figures)


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no output"


def run_stages(
    stages: Sequence[Stage], total_s: float, after: Callable[[list[Outcome]], None], before: Callable[[str], None]
) -> list[Outcome]:
    """Every stage in turn, within ``total_s``. What a stage leaves of its budget, the later ones may use."""
    started = time.monotonic()
    outcomes: list[Outcome] = []
    for index, stage in enumerate(stages):
        reserved = sum(later.budget_s for later in stages[index + 1 :])
        began = time.monotonic()
        left = total_s - (began - started)
        before(stage.name)
        if left < 1.0:
            outcome = Outcome(OUT_OF_TIME, "no time was left to start it")
        else:
            try:
                outcome = stage.run(min(left, max(stage.budget_s, left - reserved)))
            except Exception as error:  # the stages after it are worth their time all the same
                outcome = Outcome(FAILED, f"{type(error).__name__}: {error}")
        outcome.name, outcome.seconds = stage.name, time.monotonic() - began
        outcomes.append(outcome)
        after(outcomes)
    return outcomes

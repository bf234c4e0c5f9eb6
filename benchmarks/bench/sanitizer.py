"""compute-sanitizer: where it is, and what its report says."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

TOOLS = ("memcheck", "racecheck")
_SUMMARY = re.compile(r"ERROR SUMMARY: (\d+) errors?")
_RACES = re.compile(r"RACECHECK SUMMARY: (\d+) hazards? displayed(?: \((\d+) errors?, (\d+) warnings?\))?")


class Report(NamedTuple):
    """Errors and warnings that were found, or ``problem``: why nothing was checked."""

    errors: int
    warnings: int
    problem: str | None


def find_tool() -> str | None:
    """The program, on the PATH or in a CUDA toolkit."""
    found = shutil.which("compute-sanitizer")
    if found:
        return found
    roots = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")] + ["/usr/local/cuda"]
    for root in filter(None, roots):
        for folder in ("bin", "compute-sanitizer"):
            path = Path(root) / folder / "compute-sanitizer"
            if os.access(path, os.X_OK):
                return str(path)
    return None


def parse_report(output: str) -> Report:
    """Sums of all summaries in the output; without one, the tool's own complaint."""
    errors = [int(found[1]) for found in _SUMMARY.finditer(output)]
    races = list(_RACES.finditer(output))
    if not errors and not races:
        said = [line.strip("= ") for line in output.splitlines() if line.startswith("=========")]
        complaint = next((line for line in said if "rror" in line or "not supported" in line), None)
        return Report(0, 0, complaint or "the tool printed no summary")
    found = sum(int(race[2] if race[2] is not None else race[1]) for race in races)
    return Report(sum(errors) + found, sum(int(race[3] or 0) for race in races), None)

"""A pytest plugin that counts the tests which put something on a GPU: names can promise what skips do not keep.

    python -m pytest -p bench.gpu_plugin --gpu-report FILE.json

The file is written anew after every test, so that a run cut short has counted too. Works under pytest-xdist.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROPERTY = "gpu_allocations"


def allocations() -> int:
    """GPU allocations of this process so far; 0 before torch is imported or has touched a GPU."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return int(torch.cuda.memory_stats().get("allocation.all.allocated", 0))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--gpu-report", metavar="FILE", help="JSON file: how many tests used a GPU")


def pytest_configure(config: pytest.Config) -> None:
    file = config.getoption("--gpu-report")
    if file and "PYTEST_XDIST_WORKER" not in os.environ:
        config.pluginmanager.register(Report(Path(file)), "gpu report")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    item.stash[_BEFORE] = allocations()  # inputs may be made by fixtures
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Iterator[None]:
    item.user_properties = [entry for entry in item.user_properties if entry[0] != PROPERTY]
    item.user_properties.append((PROPERTY, allocations() - item.stash[_BEFORE]))
    return (yield)


_BEFORE = pytest.StashKey[int]()


class Report:
    """Counts in the process that collects the results."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._counts: dict[str, Any] = {"passed": 0, "failed": 0, "skipped": 0, "used_gpu": 0, "failures": []}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._counts["failed"] += 1
            self._counts["failures"].append(report.nodeid)
        elif report.skipped:
            self._counts["skipped"] += 1
        elif report.when == "call":
            self._counts["passed"] += 1
        if report.when == "call" and dict(report.user_properties).get(PROPERTY, 0):
            self._counts["used_gpu"] += 1
        self._file.write_text(json.dumps(self._counts))

"""Tests again in a process of their own, where Triton's kernels are run by its interpreter."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def run_by_interpreter(file: str, *arguments: str, timeout: float = 600) -> str:
    """What pytest prints of ``file``, all of which must pass. Skips where there is no Triton."""
    pytest.importorskip("triton")
    child = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *arguments, file],
        env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
    assert child.returncode == 0, child.stdout[-4000:] + child.stderr[-2000:]
    return child.stdout

"""What a measurement was made on, so that two of them can be told apart."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from bench import ROOT
from mae_dfer.training.hardware import name_device
from mae_dfer_kernels import native


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, device and commit; JSON-ready."""
    facts: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": commit(ROOT),
        "device": str(device),
        "device_name": name_device(device),
        "threads": torch.get_num_threads(),
        "instruction_set": None if native.LOAD_ERROR else native.chosen_instruction_set(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _triton_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "compute_capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "cache_bytes": properties.L2_cache_size,
            "cuda": torch.version.cuda,
        }
    return facts


def commit(root: Path) -> str | None:
    """The commit of the tree at ``root``, with ``+changes`` where files differ from it; None without a ``.git``."""
    if not (root / ".git").exists():
        return None
    try:
        head, changes = (_git(root, *words) for words in (("rev-parse", "HEAD"), ("status", "--porcelain")))
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+changes" if changes else "")


def _git(root: Path, *words: str) -> str:
    # Not the repository that root may lie in, should its own be unreadable.
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(root.parent)}
    return subprocess.run(
        ["git", *words], cwd=root, env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()  # fmt: skip


def _triton_version() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return str(triton.__version__)

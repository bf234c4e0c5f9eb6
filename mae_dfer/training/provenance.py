"""Where a score comes from: the data, the code, the weights and the machine, for metrics.json."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import av
import torch

from .. import __version__
from ..config import TrainConfig
from ..data import ClipConfig, DatasetFolder
from ..data.lists import hash_samples
from ..recipes import flatten
from .checkpoints import hash_file
from .hardware import Hardware, name_device

# Settings that say where and how a run is computed, and not what comes out of it.
_OF_THE_PLACE = (
    "data", "data_root", "output_dir", "device", "cuda_graph", "workers", "cache_gb", "save_every", "keep_checkpoints",
    "max_bad_files", "allow_empty_classes",
)  # fmt: skip
_PACKAGES = ("torch", "torchvision", "timm", "numpy", "av", "decord", "pillow", "triton")
_ROOT = Path(__file__).resolve().parents[2]


def settings_that_count(config: TrainConfig) -> dict[str, Any]:
    """The settings that the result depends on, by names such as ``finetune.lr``."""
    return {name: value for name, value in flatten(config).items() if name not in _OF_THE_PLACE}


def hash_settings(config: TrainConfig) -> str:
    """SHA-256 of :func:`settings_that_count`."""
    text = json.dumps(settings_that_count(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def describe_data(data: DatasetFolder, names: tuple[str, ...]) -> dict[str, Any]:
    """The set as its dataset.json names it, the fold, and each of the lists ``names``: its hash and its files.

    The hash is that of ``mae_dfer.data.lists.hash_samples``; those of lists to pre-train on leave out labels.
    """
    found = {name: getattr(data, name) for name in names}
    lists = {
        name: {"sha256": hash_samples(samples, labelled=name != "pretrain"), "files": len(samples)}
        for name, samples in found.items()
        if samples
    }
    return {"set": data.description.set, "clips": data.description.clips, "fold": data.fold, "lists": lists}


def describe_code() -> dict[str, Any]:
    """Versions of what computes, and the commit of the checkout that this package is in; JSON-ready."""
    versions = {"python": platform.python_version(), "mae_dfer": __version__}
    for name in _PACKAGES:
        if (version := _version(name)) is not None:
            versions[name] = version
    versions["torch"] = torch.__version__  # says of which build it is
    if torch.version.cuda:
        versions["cuda"] = torch.version.cuda
    return {"versions": versions, "platform": platform.platform(), "commit": find_commit(_ROOT)}


def find_commit(root: Path) -> str | None:
    """The commit of the checkout at ``root``, with ``-dirty`` where the package's files differ from it.

    None where ``root`` is no checkout of its own, or git cannot tell.
    """
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        changes = _git(root, "status", "--porcelain", "--", "mae_dfer", "mae_dfer_kernels", "csrc")
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("-dirty" if changes else "")


def _git(root: Path, *words: str) -> str:
    # Neither the repository of a hook that this runs in, nor one that root lies in.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment["GIT_CEILING_DIRECTORIES"] = str(root.parent)
    done = subprocess.run(
        ["git", *words], cwd=root, env=environment, capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()


def _version(package: str) -> str | None:
    """None where the package was installed under another name."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe_decoder(name: str) -> dict[str, Any]:
    """What reads video files, with its version, and FFmpeg's libraries; and what reads frames that are images."""
    decoder: dict[str, Any] = {"name": name, "version": _version({"pyav": "av"}.get(name, name))}
    if name != "pyav":  # which reads the files that the other does not
        decoder["otherwise"] = {"name": "pyav", "version": _version("av")}
    decoder["images"] = {"name": "pillow", "version": _version("pillow")}
    libraries = {library: ".".join(map(str, version)) for library, version in av.library_versions.items()}
    return decoder | {"ffmpeg": av.ffmpeg_version_info, "libraries": libraries}


def describe_views(clips: ClipConfig) -> dict[str, Any]:
    """The views of a test clip whose probabilities are averaged. Sizes are (height, width) in pixels."""
    return {
        "segments": clips.num_segments,
        "crops": clips.num_views // clips.num_segments,
        "frames": clips.num_frames,
        "stride": clips.stride,
        "size": list(clips.size),
    }


def describe_file(path: Path | str) -> dict[str, str]:
    return {"path": str(path), "sha256": hash_file(Path(path))}


def describe_hardware(hardware: Hardware) -> dict[str, Any]:
    amp = "off" if hardware.amp_dtype is None else str(hardware.amp_dtype).removeprefix("torch.")
    return {"device": name_device(hardware.device), "processes": hardware.world_size, "amp": amp}

"""Builds the CUDA kernels for the CPU: the same kernel bodies over the host implementation of their primitives."""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pybind11

CSRC = Path(__file__).resolve().parent.parent / "csrc"
COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
_BUILDS = itertools.count()
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-DMAE_DFER_CUDA_ON_HOST", "-Wno-unknown-pragmas", "-Wno-psabi"]


def sources(csrc: Path = CSRC) -> list[Path]:
    """What the module is compiled from: everything in cuda/, and the problems' checks."""
    return [csrc / "problem.cpp", *sorted(csrc.glob("cuda/*.c*")), *sorted(csrc.glob("cuda/host/*.cpp"))]


def compile_sources(files: Iterable[Path], csrc: Path, objects: Path) -> None:
    """One object a source in ``objects``; raises RuntimeError with the compiler's words."""
    objects.mkdir(parents=True, exist_ok=True)
    includes = [csrc, sysconfig.get_paths()["include"], pybind11.get_include()]

    def run(source: Path) -> None:
        target = objects / (source.name + ".o")
        include = [f"-I{path}" for path in includes]
        _run([*str(COMPILER).split(), *FLAGS, *include, "-x", "c++", "-c", str(source), "-o", str(target)])

    # GCC or Clang work in processes of their own.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(run, (file for file in files if file.suffix in (".cu", ".cpp"))))


def link(objects: Path, target: Path) -> Path:
    """The module of all objects of a folder."""
    target.mkdir(parents=True, exist_ok=True)
    library = target / ("_cuda_on_host" + sysconfig.get_config_var("EXT_SUFFIX"))
    _run([*str(COMPILER).split(), "-shared", *map(str, sorted(objects.glob("*.o"))), "-o", str(library)])
    return library


def load(library: Path) -> ModuleType:
    # Modules of one name would be one module: pybind11 keeps them by it.
    spec = importlib.util.spec_from_file_location(f"build{next(_BUILDS)}._cuda_on_host", library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def mutated(objects: Path, folder: Path, change: tuple[str, str, str, int], source: str) -> ModuleType:
    """The module with one change of its source text, of which the translation unit ``source`` is compiled anew.

    ``change`` is (file, old text, new text, which of its occurrences).
    """
    file, old, new, number = change
    csrc = folder / "csrc"
    shutil.copytree(CSRC, csrc)
    parts = (csrc / file).read_text().split(old)
    assert len(parts) > number + 1, f"{file} has no occurrence {number} of {old!r}"
    (csrc / file).write_text(old.join(parts[: number + 1]) + new + old.join(parts[number + 1 :]))
    shutil.copytree(objects, folder / "objects")
    compile_sources([csrc / source], csrc, folder / "objects")
    return load(link(folder / "objects", folder / "module"))


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-4000:]}")

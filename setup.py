"""Builds the native library with CMake; everything else about the package is in pyproject.toml."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
NEEDS = (
    "mae_dfer_kernels needs a C++17 compiler with OpenMP to build its native library: GCC 9 or newer, or Clang 12 "
    "or newer (Debian and Ubuntu: `apt install g++`; Fedora: `dnf install gcc-c++`; conda: `conda install "
    "cxx-compiler`)"
)


CUDA_VARIABLE = "MAE_DFER_CUDA_ARCHITECTURES"
# A100 and its like, H100, B200; newer GPUs compile the last one's intermediate code when they first meet it.
CUDA_ARCHITECTURES = ("80", "90", "100")


def find_nvcc() -> str | None:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    candidates = [os.environ.get("CUDACXX"), *(f"{home}/bin/nvcc" for home in homes if home), "nvcc"]
    candidates.append("/usr/local/cuda/bin/nvcc")
    return next((found for name in candidates if name and (found := shutil.which(name))), None)


def present_architectures() -> list[str]:
    """Of the GPUs in this machine, as "90"."""
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    found = {line.strip().replace(".", "") for line in answer.stdout.splitlines()} if answer.returncode == 0 else set()
    return sorted((name for name in found if name.isdigit()), key=int)


def choose_cuda() -> tuple[str | None, list[str], str]:
    """(nvcc, architectures, what users are told). No architectures: the CUDA kernels are left out.

    The variable MAE_DFER_CUDA_ARCHITECTURES decides: "none", "all", or a list as "80;90". Without it, the present
    GPUs' alone; where there is none, all.
    """
    wanted = os.environ.get(CUDA_VARIABLE, "")
    if wanted.lower() == "none":
        return None, [], f"left out, since {CUDA_VARIABLE}=none was set for the build"
    nvcc = find_nvcc()
    if nvcc is None:
        return None, [], "not built: no nvcc was found; install the CUDA toolkit, then this package again"
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=False).stdout
    known = {line.removeprefix("compute_").strip() for line in listed.splitlines()}
    if wanted and wanted.lower() != "all":
        chosen = [name.strip() for name in wanted.replace(",", ";").split(";") if name.strip()]
        if not all(name.isdigit() for name in chosen):
            raise CompileError(f"{CUDA_VARIABLE} must be none, all or a list such as 80;90, got {wanted!r}")
    else:
        present = [] if wanted else present_architectures()
        old = [name for name in present if int(name) < 80]
        chosen = [name for name in present if name not in old] or ([] if old else list(CUDA_ARCHITECTURES))
        if not chosen:
            return None, [], f"not built: the GPU has compute capability {old[0][:-1]}.{old[0][-1]}, 8.0 is needed"
    built = [name for name in chosen if name in known]
    missing = [name for name in chosen if name not in known]
    note = "built for " + ", ".join(f"sm_{name}" for name in built) if built else "not built"
    if missing:
        note += f"; this nvcc does not know {', '.join(f'sm_{name}' for name in missing)}"
    return nvcc, built, note


class CMakeBuild(build_ext):
    """Configure csrc/, build it, and put the module where setuptools expects it (in place if editable)."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        compilers = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
        if not any(shutil.which(compiler.split()[0]) for compiler in compilers):
            raise CompileError(f"{NEEDS}; none was found (tried {', '.join(compilers)}).")
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve() / ext.name
        build.mkdir(parents=True, exist_ok=True)
        ninja = shutil.which("ninja")
        generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
        configure = [
            "cmake", str(ROOT / "csrc"), *generator,
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}",
        ]  # fmt: skip
        nvcc, architectures, note = choose_cuda()
        print(f"CUDA kernels: {note}", flush=True)
        # Real code for each; of the newest also the intermediate code that later GPUs compile.
        targets = [f"{name}-real" for name in architectures[:-1]] + architectures[-1:]
        configure += [f"-DMAE_DFER_CUDA_ARCHITECTURES={';'.join(targets)}", f"-DMAE_DFER_CUDA_NOTE={note}"]
        configure += [f"-DCMAKE_CUDA_COMPILER={nvcc}"] if architectures else []
        self._run(configure, build, f"{NEEDS}; CMake could not configure the build, see its messages above."
                  + (f" To build without the CUDA kernels, set {CUDA_VARIABLE}=none." if architectures else ""))
        self._run(["cmake", "--build", str(build)], build, f"the native library did not compile; {NEEDS}.")

    @staticmethod
    def _run(command: list[str], directory: Path, complaint: str) -> None:
        if subprocess.run(command, cwd=directory, check=False).returncode != 0:
            raise CompileError(complaint)


setup(
    ext_modules=[Extension("mae_dfer_kernels._native", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)

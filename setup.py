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
        self._run(configure, build, f"{NEEDS}; CMake could not configure the build, see its messages above.")
        self._run(["cmake", "--build", str(build)], build, f"the native library did not compile; {NEEDS}.")

    @staticmethod
    def _run(command: list[str], directory: Path, complaint: str) -> None:
        if subprocess.run(command, cwd=directory, check=False).returncode != 0:
            raise CompileError(complaint)


setup(
    ext_modules=[Extension("mae_dfer_kernels._native", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)

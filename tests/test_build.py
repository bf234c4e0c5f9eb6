"""Building the native library: what happens without a compiler, and what each instruction set's code may hold."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs the source tree")


def test_without_a_compiler_the_build_fails_and_says_what_to_install(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", reason="pip brings it into its own build environment")
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", str(tmp_path), "--build-temp", str(tmp_path)]
    result = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "CXX": "no-such-compiler"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode != 0
    assert "C++17 compiler" in result.stderr and "no-such-compiler" in result.stderr
    assert not list(tmp_path.rglob("_native*"))


def test_no_source_includes_a_framework() -> None:
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in {".h", ".cpp", ".cu", ".cuh"}]
    assert sources
    for path in sources:
        for line in path.read_text().splitlines():
            if line.startswith("#include"):
                assert not any(name in line for name in ("torch", "ATen", "c10")), f"{path.name}: {line}"


def test_kernel_code_shares_no_inline_function_across_instruction_sets() -> None:
    # A template of the standard library, instantiated in AVX-512 code, could be the copy that the linker keeps for
    # all: then the portable path would execute it. So what is compiled per instruction set uses no such header.
    allowed = {"<cstddef>", "<cstdint>", "<cstring>", "<immintrin.h>"}
    waiting, seen = sorted((ROOT / "csrc" / "cpu").glob("*_kernel.cpp")), set()
    while waiting:
        path = waiting.pop()
        seen.add(path)
        for line in path.read_text().splitlines():
            if line.startswith("#include <"):
                assert line.split()[1] in allowed, f"{path.name}: {line}"
            elif line.startswith('#include "'):
                inner = ROOT / "csrc" / line.split('"')[1]
                if inner not in seen:
                    waiting.append(inner)
    assert len(seen) >= 8

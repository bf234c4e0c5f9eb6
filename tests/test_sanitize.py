"""AddressSanitizer and UndefinedBehaviorSanitizer over the C++ kernels.

They are compiled anew with `sanitize/driver.cpp`, which runs them on buffers of exactly the tensors' sizes. Planted
errors show that it would find some.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mae_dfer_kernels import native

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
DRIVER = Path(__file__).resolve().parent / "sanitize" / "driver.cpp"
FLAGS = [
    "-std=c++17", "-O1", "-g1", "-fopenmp", "-ffp-contract=fast", "-fno-math-errno", "-Wno-psabi",
    "-Wno-ignored-attributes", "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
]  # fmt: skip

pytestmark = pytest.mark.skipif(not (CSRC / "CMakeLists.txt").exists(), reason="needs the source tree")


def run(command: list[str], timeout: float = 400) -> subprocess.CompletedProcess[str]:
    # Leaks are not looked for: the check needs ptrace, which containers forbid.
    env = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout, check=False)


def cmake_list(pattern: str) -> list[str]:
    """The words that CMakeLists.txt gives where ``pattern`` begins, so that a new source is not forgotten here."""
    found = re.search(rf"{pattern}([^)]*)\)", (CSRC / "CMakeLists.txt").read_text())
    assert found, pattern
    return [word for word in found.group(1).split() if not word.startswith("$")]


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> str:
    name = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if not name:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("probe")
    (folder / "probe.cpp").write_text("int main() { return 0; }\n")
    built = run([name, *FLAGS, str(folder / "probe.cpp"), "-o", str(folder / "probe")])
    if built.returncode != 0:
        pytest.skip(f"{name} lacks the sanitizers' runtime: {built.stderr.strip().splitlines()[-1]}")
    ran = run([str(folder / "probe")])
    if ran.returncode != 0:
        pytest.skip(f"a program with sanitizers does not run here: {ran.stderr.strip()[-300:]}")
    return name


def compile_object(compiler: str, csrc: Path, source: Path, target: Path, *flags: str) -> Path:
    result = run([compiler, *FLAGS, f"-I{csrc}", *flags, "-c", str(source), "-o", str(target)])
    assert result.returncode == 0, result.stderr[-4000:]
    return target


def build(compiler: str, folder: Path, instruction_sets: list[str], new: list[str]) -> dict[str, Path]:
    """Objects by name: the driver for all these sets, and the kernels of the ``new`` ones (``<file> <set>``)."""
    use = " ".join(f"USE({name})" for name in instruction_sets)
    jobs = [("driver", DRIVER, [f"-DEACH_INSTRUCTION_SET(USE)={use}"])]
    for isa in new:
        flags = [] if isa == "portable" else cmake_list(rf"add_instruction_set\({isa}")
        jobs += [(f"{name} {isa}", CSRC / name, flags) for name in cmake_list(r"set\(KERNEL_FILES")]
    if "portable" in new:
        sources = cmake_list(r"set\(MODULE_SOURCES")
        jobs += [(name, CSRC / name, []) for name in sources if name == "problem.cpp" or name.startswith("cpu/")]

    def compiled(job: tuple[str, Path, list[str]]) -> Path:
        name, source, flags = job
        return compile_object(compiler, CSRC, source, folder / (re.sub(r"\W", "_", name) + ".o"), *flags)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip((job[0] for job in jobs), pool.map(compiled, jobs), strict=True))


def link(compiler: str, objects: dict[str, Path], target: Path) -> Path:
    result = run([compiler, *FLAGS, *map(str, objects.values()), "-o", str(target)])
    assert result.returncode == 0, result.stderr[-4000:]
    return target


@pytest.fixture(scope="module")
def portable(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build(compiler, tmp_path_factory.mktemp("portable"), ["portable"], ["portable"])


def check_clean(compiler: str, portable: dict[str, Path], folder: Path, others: list[str]) -> None:
    """Every operator that ops.h declares runs clean in its portable form and for the ``others``."""
    # The dispatcher is compiled without AVX: it knows the portable set, and the driver reaches the others itself.
    chosen = ["portable", *others]
    objects = {**portable, **build(compiler, folder, chosen, others)}
    result = run([str(link(compiler, objects, folder / "driver"))])
    assert result.returncode == 0, result.stdout[-1000:] + result.stderr[-6000:]
    for op in set(re.findall(r"void (\w+?)(?:_forward|_backward)?\(", (CSRC / "cpu" / "ops.h").read_text())):
        for isa in chosen:
            assert re.search(rf"^{op} \[{isa}\]: [1-9]\d+ cases$", result.stdout, re.M), result.stdout


def test_kernels_are_clean(compiler: str, portable: dict[str, Path], tmp_path: Path) -> None:
    check_clean(compiler, portable, tmp_path, [name for name in native.instruction_sets() if name == "avx2"])


@pytest.mark.full
def test_kernels_of_wide_instruction_sets_are_clean(
    compiler: str, portable: dict[str, Path], tmp_path: Path
) -> None:
    wide = [name for name in native.instruction_sets() if name.startswith("avx512")]
    if not wide:
        pytest.skip("this processor has no AVX-512")
    check_clean(compiler, portable, tmp_path, wide)


@pytest.mark.parametrize(
    ("op", "file", "right", "wrong", "report"),
    [
        pytest.param(
            "region_attention", "pack.h",
            "for (; column < width; ++column) target[column] = widen(source[column]);",
            "for (; column <= width; ++column) target[column] = widen(source[column]);",
            "AddressSanitizer: heap-buffer-overflow", id="reads one element too many",
        ),
        pytest.param(
            "residual_layer_norm", "residual_layer_norm_kernel.cpp",
            "problem.partial_sums) + task * 2 * width;", "problem.partial_sums) + task * 2 * width + 1;",
            "AddressSanitizer: heap-buffer-overflow", id="writes one element too far",
        ),
        pytest.param(
            "residual_layer_norm", "rows.h",
            "WholeVector<kPart>) {\n  return load<T>(address);",
            "WholeVector<kPart>) {\n  return *reinterpret_cast<const Vec<T>*>(address);",
            "runtime error: load of misaligned address", id="takes any address for aligned",
        ),
        pytest.param(
            "residual_layer_norm", "residual_layer_norm_kernel.cpp",
            "for (int c = 0; c < 2 * width; ++c) weight_sums[c] = T(0);", "",
            "depends on threads, or on what memory held before", id="adds to what it never cleared",
        ),
    ],
)  # fmt: skip
def test_a_planted_error_is_found(
    compiler: str, portable: dict[str, Path], tmp_path: Path, op: str, file: str, right: str, wrong: str, report: str
) -> None:
    shutil.copytree(CSRC, tmp_path / "csrc")
    planted = tmp_path / "csrc" / "cpu" / file
    assert planted.read_text().count(right) == 1, "the text to spoil is gone: choose another"
    planted.write_text(planted.read_text().replace(right, wrong))
    kernel = f"cpu/{op}_kernel.cpp"
    spoilt = compile_object(compiler, tmp_path / "csrc", tmp_path / "csrc" / kernel, tmp_path / "spoilt.o")
    program = link(compiler, {**portable, f"{kernel} portable": spoilt}, tmp_path / "driver")
    result = run([str(program), op])
    assert result.returncode != 0 and report in result.stderr, result.stdout + result.stderr[-3000:]

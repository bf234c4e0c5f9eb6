"""What nvcc made of the CUDA kernels: their registers, spills and shared memory, read back from the built library."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from mae_dfer_kernels import native


def cuobjdump() -> str | None:
    """The toolkit's, or the one that Triton ships."""
    found = shutil.which("cuobjdump") or shutil.which("/usr/local/cuda/bin/cuobjdump")
    if found is None:
        triton = pytest.importorskip("triton")
        shipped = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        found = str(shipped) if shipped.is_file() else None
    return found


@cache
def resources() -> dict[tuple[str, str], dict[str, int]]:
    """(architecture, demangled kernel name) → REG, STACK, SHARED, LOCAL …"""
    if native.LOAD_ERROR is not None or not native.library().has_cuda:
        pytest.skip(native.LOAD_ERROR or f"the CUDA kernels are {native.library().cuda_note}")
    tool = cuobjdump()
    if tool is None:
        pytest.skip("no cuobjdump to read registers with")
    text = subprocess.run(
        [tool, "--dump-resource-usage", native.library().__file__], capture_output=True, text=True, check=True
    ).stdout
    found, architecture, names = {}, "", []
    for line in text.splitlines():
        if match := re.search(r"arch = (sm_\d+)", line):
            architecture = match[1]
        elif match := re.search(r"Function (\w+):", line):
            names.append((architecture, match[1]))
        elif "REG:" in line:
            found[names[-1]] = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", line)}
    demangled = subprocess.run(
        ["c++filt"], input="\n".join(name for _, name in found), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return {(arch, name): numbers for ((arch, _), numbers), name in zip(found.items(), demangled, strict=True)}


def test_every_architecture_has_every_kernel() -> None:
    kernels = resources()
    architectures = re.findall(r"sm_\d+", native.library().cuda_note.split(";")[0])
    assert architectures
    names = {name for _, name in kernels}
    assert {(architecture, name) for architecture in architectures for name in names} == set(kernels)


@pytest.mark.parametrize("kernel", ["region_forward_tile", "region_backward_tile"])
def test_fast_shapes_spill_no_register(kernel: str) -> None:
    """S = 11, 41, 51 and 101 at D = 64 run as 1, 3, 4 and 7 tiles; two blocks of them fit a multiprocessor."""
    checked = 0
    for (architecture, name), numbers in resources().items():
        match = re.search(rf"{kernel}<mae_dfer::cuda::\w+, 64, ([1347])>", name)
        if match:
            assert numbers["STACK"] == 0 and numbers["LOCAL"] == 0, f"{architecture} {name} spills: {numbers}"
            threads = {"1": 256, "3": 192, "4": 256, "7": 224}[match[1]]
            assert 2 * threads * numbers["REG"] <= 65536, f"{architecture} {name}: {numbers}"
            checked += 1
    assert checked == 8 * len({architecture for architecture, _ in resources()})


@pytest.mark.parametrize("kernel", ["forward_loop", "backward_queries", "backward_keys"])
def test_no_float32_region_kernel_spills_a_register(kernel: str) -> None:
    """Products of a step of their own leave the compiler more to do at once, hence more to hold."""
    checked = 0
    for (architecture, name), numbers in resources().items():
        if f"region_{kernel}<float, " in name:
            assert numbers["STACK"] == 0 and numbers["LOCAL"] == 0, f"{architecture} {name} spills: {numbers}"
            checked += 1
    assert checked == 4 * len({architecture for architecture, _ in resources()})


@pytest.mark.parametrize("kernel", ["forward_rows", "backward_rows", "backward_pairs"])
def test_no_exchange_kernel_spills_a_register(kernel: str) -> None:
    """Of 16-bit types, two blocks fit a multiprocessor."""
    checked = 0
    for (architecture, name), numbers in resources().items():
        match = re.search(rf"exchange_{kernel}<(?:mae_dfer::cuda::)?(\w+)>", name)
        if match:
            assert numbers["STACK"] == 0 and numbers["LOCAL"] == 0, f"{architecture} {name} spills: {numbers}"
            threads = {"forward_rows": 160, "backward_rows": 128, "backward_pairs": 256}[kernel]
            blocks = 1 if match[1] == "float" else 2
            assert blocks * threads * numbers["REG"] <= 65536, f"{architecture} {name}: {numbers}"
            checked += 1
    assert checked == 3 * len({architecture for architecture, _ in resources()})

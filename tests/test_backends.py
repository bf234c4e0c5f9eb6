"""Which backend runs a call, what is said when one cannot, and that importing needs PyTorch alone."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import mae_dfer_kernels
from mae_dfer_kernels import BackendUnavailable, __main__, backends, native, profiling, region_attention

ROOT = Path(__file__).resolve().parent.parent
QKV = torch.randn(2, 3, 3 * 2 * 16)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def without_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "LOAD_ERROR", "the native library is not built: " + native.BUILD_HINT)
    monkeypatch.setattr(native, "_LIBRARY", None)
    monkeypatch.setattr(backends, "_warned", set())


def test_native_library_is_built() -> None:
    assert native.LOAD_ERROR is None, native.LOAD_ERROR
    assert native.instruction_sets()[0] == "portable"
    assert native.chosen_instruction_set() in native.instruction_sets()


def test_auto_takes_the_fastest_that_can_run() -> None:
    assert backends.choose("region_attention", "auto", QKV, 2) == "cpu"
    assert backends.choose("region_attention", "auto", QKV.to("meta"), 2) == "eager"
    assert backends.choose("region_attention", "eager", QKV, 2) == "eager"


@pytest.mark.parametrize(
    ("backend", "device", "reason"),
    [
        ("cuda", "cpu", "CUDA device|not built|left out"),
        ("cpu", "meta", "on the CPU"),
        ("triton", "meta", "meta|import"),
    ],
)
def test_a_backend_that_cannot_run_says_why(backend: str, device: str, reason: str) -> None:
    with pytest.raises(BackendUnavailable, match=f"'{backend}'.*({reason})"):
        region_attention(QKV.to(device), 2, backend=backend)


def test_the_library_is_given_no_address_that_is_not_on_the_cpu() -> None:
    with pytest.raises(ValueError, match="qkv must be on the CPU for backend 'cpu', got meta"):
        backends.run("region_attention", "forward", "cpu", (), QKV.to("meta"), 2, 1.0, 0.0, 0)


def test_a_direct_call_names_a_backend_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    op = torch.ops.mae_dfer_kernels.region_attention
    with pytest.raises(ValueError, match="'auto' is none of eager, cpu, triton, cuda"):
        op(QKV, 2, 1.0, 0.0, 0, "auto")
    monkeypatch.setattr(backends, "_CUDA_MODULES", {})
    with pytest.raises(BackendUnavailable, match="'cuda' cannot run this call: there is no CUDA"):
        op(QKV, 2, 1.0, 0.0, 0, "cuda")


def test_missing_native_library_is_no_silent_fallback(without_native: None) -> None:
    with pytest.warns(RuntimeWarning, match="not built.*pip install.*eager"):
        first = region_attention(QKV, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the second call does not warn again
        assert torch.equal(region_attention(QKV, 2), first)
    with pytest.raises(BackendUnavailable, match="not built.*pip install"):
        region_attention(QKV, 2, backend="cpu")


def test_table_names_every_backend(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main() == 0
    printed = capsys.readouterr().out
    for name, _, text in backends.status():
        assert f"\n{name} " in printed and text in printed
    assert {name for name, _, _ in backends.status()} == set(backends.NAMES)
    assert f"in use: {native.chosen_instruction_set()}" in printed and torch.__version__ in printed
    for variable in (native.ISA_VARIABLE, profiling.NVTX_VARIABLE):
        assert variable in printed, "the table names what changes it"


def test_table_says_how_to_build(without_native: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main() == 0
    assert native.BUILD_HINT in capsys.readouterr().out


def test_environment_variable_chooses_the_instruction_set() -> None:
    code = "from mae_dfer_kernels import native; print(native.chosen_instruction_set())"
    assert run_python(code, MAE_DFER_KERNELS_ISA="portable").stdout.strip() == "portable"
    wrong = run_python(code, MAE_DFER_KERNELS_ISA="sse9")
    assert wrong.returncode != 0
    assert "MAE_DFER_KERNELS_ISA: 'sse9' is none of" in wrong.stderr and "portable" in wrong.stderr


def test_unknown_instruction_set_is_refused_and_changes_nothing() -> None:
    before = native.chosen_instruction_set()
    with pytest.raises(ValueError, match="'altivec' is none of .*portable"):
        native.choose_instruction_set("altivec")
    assert native.chosen_instruction_set() == before


def test_needs_pytorch_alone() -> None:
    code = """
import sys
for name in ("timm", "torchvision", "einops", "decord", "av", "cv2", "mae_dfer", "triton", "numpy"):
    sys.modules[name] = None  # importing it raises ImportError
import torch, mae_dfer_kernels
print(mae_dfer_kernels.region_attention(torch.zeros(1, 2, 48), 1).shape)
"""
    result = run_python(code)
    assert result.stdout.strip() == "torch.Size([1, 2, 16])", result.stderr


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="lists loaded libraries by Linux's /proc")
def test_shares_the_openmp_runtime_of_torch() -> None:
    code = """
import torch, mae_dfer_kernels
mae_dfer_kernels.region_attention(torch.zeros(4, 64, 1536), 8, backend="cpu")
torch.zeros(512, 512) @ torch.zeros(512, 512)
print({line.split()[-1] for line in open("/proc/self/maps") if "libgomp" in line or "libomp" in line})
"""
    result = run_python(code, OMP_NUM_THREADS="2")
    assert len(eval(result.stdout)) == 1, result.stdout + result.stderr


def test_public_names() -> None:
    assert set(mae_dfer_kernels.__all__) <= set(dir(mae_dfer_kernels))
    assert callable(mae_dfer_kernels.region_attention)

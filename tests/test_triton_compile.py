"""The Triton kernels compile for GPUs that need not be here, and keep their numbers in registers."""

import os

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted kernels do not compile; unset TRITON_INTERPRET", allow_module_level=True)

from mae_dfer_kernels.triton import compile_report  # noqa: E402

pytestmark = pytest.mark.skipif(
    compile_report.cuobjdump() is None, reason="this build of Triton has no cuobjdump to read registers with"
)
# What the smallest supported GPUs (compute capability 8.6, 8.9 and 12.0) give one program.
SHARED_LIMIT = 99 * 1024


@pytest.mark.parametrize("capability", compile_report.CAPABILITIES)
@pytest.mark.parametrize("tokens", compile_report.FAST_TOKENS)
def test_fast_shapes_spill_no_register(tokens, capability):
    resources = compile_report.compile_shape(tokens, capability=capability)
    assert [kernel.kernel for kernel in resources] == ["forward_tile", "backward_tile"]
    _check(resources)


@pytest.mark.parametrize(
    ("tokens", "head_dim", "dtype", "capability", "dropout"),
    [
        (201, 64, "bf16", 90, False),
        (201, 128, "fp16", 80, False),
        (201, 128, "fp32", 80, False),
        (51, 64, "fp32", 90, False),
        (101, 64, "bf16", 90, True),
    ],
    ids=["loop", "loop-widest-head", "loop-widest-rows", "tile-float32", "tile-dropout"],
)
def test_other_shapes_fit(tokens, head_dim, dtype, capability, dropout):
    _check(compile_report.compile_shape(tokens, head_dim, dtype, capability, dropout))


@pytest.mark.parametrize("capability", compile_report.CAPABILITIES)
@pytest.mark.parametrize("channels", [384, 512, 768])
def test_residual_layer_norm_spills_no_register(channels, capability):
    _check(compile_report.compile_residual_layer_norm(channels, capability=capability))


def _check(resources: list[compile_report.Resources]) -> None:
    for kernel in resources:
        print(kernel)
        assert 0 < kernel.registers <= 255
        assert kernel.stack == 0, f"{kernel.kernel} spills registers"
        assert kernel.shared <= SHARED_LIMIT, f"{kernel.kernel} needs too much shared memory"

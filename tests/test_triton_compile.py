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
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("channels", [384, 512, 768])
def test_residual_layer_norm_spills_no_register(channels, dtype, capability):
    resources = compile_report.compile_residual_layer_norm(channels, dtype, capability)
    assert [kernel.kernel for kernel in resources] == ["forward_rows", "backward_rows"]
    _check(resources)


def test_layer_norm_alone_spills_no_register():
    _check(compile_report.compile_residual_layer_norm(alone=True))


@pytest.mark.parametrize("capability", compile_report.CAPABILITIES)
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("channels", [1536, 2048, 1000])
def test_gelu_gradient_spills_no_register(channels, dtype, capability):
    _check(compile_report.compile_gelu_gradient(channels, dtype, capability))


@pytest.mark.parametrize("capability", compile_report.CAPABILITIES)
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("channels", [512, 1536, 1000])
def test_column_sums_spill_no_register(channels, dtype, capability):
    _check(compile_report.compile_column_sums(channels, dtype, capability))


@pytest.mark.parametrize("capability", compile_report.CAPABILITIES)
@pytest.mark.parametrize("shape", compile_report.FAST_EXCHANGES, ids=str)
def test_fast_exchanges_spill_no_register(shape, capability):
    resources = compile_report.compile_exchange(*shape, capability=capability)
    assert [kernel.kernel.removeprefix("exchange_") for kernel in resources] == [
        "forward", "backward_rows", "backward_pairs",
    ]  # fmt: skip
    _check(resources)


@pytest.mark.parametrize("capability", compile_report.CAPABILITIES)
@pytest.mark.parametrize("stream_dtype", ["fp32", "bf16"])
def test_exchange_with_an_update_spills_no_register(stream_dtype, capability):
    """As under autocast, and of a stream in 16 bits."""
    _check(
        compile_report.compile_exchange(
            512, 8, 8, capability=capability, stream_dtype=stream_dtype, update_dtype="bf16"
        )
    )


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((512, 8, 8), {"stream_dtype": "fp32"}),
        ((512, 8, 8), {"scaled": False, "splits": 4}),
        ((512, 8, 8), {"dtype": "fp32"}),
        ((512, 8, 8), {"dtype": "fp32", "update_dtype": "fp32"}),
        ((512, 8, 20), {"stream_dtype": "fp32", "update_dtype": "bf16"}),
        ((512, 8, 48), {}),
        ((1000, 5, 7), {"dtype": "fp16", "capability": 80}),
        ((64, 1, 1), {"capability": 100}),
    ],
    ids=["autocast", "small-batch", "float32", "float32-update", "tokens-update", "many-tokens", "no-powers-of-two",
         "one-pair"],
)
def test_other_exchanges_fit(shape, options):
    _check(compile_report.compile_exchange(*shape, **options))


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_widest_exchange_fits_shared_memory(dtype):
    """9 heads of 56 tokens take 1024 columns, the most that `MAX_PAIRS` allows; registers may spill."""
    for kernel in compile_report.compile_exchange(512, 9, 56, dtype, 80):
        assert kernel.shared <= SHARED_LIMIT, kernel


def _check(resources: list[compile_report.Resources]) -> None:
    for kernel in resources:
        print(kernel)
        assert 0 < kernel.registers <= 255
        assert kernel.stack == 0, f"{kernel.kernel} spills registers"
        assert kernel.shared <= SHARED_LIMIT, f"{kernel.kernel} needs too much shared memory"

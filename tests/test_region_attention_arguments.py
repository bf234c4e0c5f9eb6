"""What region attention refuses: always with an exception that names the argument, never with a crash."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mae_dfer_kernels import region_attention

GOOD = {"qkv": torch.zeros(2, 3, 3 * 2 * 4), "num_heads": 2}


@pytest.mark.parametrize(
    ("change", "error", "names"),
    [
        ({"qkv": [1.0]}, TypeError, "qkv"),
        ({"qkv": torch.zeros(2, 3, 24, dtype=torch.int32)}, TypeError, "qkv"),
        ({"qkv": torch.zeros(2, 3, 24, dtype=torch.complex64)}, TypeError, "qkv"),
        ({"qkv": torch.zeros(2, 3, 24).to_sparse()}, TypeError, "qkv"),
        ({"qkv": torch.zeros(3, 24)}, ValueError, "qkv"),
        ({"qkv": torch.zeros(2, 3, 25)}, ValueError, "qkv"),
        ({"qkv": torch.zeros(2, 3, 0)}, ValueError, "qkv"),
        ({"num_heads": 5}, ValueError, "num_heads"),
        ({"num_heads": 0}, ValueError, "num_heads"),
        ({"num_heads": 2.0}, TypeError, "num_heads"),
        ({"num_heads": True}, TypeError, "num_heads"),
        ({"scale": float("nan")}, ValueError, "scale"),
        ({"scale": "1"}, TypeError, "scale"),
        ({"dropout_p": 1.0, "seed": 1}, ValueError, "dropout_p"),
        ({"dropout_p": -0.1, "seed": 1}, ValueError, "dropout_p"),
        ({"dropout_p": None}, TypeError, "dropout_p"),
        ({"dropout_p": 0.5}, ValueError, "seed"),
        ({"dropout_p": 0.5, "seed": -1}, ValueError, "seed"),
        ({"dropout_p": 0.5, "seed": 2**63}, ValueError, "seed"),
        ({"dropout_p": 0.5, "seed": 1.5}, TypeError, "seed"),
        ({"backend": "gpu"}, ValueError, "backend"),
        ({"backend": None}, TypeError, "backend"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, object], error: type[Exception], names: str) -> None:
    with pytest.raises(error, match=names):
        region_attention(**{**GOOD, **change})  # type: ignore[arg-type]


anything = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 6), st.just(2**70), st.floats(), st.text(max_size=3), st.lists(st.none())
)
tensors = st.builds(
    lambda shape, dtype: torch.zeros(shape, dtype=dtype),
    st.lists(st.integers(0, 8), max_size=4),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.complex64]),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    qkv=st.one_of(tensors, anything),
    num_heads=anything,
    scale=anything,
    dropout_p=anything,
    seed=anything,
    backend=st.sampled_from(["auto", "eager", "cpu", "tpu", "", None, 3]),
)
def test_random_arguments_never_crash(**arguments: object) -> None:
    try:
        out = region_attention(arguments.pop("qkv"), arguments.pop("num_heads"), **arguments)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        assert str(error).startswith(("qkv", "num_heads", "scale", "dropout_p", "seed", "backend"))
    else:
        assert isinstance(out, Tensor)

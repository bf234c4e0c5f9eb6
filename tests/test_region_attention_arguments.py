"""What region attention refuses: always with an exception that names the argument, never with a crash."""

from __future__ import annotations

import pytest
import torch

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
        ({"scale": 10**400}, ValueError, "scale"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, object], error: type[Exception], names: str) -> None:
    with pytest.raises(error, match=names):
        region_attention(**{**GOOD, **change})  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused() -> None:
    with pytest.raises(TypeError, match="qkv must be a dense"):
        region_attention(torch.nested.nested_tensor([torch.zeros(3, 24), torch.zeros(2, 24)]), 2)


def test_freed_memory_is_refused() -> None:
    qkv = torch.zeros(2, 3, 24)
    qkv.untyped_storage().resize_(0)  # as sharded training frees parameters between uses
    with pytest.raises(ValueError, match="qkv has no memory"):
        region_attention(qkv, 2, backend="cpu")

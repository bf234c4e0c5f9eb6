"""Tensors of rows as the compiled library takes them."""

from __future__ import annotations

from torch import Tensor, dtype

from mae_dfer_kernels import native


def rows_contiguous(tensor: Tensor) -> Tensor:
    """The kernels take any stride between groups and rows, but channels side by side."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def dense(tensor: Tensor | None, kind: dtype) -> Tensor | None:
    """Contiguous and of ``kind``."""
    if tensor is None:
        return None
    return (tensor if tensor.dtype == kind else tensor.to(kind)).contiguous()


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def describe(tensor: Tensor) -> tuple[int, int, int, int]:
    """(address, stride of groups, stride of rows, dtype) of a (G, M, C) tensor."""
    group_stride, row_stride, _ = tensor.stride()
    return tensor.data_ptr(), group_stride, row_stride, native.DTYPE_CODES[tensor.dtype]


def describe_if_given(tensor: Tensor | None, kind: dtype) -> tuple[int, int, int, int]:
    """As `describe`; no memory, of ``kind``, for None."""
    return (0, 0, 0, native.DTYPE_CODES[kind]) if tensor is None else describe(tensor)

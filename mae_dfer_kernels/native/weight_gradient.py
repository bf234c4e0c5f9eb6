"""The gradients of a linear layer's weight and bias by the compiled library.

Letters: M rows, I inputs and O outputs of the layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mae_dfer_kernels import native
from mae_dfer_kernels.native.rows import describe, rows_contiguous


def unavailable(grad: Tensor) -> str | None:
    """Why the `cpu` backend cannot run this call, or None if it can."""
    if native.LOAD_ERROR is not None:
        return native.LOAD_ERROR
    if not grad.is_cpu:
        return f"it takes tensors on the CPU, and grad is on {grad.device}"
    if grad.dtype not in (torch.float32, torch.bfloat16):
        return f"it takes float32 and bfloat16, and grad is {grad.dtype}"
    if grad.dtype == torch.bfloat16 and not native.multiplies_bf16():
        return f"grad is bfloat16, which {native.chosen_instruction_set()} does not multiply"
    return None


def pays(grad: Tensor) -> bool:
    """Whether the library is faster than PyTorch, which gives float32 to MKL and bfloat16 to oneDNN.

    On two Zen 4 cores it was, by a seventh in a training step, sums and casts of gradients counted. On Intel's
    processors, not measured, MKL is at home, and some have AMX for bfloat16.
    """
    if not native.IS_AMD or not grad.is_cpu or unavailable(grad) is not None:
        return False
    return native.chosen_instruction_set().startswith("avx512")


def backward(grad: Tensor, rows: Tensor, out_dtype: torch.dtype, bias: bool) -> tuple[Tensor, Tensor]:
    """The `cpu` backend; ``grad`` (M, O) and ``rows`` (M, I) of any strides, the results contiguous."""
    native.check_place("grad", grad)
    (count, outputs), inputs = grad.shape, rows.shape[1]
    of_weight = grad.new_empty((outputs, inputs), dtype=torch.float32)
    library, code = native.library(), native.DTYPE_CODES[grad.dtype]
    # One row of sums a block of rows, added up in their order: the same bits on any number of threads.
    sums = grad.new_empty((library.weight_gradient_blocks(count, code) if bias else 0, outputs), dtype=torch.float32)
    grad, rows = rows_contiguous(grad)[None], rows_contiguous(rows)[None]
    library.weight_gradient(
        describe(grad), describe(rows), of_weight.data_ptr(), sums.data_ptr() if bias else 0, count, outputs, inputs,
        torch.get_num_threads(),
    )  # fmt: skip
    of_bias = sums.sum(dim=0) if bias else sums.new_empty(0)
    return of_weight.to(out_dtype), of_bias.to(out_dtype)

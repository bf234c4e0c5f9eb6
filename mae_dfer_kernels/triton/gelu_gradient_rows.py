"""The Triton kernel of GELU's gradient. Rows have any stride; channels lie side by side."""

import triton
import triton.language as tl

from mae_dfer_kernels.triton.primitives import cast


@triton.jit
def normal(x):
    """Of the normal distribution at x: what lies below, and the density, times sqrt(2 pi).

    As in csrc/cpu/gelu_gradient_kernel.cpp, where it is explained: the power is shared, where `tl.erf` would take one
    of its own, and with it the kernel more time to compute than to read and write.
    """
    power = tl.exp2(x * x * -0.7213475204444817)
    t = 1.0 / (1.0 + 0.34 * tl.abs(x))
    q = -0.026120491325855255 * t + 0.13949957489967346
    q = q * t - 0.27313289046287537
    q = q * t + 0.2021828144788742
    q = q * t - 0.04471854120492935
    q = q * t + 0.11535919457674026
    q = q * t + 0.11519765108823776
    q = q * t + 0.13611219823360443
    q = q * t + 0.13562050461769104
    beyond = power * (q * t)
    return tl.where(x < 0.0, beyond, 1.0 - beyond), power


@triton.jit
def gelu_gradient_rows(
    p_grad, p_x, p_grad_x, p_gelu_x, p_partial, stride_grad_row, stride_x_row, num_rows,
    C: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """gelu(x) = x * below and grad_x = grad * (below + x * density), of the normal distribution at x.

    Each program takes every num_programs-th tile of its columns and leaves one row of sums of grad_x.
    """
    o_column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    m_column = o_column < C
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for tile in range(tl.program_id(1), tl.cdiv(num_rows, ROWS), tl.num_programs(1)):
        o_row = (tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]  # a large batch exceeds 2**31 elements
        mask = (o_row < num_rows) & m_column[None, :]
        o_result = o_row * C + o_column[None, :]
        b_grad = tl.load(p_grad + o_row * stride_grad_row + o_column[None, :], mask=mask, other=0.0).to(tl.float32)
        b_x = tl.load(p_x + o_row * stride_x_row + o_column[None, :], mask=mask, other=0.0).to(tl.float32)
        below, power = normal(b_x)
        b_grad_x = b_grad * (below + b_x * power * 0.3989422804014327)
        sums += b_grad_x
        tl.store(p_grad_x + o_result, cast(b_grad_x, p_grad_x.dtype.element_ty), mask=mask)
        tl.store(p_gelu_x + o_result, cast(b_x * below, p_gelu_x.dtype.element_ty), mask=mask)
    tl.store(p_partial + tl.program_id(1) * C + o_column, tl.sum(sums, axis=0), mask=m_column)

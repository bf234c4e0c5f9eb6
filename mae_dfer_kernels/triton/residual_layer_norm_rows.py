"""The residual + LayerNorm kernels: rows of C channels, whole in registers.

Letters: G groups, M rows a group, C channels; ROWS rows of a tile, BLOCK channels rounded up to a power of two.
"""

import triton
import triton.language as tl

from mae_dfer_kernels.triton.primitives import cast


@triton.jit
def _offsets(o_row, stride_group, stride_row, rows_per_group):
    """Offsets of rows in elements, 64 bits wide: a large batch exceeds 2**31 elements."""
    return (o_row // rows_per_group).to(tl.int64) * stride_group + (o_row % rows_per_group).to(tl.int64) * stride_row


@triton.jit
def _statistics(b_sum, m_channel, eps, C: tl.constexpr):
    """(rows less their mean, 1 / sqrt(variance + eps)); b_sum is 0 where m_channel is false."""
    mean = tl.sum(b_sum, axis=1) / C
    centred = tl.where(m_channel[None, :], b_sum - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, axis=1) / C
    return centred, 1.0 / tl.sqrt_rn(variance + eps)


@triton.jit
def forward_rows(
    p_x, p_update, p_scale, p_weight, p_bias, p_sum, p_normed,
    stride_x_group, stride_x_row, stride_update_group, stride_update_row, num_rows, rows_per_group, eps,
    C: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, HAS_UPDATE: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """Without an update (`HAS_UPDATE`) the sum is x, and not written."""
    o_row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    o_channel = tl.arange(0, BLOCK)
    m_row, m_channel = o_row < num_rows, o_channel < C
    mask = m_row[:, None] & m_channel[None, :]
    o_x = _offsets(o_row, stride_x_group, stride_x_row, rows_per_group)
    b_sum = tl.load(p_x + o_x[:, None] + o_channel[None, :], mask=mask, other=0.0).to(tl.float32)
    p_row = o_row.to(tl.int64)[:, None] * C + o_channel[None, :]
    if HAS_UPDATE:
        o_update = _offsets(o_row, stride_update_group, stride_update_row, rows_per_group)
        b_update = tl.load(p_update + o_update[:, None] + o_channel[None, :], mask=mask, other=0.0).to(tl.float32)
        if SCALED:
            b_update *= tl.load(p_scale + o_row // rows_per_group, mask=m_row, other=0.0)[:, None]
        b_stored = cast(b_sum + b_update, p_sum.dtype.element_ty)
        tl.store(p_sum + p_row, b_stored, mask=mask)
        # What is normalised is the sum as it is stored: the backward and the next block know no other.
        b_sum = b_stored.to(tl.float32)
    centred, inverse = _statistics(b_sum, m_channel, eps, C)
    b_weight = tl.load(p_weight + o_channel, mask=m_channel, other=0.0).to(tl.float32)
    b_bias = tl.load(p_bias + o_channel, mask=m_channel, other=0.0).to(tl.float32)
    b_normed = centred * inverse[:, None] * b_weight[None, :] + b_bias[None, :]
    tl.store(p_normed + p_row, cast(b_normed, p_normed.dtype.element_ty), mask=mask)


@triton.jit
def backward_rows(
    p_grad_sum, p_grad_normed, p_sum, p_scale, p_weight, p_grad_x, p_grad_update, p_partial,
    stride_grad_sum_group, stride_grad_sum_row, stride_grad_normed_group, stride_grad_normed_row,
    stride_sum_group, stride_sum_row, num_rows, rows_per_group, eps,
    C: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, SCALED: tl.constexpr, HAS_GRAD_SUM: tl.constexpr,
    SHARED: tl.constexpr,
):  # fmt: skip
    """With u = (sum - mean) / deviation and g = grad_normed * weight:
    grad_x = grad_sum + (g - mean(g) - u * mean(g * u)) / deviation; grad_update = row_scale * grad_x,
    which is not written where both are one (`SHARED`).

    Each program takes every num_programs-th tile and leaves one row of sums for the weight, one for the bias.
    """
    o_channel = tl.arange(0, BLOCK)
    m_channel = o_channel < C
    b_weight = tl.load(p_weight + o_channel, mask=m_channel, other=0.0).to(tl.float32)
    weight_sums = tl.zeros([BLOCK], tl.float32)
    bias_sums = tl.zeros([BLOCK], tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(num_rows, ROWS), tl.num_programs(0)):
        o_row = tile * ROWS + tl.arange(0, ROWS)
        m_row = o_row < num_rows
        mask = m_row[:, None] & m_channel[None, :]
        p_row = o_row.to(tl.int64)[:, None] * C + o_channel[None, :]
        o_sum = _offsets(o_row, stride_sum_group, stride_sum_row, rows_per_group)
        o_grad_normed = _offsets(o_row, stride_grad_normed_group, stride_grad_normed_row, rows_per_group)
        b_sum = tl.load(p_sum + o_sum[:, None] + o_channel[None, :], mask=mask, other=0.0).to(tl.float32)
        b_outer = tl.load(p_grad_normed + o_grad_normed[:, None] + o_channel[None, :], mask=mask, other=0.0)
        b_outer = b_outer.to(tl.float32)
        centred, inverse = _statistics(b_sum, m_channel, eps, C)
        unit = centred * inverse[:, None]
        weight_sums += tl.sum(b_outer * unit, axis=0)
        bias_sums += tl.sum(b_outer, axis=0)
        b_inner = b_outer * b_weight[None, :]
        mean_inner = tl.sum(b_inner, axis=1) / C
        mean_turned = tl.sum(b_inner * unit, axis=1) / C
        b_grad = (b_inner - mean_inner[:, None] - unit * mean_turned[:, None]) * inverse[:, None]
        if HAS_GRAD_SUM:
            o_grad_sum = _offsets(o_row, stride_grad_sum_group, stride_grad_sum_row, rows_per_group)
            b_grad_sum = tl.load(p_grad_sum + o_grad_sum[:, None] + o_channel[None, :], mask=mask, other=0.0)
            b_grad += b_grad_sum.to(tl.float32)
        tl.store(p_grad_x + p_row, cast(b_grad, p_grad_x.dtype.element_ty), mask=mask)
        if SCALED:
            b_grad *= tl.load(p_scale + o_row // rows_per_group, mask=m_row, other=0.0)[:, None]
        if not SHARED:
            tl.store(p_grad_update + p_row, cast(b_grad, p_grad_update.dtype.element_ty), mask=mask)
    p_sums = p_partial + tl.program_id(0) * 2 * C + o_channel
    tl.store(p_sums, weight_sums, mask=m_channel)
    tl.store(p_sums + C, bias_sums, mask=m_channel)

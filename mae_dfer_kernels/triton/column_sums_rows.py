"""The Triton kernels of sums over rows. Rows have any stride; channels lie side by side."""

import triton
import triton.language as tl

from mae_dfer_kernels.triton.primitives import cast


@triton.jit
def _sum_tiles(
    p_rows, stride_row, num_rows, o_column, m_column, first, step, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """The sum of every step-th tile of rows from the first, in an order that the sizes alone decide."""
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    # In stages: without, the compiler waits for one load after the other to save registers.
    for tile in tl.range(first, tl.cdiv(num_rows, ROWS), step, num_stages=3):
        o_row = (tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]  # a large batch exceeds 2**31 elements
        mask = (o_row < num_rows) & m_column[None, :]
        sums += tl.load(p_rows + o_row * stride_row + o_column[None, :], mask=mask, other=0.0).to(tl.float32)
    return tl.sum(sums, axis=0)


@triton.jit
def partial_sums(
    p_rows, p_partial, stride_row, num_rows, C: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Leaves one row of sums for every split of the rows. Grid: (ceil(C / COLUMNS), splits)."""
    o_column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    m_column = o_column < C
    first, step = tl.program_id(1), tl.num_programs(1)
    b_sums = _sum_tiles(p_rows, stride_row, num_rows, o_column, m_column, first, step, ROWS, COLUMNS)
    tl.store(p_partial + first * C + o_column, b_sums, mask=m_column)


@triton.jit
def add_partial_sums(
    p_partial, p_first, p_second, num_rows, C: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Sums over num_rows of (num_rows, results, C), each result to its own memory. Grid: (ceil(C / COLUMNS), results),
    with one result or two."""
    o_column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    m_column = o_column < C
    result, stride_row = tl.program_id(1), tl.num_programs(1) * C
    b_sums = _sum_tiles(p_partial + result * C, stride_row, num_rows, o_column, m_column, 0, 1, ROWS, COLUMNS)
    b_sums = cast(b_sums, p_first.dtype.element_ty)
    if result == 0:
        tl.store(p_first + o_column, b_sums, mask=m_column)
    else:
        tl.store(p_second + o_column, b_sums, mask=m_column)

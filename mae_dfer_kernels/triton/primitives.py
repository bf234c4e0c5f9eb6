"""Device functions that the kernels share: dot, row addresses, softmax, dropout.

Letters: R regions, S tokens of a region, H heads, D channels of a head; BLOCK, CHUNK rows of a tile.
"""

import triton
import triton.language as tl

# The interpreter keeps bfloat16 as its 16 bits and `tl.dot` there multiplies those bits as integers.
# It also truncates float32 to bfloat16 where the GPU rounds to nearest, even. Both are put right below, so
# that interpreted kernels have the GPU's arithmetic and their tests can hold it to the GPU's error bound.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def dot(a, b):
    """a @ b in float32. "ieee" keeps float32 operands whole: TF32 would lose 13 of their 24 bits."""
    if INTERPRETED:
        a = a.to(tl.float32)  # exact, and so are the products of two 16-bit floats in float32
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def cast(x, dtype: tl.constexpr):
    """x (float32) in `dtype`, rounded to nearest, ties to even."""
    if INTERPRETED:
        if dtype == tl.bfloat16:
            bits = x.to(tl.uint32, bitcast=True)
            bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
            x = bits.to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def tile_rows(o_row, first_region, num_regions, S: tl.constexpr, REGIONS: tl.constexpr):
    """(region, token, in range) of tile rows: REGIONS whole regions one after the other, then padding."""
    if REGIONS == 1:
        return first_region + tl.zeros_like(o_row), o_row, o_row < S
    local_region = o_row // S
    region = first_region + local_region
    return region, o_row - local_region * S, (local_region < REGIONS) & (region < num_regions)


@triton.jit
def row_offsets(region, token, stride_region, stride_token):
    """Offsets of rows in elements, 64 bits wide: a large batch exceeds 2**31 elements."""
    return region.to(tl.int64) * stride_region + token.to(tl.int64) * stride_token


@triton.jit
def load_rows(p_base, o_token, m_token, D: tl.constexpr):
    return tl.load(p_base + o_token[:, None] + tl.arange(0, D)[None, :], mask=m_token[:, None], other=0.0)


@triton.jit
def store_rows(p_base, o_token, m_token, b_value, D: tl.constexpr):
    p_rows = p_base + o_token[:, None] + tl.arange(0, D)[None, :]
    tl.store(p_rows, cast(b_value, p_base.dtype.element_ty), mask=m_token[:, None])


@triton.jit
def dropout_keep(seed, threshold, o_row, first_column, region_head, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Keep mask (ROWS, COLUMNS) of probabilities (o_row, first_column + 0, 1, ...); 4 divides first_column.

    Philox-4x32-10 under the 64-bit key `seed`; counter (column // 4, row, region * H + head, 0), whose four
    outputs serve four neighbouring columns. A function of the element alone, so tiling cannot change it.
    """
    c_column = first_column // 4 + tl.arange(0, COLUMNS // 4)[None, :] + tl.zeros([ROWS, 1], tl.int32)
    c_row = o_row[:, None] + tl.zeros([1, COLUMNS // 4], tl.int32)
    c_zero = tl.zeros([ROWS, COLUMNS // 4], tl.int32)
    r0, r1, r2, r3 = tl.philox(seed, c_column, c_row, c_zero + region_head, c_zero)
    limit = threshold.to(tl.uint32)
    # join appends an axis of two: (first, second axis) -> output number is 2 * first + second.
    keep = tl.join(tl.join(r0 >= limit, r2 >= limit), tl.join(r1 >= limit, r3 >= limit))
    return keep.reshape([ROWS, COLUMNS])

"""Region attention over tiles of keys, for regions too long for one tile (128 < S <= 1024).

The forward keeps a running maximum and sum of each row. The backward is two kernels rather than one with
atomic additions, so its result is bitwise repeatable: `backward_loop_dq` owns tiles of queries, and leaves
the row statistics for `backward_loop_dkdv`, which owns tiles of keys.

Statistics are (3, R * H, S) float32: row maximum (in units of log2), 1 / row sum, delta. The maximum and
the sum stay apart because their logarithmic sum rounds the sum away where logits are large.
"""

import triton
import triton.language as tl

from mae_dfer_kernels.triton.primitives import cast, dot, dropout_keep, load_rows, row_offsets, store_rows


@triton.jit
def _locate(S: tl.constexpr, H: tl.constexpr, ROWS: tl.constexpr):
    """(region, head, first row) of this program; tiles of a head are neighbours, then heads of a region."""
    tiles = tl.cdiv(S, ROWS)
    region_head = tl.program_id(0) // tiles
    return region_head // H, region_head % H, (tl.program_id(0) % tiles) * ROWS


@triton.jit
def _load_tile(p_base, region, o_row, S: tl.constexpr, stride_region, stride_token, D: tl.constexpr):
    return load_rows(p_base, row_offsets(region, o_row, stride_region, stride_token), o_row < S, D)


@triton.jit
def _store_tile(p_base, region, o_row, S: tl.constexpr, WIDTH: tl.constexpr, b_value, D: tl.constexpr):
    """Rows of a contiguous (R, S, WIDTH)."""
    o_token = row_offsets(region, o_row, S * WIDTH, WIDTH)
    store_rows(p_base, o_token, o_row < S, b_value, D)


@triton.jit
def _scores(b_q, b_k, o_key, S: tl.constexpr, scale_log2):
    return tl.where((o_key < S)[None, :], dot(b_q, tl.trans(b_k)) * scale_log2, float("-inf"))


@triton.jit(do_not_specialize=["seed", "threshold"])
def forward_loop(
    p_qkv, p_out, stride_region, stride_token, scale_log2, keep_scale, seed: tl.int64,
    threshold: tl.uint32, S: tl.constexpr, H: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """out = dropout(softmax(scale * q k^T)) v for ROWS queries. Grid: (R * H * ceil(S / ROWS),)."""
    region, head, first = _locate(S, H, ROWS)
    p_qkv += head * D
    o_query = first + tl.arange(0, ROWS)
    b_q = _load_tile(p_qkv, region, o_query, S, stride_region, stride_token, D)
    b_max = tl.full([ROWS], float("-inf"), tl.float32)
    b_sum = tl.zeros([ROWS], tl.float32)
    b_out = tl.zeros([ROWS, D], tl.float32)
    for start in range(0, S, COLUMNS):
        o_key = start + tl.arange(0, COLUMNS)
        b_k = _load_tile(p_qkv + H * D, region, o_key, S, stride_region, stride_token, D)
        b_v = _load_tile(p_qkv + 2 * H * D, region, o_key, S, stride_region, stride_token, D)
        b_s = _scores(b_q, b_k, o_key, S, scale_log2)
        b_new_max = tl.maximum(b_max, tl.max(b_s, 1))
        b_shrink = tl.exp2(b_max - b_new_max)
        b_p = tl.exp2(b_s - b_new_max[:, None])
        b_sum = b_sum * b_shrink + tl.sum(b_p, 1)
        if DROPOUT:
            keep = dropout_keep(seed, threshold, o_query, start, region * H + head, ROWS, COLUMNS)
            b_p = tl.where(keep, b_p * keep_scale, 0.0)
        b_out = b_out * b_shrink[:, None] + dot(cast(b_p, b_v.dtype), b_v)
        b_max = b_new_max
    _store_tile(p_out + head * D, region, o_query, S, H * D, b_out / b_sum[:, None], D)


@triton.jit(do_not_specialize=["statistic", "seed", "threshold"])
def backward_loop_dq(
    p_grad_out, p_qkv, p_dqkv, p_statistics, statistic, stride_grad_region, stride_grad_token,
    stride_region, stride_token, scale, scale_log2, keep_scale, seed: tl.int64, threshold: tl.uint32,
    S: tl.constexpr, H: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DROPOUT: tl.constexpr,
):  # fmt: skip
    """dq and the row statistics of ROWS queries: two passes over the keys. Grid: (R * H * ceil(S / ROWS),).

    `statistic` is the distance between two statistics, R * H * S.
    """
    region, head, first = _locate(S, H, ROWS)
    p_qkv += head * D
    o_query = first + tl.arange(0, ROWS)
    m_query = o_query < S
    b_q = _load_tile(p_qkv, region, o_query, S, stride_region, stride_token, D)
    b_do = _load_tile(p_grad_out + head * D, region, o_query, S, stride_grad_region, stride_grad_token, D)

    b_max = tl.full([ROWS], float("-inf"), tl.float32)
    b_sum = tl.zeros([ROWS], tl.float32)
    b_delta = tl.zeros([ROWS], tl.float32)
    for start in range(0, S, COLUMNS):
        o_key = start + tl.arange(0, COLUMNS)
        b_k = _load_tile(p_qkv + H * D, region, o_key, S, stride_region, stride_token, D)
        b_v = _load_tile(p_qkv + 2 * H * D, region, o_key, S, stride_region, stride_token, D)
        b_s = _scores(b_q, b_k, o_key, S, scale_log2)
        b_dp = dot(b_do, tl.trans(b_v))
        if DROPOUT:
            keep = dropout_keep(seed, threshold, o_query, start, region * H + head, ROWS, COLUMNS)
            b_dp = tl.where(keep, b_dp * keep_scale, 0.0)
        b_new_max = tl.maximum(b_max, tl.max(b_s, 1))
        b_shrink = tl.exp2(b_max - b_new_max)
        b_p = tl.exp2(b_s - b_new_max[:, None])
        b_sum = b_sum * b_shrink + tl.sum(b_p, 1)
        b_delta = b_delta * b_shrink + tl.sum(b_p * b_dp, 1)
        b_max = b_new_max
    b_inverse = 1.0 / b_sum
    b_delta = b_delta * b_inverse
    p_row = p_statistics + (region * H + head).to(tl.int64) * S + o_query
    tl.store(p_row, b_max, mask=m_query)
    tl.store(p_row + statistic, b_inverse, mask=m_query)
    tl.store(p_row + 2 * statistic.to(tl.int64), b_delta, mask=m_query)

    b_dq = tl.zeros([ROWS, D], tl.float32)
    for start in range(0, S, COLUMNS):
        o_key = start + tl.arange(0, COLUMNS)
        b_k = _load_tile(p_qkv + H * D, region, o_key, S, stride_region, stride_token, D)
        b_v = _load_tile(p_qkv + 2 * H * D, region, o_key, S, stride_region, stride_token, D)
        b_p = tl.exp2(_scores(b_q, b_k, o_key, S, scale_log2) - b_max[:, None]) * b_inverse[:, None]
        b_dp = dot(b_do, tl.trans(b_v))
        if DROPOUT:
            keep = dropout_keep(seed, threshold, o_query, start, region * H + head, ROWS, COLUMNS)
            b_dp = tl.where(keep, b_dp * keep_scale, 0.0)
        b_dq += dot(cast(b_p * (b_dp - b_delta[:, None]), b_k.dtype), b_k)
    _store_tile(p_dqkv + head * D, region, o_query, S, 3 * H * D, b_dq * scale, D)


@triton.jit(do_not_specialize=["statistic", "seed", "threshold"])
def backward_loop_dkdv(
    p_grad_out, p_qkv, p_dqkv, p_statistics, statistic, stride_grad_region, stride_grad_token,
    stride_region, stride_token, scale, scale_log2, keep_scale, seed: tl.int64, threshold: tl.uint32,
    S: tl.constexpr, H: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DROPOUT: tl.constexpr,
):  # fmt: skip
    """dk and dv of COLUMNS keys, from all queries. Grid: (R * H * ceil(S / COLUMNS),)."""
    region, head, first = _locate(S, H, COLUMNS)
    p_qkv += head * D
    p_dk = p_dqkv + (H + head) * D
    p_grad_out += head * D
    o_key = first + tl.arange(0, COLUMNS)
    b_k = _load_tile(p_qkv + H * D, region, o_key, S, stride_region, stride_token, D)
    b_v = _load_tile(p_qkv + 2 * H * D, region, o_key, S, stride_region, stride_token, D)
    b_dk = tl.zeros([COLUMNS, D], tl.float32)
    b_dv = tl.zeros([COLUMNS, D], tl.float32)
    for start in range(0, S, ROWS):
        o_query = start + tl.arange(0, ROWS)
        m_query = o_query < S
        b_q = _load_tile(p_qkv, region, o_query, S, stride_region, stride_token, D)
        b_do = _load_tile(p_grad_out, region, o_query, S, stride_grad_region, stride_grad_token, D)
        p_row = p_statistics + (region * H + head).to(tl.int64) * S + o_query
        b_max = tl.load(p_row, mask=m_query, other=0.0)
        b_inverse = tl.load(p_row + statistic, mask=m_query, other=0.0)
        b_delta = tl.load(p_row + 2 * statistic.to(tl.int64), mask=m_query, other=0.0)
        # Transposed, (COLUMNS, ROWS): P and dS are then left operands as they come out of the products above
        # them. Neither needs a mask: padding keys are not stored, and padding queries have q = dO = 0.
        b_p = tl.exp2(dot(b_k, tl.trans(b_q)) * scale_log2 - b_max[None, :]) * b_inverse[None, :]
        b_dp = dot(b_v, tl.trans(b_do))
        b_dropped = b_p
        if DROPOUT:
            keep = tl.trans(dropout_keep(seed, threshold, o_query, first, region * H + head, ROWS, COLUMNS))
            b_dropped = tl.where(keep, b_p * keep_scale, 0.0)
            b_dp = tl.where(keep, b_dp * keep_scale, 0.0)
        b_dv += dot(cast(b_dropped, b_do.dtype), b_do)
        b_dk += dot(cast(b_p * (b_dp - b_delta[None, :]), b_q.dtype), b_q)
    _store_tile(p_dk, region, o_key, S, 3 * H * D, b_dk * scale, D)
    _store_tile(p_dk + H * D, region, o_key, S, 3 * H * D, b_dv, D)

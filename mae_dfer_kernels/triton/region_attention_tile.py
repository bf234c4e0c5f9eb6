"""Region attention where whole regions fit one tile (S <= 128): kernels that read each input once.

One program serves one head of one region, or of several short regions stacked in the tile under a
block-diagonal mask. Its keys and values stay on chip, so a row's softmax needs one pass and the backward
recomputes the probabilities instead of reading them.

Padding rows are zeros and never meet real ones: a padding query's gradient is zero, hence so is all that it
adds to dk and dv, and each row sees at least one column, hence no row is NaN.
"""

import triton
import triton.language as tl

from mae_dfer_kernels.triton.primitives import cast, dot, dropout_keep, load_rows, row_offsets, store_rows, tile_rows


@triton.jit(do_not_specialize=["num_regions", "seed", "threshold"])
def forward_tile(
    p_qkv, p_out, num_regions, stride_region, stride_token, scale_log2, keep_scale, seed: tl.int64,
    threshold: tl.uint32, S: tl.constexpr, H: tl.constexpr, D: tl.constexpr, REGIONS: tl.constexpr,
    BLOCK: tl.constexpr, CHUNK: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """out = dropout(softmax(scale * q k^T)) v, CHUNK query rows at a time. Grid: (groups * H,)."""
    tl.static_assert(REGIONS == 1 or not DROPOUT, "dropout columns are counted from the start of a tile")
    group = tl.program_id(0) // H
    head = tl.program_id(0) % H
    p_q = p_qkv + head * D
    p_out += head * D

    o_key = tl.arange(0, BLOCK)
    r_key, t_key, m_key = tile_rows(o_key, group * REGIONS, num_regions, S, REGIONS)
    o_kv = row_offsets(r_key, t_key, stride_region, stride_token)
    b_k = load_rows(p_q + H * D, o_kv, m_key, D)
    b_v = load_rows(p_q + 2 * H * D, o_kv, m_key, D)

    for start in range(0, REGIONS * S, CHUNK):
        o_query = start + tl.arange(0, CHUNK)
        region, token, m_query = tile_rows(o_query, group * REGIONS, num_regions, S, REGIONS)
        b_q = load_rows(p_q, row_offsets(region, token, stride_region, stride_token), m_query, D)
        b_s = dot(b_q, tl.trans(b_k)) * scale_log2
        if REGIONS > 1:
            b_s = tl.where((o_query // S)[:, None] == (o_key // S)[None, :], b_s, float("-inf"))
        elif S < BLOCK:
            b_s = tl.where((o_key < S)[None, :], b_s, float("-inf"))
        b_p = tl.exp2(b_s - tl.max(b_s, 1)[:, None])
        b_sum = tl.sum(b_p, 1)
        if DROPOUT:
            keep = dropout_keep(seed, threshold, o_query, 0, group * H + head, CHUNK, BLOCK)
            b_p = tl.where(keep, b_p * keep_scale, 0.0)
        b_out = dot(cast(b_p, b_v.dtype), b_v) / b_sum[:, None]
        store_rows(p_out, row_offsets(region, token, S * H * D, H * D), m_query, b_out, D)


@triton.jit(do_not_specialize=["num_regions", "seed", "threshold"])
def backward_tile(
    p_grad_out, p_qkv, p_dqkv, num_regions, stride_grad_region, stride_grad_token, stride_region,
    stride_token, scale, scale_log2, keep_scale, seed: tl.int64, threshold: tl.uint32, S: tl.constexpr, H: tl.constexpr,
    D: tl.constexpr, REGIONS: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """dq, dk, dv into the packed dqkv, CHUNK query rows at a time. Grid: (groups * H,)."""
    tl.static_assert(REGIONS == 1 or not DROPOUT, "dropout columns are counted from the start of a tile")
    group = tl.program_id(0) // H
    head = tl.program_id(0) % H
    p_q = p_qkv + head * D
    p_dq = p_dqkv + head * D
    p_grad_out += head * D

    o_key = tl.arange(0, BLOCK)
    r_key, t_key, m_key = tile_rows(o_key, group * REGIONS, num_regions, S, REGIONS)
    o_kv = row_offsets(r_key, t_key, stride_region, stride_token)
    b_k = load_rows(p_q + H * D, o_kv, m_key, D)
    b_v = load_rows(p_q + 2 * H * D, o_kv, m_key, D)
    b_dk = tl.zeros([BLOCK, D], tl.float32)
    b_dv = tl.zeros([BLOCK, D], tl.float32)

    for start in range(0, REGIONS * S, CHUNK):
        o_query = start + tl.arange(0, CHUNK)
        region, token, m_query = tile_rows(o_query, group * REGIONS, num_regions, S, REGIONS)
        b_q = load_rows(p_q, row_offsets(region, token, stride_region, stride_token), m_query, D)
        o_grad = row_offsets(region, token, stride_grad_region, stride_grad_token)
        b_do = load_rows(p_grad_out, o_grad, m_query, D)

        # Transposed, (keys, queries): P and dS are then left operands as they come out of the products.
        b_s = dot(b_k, tl.trans(b_q)) * scale_log2
        if REGIONS > 1:
            b_s = tl.where((o_key // S)[:, None] == (o_query // S)[None, :], b_s, float("-inf"))
        elif S < BLOCK:
            b_s = tl.where((o_key < S)[:, None], b_s, float("-inf"))
        b_p = tl.exp2(b_s - tl.max(b_s, 0)[None, :])
        b_p = b_p / tl.sum(b_p, 0)[None, :]
        b_dp = dot(b_v, tl.trans(b_do))
        b_dropped = b_p
        if DROPOUT:
            keep = tl.trans(dropout_keep(seed, threshold, o_query, 0, group * H + head, CHUNK, BLOCK))
            b_dropped = tl.where(keep, b_p * keep_scale, 0.0)
            b_dp = tl.where(keep, b_dp * keep_scale, 0.0)
        b_dv += dot(cast(b_dropped, b_do.dtype), b_do)
        # dS = P o (dP - delta), delta = row sums of P o dP
        b_ds = cast(b_p * (b_dp - tl.sum(b_p * b_dp, 0)[None, :]), b_q.dtype)
        b_dk += dot(b_ds, b_q)
        b_dq = dot(tl.trans(b_ds), b_k) * scale
        store_rows(p_dq, row_offsets(region, token, S * 3 * H * D, 3 * H * D), m_query, b_dq, D)

    o_dkv = row_offsets(r_key, t_key, S * 3 * H * D, 3 * H * D)
    store_rows(p_dq + H * D, o_dkv, m_key, b_dk * scale, D)
    store_rows(p_dq + 2 * H * D, o_dkv, m_key, b_dv, D)

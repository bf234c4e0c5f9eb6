"""The exchange kernels: every row of a clip attends to the clip's J pairs of a head and a representative token.

Letters: B clips of L rows in groups of M, C channels, H heads, K representative tokens, J = H·K pairs; KP, HP powers
of two not less than K and H, PAIRS = HP·KP; ROWS rows of a tile, CHUNK channels of a step.

A head's K columns stand KP apart, so that its softmax is a reduction of (ROWS, HP, KP) along the last axis. Columns
beyond K have the key bias -inf, hence probability 0. Columns of heads beyond H have keys, biases and values of 0.

With HAS_UPDATE, x is a sum everywhere here: of what p_x and p_update hold, the latter times a factor a group. It is
made anew wherever it is read, and written nowhere.

A tile of rows is read three times, from memory once and then from the caches: for the statistics, for the scores and
for the result. Only its J scores stay in registers.
"""

import triton
import triton.language as tl

from mae_dfer_kernels.triton.primitives import cast, dot, row_offsets

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _columns(H: tl.constexpr, K: tl.constexpr, HP: tl.constexpr, KP: tl.constexpr):
    """(head, token, place among the J pairs) of the PAIRS columns."""
    o_column = tl.arange(0, HP * KP)
    return o_column // KP, o_column % KP, o_column // KP * K + o_column % KP


@triton.jit
def _load(p_base, o_row, m_row, o_channel, C: tl.constexpr):
    mask = m_row[:, None] & (o_channel < C)[None, :]
    return tl.load(p_base + o_row[:, None] + o_channel[None, :], mask=mask, other=0.0)


@triton.jit
def _stream(
    p_x, p_update, p_update_scale, group, row, m_row, stride_x_group, stride_x_row, stride_update_group,
    stride_update_row, HAS_UPDATE: tl.constexpr, UPDATE_SCALED: tl.constexpr,
):  # fmt: skip
    """What `_load_stream` reads rows of groups from."""
    o_x = row_offsets(group, row, stride_x_group, stride_x_row)
    o_update = o_x
    scale = tl.full(group.shape, 1.0, tl.float32)
    if HAS_UPDATE:
        o_update = row_offsets(group, row, stride_update_group, stride_update_row)
        if UPDATE_SCALED:
            scale = tl.load(p_update_scale + group, mask=m_row, other=0.0).to(tl.float32)
    return p_x, o_x, p_update, o_update, scale, m_row


@triton.jit
def _load_stream(stream, o_channel, C: tl.constexpr, HAS_UPDATE: tl.constexpr):
    """x, or x + scale · update, in float32."""
    p_x, o_x, p_update, o_update, scale, m_row = stream
    b_x = _load(p_x, o_x, m_row, o_channel, C).to(tl.float32)
    if HAS_UPDATE:
        b_x += _load(p_update, o_update, m_row, o_channel, C).to(tl.float32) * scale[:, None]
    return b_x


@triton.jit
def _statistics(stream, eps, C: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, HAS_UPDATE: tl.constexpr):
    """(mean, 1 / sqrt(variance + eps)) of rows. Two passes over a chunk in registers; chunks merge by Chan's formula.

    All is taken relative to the first chunk's mean, so that a mean far from 0 is rounded once, at the end.
    """
    b_x = _load_stream(stream, tl.arange(0, CHUNK), C, HAS_UPDATE)
    origin = tl.sum(b_x, axis=1) / min(C, CHUNK)
    mean = tl.zeros([ROWS], tl.float32)
    squares = tl.zeros([ROWS], tl.float32)
    for start in range(0, C, CHUNK):
        o_channel = start + tl.arange(0, CHUNK)
        m_channel = (o_channel < C)[None, :]
        b_x = _load_stream(stream, o_channel, C, HAS_UPDATE)
        b_x = tl.where(m_channel, b_x - origin[:, None], 0.0)
        count = tl.minimum(C - start, CHUNK).to(tl.float32)
        share = count / tl.minimum(C, start + CHUNK).to(tl.float32)
        chunk_mean = tl.sum(b_x, axis=1) / count
        centred = tl.where(m_channel, b_x - chunk_mean[:, None], 0.0)
        step = chunk_mean - mean
        squares += tl.sum(centred * centred, axis=1) + step * step * (start * share)
        mean += step * share
    return origin + mean, 1.0 / tl.sqrt_rn(squares / C + eps)


@triton.jit
def _softmax(b_s, ROWS: tl.constexpr, HP: tl.constexpr, KP: tl.constexpr):
    """(ROWS, HP, KP) probabilities of (ROWS, PAIRS) scores."""
    b_s = tl.reshape(b_s, [ROWS, HP, KP])
    b_p = tl.exp2((b_s - tl.max(b_s, axis=2)[:, :, None]) * LOG2_E)
    return b_p / tl.sum(b_p, axis=2)[:, :, None]


@triton.jit(do_not_specialize=["clip_rows", "rows_per_group"])
def exchange_forward(
    p_x, p_update, p_update_scale, p_keys, p_key_bias, p_values, p_out_bias, p_scale, p_out, stride_x_group,
    stride_x_row, stride_update_group, stride_update_row, clip_rows, rows_per_group, eps, C: tl.constexpr,
    H: tl.constexpr, K: tl.constexpr, HP: tl.constexpr, KP: tl.constexpr, FRONT: tl.constexpr, ROWS: tl.constexpr,
    CHUNK: tl.constexpr, SCALED: tl.constexpr, HAS_UPDATE: tl.constexpr, UPDATE_SCALED: tl.constexpr,
):  # fmt: skip
    """out = x + scale · (softmax(u · keysᵀ + key_bias) · values + out_bias), behind FRONT rows of each group.
    Grid: (B * ceil(L / ROWS),).
    """
    tiles = tl.cdiv(clip_rows, ROWS)
    clip = tl.program_id(0) // tiles
    o_tile = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    m_row = o_tile < clip_rows
    o_row = clip * clip_rows + o_tile
    stream = _stream(
        p_x, p_update, p_update_scale, o_row // rows_per_group, o_row % rows_per_group, m_row, stride_x_group,
        stride_x_row, stride_update_group, stride_update_row, HAS_UPDATE, UPDATE_SCALED,
    )  # fmt: skip
    mean, inverse = _statistics(stream, eps, C, ROWS, CHUNK, HAS_UPDATE)

    head, token, pair = _columns(H, K, HP, KP)
    m_pair = (head < H) & (token < K)
    p_keys += clip.to(tl.int64) * (H * K * C)
    p_values += clip.to(tl.int64) * (H * K * C)
    b_s = tl.zeros([ROWS, HP * KP], tl.float32)
    for start in range(0, C, CHUNK):
        o_channel = start + tl.arange(0, CHUNK)
        b_x = _load_stream(stream, o_channel, C, HAS_UPDATE)
        b_keys = _load(p_keys, pair * C, m_pair, o_channel, C)
        b_u = (b_x - mean[:, None]) * inverse[:, None]
        b_s += dot(cast(b_u, b_keys.dtype), tl.trans(b_keys))
    b_key_bias = tl.load(p_key_bias + clip * (H * K) + pair, mask=m_pair, other=0.0).to(tl.float32)
    b_s += tl.where(token < K, b_key_bias, float("-inf"))[None, :]
    b_p = tl.reshape(_softmax(b_s, ROWS, HP, KP), [ROWS, HP * KP])

    b_p = cast(b_p, p_values.dtype.element_ty)
    scale = tl.load(p_scale + clip).to(tl.float32) if SCALED else 1.0
    o_out = (o_row + (o_row // rows_per_group + 1) * FRONT).to(tl.int64) * C
    for start in range(0, C, CHUNK):
        o_channel = start + tl.arange(0, CHUNK)
        b_values = _load(p_values, pair * C, m_pair, o_channel, C)
        b_x = _load_stream(stream, o_channel, C, HAS_UPDATE)
        b_out_bias = tl.load(p_out_bias + o_channel, mask=o_channel < C, other=0.0).to(tl.float32)
        b_out = b_x + (dot(b_p, b_values) + b_out_bias[None, :]) * scale
        mask = m_row[:, None] & (o_channel < C)[None, :]
        tl.store(p_out + o_out[:, None] + o_channel[None, :], cast(b_out, p_out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["clip_rows", "rows_per_group"])
def exchange_backward_rows(
    p_grad_out, p_x, p_update, p_update_scale, p_keys, p_key_bias, p_values, p_scale, p_grad_x, p_grad_update, p_probs,
    p_grad_scores, p_statistics, stride_grad_group, stride_grad_row, stride_x_group, stride_x_row,
    stride_update_group, stride_update_row, clip_rows, rows_per_group, eps, C: tl.constexpr, H: tl.constexpr,
    K: tl.constexpr, HP: tl.constexpr, KP: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, SCALED: tl.constexpr,
    HAS_UPDATE: tl.constexpr, UPDATE_SCALED: tl.constexpr,
):  # fmt: skip
    """grad_x = grad_out + (du - mean(du) - u · mean(u · du)) / deviation with du = dS · keys, and grad_update,
    which is the update's factor times that; also leaves what `exchange_backward_pairs` reads: P and dS (B·L, PAIRS) and
    the rows' mean and 1 / deviation. Grid as above.

    Both means are sums over the J scores, so du itself is never held: the sum of du is dS times the sums of the
    keys, and that of u · du is dS times the scores without their bias.
    """
    tiles = tl.cdiv(clip_rows, ROWS)
    clip = tl.program_id(0) // tiles
    o_tile = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    m_row = o_tile < clip_rows
    o_row = clip * clip_rows + o_tile
    stream = _stream(
        p_x, p_update, p_update_scale, o_row // rows_per_group, o_row % rows_per_group, m_row, stride_x_group,
        stride_x_row, stride_update_group, stride_update_row, HAS_UPDATE, UPDATE_SCALED,
    )  # fmt: skip
    o_grad = row_offsets(o_row // rows_per_group, o_row % rows_per_group, stride_grad_group, stride_grad_row)
    mean, inverse = _statistics(stream, eps, C, ROWS, CHUNK, HAS_UPDATE)
    tl.store(p_statistics + 2 * o_row.to(tl.int64), mean, mask=m_row)
    tl.store(p_statistics + 2 * o_row.to(tl.int64) + 1, inverse, mask=m_row)

    head, token, pair = _columns(H, K, HP, KP)
    m_pair = (head < H) & (token < K)
    p_keys += clip.to(tl.int64) * (H * K * C)
    p_values += clip.to(tl.int64) * (H * K * C)
    b_s = tl.zeros([ROWS, HP * KP], tl.float32)
    b_dp = tl.zeros([ROWS, HP * KP], tl.float32)
    key_sums = tl.zeros([HP * KP], tl.float32)
    for start in range(0, C, CHUNK):
        o_channel = start + tl.arange(0, CHUNK)
        b_x = _load_stream(stream, o_channel, C, HAS_UPDATE)
        b_grad = _load(p_grad_out, o_grad, m_row, o_channel, C).to(tl.float32)
        b_keys = _load(p_keys, pair * C, m_pair, o_channel, C)
        b_values = _load(p_values, pair * C, m_pair, o_channel, C)
        b_u = (b_x - mean[:, None]) * inverse[:, None]
        b_s += dot(cast(b_u, b_keys.dtype), tl.trans(b_keys))
        b_dp += dot(cast(b_grad, b_values.dtype), tl.trans(b_values))
        key_sums += tl.sum(b_keys.to(tl.float32), axis=1)
    b_key_bias = tl.load(p_key_bias + clip * (H * K) + pair, mask=m_pair, other=0.0).to(tl.float32)
    b_p = _softmax(b_s + tl.where(token < K, b_key_bias, float("-inf"))[None, :], ROWS, HP, KP)
    b_dp = tl.reshape(b_dp, [ROWS, HP, KP])
    b_ds = b_p * (b_dp - tl.sum(b_p * b_dp, axis=2)[:, :, None])
    if SCALED:
        # Not of dP: fused with the subtraction, its product would not be rounded as the sum's were, and dS would not
        # vanish where a row attends to one token alone.
        b_ds *= tl.load(p_scale + clip).to(tl.float32)
    b_p = cast(tl.reshape(b_p, [ROWS, HP * KP]), p_probs.dtype.element_ty)
    b_ds = cast(tl.reshape(b_ds, [ROWS, HP * KP]), p_keys.dtype.element_ty)
    o_pairs = o_row.to(tl.int64)[:, None] * (HP * KP) + tl.arange(0, HP * KP)[None, :]
    tl.store(p_probs + o_pairs, b_p, mask=m_row[:, None])
    tl.store(p_grad_scores + o_pairs, b_ds, mask=m_row[:, None])

    mean_du = tl.sum(b_ds.to(tl.float32) * key_sums[None, :], axis=1) / C
    mean_turned = tl.sum(b_ds.to(tl.float32) * b_s, axis=1) / C
    o_grad_x = o_row.to(tl.int64) * C
    for start in range(0, C, CHUNK):
        o_channel = start + tl.arange(0, CHUNK)
        b_keys = _load(p_keys, pair * C, m_pair, o_channel, C)
        b_x = _load_stream(stream, o_channel, C, HAS_UPDATE)
        b_grad = _load(p_grad_out, o_grad, m_row, o_channel, C).to(tl.float32)
        b_u = (b_x - mean[:, None]) * inverse[:, None]
        b_du = dot(b_ds, b_keys) - mean_du[:, None] - b_u * mean_turned[:, None]
        b_grad += b_du * inverse[:, None]
        mask = m_row[:, None] & (o_channel < C)[None, :]
        offsets = o_grad_x[:, None] + o_channel[None, :]
        tl.store(p_grad_x + offsets, cast(b_grad, p_grad_x.dtype.element_ty), mask=mask)
        if HAS_UPDATE:
            b_grad *= stream[4][:, None]  # the update's factor
            tl.store(p_grad_update + offsets, cast(b_grad, p_grad_update.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["clip_rows", "rows_per_group", "clips"])
def exchange_backward_pairs(
    p_grad_out, p_x, p_update, p_update_scale, p_scale, p_probs, p_grad_scores, p_statistics, p_grad_keys,
    p_grad_key_bias, p_grad_values, p_grad_out_bias, stride_grad_group, stride_grad_row, stride_x_group, stride_x_row,
    stride_update_group, stride_update_row, clips, clip_rows, rows_per_group, C: tl.constexpr, H: tl.constexpr,
    K: tl.constexpr, HP: tl.constexpr, KP: tl.constexpr, PAIRS: tl.constexpr, SPLITS: tl.constexpr,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, SCALED: tl.constexpr, HAS_UPDATE: tl.constexpr,
    UPDATE_SCALED: tl.constexpr,
):  # fmt: skip
    """grad_keys = dSᵀ · u, grad_values = Pᵀ · scale · grad_out and the bias gradients: sums over a clip's rows.

    A program has PAIRS columns, CHUNK channels and every SPLITS-th tile of a clip. Grid: (SPLITS * B * HP·KP / PAIRS *
    ceil(C / CHUNK),). Results are (SPLITS, B, J, C) of the keys and values, (SPLITS, B, J) and (SPLITS, B, C) of the
    biases.
    """
    CHUNKS: tl.constexpr = (C + CHUNK - 1) // CHUNK
    BLOCKS: tl.constexpr = HP * KP // PAIRS
    chunk = tl.program_id(0) % CHUNKS
    block = tl.program_id(0) // CHUNKS % BLOCKS
    part = tl.program_id(0) // (CHUNKS * BLOCKS)  # split * B + clip
    clip = part % clips
    o_channel = chunk * CHUNK + tl.arange(0, CHUNK)
    o_column = block * PAIRS + tl.arange(0, PAIRS)

    b_dk = tl.zeros([PAIRS, CHUNK], tl.float32)
    b_dv = tl.zeros([PAIRS, CHUNK], tl.float32)
    score_sums = tl.zeros([PAIRS], tl.float32)
    grad_sums = tl.zeros([CHUNK], tl.float32)
    for start in range(part // clips * ROWS, clip_rows, SPLITS * ROWS):
        m_row = start + tl.arange(0, ROWS) < clip_rows
        o_row = clip * clip_rows + start + tl.arange(0, ROWS)
        stream = _stream(
            p_x, p_update, p_update_scale, o_row // rows_per_group, o_row % rows_per_group, m_row, stride_x_group,
            stride_x_row, stride_update_group, stride_update_row, HAS_UPDATE, UPDATE_SCALED,
        )  # fmt: skip
        o_grad = row_offsets(o_row // rows_per_group, o_row % rows_per_group, stride_grad_group, stride_grad_row)
        o_pairs = o_row.to(tl.int64) * (HP * KP)
        b_x = _load_stream(stream, o_channel, C, HAS_UPDATE)
        b_grad = _load(p_grad_out, o_grad, m_row, o_channel, C).to(tl.float32)
        b_p = _load(p_probs, o_pairs, m_row, o_column, HP * KP)
        b_ds = _load(p_grad_scores, o_pairs, m_row, o_column, HP * KP)
        mean = tl.load(p_statistics + 2 * o_row.to(tl.int64), mask=m_row, other=0.0)
        inverse = tl.load(p_statistics + 2 * o_row.to(tl.int64) + 1, mask=m_row, other=0.0)
        b_u = (b_x - mean[:, None]) * inverse[:, None]
        b_dk += dot(tl.trans(b_ds), cast(b_u, b_ds.dtype))
        b_dv += dot(tl.trans(b_p), cast(b_grad, b_p.dtype))
        score_sums += tl.sum(b_ds.to(tl.float32), axis=0)
        grad_sums += tl.sum(b_grad, axis=0)
    if SCALED:
        scale = tl.load(p_scale + clip).to(tl.float32)
        b_dv *= scale
        grad_sums *= scale

    pair = part.to(tl.int64) * (H * K) + o_column // KP * K + o_column % KP
    m_pair = (o_column // KP < H) & (o_column % KP < K)
    o_matrix = pair[:, None] * C + o_channel[None, :]
    mask = m_pair[:, None] & (o_channel < C)[None, :]
    tl.store(p_grad_keys + o_matrix, cast(b_dk, p_grad_keys.dtype.element_ty), mask=mask)
    tl.store(p_grad_values + o_matrix, cast(b_dv, p_grad_values.dtype.element_ty), mask=mask)
    if chunk == 0:
        tl.store(p_grad_key_bias + pair, cast(score_sums, p_grad_key_bias.dtype.element_ty), mask=m_pair)
    if block == 0:
        tl.store(p_grad_out_bias + part.to(tl.int64) * C + o_channel, grad_sums, mask=o_channel < C)

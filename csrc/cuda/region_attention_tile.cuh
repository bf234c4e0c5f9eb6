// Region attention where a region's tokens fit the registers of a few warps (S <= 128), 16-bit elements.
//
// A block holds one head of one region, or of several small ones; sixteen queries are a warp's. Every tensor is read
// once and written once: q, k and v lie in shared memory, scores and probabilities in registers. The backward
// recomputes the probabilities. They and their gradients go to shared memory, over keys and values that have been used
// up, for the two products that sum over queries. No atomics: two runs give the same bits.
// Letters: S tokens a region, D channels a head.
#pragma once

#include "cuda/fragments.cuh"
#include "cuda/region_options.cuh"

namespace mae_dfer {
namespace cuda {

// kTiles: tiles of sixteen tokens that hold a region's, and warps that work on it.
template <class E, int D, int kTiles>
struct TileShape {
  static constexpr int kRegions = kTiles >= 5 ? 1 : kTiles >= 3 ? 2 : 8 / kTiles;  // of a block
  static constexpr int kThreads = 32 * kTiles * kRegions;
  static constexpr int kRows = 16 * kTiles;
  static constexpr int kTileBytes = kRows * Tile<E, D>::kRowBytes;
  // Probabilities: an odd number of sixteen-byte pieces a row lets eight rows lie in different banks.
  static constexpr int kScoreRowBytes = (2 * kTiles + 1) * 16;
  static constexpr int kScoreBytes = kRows * kScoreRowBytes;
  static constexpr int kReusedBytes = kTileBytes > kScoreBytes ? kTileBytes : kScoreBytes;
  static constexpr int kForwardBytes = 3 * kTileBytes * kRegions;
  static constexpr int kBackwardBytes = 2 * (kTileBytes + kReusedBytes) * kRegions;
};

// Which head of which region a warp works on, and which queries.
template <class E, int D, int kTiles>
struct TileTask {
  unsigned slot, thread, row;  // region and thread within the block's share, first query
  int region, head;
  int tokens;  // valid ones: none beyond the last region

  MAE_DFER_DEVICE explicit TileTask(const RegionAttention& problem) {
    slot = warp_index() / kTiles;
    thread = static_cast<unsigned>(thread_index()) % (32 * kTiles);
    row = 16 * (warp_index() % kTiles);
    const int heads = static_cast<int>(problem.heads), block = static_cast<int>(block_index());
    head = block % heads;
    region = block / heads * TileShape<E, D, kTiles>::kRegions + static_cast<int>(slot);
    tokens = region < problem.regions ? static_cast<int>(problem.tokens) : 0;
  }

  // Rows of this head from a packed tensor; of the first region where there is none to read.
  MAE_DFER_DEVICE const E* rows(const void* tensor, int64_t region_stride, int64_t column) const {
    return static_cast<const E*>(tensor) + (tokens ? region : 0) * region_stride + column + int64_t{head} * D;
  }
};

// Scores of a warp's queries become probabilities times their row's sum; `inverse` gets 1 / sum of rows g and g + 8.
template <int kBlocks>
MAE_DFER_DEVICE void soften(Accumulator (&scores)[kBlocks], int tokens, float scale_log2, float (&inverse)[2]) {
  const int p = static_cast<int>(lane_index() % 4);
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
  MAE_DFER_UNROLL
  for (int n = 0; n < kBlocks; ++n) {
    MAE_DFER_UNROLL
    for (int i = 0; i < 4; ++i) {
      const bool inside = 8 * n + 2 * p + i % 2 < tokens;
      scores[n][i] = inside ? scores[n][i] * scale_log2 : -INFINITY;
      top[i / 2] = fmaxf(top[i / 2], scores[n][i]);
    }
  }
  top[0] = row_max(top[0]);
  top[1] = row_max(top[1]);
  MAE_DFER_UNROLL
  for (int n = 0; n < kBlocks; ++n) {
    MAE_DFER_UNROLL
    for (int i = 0; i < 4; ++i) {
      scores[n][i] = exp2_approx(scores[n][i] - top[i / 2]);
      sum[i / 2] += scores[n][i];
    }
  }
  inverse[0] = inverse_approx(row_sum(sum[0]));
  inverse[1] = inverse_approx(row_sum(sum[1]));
}

// C (16 × D), rounded, to a warp's own rows of `stage`, and from there to `to` in whole pieces.
template <class E, int D>
MAE_DFER_DEVICE void store_rows(const uint32_t (&c)[D / 8][2], const Tile<E, D>& stage, unsigned row, E* to,
                                int64_t stride, int tokens) {
  const unsigned lane = lane_index(), g = lane / 4, p = lane % 4;
  MAE_DFER_UNROLL
  for (int n = 0; n < D / 8; ++n) {
    *reinterpret_cast<uint32_t*>(stage.piece(row + g, n) + 4 * p) = c[n][0];
    *reinterpret_cast<uint32_t*>(stage.piece(row + g + 8, n) + 4 * p) = c[n][1];
  }
  sync_warp();
  constexpr unsigned kPieces = Tile<E, D>::kPieces;
  for (unsigned index = lane; index < 16 * kPieces; index += 32) {
    const unsigned local = index / kPieces, place = index % kPieces;
    if (static_cast<int>(row + local) < tokens) {
      char* const target = reinterpret_cast<char*>(to + (row + local) * stride) + place * 16;
      copy_16(target, stage.piece(row + local, place));
    }
  }
}

template <class E, int D>
MAE_DFER_DEVICE void round_rows(uint32_t (&words)[D / 8][2], const Accumulator (&c)[D / 8], float upper, float lower) {
  MAE_DFER_UNROLL
  for (int n = 0; n < D / 8; ++n) {
    words[n][0] = pack(E(), c[n][0] * upper, c[n][1] * upper);
    words[n][1] = pack(E(), c[n][2] * lower, c[n][3] * lower);
  }
}

template <class E, int D, int kTiles>
MAE_DFER_KERNEL((TileShape<E, D, kTiles>::kThreads), (kTiles == 8 ? 1 : 2))
region_forward_tile(const RegionAttention problem, const RegionOptions options) {
  using Shape = TileShape<E, D, kTiles>;
  const TileTask<E, D, kTiles> task(problem);
  char* const memory = shared_memory() + 3 * Shape::kTileBytes * task.slot;
  const Tile<E, D> queries{memory}, keys{memory + Shape::kTileBytes}, values{memory + 2 * Shape::kTileBytes};
  const int64_t model = problem.heads * D, stride = problem.qkv_token_stride;
  const E* const q = task.rows(problem.qkv, problem.qkv_region_stride, 0);
  queries.load_async(q, stride, task.tokens, Shape::kRows, task.thread, 32 * kTiles);
  keys.load_async(q + model, stride, task.tokens, Shape::kRows, task.thread, 32 * kTiles);
  copy_commit();
  values.load_async(q + 2 * model, stride, task.tokens, Shape::kRows, task.thread, 32 * kTiles);
  copy_commit();

  copy_wait<1>();
  sync_block();
  Accumulator scores[2 * kTiles];
  float inverse[2];
  multiply_transposed(scores, queries, task.row, keys, 0);
  soften(scores, static_cast<int>(problem.tokens), options.scale_log2, inverse);

  copy_wait<0>();
  sync_block();
  Accumulator sums[D / 8];
  clear(sums);
  MAE_DFER_UNROLL
  for (int step = 0; step < kTiles; ++step) {
    uint32_t probs[4];
    Product<E>::to_left(probs, scores, step);
    multiply_step(sums, probs, values, 16 * step);
  }
  uint32_t words[D / 8][2];
  round_rows<E, D>(words, sums, inverse[0], inverse[1]);
  E* const out = static_cast<E*>(problem.result) + task.region * problem.tokens * model + task.head * D;
  store_rows(words, queries, task.row, out, model, task.tokens);
}

// Rows and columns of probabilities, or of their gradients, in shared memory: (queries, keys).
template <class E, int D, int kTiles>
struct ScoreTile {
  char* base;

  // Columns 8·block + 2p and + 1 of row g (half 0) or g + 8 (half 1) of a warp's rows.
  MAE_DFER_DEVICE void store(uint32_t word, unsigned row, unsigned block, unsigned half) const {
    const unsigned g = lane_index() / 4, p = lane_index() % 4;
    const unsigned at = (row + g + 8 * half) * TileShape<E, D, kTiles>::kScoreRowBytes + block * 16 + 4 * p;
    *reinterpret_cast<uint32_t*>(base + at) = word;
  }

  // A of rows `row` … `row` + 15, columns 16·step … 16·step + 15.
  MAE_DFER_DEVICE void load_left(uint32_t (&a)[4], unsigned row, unsigned step) const {
    const unsigned lane = lane_index();
    load_matrices(a, base + (row + lane % 16) * TileShape<E, D, kTiles>::kScoreRowBytes + (2 * step + lane / 16) * 16);
  }

  // A of the transpose: keys `key` … `key` + 15, queries `query` … `query` + 15.
  MAE_DFER_DEVICE void load_left_transposed(uint32_t (&a)[4], unsigned key, unsigned query) const {
    const unsigned lane = lane_index();
    const unsigned at = (query + lane % 8 + lane / 16 * 8) * TileShape<E, D, kTiles>::kScoreRowBytes;
    load_matrices_transposed(a, base + at + (key / 8 + lane / 8 % 2) * 16);
  }
};

// Sums over queries for a warp's sixteen keys: C = Pᵀ G, or dSᵀ Q.
template <class E, int D, int kTiles>
MAE_DFER_DEVICE void multiply_over_queries(uint32_t (&words)[D / 8][2], const ScoreTile<E, D, kTiles>& scores, unsigned key,
                                           const Tile<E, D>& rows, float scale) {
  Accumulator sums[D / 8];
  clear(sums);
  MAE_DFER_ROLL
  for (unsigned step = 0; step < kTiles; ++step) {
    uint32_t left[4];
    scores.load_left_transposed(left, key, 16 * step);
    multiply_step(sums, left, rows, 16 * step);
  }
  round_rows<E, D>(words, sums, scale, scale);
}

// dP = dO Vᵀ for `kCount` tiles of keys from `kFirst` on, rounded as plain PyTorch's is, and what they add to Σ P∘dP. All
// at once, in fp32, they would not fit the registers beside the probabilities.
template <class E, int D, int kTiles, int kFirst, int kCount>
MAE_DFER_DEVICE void multiply_with_values(uint32_t (&words)[kTiles][4], float (&delta)[2],
                                          const uint32_t (&probs)[kTiles][4], const Tile<E, D>& grads, unsigned row,
                                          const Tile<E, D>& values) {
  if constexpr (kCount > 0) {
    Accumulator part[2 * kCount];
    multiply_transposed(part, grads, row, values, 16 * kFirst);
    MAE_DFER_UNROLL
    for (int tile = kFirst; tile < kFirst + kCount; ++tile) {
      Product<E>::to_left(words[tile], part, tile - kFirst);
      MAE_DFER_UNROLL
      for (int i = 0; i < 4; ++i) {
        float prob[2], grad[2];
        unpack(E(), probs[tile][i], prob, prob + 1);
        unpack(E(), words[tile][i], grad, grad + 1);
        delta[i % 2] += prob[0] * grad[0] + prob[1] * grad[1];
      }
    }
  }
}

template <class E, int D, int kTiles>
MAE_DFER_KERNEL((TileShape<E, D, kTiles>::kThreads), (kTiles == 8 ? 1 : 2))
region_backward_tile(const RegionAttention problem, const RegionOptions options) {
  using Shape = TileShape<E, D, kTiles>;
  const TileTask<E, D, kTiles> task(problem);
  char* const memory = shared_memory() + 2 * (Shape::kTileBytes + Shape::kReusedBytes) * task.slot;
  char* const value_memory = memory + 2 * Shape::kTileBytes;
  char* const key_memory = value_memory + Shape::kReusedBytes;
  const Tile<E, D> queries{memory}, grads{memory + Shape::kTileBytes}, values{value_memory}, keys{key_memory};
  const ScoreTile<E, D, kTiles> shared_grads{value_memory}, shared_probs{key_memory};
  const int64_t model = problem.heads * D, stride = problem.qkv_token_stride;
  const E* const q = task.rows(problem.qkv, problem.qkv_region_stride, 0);
  const E* const grad_out = task.rows(problem.grad_out, problem.grad_out_region_stride, 0);
  const int count = 32 * kTiles;
  queries.load_async(q, stride, task.tokens, Shape::kRows, task.thread, count);
  keys.load_async(q + model, stride, task.tokens, Shape::kRows, task.thread, count);
  copy_commit();
  values.load_async(q + 2 * model, stride, task.tokens, Shape::kRows, task.thread, count);
  grads.load_async(grad_out, problem.grad_out_token_stride, task.tokens, Shape::kRows, task.thread, count);
  copy_commit();

  // Probabilities of this warp's queries, as the left factor of a product.
  copy_wait<1>();
  sync_block();
  uint32_t probs[kTiles][4];
  {
    Accumulator scores[2 * kTiles];
    float inverse[2];
    multiply_transposed(scores, queries, task.row, keys, 0);
    soften(scores, static_cast<int>(problem.tokens), options.scale_log2, inverse);
    MAE_DFER_UNROLL
    for (int n = 0; n < 2 * kTiles; ++n) {
      MAE_DFER_UNROLL
      for (int i = 0; i < 4; ++i) scores[n][i] *= inverse[i / 2];
    }
    MAE_DFER_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) Product<E>::to_left(probs[tile], scores, tile);
  }

  // dP = dO Vᵀ, and dS = P ∘ (dP - Σ P∘dP).
  copy_wait<0>();
  sync_block();
  uint32_t grad_probs[kTiles][4];
  float delta[2] = {0.0f, 0.0f};
  constexpr int kHalf = (kTiles + 1) / 2;
  multiply_with_values<E, D, kTiles, 0, kHalf>(grad_probs, delta, probs, grads, task.row, values);
  multiply_with_values<E, D, kTiles, kHalf, kTiles - kHalf>(grad_probs, delta, probs, grads, task.row, values);
  delta[0] = row_sum(delta[0]);
  delta[1] = row_sum(delta[1]);
  sync_block();  // values are used up
  MAE_DFER_UNROLL
  for (int tile = 0; tile < kTiles; ++tile) {
    MAE_DFER_UNROLL
    for (int i = 0; i < 4; ++i) {
      float prob[2], grad[2];
      unpack(E(), probs[tile][i], prob, prob + 1);
      unpack(E(), grad_probs[tile][i], grad, grad + 1);
      const uint32_t word = pack(E(), prob[0] * (grad[0] - delta[i % 2]), prob[1] * (grad[1] - delta[i % 2]));
      shared_grads.store(word, task.row, 2 * tile + i / 2, i % 2);
    }
  }

  // dQ = scale · dS K.
  sync_warp();
  uint32_t grad_query[D / 8][2], grad_key[D / 8][2], grad_value[D / 8][2];
  {
    Accumulator sums[D / 8];
    clear(sums);
    MAE_DFER_ROLL
    for (unsigned step = 0; step < kTiles; ++step) {
      uint32_t left[4];
      shared_grads.load_left(left, task.row, step);
      multiply_step(sums, left, keys, 16 * step);
    }
    round_rows<E, D>(grad_query, sums, options.scale, options.scale);
  }

  // dV = Pᵀ dO and dK = scale · dSᵀ Q.
  sync_block();  // keys are used up
  MAE_DFER_UNROLL
  for (int tile = 0; tile < kTiles; ++tile) {
    MAE_DFER_UNROLL
    for (int i = 0; i < 4; ++i) shared_probs.store(probs[tile][i], task.row, 2 * tile + i / 2, i % 2);
  }
  sync_block();
  multiply_over_queries(grad_value, shared_probs, task.row, grads, 1.0f);
  multiply_over_queries(grad_key, shared_grads, task.row, queries, options.scale);

  sync_block();
  E* const to = static_cast<E*>(problem.result) + task.region * problem.tokens * 3 * model + task.head * D;
  store_rows(grad_query, queries, task.row, to, 3 * model, task.tokens);
  store_rows(grad_key, grads, task.row, to + model, 3 * model, task.tokens);
  // Between the two stores, all of the warp have read what the first one left in the queries' place.
  store_rows(grad_value, queries, task.row, to + 2 * model, 3 * model, task.tokens);
}

}  // namespace cuda
}  // namespace mae_dfer

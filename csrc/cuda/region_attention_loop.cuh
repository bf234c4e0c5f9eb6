// Region attention by running sums over chunks of tokens: any S, every element type, dropout.
//
// A block owns some queries of one region's head (or keys, for their gradients), and walks over all others in chunks
// that are copied while the chunk before is worked on. The backward is two kernels rather than atomic additions: the
// first owns queries and leaves the statistics of their rows, (3, R·H, S) fp32: maximum in units of log2, 1 / sum, and
// delta = Σ P∘dP; the second owns keys. Letters: R regions, S tokens a region, H heads, D channels a head.
#pragma once

#include "cuda/fragments.cuh"
#include "cuda/philox.cuh"
#include "cuda/region_options.cuh"

namespace mae_dfer {
namespace cuda {

template <class E, int D>
struct LoopShape {
  static constexpr int kRowBytes = Tile<E, D>::kRowBytes;
  static constexpr bool kWidest = kRowBytes >= 512;
  static constexpr int kOwned = kWidest ? 32 : 64;  // what smaller GPUs' shared memory holds
  static constexpr int kThreads = 2 * kOwned;       // sixteen rows a warp
  static constexpr int kChunk = kWidest ? 16 : 32;  // scores that registers hold beside the sums
  static constexpr int kBlocks = kChunk / 8;        // of a row of scores
  static constexpr int kForwardBytes = (kOwned + 4 * kChunk) * kRowBytes;
  static constexpr int kBackwardBytes = (2 * kOwned + 4 * kChunk) * kRowBytes;
};

// What a block works on: one head of one region, and the rows it owns.
template <class E, int D>
struct LoopTask {
  int64_t region, head, heads, model;
  int tokens, first;  // first row that the block owns
  unsigned row;       // this warp's, within the block's
  DropoutKey dropout;
  bool drops;
  float kept;

  MAE_DFER_DEVICE LoopTask(const RegionAttention& problem, const RegionOptions& options) {
    tokens = static_cast<int>(problem.tokens);
    constexpr int kOwned = LoopShape<E, D>::kOwned;
    const int64_t tiles = (tokens + kOwned - 1) / kOwned, matrix = block_index() / tiles;
    first = static_cast<int>(block_index() % tiles) * kOwned;
    region = matrix / problem.heads;
    heads = problem.heads;
    head = matrix % heads;
    model = heads * D;
    row = 16 * warp_index();
    drops = options.drops;
    kept = options.kept;
    dropout = {problem.seed, options.threshold, static_cast<uint32_t>(matrix)};
  }
  MAE_DFER_DEVICE const E* packed(const RegionAttention& problem, int part) const {
    return static_cast<const E*>(problem.qkv) + region * problem.qkv_region_stride + part * model + head * D;
  }
  MAE_DFER_DEVICE const E* grad_out(const RegionAttention& problem) const {
    return static_cast<const E*>(problem.grad_out) + region * problem.grad_out_region_stride + head * D;
  }
  // This thread's rows g and g + 8, as numbers within the region.
  MAE_DFER_DEVICE int token(int half) const { return first + static_cast<int>(row + lane_index() / 4) + 8 * half; }
  MAE_DFER_DEVICE int64_t statistic(int64_t token) const {
    return (region * heads + head) * tokens + token;
  }
};

// Two matrices whose rows go by in chunks, the next chunk on its way while one is worked on.
template <class E, int D>
struct Stream {
  const E *left, *right;
  int64_t left_stride, right_stride;
  int tokens;
  char* memory;  // two stages of two tiles

  MAE_DFER_DEVICE Tile<E, D> tile(int chunk, int which) const {
    return {memory + (chunk % 2 * 2 + which) * LoopShape<E, D>::kChunk * Tile<E, D>::kRowBytes};
  }
  MAE_DFER_DEVICE int chunks() const { return (tokens + LoopShape<E, D>::kChunk - 1) / LoopShape<E, D>::kChunk; }
  MAE_DFER_DEVICE void start(int chunk) const {
    constexpr int kChunk = LoopShape<E, D>::kChunk;
    if (chunk >= chunks()) return;
    const int64_t first = static_cast<int64_t>(chunk) * kChunk;
    const int valid = tokens - static_cast<int>(first);
    tile(chunk, 0).load_async(left + first * left_stride, left_stride, valid, kChunk, thread_index(), block_threads());
    tile(chunk, 1).load_async(right + first * right_stride, right_stride, valid, kChunk, thread_index(),
                              block_threads());
    copy_commit();
  }
  // From here on this chunk's tiles can be read, and those of the chunk before no longer: the next takes their place.
  MAE_DFER_DEVICE void begin(int chunk) const {
    copy_wait<0>();
    sync_block();
    start(chunk + 1);
  }
};

// Scores of a warp's queries times scale / ln 2; minus infinity for columns beyond the last token.
template <class E, int D>
MAE_DFER_DEVICE void chunk_scores(Accumulator (&scores)[LoopShape<E, D>::kBlocks], const Tile<E, D>& queries, unsigned row,
                                  const Tile<E, D>& keys, int columns, float scale_log2) {
  multiply_transposed(scores, queries, row, keys, 0);
  const int p = static_cast<int>(lane_index() % 4);
  MAE_DFER_UNROLL
  for (int n = 0; n < LoopShape<E, D>::kBlocks; ++n) {
    MAE_DFER_UNROLL
    for (int i = 0; i < 4; ++i) {
      scores[n][i] = 8 * n + 2 * p + i % 2 < columns ? scores[n][i] * scale_log2 : -INFINITY;
    }
  }
}

// Running maximum, sum and sum of P∘dP of a thread's two rows.
struct RowStatistics {
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f}, delta[2] = {0.0f, 0.0f};

  // Takes in a chunk's scores, which become exp2(score - maximum); `shrink` is what earlier sums were multiplied by.
  template <int kBlocks>
  MAE_DFER_DEVICE void add(Accumulator (&scores)[kBlocks], float (&shrink)[2]) {
    float high[2] = {top[0], top[1]}, chunk[2] = {0.0f, 0.0f};
    MAE_DFER_UNROLL
    for (int n = 0; n < kBlocks; ++n) {
      MAE_DFER_UNROLL
      for (int i = 0; i < 4; ++i) high[i / 2] = fmaxf(high[i / 2], scores[n][i]);
    }
    MAE_DFER_UNROLL
    for (int half = 0; half < 2; ++half) {
      high[half] = row_max(high[half]);
      shrink[half] = exp2_approx(top[half] - high[half]);
      top[half] = high[half];
    }
    MAE_DFER_UNROLL
    for (int n = 0; n < kBlocks; ++n) {
      MAE_DFER_UNROLL
      for (int i = 0; i < 4; ++i) {
        scores[n][i] = exp2_approx(scores[n][i] - high[i / 2]);
        chunk[i / 2] += scores[n][i];
      }
    }
    MAE_DFER_UNROLL
    for (int half = 0; half < 2; ++half) sum[half] = sum[half] * shrink[half] + row_sum(chunk[half]);
  }
};

// Zeroes what is dropped and multiplies what is kept; rows are queries, columns keys.
template <class E, int D>
MAE_DFER_DEVICE void drop(Accumulator (&values)[LoopShape<E, D>::kBlocks], const LoopTask<E, D>& task, int first_key) {
  if (!task.drops) return;
  const int p = static_cast<int>(lane_index() % 4);
  MAE_DFER_UNROLL
  for (int n = 0; n < LoopShape<E, D>::kBlocks; ++n) {
    for (int i = 0; i < 4; ++i) {
      const bool keeps = task.dropout.keeps(task.token(i / 2), first_key + 8 * n + 2 * p + i % 2);
      values[n][i] = keeps ? values[n][i] * task.kept : 0.0f;
    }
  }
}

// C (16 × D) of a warp to its rows of `to`.
template <class E, int D>
MAE_DFER_DEVICE void store_sums(const Accumulator (&c)[D / 8], const LoopTask<E, D>& task, float upper, float lower,
                                E* to, int64_t stride) {
  const int p = static_cast<int>(lane_index() % 4);
  const float factors[2] = {upper, lower};
  MAE_DFER_UNROLL
  for (int half = 0; half < 2; ++half) {
    if (task.token(half) < task.tokens) {
      E* const row = to + task.token(half) * stride;
      MAE_DFER_UNROLL
      for (int n = 0; n < D / 8; ++n) {
        store_pair(row + 8 * n + 2 * p, c[n][2 * half] * factors[half], c[n][2 * half + 1] * factors[half]);
      }
    }
  }
}

template <class E, int D>
MAE_DFER_KERNEL((LoopShape<E, D>::kThreads), 1)
region_forward_loop(const RegionAttention problem, const RegionOptions options) {
  using Shape = LoopShape<E, D>;
  const LoopTask<E, D> task(problem, options);
  const int64_t stride = problem.qkv_token_stride;
  const Tile<E, D> queries{shared_memory()};
  const Stream<E, D> stream{task.packed(problem, 1), task.packed(problem, 2), stride, stride, task.tokens,
                            shared_memory() + Shape::kOwned * Shape::kRowBytes};
  queries.load_async(task.packed(problem, 0) + task.first * stride, stride, task.tokens - task.first, Shape::kOwned,
                     thread_index(), block_threads());
  stream.start(0);
  RowStatistics rows;
  Accumulator sums[D / 8];
  clear(sums);
  for (int chunk = 0; chunk < stream.chunks(); ++chunk) {
    const int first_key = chunk * Shape::kChunk;
    stream.begin(chunk);
    Accumulator scores[Shape::kBlocks];
    float shrink[2];
    chunk_scores(scores, queries, task.row, stream.tile(chunk, 0), task.tokens - first_key, options.scale_log2);
    rows.add(scores, shrink);
    drop(scores, task, first_key);
    MAE_DFER_UNROLL
    for (int n = 0; n < D / 8; ++n) {
      MAE_DFER_UNROLL
      for (int i = 0; i < 4; ++i) sums[n][i] *= shrink[i / 2];
    }
    multiply_scores(sums, scores, stream.tile(chunk, 1));
  }
  E* const out = static_cast<E*>(problem.result) + task.region * problem.tokens * task.model + task.head * D;
  store_sums(sums, task, 1.0f / rows.sum[0], 1.0f / rows.sum[1], out, task.model);
}

// dq of the block's queries, in two walks over the keys: statistics first.
template <class E, int D>
MAE_DFER_KERNEL((LoopShape<E, D>::kThreads), 1)
region_backward_queries(const RegionAttention problem, const RegionOptions options, float* statistics) {
  using Shape = LoopShape<E, D>;
  const LoopTask<E, D> task(problem, options);
  const int64_t stride = problem.qkv_token_stride, grad_stride = problem.grad_out_token_stride;
  const Tile<E, D> queries{shared_memory()}, grads{shared_memory() + Shape::kOwned * Shape::kRowBytes};
  const Stream<E, D> stream{task.packed(problem, 1), task.packed(problem, 2), stride, stride, task.tokens,
                            shared_memory() + 2 * Shape::kOwned * Shape::kRowBytes};
  const int owned = task.tokens - task.first;
  queries.load_async(task.packed(problem, 0) + task.first * stride, stride, owned, Shape::kOwned, thread_index(),
                     block_threads());
  grads.load_async(task.grad_out(problem) + task.first * grad_stride, grad_stride, owned, Shape::kOwned,
                   thread_index(), block_threads());
  RowStatistics rows;
  Accumulator scores[Shape::kBlocks], grad_probs[Shape::kBlocks];
  stream.start(0);
  for (int chunk = 0; chunk < stream.chunks(); ++chunk) {
    const int first_key = chunk * Shape::kChunk;
    stream.begin(chunk);
    float shrink[2], products[2] = {0.0f, 0.0f};
    chunk_scores(scores, queries, task.row, stream.tile(chunk, 0), task.tokens - first_key, options.scale_log2);
    multiply_transposed(grad_probs, grads, task.row, stream.tile(chunk, 1), 0);
    drop(grad_probs, task, first_key);
    rows.add(scores, shrink);
    MAE_DFER_UNROLL
    for (int n = 0; n < Shape::kBlocks; ++n) {
      MAE_DFER_UNROLL
      for (int i = 0; i < 4; ++i) products[i / 2] += scores[n][i] * grad_probs[n][i];
    }
    MAE_DFER_UNROLL
    for (int half = 0; half < 2; ++half) {
      rows.delta[half] = rows.delta[half] * shrink[half] + row_sum(products[half]);
    }
  }
  float inverse[2];
  const int64_t distance = problem.regions * problem.heads * problem.tokens;
  MAE_DFER_UNROLL
  for (int half = 0; half < 2; ++half) {
    inverse[half] = 1.0f / rows.sum[half];
    rows.delta[half] *= inverse[half];
    if (lane_index() % 4 == 0 && task.token(half) < task.tokens) {
      float* const row = statistics + task.statistic(task.token(half));
      row[0] = rows.top[half];
      row[distance] = inverse[half];
      row[2 * distance] = rows.delta[half];
    }
  }

  Accumulator sums[D / 8];
  clear(sums);
  sync_block();  // the first walk is over for all
  stream.start(0);
  for (int chunk = 0; chunk < stream.chunks(); ++chunk) {
    const int first_key = chunk * Shape::kChunk;
    stream.begin(chunk);
    chunk_scores(scores, queries, task.row, stream.tile(chunk, 0), task.tokens - first_key, options.scale_log2);
    multiply_transposed(grad_probs, grads, task.row, stream.tile(chunk, 1), 0);
    drop(grad_probs, task, first_key);
    MAE_DFER_UNROLL
    for (int n = 0; n < Shape::kBlocks; ++n) {
      MAE_DFER_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float prob = exp2_approx(scores[n][i] - rows.top[i / 2]) * inverse[i / 2];
        scores[n][i] = prob * (grad_probs[n][i] - rows.delta[i / 2]);
      }
    }
    multiply_scores(sums, scores, stream.tile(chunk, 0));
  }
  E* const to = static_cast<E*>(problem.result) + task.region * problem.tokens * 3 * task.model + task.head * D;
  store_sums(sums, task, options.scale, options.scale, to, 3 * task.model);
}

// dk and dv of the block's keys, in one walk over the queries. Everything is transposed: rows are keys.
template <class E, int D>
MAE_DFER_KERNEL((LoopShape<E, D>::kThreads), 1)
region_backward_keys(const RegionAttention problem, const RegionOptions options, const float* statistics) {
  using Shape = LoopShape<E, D>;
  const LoopTask<E, D> task(problem, options);
  const int64_t stride = problem.qkv_token_stride;
  const Tile<E, D> keys{shared_memory()}, values{shared_memory() + Shape::kOwned * Shape::kRowBytes};
  const Stream<E, D> stream{task.packed(problem, 0), task.grad_out(problem), stride, problem.grad_out_token_stride,
                            task.tokens, shared_memory() + 2 * Shape::kOwned * Shape::kRowBytes};
  const int owned = task.tokens - task.first;
  keys.load_async(task.packed(problem, 1) + task.first * stride, stride, owned, Shape::kOwned, thread_index(),
                  block_threads());
  values.load_async(task.packed(problem, 2) + task.first * stride, stride, owned, Shape::kOwned, thread_index(),
                    block_threads());
  const int64_t distance = problem.regions * problem.heads * problem.tokens;
  const int p = static_cast<int>(lane_index() % 4);
  Accumulator key_sums[D / 8], value_sums[D / 8];
  clear(key_sums);
  clear(value_sums);
  stream.start(0);
  for (int chunk = 0; chunk < stream.chunks(); ++chunk) {
    const int first_query = chunk * Shape::kChunk;
    stream.begin(chunk);
    Accumulator probs[Shape::kBlocks], grads[Shape::kBlocks];
    multiply_transposed(probs, keys, task.row, stream.tile(chunk, 0), 0);
    multiply_transposed(grads, values, task.row, stream.tile(chunk, 1), 0);
    MAE_DFER_UNROLL
    for (int n = 0; n < Shape::kBlocks; ++n) {
      MAE_DFER_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int query = first_query + 8 * n + 2 * p + i % 2;
        // Queries beyond the last have q = dO = 0, so what they add is nothing, if only it is finite.
        const float* const row = statistics + task.statistic(query < task.tokens ? query : 0);
        const bool inside = query < task.tokens;
        const float prob = inside ? exp2_approx(probs[n][i] * options.scale_log2 - row[0]) * row[distance] : 0.0f;
        float factor = 1.0f;
        if (task.drops) factor = task.dropout.keeps(query, task.token(i / 2)) ? task.kept : 0.0f;
        probs[n][i] = prob * factor;
        grads[n][i] = prob * (grads[n][i] * factor - row[2 * distance]);
      }
    }
    multiply_scores(value_sums, probs, stream.tile(chunk, 1));
    multiply_scores(key_sums, grads, stream.tile(chunk, 0));
  }
  E* const to = static_cast<E*>(problem.result) + task.region * problem.tokens * 3 * task.model + task.head * D;
  store_sums(key_sums, task, options.scale, options.scale, to + task.model, 3 * task.model);
  store_sums(value_sums, task, 1.0f, 1.0f, to + 2 * task.model, 3 * task.model);
}

}  // namespace cuda
}  // namespace mae_dfer

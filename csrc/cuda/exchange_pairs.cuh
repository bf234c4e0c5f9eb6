// The exchange kernel that owns pairs and channels: gradients that are sums over a clip's rows.
//
// It reads x and grad_out once more and the P and dS that `exchange_backward_rows` left. A clip's rows may be shared
// out among several blocks, each of which leaves sums of its own: no atomics, so two runs give the same bits.
#pragma once

#include "cuda/exchange_tile.cuh"
#include "cuda/ops.h"

namespace mae_dfer {
namespace cuda {

template <class E>
struct PairsShape {
  static constexpr unsigned kWarps = 8;  // sixteen channels each
  static constexpr unsigned kChannels = 16 * kWarps;
  static constexpr unsigned kRows = 32;  // of a step through the clip; one of eight threads each
  static constexpr unsigned kTileBytes = kRows * kChunkBytes;
  static constexpr unsigned kTiles = kChannels / ExchangeShape<E>::kChunk;
  static constexpr unsigned kGroupBytes = static_cast<unsigned>(ExchangeShape<E>::kWarpScoreBytes);
  static constexpr unsigned kScoreBytes = kRows / kRowsOfWarp * kGroupBytes;
  static constexpr unsigned kStageBytes = 2 * kTiles * kTileBytes + 2 * kScoreBytes + kRows * 2 * sizeof(float);
};

// What a block works on: `part` of the rows of `clip`, pass `pass` of its pairs and channels from `first` on.
template <class E>
struct PairsTask {
  using Shape = PairsShape<E>;
  const Exchange& problem;
  const ExchangeOptions& options;
  const ExchangeBackward& backward;
  unsigned clip, pass, part, first, steps;

  MAE_DFER_DEVICE PairsTask(const Exchange& the_problem, const ExchangeOptions& the_options,
                            const ExchangeBackward& the_backward)
      : problem(the_problem), options(the_options), backward(the_backward) {
    const unsigned parts = static_cast<unsigned>(backward.splits), passes = options.columns / kPass;
    unsigned block = static_cast<unsigned>(block_index());
    const unsigned slices = (static_cast<unsigned>(problem.channels) + Shape::kChannels - 1) / Shape::kChannels;
    first = block % slices * Shape::kChannels;
    block /= slices;
    pass = block % passes;
    block /= passes;
    part = block % parts;
    clip = block / parts;
    steps = (options.clip_rows + Shape::kRows - 1) / Shape::kRows;
  }

  MAE_DFER_DEVICE char* stage(unsigned turn) const { return shared_memory() + turn % 2 * Shape::kStageBytes; }
  static MAE_DFER_DEVICE char* grads(char* stage) { return stage + Shape::kTiles * Shape::kTileBytes; }
  static MAE_DFER_DEVICE char* probs(char* stage) { return stage + 2 * Shape::kTiles * Shape::kTileBytes; }
  static MAE_DFER_DEVICE char* grad_scores(char* stage) { return probs(stage) + Shape::kScoreBytes; }
  static MAE_DFER_DEVICE const float* statistics(char* stage) {
    return reinterpret_cast<const float*>(grad_scores(stage) + Shape::kScoreBytes);
  }

  // Starts copying what belongs to rows kRows·step … of the clip; zeros beyond its last row and channel.
  MAE_DFER_DEVICE void start(unsigned step, unsigned turn) const {
    if (step >= steps) return;
    char* const memory = stage(turn);
    const unsigned thread = static_cast<unsigned>(thread_index());
    const unsigned local = thread / 8, piece = thread % 8, row = step * Shape::kRows + local;
    const bool inside = row < options.clip_rows;
    const int64_t index = int64_t{clip} * options.clip_rows + (inside ? row : 0);
    copy_rows(problem.x, index, memory, local, piece, inside);
    copy_rows(problem.grad_out, index, grads(memory), local, piece, inside);
    copy_scores(backward.probs, probs(memory), step, thread);
    copy_scores(backward.grad_scores, grad_scores(memory), step, thread);
    if (thread < Shape::kRows / 2) {  // two rows' numbers are a piece
      const unsigned even = step * Shape::kRows + 2 * thread;
      const bool known = even < options.clip_groups * kRowsOfWarp;
      const float* const from = backward.statistics + 2 * (int64_t{clip} * options.clip_groups * kRowsOfWarp);
      copy_async(grad_scores(memory) + Shape::kScoreBytes + 16 * thread, from + (known ? 2 * even : 0), known);
    }
    copy_commit();
  }

 private:
  MAE_DFER_DEVICE void copy_rows(const StridedRows& rows, int64_t index, char* memory, unsigned local, unsigned piece,
                                 bool inside) const {
    const unsigned rows_per_group = static_cast<unsigned>(problem.rows), whole = static_cast<unsigned>(index);
    const unsigned group = whole / rows_per_group;
    const char* const row = static_cast<const char*>(rows.data) +
                            (group * rows.group_stride + (whole - group * rows_per_group) * rows.row_stride) *
                                static_cast<int64_t>(sizeof(E));
    MAE_DFER_UNROLL
    for (unsigned tile = 0; tile < Shape::kTiles; ++tile) {
      const unsigned byte = static_cast<unsigned>(first * sizeof(E)) + tile * kChunkBytes + piece * 16;
      const bool valid = inside && byte < problem.channels * sizeof(E);
      const ChunkTile<E> target{memory + tile * Shape::kTileBytes};
      copy_async(target.piece(local, piece), row + (valid ? byte : 0), valid);
    }
  }
  MAE_DFER_DEVICE void copy_scores(const void* scores, char* memory, unsigned step, unsigned thread) const {
    const unsigned passes = options.columns / kPass;
    constexpr unsigned kPieces = Shape::kGroupBytes / 16;
    for (unsigned index = thread; index < Shape::kScoreBytes / 16; index += 32 * Shape::kWarps) {
      const unsigned group = step * (Shape::kRows / kRowsOfWarp) + index / kPieces;
      const bool known = group < options.clip_groups;
      const int64_t place = int64_t{clip} * options.clip_groups + (known ? group : 0);
      const char* const from = static_cast<const char*>(scores) + (place * passes + pass) * Shape::kGroupBytes;
      copy_async(memory + 16 * index, from + index % kPieces * 16, known);
    }
  }
};

// A of the transpose of scores that `ScoreBlocks::store` left: columns 16·block … of a pass, rows of step `step`, in
// the order in which `Product<E>::load_right` takes the rows of B. `scores` are the sixteen rows that the step is of.
template <class E>
MAE_DFER_DEVICE void load_left_transposed(uint32_t (&a)[4], const char* scores, unsigned block, unsigned step) {
  const unsigned lane = lane_index(), g = lane / 4, p = lane % 4;
  if constexpr (sizeof(E) == 2) {
    // Of the four 8 × 8 matrices, the second and third change places.
    const unsigned matrix = lane / 8, turned = matrix % 2 * 2 + matrix / 2;
    load_matrices_transposed(a, scores + block * ScoreBlocks<E>::kBytes + 128 * turned + 16 * (lane % 8));
  } else {
    // Row 2p + i (of upper or lower eight) and column g of either block of eight: word (upper or lower) + 2·(g % 2).
    MAE_DFER_UNROLL
    for (unsigned i = 0; i < 4; ++i) {
      const char* const from = scores + (2 * block + i % 2) * ScoreBlocks<E>::kBytes;
      const unsigned at = 128 * (step % 2 + 2 * (g % 2)) + 16 * (2 * p + i / 2) + 4 * (g / 2);
      a[i] = *reinterpret_cast<const uint32_t*>(from + at);
    }
  }
}

// u of x, in a right factor of sixteen columns; `statistics` are of the rows of its step.
template <class E>
MAE_DFER_DEVICE void standardise_right(uint32_t (&b)[2][2], const float* statistics) {
  const unsigned p = lane_index() % 4;
  MAE_DFER_UNROLL
  for (unsigned i = 0; i < 2; ++i) {
    MAE_DFER_UNROLL
    for (unsigned block = 0; block < 2; ++block) {
      float values[Word<E>::kCount];
      Word<E>::get(b[block][i], values);
      MAE_DFER_UNROLL
      for (unsigned e = 0; e < Word<E>::kCount; ++e) {
        const unsigned row = sizeof(E) == 2 ? 2 * p + 8 * i + e : 2 * p + i;
        values[e] = (values[e] - statistics[2 * row]) * statistics[2 * row + 1];
      }
      b[block][i] = Word<E>::put(values);
    }
  }
}

// A word of ones.
template <class E>
MAE_DFER_DEVICE uint32_t ones() {
  float values[Word<E>::kCount];
  MAE_DFER_UNROLL
  for (int e = 0; e < Word<E>::kCount; ++e) values[e] = 1.0f;
  return Word<E>::put(values);
}

constexpr unsigned kPairBlocks = kPass / 16;

// C (pairs × 16 channels), all four blocks of pairs, to rows of `channels` floats.
MAE_DFER_DEVICE void store_sums(const Accumulator (&c)[kPairBlocks][2], float factor, float* to, unsigned channels,
                                unsigned first) {
  const unsigned g = lane_index() / 4, p = lane_index() % 4;
  MAE_DFER_UNROLL
  for (unsigned m = 0; m < kPairBlocks; ++m) {
    MAE_DFER_UNROLL
    for (unsigned n = 0; n < 2; ++n) {
      const unsigned channel = first + 8 * n + 2 * p;
      if (channel < channels) {
        float* const at = to + int64_t{16 * m + g} * channels + channel;
        store_pair(at, factor * c[m][n][0], factor * c[m][n][1]);
        store_pair(at + int64_t{8} * channels, factor * c[m][n][2], factor * c[m][n][3]);
      }
    }
  }
}

// d(keys) = dSᵀ u, d(values) = scale · Pᵀ grad_out, d(out_bias) = scale · Σ grad_out and d(key_bias) = Σ dS.
template <class E>
MAE_DFER_KERNEL((32 * PairsShape<E>::kWarps), (sizeof(E) == 2 ? 2 : 1))
exchange_backward_pairs(const Exchange problem, const ExchangeOptions options, const ExchangeBackward backward) {
  using Shape = PairsShape<E>;
  using Task = PairsTask<E>;
  const Task task(problem, options, backward);
  const unsigned splits = static_cast<unsigned>(backward.splits), channel = 16 * warp_index();
  const unsigned tile_offset = channel / ExchangeShape<E>::kChunk * Shape::kTileBytes;
  const unsigned column = channel % ExchangeShape<E>::kChunk;
  // Sums of columns are products with ones; one warp's or one pass's are enough.
  const bool sums_scores = task.first + channel == 0, sums_grads = task.pass == 0;
  const uint32_t one = ones<E>();
  const uint32_t left_ones[4] = {one, one, one, one}, right_ones[2] = {one, one};

  Accumulator keys[kPairBlocks][2], values[kPairBlocks][2], grad_sums[2], score_sums[kPairBlocks];
  clear(grad_sums);
  clear(score_sums);
  MAE_DFER_UNROLL
  for (unsigned m = 0; m < kPairBlocks; ++m) {
    clear(keys[m]);
    clear(values[m]);
  }
  task.start(task.part, 0);
  unsigned turn = 0;
  for (unsigned step = task.part; step < task.steps; step += splits, ++turn) {
    copy_wait<0>();
    sync_block();
    task.start(step + splits, turn + 1);
    char* const stage = task.stage(turn);
    const ChunkTile<E> x{stage + tile_offset}, grads{Task::grads(stage) + tile_offset};
    MAE_DFER_ROLL
    for (unsigned inner = 0; inner < Shape::kRows / Product<E>::kStep; ++inner) {
      const unsigned row = inner * Product<E>::kStep, group = row / kRowsOfWarp * Shape::kGroupBytes;
      uint32_t right_unit[2][2], right_grads[2][2];
      Product<E>::load_right(right_unit, x, row, column);
      Product<E>::load_right(right_grads, grads, row, column);
      standardise_right<E>(right_unit, Task::statistics(stage) + 2 * row);
      MAE_DFER_UNROLL
      for (unsigned m = 0; m < kPairBlocks; ++m) {
        uint32_t left[4];
        load_left_transposed<E>(left, Task::grad_scores(stage) + group, m, inner);
        Product<E>::add(keys[m][0], left, right_unit[0]);
        Product<E>::add(keys[m][1], left, right_unit[1]);
        if (sums_scores) Product<E>::add(score_sums[m], left, right_ones);
        load_left_transposed<E>(left, Task::probs(stage) + group, m, inner);
        Product<E>::add(values[m][0], left, right_grads[0]);
        Product<E>::add(values[m][1], left, right_grads[1]);
      }
      if (sums_grads) {
        Product<E>::add(grad_sums[0], left_ones, right_grads[0]);
        Product<E>::add(grad_sums[1], left_ones, right_grads[1]);
      }
    }
  }

  const float scale = problem.row_scale ? static_cast<const float*>(problem.row_scale)[task.clip] : 1.0f;
  const unsigned channels = static_cast<unsigned>(problem.channels), first = task.first + channel;
  const unsigned g = lane_index() / 4, p = lane_index() % 4;
  const int64_t sums = int64_t{task.part} * problem.clips + task.clip;
  const int64_t pair = sums * options.columns + task.pass * kPass;
  store_sums(keys, 1.0f, backward.grad_keys + pair * channels, channels, first);
  store_sums(values, scale, backward.grad_values + pair * channels, channels, first);
  MAE_DFER_UNROLL
  for (unsigned n = 0; n < 2; ++n) {
    const unsigned at = first + 8 * n + 2 * p;
    if (sums_grads && g == 0 && at < channels) {
      store_pair(backward.grad_out_bias + sums * channels + at, scale * grad_sums[n][0], scale * grad_sums[n][1]);
    }
  }
  if (sums_scores && p == 0) {
    MAE_DFER_UNROLL
    for (unsigned m = 0; m < kPairBlocks; ++m) {
      backward.grad_key_bias[pair + 16 * m + g] = score_sums[m][0];
      backward.grad_key_bias[pair + 16 * m + g + 8] = score_sums[m][2];
    }
  }
}

}  // namespace cuda
}  // namespace mae_dfer

// The exchange kernels that own rows: the forward, and the backward of x.
//
// A block holds its rows' x in shared memory from the first step to the last, so that it is read from memory once: for
// LayerNorm's statistics, for the scores and for the residual. Keys and values go by in tiles of a pass of pairs by a
// chunk of channels, the next on its way while one is worked on. Results take x's place, and leave in whole pieces.
#pragma once

#include "cuda/exchange_softmax.cuh"
#include "cuda/ops.h"

namespace mae_dfer {
namespace cuda {

// What is to be copied next: a tile of keys or values, and with it perhaps a chunk of the warps' rows of grad_out.
struct Next {
  const void* matrix;  // of the clip; null: nothing
  unsigned pass, chunk;
  bool rows;
};

// Tiles that go by, two stages: one is worked on while the next is on its way.
template <class E>
struct TileStream {
  char* memory;
  unsigned stage_bytes, row_bytes;
  unsigned row;  // of the block's, this warp's first
  unsigned turn = 0;

  static constexpr unsigned kTileBytes = kPass * kChunkBytes;

  // The rows that came with a tile.
  static MAE_DFER_DEVICE ChunkTile<E> rows_with(const ChunkTile<E>& tile) { return {tile.base + kTileBytes}; }

  MAE_DFER_DEVICE void start(const Next& next, const WarpRows* rows) const {
    if (next.matrix == nullptr) return;
    const ChunkTile<E> tile{memory + turn % 2 * stage_bytes};
    const unsigned pieces = pieces_of_chunk(row_bytes, next.chunk);
    const char* const from = static_cast<const char*>(next.matrix) + int64_t{next.pass} * kPass * row_bytes +
                             next.chunk * kChunkBytes;
    for (unsigned index = thread_index(); index < kPass * 8; index += block_threads()) {
      const unsigned pair = index / 8, piece = index % 8;
      const bool inside = piece < pieces;
      copy_async(tile.piece(pair, piece), inside ? from + pair * row_bytes + piece * 16 : from, inside);
    }
    if (rows != nullptr && next.rows) rows->load_async<E>(rows_with(tile), row, next.chunk, pieces);
    copy_commit();
  }
  // The tile that was started last; the one before it can be read no longer, and `next` takes its place.
  MAE_DFER_DEVICE ChunkTile<E> take(const Next& next, const WarpRows* rows = nullptr) {
    copy_wait<0>();
    sync_block();
    const ChunkTile<E> tile{memory + turn % 2 * stage_bytes};
    ++turn;
    start(next, rows);
    return tile;
  }
};

// A block's work, whichever the direction: its shared memory holds x, then each warp's scores, then the stream's tiles.
template <class E>
struct RowsKernel {
  using Shape = ExchangeShape<E>;
  static constexpr unsigned kBlocks = Shape::kChunk / 8;  // of a chunk of a result

  const Exchange& problem;
  const ExchangeOptions& options;
  RowsTask<E> task;
  unsigned passes;
  char* warp_scores;
  const char *keys, *values;  // of the clip
  int64_t first_pair;
  float scale;
  TileStream<E> stream;

  MAE_DFER_DEVICE RowsKernel(const Exchange& the_problem, const ExchangeOptions& the_options, bool streams_rows)
      : problem(the_problem), options(the_options), task(problem, options), passes(options.columns / kPass),
        stream{nullptr, TileStream<E>::kTileBytes + (streams_rows ? task.rows * kChunkBytes : 0), task.row_bytes,
               task.row} {
    char* const all_scores = task.memory + task.chunks * task.rows * kChunkBytes;
    warp_scores = all_scores + warp_index() * passes * Shape::kWarpScoreBytes;
    stream.memory = all_scores + task.rows / kRowsOfWarp * passes * Shape::kWarpScoreBytes;
    first_pair = int64_t{task.clip} * options.columns;
    keys = static_cast<const char*>(problem.keys) + first_pair * task.row_bytes;
    values = static_cast<const char*>(problem.values) + first_pair * task.row_bytes;
    scale = problem.row_scale ? static_cast<const float*>(problem.row_scale)[task.clip] : 1.0f;
  }

  MAE_DFER_DEVICE char* scores(unsigned pass) const { return warp_scores + pass * Shape::kWarpScoreBytes; }
  MAE_DFER_DEVICE WarpRows rows_of(const StridedRows& rows) const {
    return WarpRows(rows, static_cast<unsigned>(problem.rows), task.first_row(options), task.valid);
  }

  // Takes in the rows of x, with the first tile of keys behind them.
  MAE_DFER_DEVICE UnitRows begin() {
    task.load_async(rows_of(problem.x));
    stream.start({keys, 0, 0, false}, nullptr);
    copy_wait<1>();
    sync_warp();
    return task.statistics(problem, options.eps);
  }

  // u keysᵀ of a pass. `following` is what the stream needs next.
  MAE_DFER_DEVICE void multiply_with_keys(Accumulator (&sums)[kPassBlocks], const UnitRows& unit, unsigned pass,
                                          const Next& following, const WarpRows* rows) {
    clear(sums);
    for (unsigned chunk = 0; chunk < task.chunks; ++chunk) {
      const Next next = chunk + 1 < task.chunks ? Next{keys, pass, chunk + 1, false} : following;
      const ChunkTile<E> tile = stream.take(next, rows);
      add_scores<E>(sums, task.chunk(chunk), task.row, tile, [&](uint32_t (&a)[4]) { unit.template apply<E>(a); });
    }
  }

  MAE_DFER_DEVICE void add_bias(Accumulator (&sums)[kPassBlocks], unsigned pass) const {
    const float* const key_bias = static_cast<const float*>(problem.key_bias) + first_pair + pass * kPass;
    MAE_DFER_UNROLL
    for (unsigned n = 0; n < kPassBlocks; ++n) {
      MAE_DFER_UNROLL
      for (int i = 0; i < 4; ++i) sums[n][i] += key_bias[first_column(n) + i % 2];
    }
  }

  // A chunk of all scores times `matrix`; returns the last tile, with which came the rows of grad_out, if any.
  MAE_DFER_DEVICE ChunkTile<E> mix(Accumulator (&sums)[kBlocks], const void* matrix, unsigned chunk,
                                   const WarpRows* rows) {
    clear(sums);
    ChunkTile<E> tile{nullptr};
    for (unsigned pass = 0; pass < passes; ++pass) {
      const Next next = pass + 1 < passes          ? Next{matrix, pass + 1, chunk, pass + 2 == passes}
                        : chunk + 1 < task.chunks ? Next{matrix, 0, chunk + 1, passes == 1}
                                                  : Next{nullptr, 0, 0, false};
      tile = stream.take(next, rows);
      add_mixture<E>(sums, scores(pass), tile);
    }
    return tile;
  }
};

// out = x + scale · (softmax(u keysᵀ + key_bias) values + out_bias).
template <class E>
MAE_DFER_KERNEL((32 * kForwardWarps), (sizeof(E) == 2 ? 2 : 1))
exchange_forward_rows(const Exchange problem, const ExchangeOptions options) {
  using Kernel = RowsKernel<E>;
  Kernel kernel(problem, options, false);
  const RowsTask<E>& task = kernel.task;
  const UnitRows unit = kernel.begin();
  LongHead head;
  for (Turn turn(options, 2); !turn.done(); turn.advance()) {
    if (turn.new_head()) head = LongHead();
    Turn after = turn;
    after.advance();
    const Next following = after.done() ? Next{kernel.values, 0, 0, false} : Next{kernel.keys, after.pass(), 0, false};
    Accumulator scores[kPassBlocks];
    kernel.multiply_with_keys(scores, unit, turn.pass(), following, nullptr);
    kernel.add_bias(scores, turn.pass());
    if (turn.last_round()) {
      soften(scores, options.context, head);
      ScoreBlocks<E>::store(kernel.scores(turn.pass()), scores);
    } else {
      head.add_scores(scores);
    }
  }

  const float* const out_bias = static_cast<const float*>(problem.out_bias);
  for (unsigned chunk = 0; chunk < task.chunks; ++chunk) {
    Accumulator sums[Kernel::kBlocks];
    kernel.mix(sums, kernel.values, chunk, nullptr);
    MAE_DFER_UNROLL
    for (unsigned n = 0; n < Kernel::kBlocks; ++n) {
      const unsigned channel = chunk * ExchangeShape<E>::kChunk + first_column(n);
      if (channel < problem.channels) {
        MAE_DFER_UNROLL
        for (unsigned half = 0; half < 2; ++half) {
          char* const at = task.pair(task.chunk(chunk), n, half);
          float x[2];
          load_pair<E>(at, x, x + 1);
          MAE_DFER_UNROLL
          for (int i = 0; i < 2; ++i) x[i] += kernel.scale * (sums[n][2 * half + i] + out_bias[channel + i]);
          store_pair(reinterpret_cast<E*>(at), x[0], x[1]);
        }
      }
    }
    task.store(chunk, problem.out, options, static_cast<unsigned>(problem.front));
  }
}

// Sums over a row's channels, divided by their number, as sums over its scores: du itself is never held whole.
struct MeanGradients {
  float du[2] = {0.0f, 0.0f}, turned[2] = {0.0f, 0.0f};

  // dS, which is rounded here as the products with it will find it, and the scores without their bias.
  template <class E>
  MAE_DFER_DEVICE void add(Accumulator (&grads)[kPassBlocks], const Accumulator (&scores)[kPassBlocks],
                           const float* key_sums) {
    MAE_DFER_UNROLL
    for (unsigned n = 0; n < kPassBlocks; ++n) {
      MAE_DFER_UNROLL
      for (int half = 0; half < 2; ++half) {
        round_pair<E>(&grads[n][2 * half], &grads[n][2 * half + 1]);
        MAE_DFER_UNROLL
        for (int i = 0; i < 2; ++i) {
          du[half] += grads[n][2 * half + i] * key_sums[first_column(n) + i];
          turned[half] += grads[n][2 * half + i] * scores[n][2 * half + i];
        }
      }
    }
  }
  MAE_DFER_DEVICE void finish(float channels) {
    MAE_DFER_UNROLL
    for (int half = 0; half < 2; ++half) {
      du[half] = row_sum(du[half]) / channels;
      turned[half] = row_sum(turned[half]) / channels;
    }
  }
};

// P and dS of all passes, from which `means` are taken. They go to the scratch, and dS stays in shared memory too.
template <class E>
MAE_DFER_DEVICE void score_gradients(RowsKernel<E>& kernel, const ExchangeBackward& backward, const UnitRows& unit,
                                     const WarpRows& grad_rows, MeanGradients& means) {
  const RowsTask<E>& task = kernel.task;
  constexpr int64_t kBytes = ExchangeShape<E>::kWarpScoreBytes;
  const int64_t place = task.group(kernel.options) * kernel.passes * kBytes;
  const unsigned context = kernel.options.context;
  LongHead head;
  for (Turn turn(kernel.options, 3); !turn.done(); turn.advance()) {
    if (turn.new_head()) head = LongHead();
    const unsigned pass = turn.pass();
    Turn after = turn;
    after.advance();
    const Next following =
        after.done() ? Next{kernel.keys, 0, 0, kernel.passes == 1} : Next{kernel.keys, after.pass(), 0, false};
    const Next next_walk = turn.round == 0 ? following : Next{kernel.values, pass, 0, true};
    Accumulator scores[kPassBlocks], probs[kPassBlocks], grads[kPassBlocks];
    kernel.multiply_with_keys(scores, unit, pass, next_walk, &grad_rows);
    MAE_DFER_UNROLL
    for (unsigned n = 0; n < kPassBlocks; ++n) {
      MAE_DFER_UNROLL
      for (int i = 0; i < 4; ++i) probs[n][i] = scores[n][i];
    }
    kernel.add_bias(probs, pass);
    if (turn.round == 0) {
      head.add_scores(probs);
      continue;
    }
    soften(probs, context, head);

    // dP without its scale, by which dS is multiplied: fused with a subtraction, products would not be rounded alike,
    // and dS would not vanish where a row attends to one token alone.
    clear(grads);
    for (unsigned chunk = 0; chunk < task.chunks; ++chunk) {
      const Next next = chunk + 1 < task.chunks ? Next{kernel.values, pass, chunk + 1, true} : following;
      const ChunkTile<E> tile = kernel.stream.take(next, &grad_rows);
      add_scores<E>(grads, TileStream<E>::rows_with(tile), task.row, tile, [](uint32_t (&)[4]) {});
    }
    if (!turn.last_round()) {
      head.add_grads(probs, grads);
      continue;
    }
    soften_backward(probs, grads, context, head);
    MAE_DFER_UNROLL
    for (unsigned n = 0; n < kPassBlocks; ++n) {
      MAE_DFER_UNROLL
      for (int i = 0; i < 4; ++i) grads[n][i] *= kernel.scale;
    }
    means.add<E>(grads, scores, backward.key_sums + kernel.first_pair + pass * kPass);
    ScoreBlocks<E>::store(kernel.scores(pass), grads);
    if (task.valid > 0) {  // a warp without rows has no place in the scratch
      ScoreBlocks<E>::store(static_cast<char*>(backward.probs) + place + pass * kBytes, probs);
      ScoreBlocks<E>::store(static_cast<char*>(backward.grad_scores) + place + pass * kBytes, grads);
    }
  }
  means.finish(static_cast<float>(kernel.problem.channels));
}

// grad_x = grad_out + (du - mean(du) - u · mean(u · du)) / deviation with du = dS keys. Leaves P, dS and the rows' mean
// and 1 / deviation to the kernel that sums over rows; rows beyond the clip add nothing there, as their u and dS are 0.
template <class E>
MAE_DFER_KERNEL((32 * kBackwardWarps), 2)
exchange_backward_rows(const Exchange problem, const ExchangeOptions options, const ExchangeBackward backward) {
  using Kernel = RowsKernel<E>;
  Kernel kernel(problem, options, true);
  const RowsTask<E>& task = kernel.task;
  const WarpRows grad_rows = kernel.rows_of(problem.grad_out);
  const UnitRows unit = kernel.begin();
  if (task.valid > 0 && lane_index() % 4 == 0) {
    MAE_DFER_UNROLL
    for (unsigned half = 0; half < 2; ++half) {
      const int64_t row = task.group(options) * kRowsOfWarp + lane_index() / 4 + 8 * half;
      store_pair(backward.statistics + 2 * row, unit.mean[half], unit.inverse[half]);
    }
  }
  MeanGradients means;
  score_gradients(kernel, backward, unit, grad_rows, means);

  for (unsigned chunk = 0; chunk < task.chunks; ++chunk) {
    Accumulator sums[Kernel::kBlocks];
    const ChunkTile<E> grad_tile = TileStream<E>::rows_with(kernel.mix(sums, kernel.keys, chunk, &grad_rows));
    MAE_DFER_UNROLL
    for (unsigned n = 0; n < Kernel::kBlocks; ++n) {
      MAE_DFER_UNROLL
      for (unsigned half = 0; half < 2; ++half) {
        char* const at = task.pair(task.chunk(chunk), n, half);
        float x[2], grad[2];
        load_pair<E>(at, x, x + 1);
        load_pair<E>(task.pair(grad_tile, n, half), grad, grad + 1);
        MAE_DFER_UNROLL
        for (int i = 0; i < 2; ++i) {
          const float du = sums[n][2 * half + i] - means.du[half] - unit.apply(x[i], half) * means.turned[half];
          grad[i] += du * unit.inverse[half];
        }
        store_pair(reinterpret_cast<E*>(at), grad[0], grad[1]);
      }
    }
    task.store(chunk, problem.grad_x, options, 0);
  }
}

}  // namespace cuda
}  // namespace mae_dfer

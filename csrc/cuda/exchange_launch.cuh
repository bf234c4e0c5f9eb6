// How the exchange kernels of one element type are launched. Each type is a translation unit of its own, so that they
// compile side by side.
#pragma once

#include <algorithm>
#include <stdexcept>

#include "cuda/exchange_pairs.cuh"
#include "cuda/exchange_rows.cuh"
#include "cuda/ops.h"

namespace mae_dfer {
namespace cuda {
namespace {

// Of the kernel that owns rows, with so many warps a block.
template <class E>
size_t rows_shared_bytes(int64_t channels, int64_t pairs, bool backward, int64_t warps) {
  const size_t chunks = (channels * sizeof(E) + kChunkBytes - 1) / kChunkBytes;
  const size_t rows = warps * kRowsOfWarp, streamed = backward ? rows : 0;
  return rows * (chunks * kChunkBytes + pairs * sizeof(E)) + 2 * (kPass + streamed) * kChunkBytes;
}

// Warps of a block: the more, the more seldom keys and values are read, but a clip's last block may have rows to spare,
// and two blocks on a multiprocessor hide each other's waits.
template <class E>
int64_t choose_warps(const Exchange& problem, bool backward) {
  // A multiprocessor has a little more than one block may ask for, and keeps 1 KiB for each of its blocks.
  const size_t half = shared_memory_limit() / 2 - 512;
  int64_t best = 1, least = 0;
  for (int64_t warps = 1; warps <= (backward ? kBackwardWarps : kForwardWarps); ++warps) {
    if (warps > 1 && rows_shared_bytes<E>(problem.channels, problem.pairs(), backward, warps) > half) break;
    const int64_t rows = warps * kRowsOfWarp, tiles = (problem.clip_rows() + rows - 1) / rows;
    // Keys and values of a pass cost about as much as half as many rows.
    const int64_t cost = tiles * (rows + problem.pairs() / 2);
    if (warps == 1 || cost <= least) {
      best = warps;
      least = cost;
    }
  }
  return best;
}

}  // namespace

template <class E>
size_t exchange_shared_bytes(int64_t channels, int64_t pairs) {
  return std::max<size_t>(rows_shared_bytes<E>(channels, pairs, true, 1), 2 * PairsShape<E>::kStageBytes);
}

template <class E>
void run_exchange(const Exchange& problem, const ExchangeBackward* backward, void* stream) {
  const int64_t warps = choose_warps<E>(problem, backward != nullptr);
  const ExchangeOptions options(problem, warps * kRowsOfWarp);
  const size_t bytes = rows_shared_bytes<E>(problem.channels, problem.pairs(), backward != nullptr, warps);
  const int64_t blocks = problem.clips * options.tiles;
  const int threads = static_cast<int>(32 * warps);
  if (backward == nullptr) {
    return launch(exchange_forward_rows<E>, blocks, threads, bytes, stream, problem, options);
  }
  using Shape = PairsShape<E>;
  const int64_t slices = (problem.channels + Shape::kChannels - 1) / Shape::kChannels;
  const int64_t pairs_blocks = slices * (problem.pairs() / kPass) * backward->splits * problem.clips;
  if (pairs_blocks >= int64_t{1} << 31) throw std::invalid_argument("more blocks than a launch can have");
  launch(exchange_backward_rows<E>, blocks, threads, bytes, stream, problem, options, *backward);
  launch(exchange_backward_pairs<E>, pairs_blocks, static_cast<int>(32 * Shape::kWarps), size_t{2 * Shape::kStageBytes},
         stream, problem, options, *backward);
}

}  // namespace cuda
}  // namespace mae_dfer

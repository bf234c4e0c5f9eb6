// Which region attention kernel runs a problem, for one element type. Each type is a translation unit of its own, so
// that they compile side by side.
#pragma once

#include <stdexcept>

#include "cuda/ops.h"
#include "cuda/region_attention_loop.cuh"
#include "cuda/region_attention_tile.cuh"

namespace mae_dfer {
namespace cuda {
namespace {

template <class E, int D, int kTiles>
bool launch_tile(const RegionAttention& problem, bool backward, void* stream) {
  using Shape = TileShape<E, D, kTiles>;
  const size_t bytes = backward ? Shape::kBackwardBytes : Shape::kForwardBytes;
  if (bytes > shared_memory_limit()) return false;
  const int64_t blocks = (problem.regions + Shape::kRegions - 1) / Shape::kRegions * problem.heads;
  launch(backward ? region_backward_tile<E, D, kTiles> : region_forward_tile<E, D, kTiles>, blocks, Shape::kThreads,
         bytes, stream, problem, RegionOptions(problem));
  return true;
}

// Whether a tile kernel took it.
template <class E, int D>
bool launch_tiles(const RegionAttention& problem, bool backward, void* stream) {
  if constexpr (sizeof(E) == 2 && (D == 32 || D == 64)) {
    if (problem.dropout_p > 0.0) return false;
    if (problem.tokens <= 16) return launch_tile<E, D, 1>(problem, backward, stream);
    if (problem.tokens <= 48) return launch_tile<E, D, 3>(problem, backward, stream);
    if (problem.tokens <= 64) return launch_tile<E, D, 4>(problem, backward, stream);
    if (problem.tokens <= 112) return launch_tile<E, D, 7>(problem, backward, stream);
    if (problem.tokens <= 128) return launch_tile<E, D, 8>(problem, backward, stream);
  }
  return false;
}

template <class E, int D>
void launch_any(const RegionAttention& problem, bool backward, float* statistics, void* stream) {
  if (launch_tiles<E, D>(problem, backward, stream)) return;
  using Shape = LoopShape<E, D>;
  const int64_t blocks =
      (problem.tokens + Shape::kOwned - 1) / Shape::kOwned * problem.regions * problem.heads;
  const RegionOptions options(problem);
  if (backward) {
    launch(region_backward_queries<E, D>, blocks, Shape::kThreads, Shape::kBackwardBytes, stream, problem, options,
           statistics);
    launch(region_backward_keys<E, D>, blocks, Shape::kThreads, Shape::kBackwardBytes, stream, problem, options,
           static_cast<const float*>(statistics));
  } else {
    launch(region_forward_loop<E, D>, blocks, Shape::kThreads, Shape::kForwardBytes, stream, problem, options);
  }
}

}  // namespace

template <class E>
void run_region_attention(const RegionAttention& problem, bool backward, float* statistics, void* stream) {
  switch (problem.head_dim) {
    case 16: return launch_any<E, 16>(problem, backward, statistics, stream);
    case 32: return launch_any<E, 32>(problem, backward, statistics, stream);
    case 64: return launch_any<E, 64>(problem, backward, statistics, stream);
    case 128: return launch_any<E, 128>(problem, backward, statistics, stream);
    default: throw std::invalid_argument("head_dim must be 16, 32, 64 or 128");
  }
}

}  // namespace cuda
}  // namespace mae_dfer

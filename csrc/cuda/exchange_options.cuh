// What the exchange kernels need of a problem's numbers, in the types that they compute in.
#pragma once

#include "cuda/primitives.cuh"
#include "problem.h"

namespace mae_dfer {
namespace cuda {

struct ExchangeOptions {
  float eps = 0.0f;
  unsigned group_rows = 0;
  unsigned clip_rows = 0;
  unsigned clip_groups = 0;  // of sixteen rows
  unsigned tiles = 0;        // blocks of a clip
  unsigned columns = 0;      // pairs
  unsigned context = 0;      // of them, a head's

  ExchangeOptions() = default;
  ExchangeOptions(const Exchange& problem, int64_t tile_rows)
      : eps(static_cast<float>(problem.eps)),
        group_rows(static_cast<unsigned>(problem.rows)),
        clip_rows(static_cast<unsigned>(problem.clip_rows())),
        clip_groups((clip_rows + 15) / 16),
        tiles(static_cast<unsigned>((clip_rows + tile_rows - 1) / tile_rows)),
        columns(static_cast<unsigned>(problem.pairs())),
        context(static_cast<unsigned>(problem.context)) {}
};

}  // namespace cuda
}  // namespace mae_dfer

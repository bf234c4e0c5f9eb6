// What the region attention kernels need of a problem's numbers, in the precision that they compute in.
#pragma once

#include "cuda/primitives.cuh"
#include "problem.h"

namespace mae_dfer {
namespace cuda {

struct RegionOptions {
  float scale = 1.0f;
  float scale_log2 = 1.0f;  // scale / ln 2: probabilities are powers of two
  float kept = 1.0f;        // factor on what dropout keeps
  bool drops = false;
  uint32_t threshold = 0;   // dropout keeps an element whose random word is at least this

  RegionOptions() = default;
  explicit RegionOptions(const RegionAttention& problem)
      : scale(static_cast<float>(problem.scale)),
        scale_log2(static_cast<float>(problem.scale * 1.4426950408889634)),
        kept(static_cast<float>(1.0 / (1.0 - problem.dropout_p))),
        drops(problem.dropout_p > 0.0),
        threshold(problem.dropout_threshold()) {}
};

}  // namespace cuda
}  // namespace mae_dfer

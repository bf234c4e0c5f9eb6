// Dropout masks by Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
#pragma once

#include "cuda/primitives.cuh"

namespace mae_dfer {
namespace cuda {

// Element (row, column) of a head's matrix takes word column % 4 of counter (column / 4, row, matrix, 0), so that a
// mask depends on the element alone, and is the same on every backend.
struct DropoutKey {
  uint64_t seed;
  uint32_t threshold;
  uint32_t matrix;

  MAE_DFER_DEVICE void words(uint32_t row, uint32_t group, uint32_t (&x)[4]) const {
    uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
    x[0] = group;
    x[1] = row;
    x[2] = matrix;
    x[3] = 0;
    for (int round = 0; round < 10; ++round) {
      const uint32_t high0 = multiply_high(0xD2511F53u, x[0]), low0 = 0xD2511F53u * x[0];
      const uint32_t high1 = multiply_high(0xCD9E8D57u, x[2]), low1 = 0xCD9E8D57u * x[2];
      x[0] = high1 ^ x[1] ^ key0;
      x[1] = low1;
      x[2] = high0 ^ x[3] ^ key1;
      x[3] = low0;
      key0 += 0x9E3779B9u;
      key1 += 0xBB67AE85u;
    }
  }
  MAE_DFER_DEVICE bool keeps(uint32_t row, uint32_t column) const {
    uint32_t x[4];
    words(row, column / 4, x);
    const uint32_t low = column % 2 ? x[1] : x[0], high = column % 2 ? x[3] : x[2];
    return (column % 4 < 2 ? low : high) >= threshold;
  }
};

}  // namespace cuda
}  // namespace mae_dfer

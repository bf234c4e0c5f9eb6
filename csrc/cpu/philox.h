// Dropout masks by Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
#pragma once

#include "cpu/vec.h"

namespace mae_dfer {
namespace MAE_DFER_ISA {
namespace {

// The factor of every probability of one row: 0 where dropped, 1 / (1 - p) where kept. Column j takes word j % 4 of
// counter (j / 4, row, matrix, 0), so the mask depends on the element alone, not on how work is divided.
// `factors` has room for `tokens` rounded up to a multiple of 4 · kGroups.
constexpr int kGroups = 16;

template <class T>
void dropout_row(uint64_t seed, uint32_t threshold, T kept, uint32_t matrix, uint32_t row, int tokens, T* factors) {
  for (int first = 0; first * 4 < tokens; first += kGroups) {
    uint32_t x0[kGroups], x1[kGroups], x2[kGroups], x3[kGroups];
    for (int g = 0; g < kGroups; ++g) {
      x0[g] = static_cast<uint32_t>(first + g);
      x1[g] = row;
      x2[g] = matrix;
      x3[g] = 0;
    }
    uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
      for (int g = 0; g < kGroups; ++g) {
        const uint64_t product0 = static_cast<uint64_t>(x0[g]) * 0xD2511F53u;
        const uint64_t product1 = static_cast<uint64_t>(x2[g]) * 0xCD9E8D57u;
        x0[g] = static_cast<uint32_t>(product1 >> 32) ^ x1[g] ^ key0;
        x1[g] = static_cast<uint32_t>(product1);
        x2[g] = static_cast<uint32_t>(product0 >> 32) ^ x3[g] ^ key1;
        x3[g] = static_cast<uint32_t>(product0);
      }
      key0 += 0x9E3779B9u;
      key1 += 0xBB67AE85u;
    }
    T* to = factors + first * 4;
    for (int g = 0; g < kGroups; ++g) {
      to[4 * g + 0] = x0[g] >= threshold ? kept : T(0);
      to[4 * g + 1] = x1[g] >= threshold ? kept : T(0);
      to[4 * g + 2] = x2[g] >= threshold ? kept : T(0);
      to[4 * g + 3] = x3[g] >= threshold ? kept : T(0);
    }
  }
}

}  // namespace
}  // namespace MAE_DFER_ISA
}  // namespace mae_dfer

// Dropout masks by Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
#pragma once

#include "cpu/vec.h"

namespace mae_dfer {
namespace MAE_DFER_ISA {
namespace {

typedef uint64_t Words __attribute__((vector_size(kVectorBytes)));  // a 32-bit word a lane, in its low half

// The 64-bit products of the lanes' low halves with a 32-bit word; what the high halves hold does not matter.
inline Words multiply_words(Words a, uint64_t word) {
#if defined(__AVX512F__)
  return (Words)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(static_cast<long long>(word)));
#elif defined(__AVX2__)
  return (Words)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(static_cast<long long>(word)));
#else
  return (a & 0xffffffffu) * word;
#endif
}

constexpr int kGroups = 16;  // counters done at once, each four columns
constexpr int kGroupLanes = kVectorBytes / 8;
constexpr int kGroupVectors = kGroups / kGroupLanes;

// words[4g + w] = word w of counter (first + g, row, matrix, 0).
inline void philox_words(uint64_t seed, uint32_t matrix, uint32_t row, uint32_t first, uint32_t* words) {
  Words x0[kGroupVectors], x1[kGroupVectors], x2[kGroupVectors], x3[kGroupVectors];
  for (int v = 0; v < kGroupVectors; ++v) {
    for (int lane = 0; lane < kGroupLanes; ++lane) {
      x0[v][lane] = first + static_cast<uint32_t>(v * kGroupLanes + lane);
      x1[v][lane] = row;
      x2[v][lane] = matrix;
      x3[v][lane] = 0;
    }
  }
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
#pragma GCC unroll 8
    for (int v = 0; v < kGroupVectors; ++v) {
      const Words product0 = multiply_words(x0[v], 0xD2511F53u), product1 = multiply_words(x2[v], 0xCD9E8D57u);
      x0[v] = (product1 >> 32) ^ x1[v] ^ static_cast<uint64_t>(key0);
      x1[v] = product1;
      x2[v] = (product0 >> 32) ^ x3[v] ^ static_cast<uint64_t>(key1);
      x3[v] = product0;
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  for (int v = 0; v < kGroupVectors; ++v) {
    for (int lane = 0; lane < kGroupLanes; ++lane) {
      uint32_t* to = words + 4 * (v * kGroupLanes + lane);
      to[0] = static_cast<uint32_t>(x0[v][lane]);
      to[1] = static_cast<uint32_t>(x1[v][lane]);
      to[2] = static_cast<uint32_t>(x2[v][lane]);
      to[3] = static_cast<uint32_t>(x3[v][lane]);
    }
  }
}

// The factor of every probability of one row: 0 where dropped, 1 / (1 - p) where kept. Column j takes word j % 4 of
// counter (j / 4, row, matrix, 0), so the mask depends on the element alone, not on how work is divided.
// `factors` has room for `tokens` rounded up to a multiple of 4 · kGroups.
template <class T>
void dropout_row(uint64_t seed, uint32_t threshold, T kept, uint32_t matrix, uint32_t row, int tokens, T* factors) {
  for (int column = 0; column < tokens; column += 4 * kGroups) {
    uint32_t words[4 * kGroups];
    philox_words(seed, matrix, row, static_cast<uint32_t>(column / 4), words);
    for (int c = 0; c < 4 * kGroups; ++c) factors[column + c] = words[c] >= threshold ? kept : T(0);
  }
}

}  // namespace
}  // namespace MAE_DFER_ISA
}  // namespace mae_dfer

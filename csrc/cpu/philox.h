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

constexpr int kCounters = 16;  // done at once, each for four columns of a row
constexpr int kCounterLanes = kVectorBytes / 8;
constexpr int kCounterVectors = kCounters / kCounterLanes;

// words[w][i] = word w, in the low half, of counter (group, row + i, matrix, 0).
inline void philox_words(uint64_t seed, uint32_t matrix, uint32_t row, uint32_t group, uint64_t (*words)[kCounters]) {
  Words x0[kCounterVectors], x1[kCounterVectors], x2[kCounterVectors], x3[kCounterVectors];
  for (int v = 0; v < kCounterVectors; ++v) {
    for (int lane = 0; lane < kCounterLanes; ++lane) {
      x0[v][lane] = group;
      x1[v][lane] = row + static_cast<uint32_t>(v * kCounterLanes + lane);
      x2[v][lane] = matrix;
      x3[v][lane] = 0;
    }
  }
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
#pragma GCC unroll 8
    for (int v = 0; v < kCounterVectors; ++v) {
      const Words product0 = multiply_words(x0[v], 0xD2511F53u), product1 = multiply_words(x2[v], 0xCD9E8D57u);
      x0[v] = (product1 >> 32) ^ x1[v] ^ static_cast<uint64_t>(key0);
      x1[v] = product1;
      x2[v] = (product0 >> 32) ^ x3[v] ^ static_cast<uint64_t>(key1);
      x3[v] = product0;
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  for (int v = 0; v < kCounterVectors; ++v) {
    const Words all[4] = {x0[v], x1[v], x2[v], x3[v]};
    for (int w = 0; w < 4; ++w) std::memcpy(words[w] + v * kCounterLanes, &all[w], sizeof all[w]);
  }
}

// The factors of the probabilities of kCounters rows from `row` on, as columns: factors[column][i] is 0 where dropped,
// `kept` where not. Column j takes word j % 4 of counter (j / 4, row, matrix, 0), so the mask depends on the element
// alone, not on how work is divided. `factors` has room for `columns` rounded up to a multiple of 4.
template <class T>
void dropout_columns(uint64_t seed, uint32_t threshold, T kept, uint32_t matrix, uint32_t row, int columns, T* factors,
                     ptrdiff_t stride) {
  for (int column = 0; column < columns; column += 4) {
    uint64_t words[4][kCounters];
    philox_words(seed, matrix, row, static_cast<uint32_t>(column / 4), words);
    for (int w = 0; w < 4; ++w) {
      T* const to = factors + (column + w) * stride;
      for (int i = 0; i < kCounters; ++i) to[i] = static_cast<uint32_t>(words[w][i]) >= threshold ? kept : T(0);
    }
  }
}

}  // namespace
}  // namespace MAE_DFER_ISA
}  // namespace mae_dfer

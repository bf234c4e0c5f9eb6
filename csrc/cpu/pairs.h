// Matrices of bf16 as pairs of them, as the instruction that multiplies pairs takes its factors.
#pragma once

#include "cpu/gemm.h"

#if defined(__AVX512BF16__)

namespace mae_dfer {
namespace MAE_DFER_ISA {
namespace {

constexpr int kPairLanes = kLanes<float>;  // words, and so pairs, in a vector

inline BFloat16Pair* as_pairs(float* words) { return reinterpret_cast<BFloat16Pair*>(words); }
inline const BFloat16Pair* as_pairs(const BFloat16* row) { return reinterpret_cast<const BFloat16Pair*>(row); }

inline __m512i interleave(__m256i first, __m256i second) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(first), _mm512_slli_epi32(_mm512_cvtepu16_epi32(second), 16));
}

// to[pair][column] = (from[2·pair][column], from[2·pair + 1][column]), zero for the row after the last. The width is of
// whole vectors; `to` has rows `ld` apart.
inline void pack_interleaved(const BFloat16* from, ptrdiff_t stride, int rows, int width, BFloat16Pair* to,
                             ptrdiff_t ld) {
  for (int row = 0; row < rows; row += 2, to += ld) {
    const BFloat16* source = from + row * stride;
    for (int column = 0; column < width; column += kPairLanes) {
      const auto load_row = [&](const BFloat16* at) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + column));
      };
      const __m256i second = row + 1 < rows ? load_row(source + stride) : _mm256_setzero_si256();
      _mm512_storeu_si512(to + column, interleave(load_row(source), second));
    }
  }
}

// A vector of floats, rounded to bf16, as a row of them.
template <class E>
inline void round_vector(Vec<float> values, E* to) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh((__m512)values));
}

// Two vectors of floats, rounded to bf16 and interleaved.
inline void round_interleaved(const Vec<float>* values, BFloat16Pair* to) {
  const auto round = [](Vec<float> value) { return (__m256i)_mm512_cvtneps_pbh((__m512)value); };
  _mm512_storeu_si512(to, interleave(round(values[0]), round(values[1])));
}

}  // namespace
}  // namespace MAE_DFER_ISA
}  // namespace mae_dfer

#endif

// Copies of a head's rows in the type that is computed in, contiguous, straight or transposed.
//
// Rows of the packed projection lie 3·H·D elements apart, which in a set-associative cache maps a head's rows to a
// few sets; the copy costs one pass and every product after it reads neighbours.
#pragma once

#include "cpu/convert.h"

namespace mae_dfer {
namespace MAE_DFER_ISA {
namespace {

inline int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

// to[row][0..width) = from[row], zero up to `padded_width`.
template <class T, class E>
void pack_rows(const E* from, ptrdiff_t stride, int rows, int width, T* to, int padded_width) {
  const int whole = width / kLanes<T> * kLanes<T>;
  for (int row = 0; row < rows; ++row) {
    const E* source = from + row * stride;
    T* target = to + static_cast<ptrdiff_t>(row) * padded_width;
    int column = 0;
    for (; column < whole; column += kLanes<T>) store<T>(target + column, load_as<T>(source + column));
    for (; column < width; ++column) target[column] = widen(source[column]);
    for (; column < padded_width; ++column) target[column] = T(0);
  }
}

// 32 bits of anything, moved as a float is and never calculated with.
typedef float Word __attribute__((may_alias, aligned(2)));

#if defined(__AVX512F__)

inline Vec<float> unpack_low(Vec<float> a, Vec<float> b) { return (Vec<float>)_mm512_unpacklo_ps((__m512)a, (__m512)b); }
inline Vec<float> unpack_high(Vec<float> a, Vec<float> b) { return (Vec<float>)_mm512_unpackhi_ps((__m512)a, (__m512)b); }
inline Vec<float> pairs_low(Vec<float> a, Vec<float> b) { return (Vec<float>)_mm512_unpacklo_pd((__m512d)a, (__m512d)b); }
inline Vec<float> pairs_high(Vec<float> a, Vec<float> b) { return (Vec<float>)_mm512_unpackhi_pd((__m512d)a, (__m512d)b); }

// Four columns of rows r, r + 4, r + 8 and r + 12, which `row` loads.
template <class Row>
inline Vec<float> load_quads(const Row& row, int r) {
  __m512 quads = _mm512_insertf32x4(_mm512_castps128_ps512(row(r)), row(r + 4), 1);
  quads = _mm512_insertf32x4(quads, row(r + 8), 2);
  return (Vec<float>)_mm512_insertf32x4(quads, row(r + 12), 3);
}

#elif defined(__AVX2__)

inline Vec<float> unpack_low(Vec<float> a, Vec<float> b) { return (Vec<float>)_mm256_unpacklo_ps((__m256)a, (__m256)b); }
inline Vec<float> unpack_high(Vec<float> a, Vec<float> b) { return (Vec<float>)_mm256_unpackhi_ps((__m256)a, (__m256)b); }
inline Vec<float> pairs_low(Vec<float> a, Vec<float> b) { return (Vec<float>)_mm256_unpacklo_pd((__m256d)a, (__m256d)b); }
inline Vec<float> pairs_high(Vec<float> a, Vec<float> b) { return (Vec<float>)_mm256_unpackhi_pd((__m256d)a, (__m256d)b); }

// Four columns of rows r and r + 4, which `row` loads.
template <class Row>
inline Vec<float> load_quads(const Row& row, int r) {
  return (Vec<float>)_mm256_insertf128_ps(_mm256_castps128_ps256(row(r)), row(r + 4), 1);
}

#endif

#if defined(__AVX2__)

// to[column][row] = from[row][column] for four columns and a vector of rows, zero from `rows` on. Every 128 bits of a
// vector are loaded with a row's four columns, so that all of them are transposed at once.
inline void transpose_quad(const float* from, ptrdiff_t stride, int rows, float* to, ptrdiff_t ld) {
  const auto row = [&](int number) { return number < rows ? _mm_loadu_ps(from + number * stride) : _mm_setzero_ps(); };
  const Vec<float> a = load_quads(row, 0), b = load_quads(row, 1), c = load_quads(row, 2), d = load_quads(row, 3);
  const Vec<float> low[2] = {unpack_low(a, b), unpack_low(c, d)}, high[2] = {unpack_high(a, b), unpack_high(c, d)};
  store<float>(to, pairs_low(low[0], low[1]));
  store<float>(to + ld, pairs_high(low[0], low[1]));
  store<float>(to + 2 * ld, pairs_low(high[0], high[1]));
  store<float>(to + 3 * ld, pairs_high(high[0], high[1]));
}

#endif

// to[column][row] = from[row][column], zero for rows up to `padded_rows`, which end a vector; `to` has rows `ld` apart.
template <class T>
void pack_transposed(const T* from, ptrdiff_t stride, int rows, int width, T* to, ptrdiff_t ld, int padded_rows) {
  for (int row = 0; row < padded_rows; row += kLanes<T>) {
    const T* const source = from + row * stride;
    int column = 0;
#if defined(__AVX2__)
    if constexpr (sizeof(T) == sizeof(float)) {
      for (; column + 4 <= width; column += 4) {
        transpose_quad(source + column, stride, rows - row, to + column * ld + row, ld);
      }
    }
#endif
    for (; column < width; ++column) {
      T* const target = to + column * ld + row;
      for (int r = 0; r < kLanes<T>; ++r) target[r] = row + r < rows ? source[r * stride + column] : T(0);
    }
  }
}

}  // namespace
}  // namespace MAE_DFER_ISA
}  // namespace mae_dfer

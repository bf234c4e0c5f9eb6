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

// The row of the next head lies beside this head's, and its task mostly follows on the same thread: asking for it now
// hides what is otherwise a sixth of the time, waiting for memory.
template <class E>
inline void prefetch_next_head(const E* row, int width) {
  const char* line = reinterpret_cast<const char*>(row + width);
  for (ptrdiff_t byte = 0; byte < static_cast<ptrdiff_t>(width * sizeof(E)); byte += 64) {
    __builtin_prefetch(line + byte, 0, 2);
  }
}

// to[row][0..width) = from[row], zero up to `padded_width`.
template <class T, class E>
void pack_rows(const E* from, ptrdiff_t stride, int rows, int width, T* to, int padded_width) {
  const int whole = width / kLanes<T> * kLanes<T>;
  for (int row = 0; row < rows; ++row) {
    const E* source = from + row * stride;
    T* target = to + static_cast<ptrdiff_t>(row) * padded_width;
    prefetch_next_head(source, width);
    int column = 0;
    for (; column < whole; column += kLanes<T>) store<T>(target + column, load_as<T>(source + column));
    for (; column < width; ++column) target[column] = widen(source[column]);
    for (; column < padded_width; ++column) target[column] = T(0);
  }
}

#if defined(__AVX512F__)

// Four rounds of perfect shuffles, each of rows r and r + 8, make the transpose.
inline void transpose_floats(Vec<float>* rows) {
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#pragma GCC unroll 4
  for (int round = 0; round < 4; ++round) {
    Vec<float> next[16];
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r) {
      next[2 * r] = (Vec<float>)_mm512_permutex2var_ps((__m512)rows[r], low, (__m512)rows[r + 8]);
      next[2 * r + 1] = (Vec<float>)_mm512_permutex2var_ps((__m512)rows[r], high, (__m512)rows[r + 8]);
    }
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) rows[r] = next[r];
  }
}

#elif defined(__AVX2__)

inline void transpose_floats(Vec<float>* rows) {
  __m256 pairs[8], quads[8];
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) {
    pairs[2 * r] = _mm256_unpacklo_ps((__m256)rows[2 * r], (__m256)rows[2 * r + 1]);
    pairs[2 * r + 1] = _mm256_unpackhi_ps((__m256)rows[2 * r], (__m256)rows[2 * r + 1]);
  }
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const __m256* p = pairs + 4 * half;
    quads[4 * half + 0] = _mm256_shuffle_ps(p[0], p[2], 0x44);
    quads[4 * half + 1] = _mm256_shuffle_ps(p[0], p[2], 0xee);
    quads[4 * half + 2] = _mm256_shuffle_ps(p[1], p[3], 0x44);
    quads[4 * half + 3] = _mm256_shuffle_ps(p[1], p[3], 0xee);
  }
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) {
    rows[r] = (Vec<float>)_mm256_permute2f128_ps(quads[r], quads[r + 4], 0x20);
    rows[r + 4] = (Vec<float>)_mm256_permute2f128_ps(quads[r], quads[r + 4], 0x31);
  }
}

#endif

// Transposes kLanes<T> rows of kLanes<T> elements in place.
template <class T>
inline void transpose_block(Vec<T>* rows) {
#if defined(__AVX2__)
  if constexpr (sizeof(T) == sizeof(float)) {
    transpose_floats(rows);
    return;
  }
#endif
  T columns[kLanes<T>][kLanes<T>];
  for (int r = 0; r < kLanes<T>; ++r) {
    for (int c = 0; c < kLanes<T>; ++c) columns[c][r] = rows[r][c];
  }
  for (int r = 0; r < kLanes<T>; ++r) rows[r] = load<T>(columns[r]);
}

// A square of `from`, zero outside rows x columns.
template <class T, class E>
inline void load_square(const E* from, ptrdiff_t stride, int rows, int columns, Vec<T>* square) {
#pragma GCC unroll 16
  for (int r = 0; r < kLanes<T>; ++r) {
    square[r] = broadcast<T>(T(0));
    if (r >= rows) continue;
    if (columns >= kLanes<T>) {
      square[r] = load_as<T>(from + r * stride);
    } else {
      T lanes[kLanes<T>] = {};
      for (int c = 0; c < columns; ++c) lanes[c] = widen(from[r * stride + c]);
      square[r] = load<T>(lanes);
    }
  }
}

// 32 bits of anything, moved as a float is and never calculated with.
typedef float Word __attribute__((may_alias, aligned(2)));

// to[column][row] = from[row][column], zero for rows up to `padded_rows`; `to` has rows `ld` apart.
template <class T, class E>
void pack_transposed(const E* from, ptrdiff_t stride, int rows, int width, T* to, int ld, int padded_rows) {
  constexpr int kBlock = kLanes<T>;
  for (int row = 0; row < padded_rows; row += kBlock) {
    const int valid_rows = rows - row < kBlock ? rows - row : kBlock;
    const E* source = from + row * stride;
    for (int r = 0; r < valid_rows; ++r) prefetch_next_head(source + r * stride, width);
    for (int column = 0; column < width; column += kBlock) {
      Vec<T> square[kBlock];
      load_square<T>(source + column, stride, valid_rows, width - column, square);
      transpose_block<T>(square);
      T* target = to + static_cast<ptrdiff_t>(column) * ld + row;
#pragma GCC unroll 16
      for (int c = 0; c < kBlock; ++c) {
        if (column + c < width) store<T>(target + static_cast<ptrdiff_t>(c) * ld, square[c]);
      }
    }
  }
}

}  // namespace
}  // namespace MAE_DFER_ISA
}  // namespace mae_dfer

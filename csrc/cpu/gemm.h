// The one matrix product that attention's seven are made of: C (+)= scale · A B, with blocks of C in registers.
#pragma once

#include "cpu/convert.h"
#include "cpu/prefetch.h"

namespace mae_dfer {
namespace MAE_DFER_ISA {
namespace {

// Register blocks: kMaxColumns vectors wide, and as many rows as leave registers for one row of B and one
// broadcast element of A.
#if defined(__AVX512F__)
constexpr int kMaxColumns = 4;
constexpr int kMaxRows = 12;
constexpr int kBlockRows[kMaxColumns + 1] = {0, 12, 12, 8, 6};
#elif defined(__AVX2__)
constexpr int kMaxColumns = 2;
constexpr int kMaxRows = 8;
constexpr int kBlockRows[kMaxColumns + 1] = {0, 8, 6};
#else
constexpr int kMaxColumns = 2;
constexpr int kMaxRows = 6;
constexpr int kBlockRows[kMaxColumns + 1] = {0, 6, 4};
#endif

// How a product of elements T is summed: one multiplication a lane, in T.
template <class T>
struct Product {
  using Sum = T;
  using Row = Vec<T>;
  static Row load_row(const T* address) { return load<T>(address); }
  static Row spread(T element) { return broadcast<T>(element); }
  static Vec<T> add(Vec<T> sum, Row a, Row b) { return sum + a * b; }
};

#if defined(__AVX512BF16__)
// Two neighbouring terms of a sum in bf16, multiplied and summed in fp32 by one instruction.
struct __attribute__((may_alias, aligned(2))) BFloat16Pair {
  BFloat16 first, second;
};

template <>
struct Product<BFloat16Pair> {
  using Sum = float;
  using Row = __m512bh;
  static Row load_row(const BFloat16Pair* address) { return (__m512bh)_mm512_loadu_si512(address); }
  static Row spread(BFloat16Pair element) {
    int32_t bits;
    std::memcpy(&bits, &element, sizeof bits);
    return (__m512bh)_mm512_set1_epi32(bits);
  }
  static Vec<float> add(Vec<float> sum, Row a, Row b) { return (Vec<float>)_mm512_dpbf16_ps((__m512)sum, a, b); }
};
#endif

template <class T>
using Sum = typename Product<T>::Sum;

// What becomes of the sums before they are stored.
template <class T>
struct Epilogue {
  T scale = T(1);
  const T* row_scale = nullptr;  // one factor a row, instead of `scale`
  bool accumulate = false;       // add to what C holds
};

// Element (m, k) of A is a[m*lda + k], or a[k*lda + m] if A is transposed.
template <class T>
struct Operands {
  const T* a;
  ptrdiff_t lda;
  const T* b;  // (depth, columns), rows ldb apart
  ptrdiff_t ldb;
  int depth;  // rows of B
  Ahead ahead[2] = {};  // what to ask for on the way, as many rows as of C

  Operands asking(Ahead first, Ahead second = Ahead()) const {
    Operands result = *this;
    result.ahead[0] = first;
    result.ahead[1] = second;
    return result;
  }
};

template <class T, class Out, bool kTransposedA, int kRows, int kColumns>
void multiply_block(const Operands<T>& operands, int row, Out* c, ptrdiff_t ldc,
                    const Epilogue<Sum<T>>& epilogue) {
  using S = Sum<T>;
  Vec<S> sums[kRows][kColumns];
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < kColumns; ++n) sums[m][n] = broadcast<S>(S(0));
  }
  const T* a = operands.a + (kTransposedA ? row : row * operands.lda);
  const T* b = operands.b;
  for (int k = 0; k < operands.depth; ++k) {
    typename Product<T>::Row b_row[kColumns];
#pragma GCC unroll 4
    for (int n = 0; n < kColumns; ++n) b_row[n] = Product<T>::load_row(b + n * kLanes<S>);
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
      const auto element = Product<T>::spread(kTransposedA ? a[m] : a[m * operands.lda]);
#pragma GCC unroll 4
      for (int n = 0; n < kColumns; ++n) sums[m][n] = Product<T>::add(sums[m][n], element, b_row[n]);
    }
    a += kTransposedA ? operands.lda : 1;
    b += operands.ldb;
  }
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
    const Vec<S> scale = broadcast<S>(epilogue.row_scale ? epilogue.row_scale[row + m] : epilogue.scale);
#pragma GCC unroll 4
    for (int n = 0; n < kColumns; ++n) {
      Out* to = c + (row + m) * ldc + n * kLanes<S>;
      Vec<S> value = sums[m][n] * scale;
      if (epilogue.accumulate) value += load_as<S>(to);
      store_as<S>(to, value);
    }
  }
}

template <class T, class Out, bool kTransposedA, int kColumns, int kRows = kBlockRows[kColumns]>
void multiply_rows(const Operands<T>& operands, int row, int rows, Out* c, ptrdiff_t ldc,
                   const Epilogue<Sum<T>>& epilogue) {
  if constexpr (kRows > 0) {
    if (rows >= kRows) {
      multiply_block<T, Out, kTransposedA, kRows, kColumns>(operands, row, c, ldc, epilogue);
    } else {
      multiply_rows<T, Out, kTransposedA, kColumns, kRows - 1>(operands, row, rows, c, ldc, epilogue);
    }
  }
}

template <class T, class Out, bool kTransposedA, int kColumns>
void multiply_panel(const Operands<T>& operands, int rows, Out* c, ptrdiff_t ldc, const Epilogue<Sum<T>>& epilogue) {
  constexpr int kStep = kBlockRows[kColumns];
  for (int row = 0; row < rows; row += kStep) {
    const int some = rows - row < kStep ? rows - row : kStep;
    operands.ahead[0].prefetch(row, some);
    operands.ahead[1].prefetch(row, some);
    multiply_rows<T, Out, kTransposedA, kColumns>(operands, row, rows - row, c, ldc, epilogue);
  }
}

// C (rows, vectors · lanes of the sum), rows ldc apart; B's panel of kMaxColumns vectors stays in the first-level cache.
template <class T, bool kTransposedA = false, class Out>
void multiply(Operands<T> operands, int rows, int vectors, Out* c, ptrdiff_t ldc, const Epilogue<Sum<T>>& epilogue) {
  for (; vectors > 0; vectors -= kMaxColumns) {
    switch (vectors < kMaxColumns ? vectors : kMaxColumns) {
      case 1: multiply_panel<T, Out, kTransposedA, 1>(operands, rows, c, ldc, epilogue); break;
      case 2: multiply_panel<T, Out, kTransposedA, 2>(operands, rows, c, ldc, epilogue); break;
#if defined(__AVX512F__)
      case 3: multiply_panel<T, Out, kTransposedA, 3>(operands, rows, c, ldc, epilogue); break;
      default: multiply_panel<T, Out, kTransposedA, 4>(operands, rows, c, ldc, epilogue); break;
#endif
    }
    operands.ahead[0] = operands.ahead[1] = Ahead();
    operands.b += kMaxColumns * kLanes<Sum<T>>;
    c += kMaxColumns * kLanes<Sum<T>>;
  }
}

}  // namespace
}  // namespace MAE_DFER_ISA
}  // namespace mae_dfer

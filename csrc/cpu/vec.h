// Vectors as wide as the instruction set this translation unit is compiled for, over the vector extensions that GCC
// and Clang share. Everything here has internal linkage per instruction set: an inline function that the linker
// could merge across translation units would put wide instructions into the portable path.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512BF16__)
#define MAE_DFER_ISA avx512_bf16
#elif defined(__AVX512F__)
#define MAE_DFER_ISA avx512
#elif defined(__AVX2__)
#define MAE_DFER_ISA avx2
#else
#define MAE_DFER_ISA portable
#endif

namespace mae_dfer {
namespace MAE_DFER_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
struct VecTypes;

#define MAE_DFER_VEC_TYPES(T, I)                                                              \
  template <>                                                                                 \
  struct VecTypes<T> {                                                                        \
    typedef T Vec __attribute__((vector_size(kVectorBytes)));                                 \
    typedef I Int __attribute__((vector_size(kVectorBytes)));                                 \
    typedef T Unaligned __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), may_alias)); \
    using Lane = I;                                                                           \
  }
MAE_DFER_VEC_TYPES(float, int32_t);
MAE_DFER_VEC_TYPES(double, int64_t);
#undef MAE_DFER_VEC_TYPES

template <class T>
using Vec = typename VecTypes<T>::Vec;
template <class T>
using IntVec = typename VecTypes<T>::Int;
template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <class T>
inline Vec<T> load(const T* address) {
  return *reinterpret_cast<const typename VecTypes<T>::Unaligned*>(address);
}

template <class T>
inline void store(T* address, Vec<T> value) {
  *reinterpret_cast<typename VecTypes<T>::Unaligned*>(address) = value;
}

template <class V, class S>
inline V splat(S value) {
  V result;
  constexpr int lanes = sizeof(V) / sizeof(S);
  if constexpr (lanes == 2) {
    result = V{value, value};
  } else if constexpr (lanes == 4) {
    result = V{value, value, value, value};
  } else if constexpr (lanes == 8) {
    result = V{value, value, value, value, value, value, value, value};
  } else {
    static_assert(lanes == 16, "no such vector");
    result = V{value, value, value, value, value, value, value, value,
               value, value, value, value, value, value, value, value};
  }
  return result;
}

template <class T>
inline Vec<T> broadcast(T value) {
  return splat<Vec<T>>(value);
}

template <class T>
inline Vec<T> maximum(Vec<T> a, Vec<T> b) {
  return a > b ? a : b;
}

template <class T>
inline T reduce_add(Vec<T> value) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return _mm512_reduce_add_ps((__m512)value);
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128((__m256)value), _mm256_extractf128_ps((__m256)value, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
  }
#endif
  T result = value[0];
  for (int lane = 1; lane < kLanes<T>; ++lane) result += value[lane];
  return result;
}

// Per-type constants of 2^x = 2^n · 2^f, n = round(x), |f| <= 1/2, the latter by a polynomial.
template <class T>
struct Power;

template <>
struct Power<float> {
  // Adding 1.5·2^23 + 127 leaves round(x) + 127, the exponent of 2^n, in the low bits of the sum.
  static constexpr float kRound = 12583039.0f;
  static constexpr float kLowest = -125.0f;     // below, the result could be subnormal
  static constexpr int kMantissaBits = 23;
  // Minimax in the relative error, which is below 2e-9; rounding leaves some 6e-8.
  static constexpr float kTerms[] = {1.0f,           0.6931471824645996f,    0.24022646248340607f, 0.05550328642129898f,
                                     0.009618489071726799f, 0.0013399930903688073f, 0.0001534581242594868f};
  // Below 3e-6: for results that are rounded to 16 bits.
  static constexpr float kRoughTerms[] = {0.9999992847442627f, 0.6931217908859253f, 0.240247443318367f,
                                          0.05591785907745361f, 0.009570102207362652f};
};

template <>
struct Power<double> {
  static constexpr double kRound = 6755399441056767.0;  // 1.5·2^52 + 1023
  static constexpr double kLowest = -1021.0;
  static constexpr int kMantissaBits = 52;
  // ln(2)^k / k!: the Taylor remainder is below 5e-18.
  static constexpr double kTerms[] = {1.0,
                                      6.93147180559945309e-1,
                                      2.40226506959100712e-1,
                                      5.55041086648215800e-2,
                                      9.61812910762847716e-3,
                                      1.33335581464284434e-3,
                                      1.54035303933816099e-4,
                                      1.52527338040598403e-5,
                                      1.32154867901443095e-6,
                                      1.01780860092396997e-7,
                                      7.05491162080112333e-9,
                                      4.44553827187081150e-10,
                                      2.56784359934882051e-11,
                                      1.36914888539041289e-12};
};

constexpr double kLog2E = 1.44269504088896340736;

// 2^x for x <= 0, by this polynomial; NaN stays NaN, and what would be subnormal is the least that is not.
template <class T, int kCount>
inline Vec<T> power_of_two(Vec<T> x, const T (&terms)[kCount]) {
  using P = Power<T>;
  const Vec<T> lowest = broadcast<T>(P::kLowest);
  x = x < lowest ? lowest : x;
  const Vec<T> shifted = x + broadcast<T>(P::kRound);
  const Vec<T> f = x - (shifted - broadcast<T>(P::kRound));
  Vec<T> sum = broadcast<T>(terms[kCount - 1]);
#pragma GCC unroll 16
  for (int k = kCount - 2; k >= 0; --k) sum = sum * f + broadcast<T>(terms[k]);
  return sum * (Vec<T>)((IntVec<T>)shifted << P::kMantissaBits);
}

template <class T>
inline Vec<T> power_of_two(Vec<T> x) {
  return power_of_two<T>(x, Power<T>::kTerms);
}

}  // namespace
}  // namespace MAE_DFER_ISA
}  // namespace mae_dfer

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
inline T reduce_max(Vec<T> value) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return _mm512_reduce_max_ps((__m512)value);
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128((__m256)value), _mm256_extractf128_ps((__m256)value, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
  }
#endif
  T result = value[0];
  for (int lane = 1; lane < kLanes<T>; ++lane) result = value[lane] > result ? value[lane] : result;
  return result;
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

// Per-type constants of exp(x) = 2^n · exp(r), n = round(x / ln 2), |r| <= ln 2 / 2.
template <class T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  // Adding 1.5·2^23 leaves round(x) in the low bits of the sum.
  static constexpr float kRound = 12582912.0f;
  static constexpr float kLn2High = 0.693359375f;  // few enough bits that n times it is exact
  static constexpr float kLn2Low = -2.12194440e-4f;
  static constexpr float kLowest = -87.3f;  // below, the result would be subnormal
  static constexpr int kMantissaBits = 23;
  static constexpr int32_t kBias = 127;
  static constexpr int kDegree = 7;  // the Taylor remainder r^8/8! is below 6e-9
};

template <>
struct ExpConstants<double> {
  static constexpr double kRound = 6755399441055744.0;  // 1.5·2^52
  static constexpr double kLn2High = 6.93147180369123816490e-01;
  static constexpr double kLn2Low = 1.90821492927058770002e-10;
  static constexpr double kLowest = -708.3;
  static constexpr int kMantissaBits = 52;
  static constexpr int64_t kBias = 1023;
  static constexpr int kDegree = 13;
};

template <class T>
constexpr T reciprocal_factorial(int n) {
  T product = 1;
  for (int i = 2; i <= n; ++i) product *= static_cast<T>(i);
  return T(1) / product;
}

// exp(x) for x <= 0; NaN stays NaN, below kLowest gives 0.
template <class T>
inline Vec<T> exp_nonpositive(Vec<T> x) {
  using C = ExpConstants<T>;
  using Lane = typename VecTypes<T>::Lane;
  const Vec<T> shifted = x * broadcast<T>(T(1.44269504088896340736)) + broadcast<T>(C::kRound);
  const Vec<T> n = shifted - broadcast<T>(C::kRound);
  Vec<T> r = x - n * broadcast<T>(C::kLn2High);
  r = r - n * broadcast<T>(C::kLn2Low);
  Vec<T> sum = broadcast<T>(reciprocal_factorial<T>(C::kDegree));
#pragma GCC unroll 16
  for (int k = C::kDegree - 1; k >= 0; --k) sum = sum * r + broadcast<T>(reciprocal_factorial<T>(k));
  // 2^n by its exponent field: the low bits of `shifted` hold n in two's complement, the rest is shifted out.
  const IntVec<T> exponent =
      ((IntVec<T>)shifted + splat<IntVec<T>>(static_cast<Lane>(C::kBias))) << C::kMantissaBits;
  const Vec<T> result = sum * (Vec<T>)exponent;
  return x < broadcast<T>(C::kLowest) ? broadcast<T>(T(0)) : result;
}

// 0, 1, 2, ... across the lanes.
template <class T>
inline IntVec<T> lane_numbers() {
  IntVec<T> result;
  for (int lane = 0; lane < kLanes<T>; ++lane) result[lane] = static_cast<typename VecTypes<T>::Lane>(lane);
  return result;
}

}  // namespace
}  // namespace MAE_DFER_ISA
}  // namespace mae_dfer

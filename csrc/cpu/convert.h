// Storage types and their way into and out of the type that is computed in.
#pragma once

#include "cpu/vec.h"

namespace mae_dfer {
namespace MAE_DFER_ISA {
namespace {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

inline float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

template <class T>
inline T widen(T value) {
  return value;
}

inline float widen(BFloat16 value) { return bits_to_float(static_cast<uint32_t>(value.bits) << 16); }

inline float widen(Float16 value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return bits_to_float(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  // Exponent 112 short: the multiplication re-biases and makes subnormals right at once.
  const float scaled = bits_to_float(magnitude << 13) * bits_to_float(0x77800000u);
  return bits_to_float(sign | float_to_bits(scaled));
}

inline void narrow(float value, float* to) { *to = value; }
inline void narrow(double value, double* to) { *to = value; }

inline void narrow(float value, BFloat16* to) {
  const uint32_t bits = float_to_bits(value);
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  to->bits = static_cast<uint16_t>(is_nan ? 0x7fc0u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline void narrow(float value, Float16* to) {
  const uint32_t bits = float_to_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // 65520: from here on the nearest is infinity
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 rounds at bit 2^-24
    half = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  to->bits = static_cast<uint16_t>(sign | half);
}

// kLanes<T> elements of storage type E as a vector of T.
template <class T, class E>
inline Vec<T> load_as(const E* address) {
  if constexpr (sizeof(E) == sizeof(T)) {
    return load<T>(reinterpret_cast<const T*>(address));
  } else {
    T lanes[kLanes<T>];
    for (int lane = 0; lane < kLanes<T>; ++lane) lanes[lane] = widen(address[lane]);
    return load<T>(lanes);
  }
}

template <class T, class E>
inline void store_as(E* address, Vec<T> value) {
  if constexpr (sizeof(E) == sizeof(T)) {
    store<T>(reinterpret_cast<T*>(address), value);
  } else {
    for (int lane = 0; lane < kLanes<T>; ++lane) narrow(value[lane], address + lane);
  }
}

#if defined(__AVX512F__)

template <>
inline Vec<float> load_as<float, BFloat16>(const BFloat16* address) {
  const __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(address)));
  return (Vec<float>)_mm512_slli_epi32(words, 16);
}

template <>
inline Vec<float> load_as<float, Float16>(const Float16* address) {
  return (Vec<float>)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(address)));
}

template <>
inline void store_as<float, BFloat16>(BFloat16* address, Vec<float> value) {
  const __m512i bits = (__m512i)value;
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask((__m512)value, (__m512)value, _CMP_UNORD_Q);
  const __m512i words = _mm512_mask_mov_epi32(_mm512_srli_epi32(rounded, 16), nan, _mm512_set1_epi32(0x7fc0));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(address), _mm512_cvtepi32_epi16(words));
}

template <>
inline void store_as<float, Float16>(Float16* address, Vec<float> value) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(address),
                      _mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

#elif defined(__AVX2__)

template <>
inline Vec<float> load_as<float, BFloat16>(const BFloat16* address) {
  const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(address)));
  return (Vec<float>)_mm256_slli_epi32(words, 16);
}

template <>
inline Vec<float> load_as<float, Float16>(const Float16* address) {
  return (Vec<float>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(address)));
}

template <>
inline void store_as<float, BFloat16>(BFloat16* address, Vec<float> value) {
  const __m256i bits = (__m256i)value;
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i nan = (__m256i)_mm256_cmp_ps((__m256)value, (__m256)value, _CMP_UNORD_Q);
  const __m256i words =
      _mm256_blendv_epi8(_mm256_srli_epi32(rounded, 16), _mm256_set1_epi32(0x7fc0), nan);
  const __m256i packed = _mm256_packus_epi32(words, words);  // within each 128-bit half
  const __m256i joined = _mm256_permute4x64_epi64(packed, 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(address), _mm256_castsi256_si128(joined));
}

template <>
inline void store_as<float, Float16>(Float16* address, Vec<float> value) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(address),
                   _mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

#endif

}  // namespace
}  // namespace MAE_DFER_ISA
}  // namespace mae_dfer

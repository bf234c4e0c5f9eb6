// The primitives of cuda/primitives.cuh on the CPU: every thread of a block is a fiber, run in random order.
//
// What a warp does together (matrix products, loads, shuffles) happens when its 32 threads have all arrived, and is
// computed element by element from the PTX ISA's tables of who holds what, so a kernel that holds a fragment wrongly
// computes wrongly here too. Shared memory starts as NaN; an asynchronous copy arrives at a random moment between its
// issue and its wait; threads run ahead of each other as far as barriers let them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cpu/convert.h"
#include "cuda/host/machine.h"

#define MAE_DFER_KERNEL(threads, blocks) void
#define MAE_DFER_DEVICE inline
#define MAE_DFER_UNROLL
#define MAE_DFER_ROLL

namespace mae_dfer {
namespace cuda {

using portable::bits_to_float;
using portable::float_to_bits;

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

inline float widen(BFloat16 value) { return portable::widen(portable::BFloat16{value.bits}); }
inline float widen(Float16 value) { return portable::widen(portable::Float16{value.bits}); }
inline void narrow(float value, float* to) { *to = value; }
inline void narrow(float value, BFloat16* to) {
  portable::BFloat16 rounded;
  portable::narrow(value, &rounded);
  to->bits = rounded.bits;
}
inline void narrow(float value, Float16* to) {
  portable::Float16 rounded;
  portable::narrow(value, &rounded);
  to->bits = rounded.bits;
}

inline int thread_index() { return host::machine().thread(); }
inline int block_threads() { return host::machine().threads(); }
inline int64_t block_index() { return host::machine().block(); }
inline int64_t block_count() { return host::machine().blocks(); }
inline char* shared_memory() { return host::machine().shared_memory(); }
inline void sync_block() { host::machine().sync_block(); }

inline float exp2_approx(float x) { return std::exp2(x); }
inline float inverse_approx(float x) { return 1.0f / x; }
inline float inverse_square_root(float x) { return 1.0f / std::sqrt(x); }
inline uint32_t multiply_high(uint32_t a, uint32_t b) { return static_cast<uint32_t>(uint64_t{a} * b >> 32); }

template <class E>
uint32_t pack(E, float first, float second) {
  E low, high;
  narrow(first, &low);
  narrow(second, &high);
  return low.bits | static_cast<uint32_t>(high.bits) << 16;
}

template <class E>
void unpack(E, uint32_t word, float* first, float* second) {
  *first = widen(E{static_cast<uint16_t>(word)});
  *second = widen(E{static_cast<uint16_t>(word >> 16)});
}

// To nearest, ties away from zero (cvt.rna).
inline float round_to_tf32(float value) { return bits_to_float((float_to_bits(value) + 0x1000u) & 0xffffe000u); }

inline void copy_async(void* shared, const void* global, bool valid) {
  host::machine().copy_async(shared, valid ? global : nullptr);
}
inline void copy_16(void* to, const void* from) { std::memcpy(to, from, 16); }
inline void copy_commit() { host::machine().copy_commit(); }
template <int kNewest>
void copy_wait() {
  host::machine().copy_wait(kNewest);
}

template <class E>
void store_pair(E* to, float first, float second) {
  narrow(first, to);
  narrow(second, to + 1);
}

// What one thread brings to something that its warp does together, and takes from it.
struct Share {
  float value;
  int mask;
  char row[16];
  float* c;
  const uint32_t* a;
  const uint32_t* b;
  uint32_t* words;
};

inline Share& of(void* const* lanes, int lane) { return *static_cast<Share*>(lanes[lane]); }

inline void sync_warp() {
  Share mine{};
  host::machine().together(&mine, [](void* const*) {});
}

inline float shuffle_xor(float value, int mask) {
  Share mine{};
  mine.value = value;
  mine.mask = mask;
  host::machine().together(&mine, [](void* const* lanes) {
    float given[32];
    for (int lane = 0; lane < 32; ++lane) given[lane] = of(lanes, lane).value;
    for (int lane = 0; lane < 32; ++lane) of(lanes, lane).value = given[lane ^ of(lanes, lane).mask];
  });
  return mine.value;
}

// ldmatrix: thread 8·m + r names row r of matrix m; thread `lane` gets word lane % 4 of row lane / 4. A row is read when
// its thread arrives: what others have yet to write, they should have written before a barrier.
inline void load_matrices(uint32_t (&words)[4], const void* row) {
  Share mine{};
  mine.words = words;
  std::memcpy(mine.row, row, 16);
  host::machine().together(&mine, [](void* const* lanes) {
    for (int lane = 0; lane < 32; ++lane) {
      for (int matrix = 0; matrix < 4; ++matrix) {
        const char* source = of(lanes, 8 * matrix + lane / 4).row;
        std::memcpy(of(lanes, lane).words + matrix, source + 4 * (lane % 4), 4);
      }
    }
  });
}

// ldmatrix.trans: thread `lane` gets elements (row 2·(lane % 4), column lane / 4) and the one below it.
inline void load_matrices_transposed(uint32_t (&words)[4], const void* row) {
  Share mine{};
  mine.words = words;
  std::memcpy(mine.row, row, 16);
  host::machine().together(&mine, [](void* const* lanes) {
    for (int lane = 0; lane < 32; ++lane) {
      for (int matrix = 0; matrix < 4; ++matrix) {
        uint16_t pair[2];
        for (int half = 0; half < 2; ++half) {
          const char* source = of(lanes, 8 * matrix + 2 * (lane % 4) + half).row;
          std::memcpy(pair + half, source + 2 * (lane / 4), 2);
        }
        std::memcpy(of(lanes, lane).words + matrix, pair, 4);
      }
    }
  });
}

// What a tensor core makes of c + Σ a·b, as tests of Hopper's find (Fasi et al., "Numerical behavior of NVIDIA tensor
// cores", 2021, and later ones): exact products are aligned to the largest exponent among all terms, cut off two bits
// beyond fp32's last, added without error, and the sum is cut off at fp32: twice towards zero, never to nearest.
template <int kTerms, int kColumns>
float fused_sum(float c, const float (&a)[kTerms], const float (&b)[kTerms][kColumns], int column) {
  constexpr int kFractionBits = 23 + 2, kBias = 127;
  const auto exponent = [](float value) { return static_cast<int>(float_to_bits(value) >> 23 & 255) - kBias; };
  int largest = exponent(c);
  double plain = c;
  for (int k = 0; k < kTerms; ++k) {
    largest = std::max(largest, exponent(a[k]) + exponent(b[k][column]));
    plain += double{a[k]} * b[k][column];
  }
  if (!std::isfinite(plain)) return static_cast<float>(plain);
  const double unit = std::ldexp(1.0, largest - kFractionBits), inverse = 1.0 / unit;
  int64_t sum = static_cast<int64_t>(c * inverse);
  for (int k = 0; k < kTerms; ++k) sum += static_cast<int64_t>(double{a[k]} * b[k][column] * inverse);
  const double exact = static_cast<double>(sum) * unit;
  const float nearest = static_cast<float>(exact);
  return std::fabs(nearest) > std::fabs(exact) ? std::nextafter(nearest, 0.0f) : nearest;
}

// C += A B of a warp, whose threads hold rows g and g + 8 and columns 2p and 2p + 1 of C.
template <int kTerms>
void accumulate(void* const* lanes, const float (&left)[16][kTerms], const float (&right)[kTerms][8]) {
  for (int lane = 0; lane < 32; ++lane) {
    float* const c = of(lanes, lane).c;
    for (int i = 0; i < 4; ++i) {
      c[i] = fused_sum(c[i], left[lane / 4 + (i >= 2 ? 8 : 0)], right, 2 * (lane % 4) + i % 2);
    }
  }
}

// PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type": element i of a thread's fragment stands at
// A: row g (i in 0, 1, 4, 5) or g + 8, column 2p + i % 2 (+ 8 for i >= 4); B: row 2p + i % 2 (+ 8 for i >= 2), column
// g; C: row g (+ 8 for i >= 2), column 2p + i % 2; with g = lane / 4 and p = lane % 4.
template <class E>
void multiply_add(E, float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Share mine{};
  mine.c = c;
  mine.a = a;
  mine.b = b;
  host::machine().together(&mine, [](void* const* lanes) {
    const auto element = [](const uint32_t* words, int i) {
      return widen(E{static_cast<uint16_t>(words[i / 2] >> (16 * (i % 2)))});
    };
    float left[16][16], right[16][8];
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, p = lane % 4;
      for (int i = 0; i < 8; ++i) {
        const bool upper = i < 2 || (i >= 4 && i < 6);
        left[upper ? g : g + 8][2 * p + i % 2 + (i >= 4 ? 8 : 0)] = element(of(lanes, lane).a, i);
      }
      for (int i = 0; i < 4; ++i) right[2 * p + i % 2 + (i >= 2 ? 8 : 0)][g] = element(of(lanes, lane).b, i);
    }
    accumulate(lanes, left, right);
  });
}

// PTX ISA, "Matrix Fragments for mma.m16n8k8", .tf32: element i of A: row g (+ 8 for odd i), column p (+ 4 for i >= 2);
// of B: row p (+ 4 for i = 1), column g; C as above. The low 13 bits of an operand are not read.
inline void multiply_add_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Share mine{};
  mine.c = c;
  mine.a = a;
  mine.b = b;
  host::machine().together(&mine, [](void* const* lanes) {
    const auto element = [](const uint32_t* words, int i) { return bits_to_float(words[i] & 0xffffe000u); };
    float left[16][8], right[8][8];
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, p = lane % 4;
      for (int i = 0; i < 4; ++i) left[g + (i % 2 ? 8 : 0)][p + (i >= 2 ? 4 : 0)] = element(of(lanes, lane).a, i);
      for (int i = 0; i < 2; ++i) right[p + (i ? 4 : 0)][g] = element(of(lanes, lane).b, i);
    }
    accumulate(lanes, left, right);
  });
}

inline size_t shared_memory_limit() { return host::machine().shared_memory_limit(); }

template <class... Parameters>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared_bytes, void*,
            Parameters... parameters) {
  host::machine().run(blocks, threads, shared_bytes, [=] { kernel(parameters...); });
}

}  // namespace cuda
}  // namespace mae_dfer

// Matrix products of one warp: tiles in shared memory, fragments in registers, C (16 × 8·n) += A (16 × k) B (k × 8·n).
//
// A thread is thread p = lane % 4 of group g = lane / 4. Of every 16 × 8 block of C it holds (g, 2p), (g, 2p + 1),
// (g + 8, 2p) and (g + 8, 2p + 1), as PTX ISA's mma.m16n8k16 and mma.m16n8k8 both say. A step of a product takes 32
// bytes of each row of A: sixteen 16-bit elements, or eight of fp32.
#pragma once

#include "cuda/primitives.cuh"

namespace mae_dfer {
namespace cuda {

using Accumulator = float[4];

// Unsigned, and so are places in a tile: divisions by powers of two are then shifts, and much of an address is known
// when the kernel is compiled.
MAE_DFER_DEVICE unsigned lane_index() { return static_cast<unsigned>(thread_index()) % 32; }
MAE_DFER_DEVICE unsigned warp_index() { return static_cast<unsigned>(thread_index()) / 32; }

// Rows of D elements in shared memory. The sixteen-byte pieces of a row are permuted, so that one place of eight rows
// that follow one another lies in eight different groups of banks.
template <class E, int D>
struct Tile {
  static constexpr int kPieces = D * static_cast<int>(sizeof(E)) / 16;
  static constexpr int kRowBytes = kPieces * 16;

  char* base;

  MAE_DFER_DEVICE char* piece(unsigned row, unsigned index) const {
    constexpr unsigned kRowsOfBanks = kPieces >= 8 ? 1 : 8 / kPieces;  // rows that fill the banks once
    constexpr unsigned kPermuted = kPieces >= 8 ? 8 : kPieces;
    return base + row * unsigned{kRowBytes} + (index ^ (row / kRowsOfBanks % kPermuted)) * 16;
  }

  // Starts copying `rows` rows into the tile, zeros beyond `valid`, by the `count` threads that call themselves
  // 0 … count - 1. `from` is aligned to sixteen bytes, as are rows `stride` elements apart.
  MAE_DFER_DEVICE void load_async(const E* from, int64_t stride, int valid, int rows, int thread, int count) const {
    for (int index = thread; index < rows * kPieces; index += count) {
      const int row = index / kPieces, place = index % kPieces;
      const bool inside = row < valid;
      const E* source = inside ? from + row * stride : from;
      copy_async(piece(row, place), reinterpret_cast<const char*>(source) + place * 16, inside);
    }
  }

  // A of rows `row` … `row` + 15, step `step`.
  MAE_DFER_DEVICE void load_left(uint32_t (&a)[4], unsigned row, unsigned step) const {
    const unsigned lane = lane_index();
    load_matrices(a, piece(row + lane % 16, 2 * step + lane / 16));
  }

  // B from rows that are its columns (products with this tile's transpose): columns `row` … `row` + 15 as two blocks.
  MAE_DFER_DEVICE void load_right_of_transpose(uint32_t (&b)[2][2], unsigned row, unsigned step) const {
    const unsigned lane = lane_index();
    uint32_t words[4];
    load_matrices(words, piece(row + lane % 8 + lane / 16 * 8, 2 * step + lane / 8 % 2));
    b[0][0] = words[0];
    b[0][1] = words[1];
    b[1][0] = words[2];
    b[1][1] = words[3];
  }
};

// What differs between 16-bit elements and fp32. `kStep` is how many rows of B, or columns of A, a step takes.
template <class E>
struct Product {
  static constexpr int kStep = 16;

  MAE_DFER_DEVICE static void add(Accumulator& c, const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    multiply_add(E(), c, a, b);
  }

  // B of rows `row` … `row` + 15 and columns `column` … `column` + 15 as two blocks.
  template <int D>
  MAE_DFER_DEVICE static void load_right(uint32_t (&b)[2][2], const Tile<E, D>& tile, unsigned row, unsigned column) {
    const unsigned lane = lane_index();
    uint32_t words[4];
    load_matrices_transposed(words, tile.piece(row + lane % 16, column / 8 + lane / 16));
    b[0][0] = words[0];
    b[0][1] = words[1];
    b[1][0] = words[2];
    b[1][1] = words[3];
  }

  // A of the next product from columns 16·step … 16·step + 15 of this one's C.
  MAE_DFER_DEVICE static void to_left(uint32_t (&a)[4], const Accumulator* c, int step) {
    MAE_DFER_UNROLL
    for (int half = 0; half < 2; ++half) {
      a[2 * half] = pack(E(), c[2 * step + half][0], c[2 * step + half][1]);
      a[2 * half + 1] = pack(E(), c[2 * step + half][2], c[2 * step + half][3]);
    }
  }
};

// fp32 on tensor cores that read ten bits of mantissa: each factor is a rounded number and its remainder, and of their
// four products only the smallest is left out. Tensor cores round every sum towards zero, which long sums would add up
// to a bias, so each step starts from zero and ordinary additions, to nearest, take it in (Ootomo and Yokota,
// "Recovering single precision accuracy from Tensor Cores while surpassing the FP32 theoretical peak", 2022).
template <>
struct Product<float> {
  static constexpr int kStep = 8;

  MAE_DFER_DEVICE static void add(Accumulator& c, const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    uint32_t a_high[4], a_low[4], b_high[2], b_low[2];
    MAE_DFER_UNROLL
    for (int i = 0; i < 4; ++i) split(a[i], &a_high[i], &a_low[i]);
    MAE_DFER_UNROLL
    for (int i = 0; i < 2; ++i) split(b[i], &b_high[i], &b_low[i]);
    Accumulator part = {0.0f, 0.0f, 0.0f, 0.0f};
    multiply_add_tf32(part, a_low, b_high);
    multiply_add_tf32(part, a_high, b_low);
    multiply_add_tf32(part, a_high, b_high);
    MAE_DFER_UNROLL
    for (int i = 0; i < 4; ++i) c[i] += part[i];
  }

  // Rows in the order that `to_left` leaves the columns of A in.
  template <int D>
  MAE_DFER_DEVICE static void load_right(uint32_t (&b)[2][2], const Tile<float, D>& tile, unsigned row, unsigned column) {
    const unsigned g = lane_index() / 4, p = lane_index() % 4;
    MAE_DFER_UNROLL
    for (int block = 0; block < 2; ++block) {
      const unsigned at = column + 8 * block + g;
      MAE_DFER_UNROLL
      for (int i = 0; i < 2; ++i) {
        b[block][i] = *reinterpret_cast<const uint32_t*>(tile.piece(row + 2 * p + i, at / 4) + at % 4 * 4);
      }
    }
  }

  // A thread holds columns 2p and 2p + 1 of C and must hold p and p + 4 of A: column 2p is taken as number p, and
  // 2p + 1 as number p + 4. A sum over columns does not mind their order.
  MAE_DFER_DEVICE static void to_left(uint32_t (&a)[4], const Accumulator* c, int step) {
    a[0] = float_to_bits(c[step][0]);
    a[1] = float_to_bits(c[step][2]);
    a[2] = float_to_bits(c[step][1]);
    a[3] = float_to_bits(c[step][3]);
  }

 private:
  MAE_DFER_DEVICE static void split(uint32_t word, uint32_t* high, uint32_t* low) {
    const float rounded = round_to_tf32(bits_to_float(word));
    *high = float_to_bits(rounded);
    *low = float_to_bits(round_to_tf32(bits_to_float(word) - rounded));
  }
};

template <int kBlocks>
MAE_DFER_DEVICE void clear(Accumulator (&c)[kBlocks]) {
  MAE_DFER_UNROLL
  for (int n = 0; n < kBlocks; ++n) {
    MAE_DFER_UNROLL
    for (int i = 0; i < 4; ++i) c[n][i] = 0.0f;
  }
}

// C (16 × 8·kBlocks) = rows `row` … of `left` times the transpose of rows `other` … of `right`.
template <class E, int D, int kBlocks>
MAE_DFER_DEVICE void multiply_transposed(Accumulator (&c)[kBlocks], const Tile<E, D>& left, unsigned row,
                                         const Tile<E, D>& right, unsigned other) {
  clear(c);
  MAE_DFER_ROLL
  for (unsigned step = 0; step < D / Product<E>::kStep; ++step) {
    uint32_t a[4];
    left.load_left(a, row, step);
    MAE_DFER_UNROLL
    for (int n = 0; n < kBlocks / 2; ++n) {
      uint32_t b[2][2];
      right.load_right_of_transpose(b, other + 16 * n, step);
      Product<E>::add(c[2 * n], a, b[0]);
      Product<E>::add(c[2 * n + 1], a, b[1]);
    }
  }
}

// One step of C (16 × D) += A times rows `row` … of `right`.
template <class E, int D>
MAE_DFER_DEVICE void multiply_step(Accumulator (&c)[D / 8], const uint32_t (&a)[4], const Tile<E, D>& right, unsigned row) {
  MAE_DFER_UNROLL
  for (int n = 0; n < D / 16; ++n) {
    uint32_t b[2][2];
    Product<E>::load_right(b, right, row, 16 * n);
    Product<E>::add(c[2 * n], a, b[0]);
    Product<E>::add(c[2 * n + 1], a, b[1]);
  }
}

// C (16 × D) += A times the rows of `right`, where A is a matrix of scores as accumulators hold it. Of fp32, whose
// scores are used up, the steps are a loop: unrolled, its independent products want more registers than there are.
template <class E, int D, int kBlocks>
MAE_DFER_DEVICE void multiply_scores(Accumulator (&c)[D / 8], Accumulator (&scores)[kBlocks], const Tile<E, D>& right) {
  constexpr int kSteps = 8 * kBlocks / Product<E>::kStep;
  uint32_t left[4];
  if constexpr (sizeof(E) == 2) {
    MAE_DFER_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      Product<E>::to_left(left, scores, step);
      multiply_step(c, left, right, step * Product<E>::kStep);
    }
  } else {
    MAE_DFER_ROLL
    for (int step = 0; step < kSteps; ++step) {
      Product<E>::to_left(left, scores, 0);
      multiply_step(c, left, right, step * Product<E>::kStep);
      MAE_DFER_UNROLL
      for (int n = 0; n < kBlocks - 1; ++n) {
        MAE_DFER_UNROLL
        for (int i = 0; i < 4; ++i) scores[n][i] = scores[n + 1][i];
      }
    }
  }
}

// Over the four threads that share a row of C.
MAE_DFER_DEVICE float row_sum(float value) {
  value += shuffle_xor(value, 1);
  return value + shuffle_xor(value, 2);
}
MAE_DFER_DEVICE float row_max(float value) {
  value = fmaxf(value, shuffle_xor(value, 1));
  return fmaxf(value, shuffle_xor(value, 2));
}

}  // namespace cuda
}  // namespace mae_dfer

// Rows of any 16- or 32-bit type in the registers of a warp: eight neighbouring elements a thread and vector, so that a
// warp reads 256 at a time in whole sixteen-byte pieces.
#pragma once

#include "cuda/fragments.cuh"
#include "problem.h"

namespace mae_dfer {
namespace cuda {

constexpr int kVector = 8;  // elements

// A branch on the type is the same for all threads, and waits for memory cover it: one kernel serves every mixture.
MAE_DFER_DEVICE void load_vector(const char* row, DType dtype, unsigned column, float (&values)[kVector]) {
  alignas(16) uint32_t words[8];
  if (dtype == DType::float32) {
    copy_16(words, row + column * 4);
    copy_16(words + 4, row + column * 4 + 16);
    MAE_DFER_UNROLL
    for (int i = 0; i < kVector; ++i) values[i] = bits_to_float(words[i]);
    return;
  }
  copy_16(words, row + column * 2);
  MAE_DFER_UNROLL
  for (int i = 0; i < kVector / 2; ++i) {
    if (dtype == DType::bfloat16) {
      unpack(BFloat16(), words[i], values + 2 * i, values + 2 * i + 1);
    } else {
      unpack(Float16(), words[i], values + 2 * i, values + 2 * i + 1);
    }
  }
}

// Stores the values rounded to the type, and leaves them rounded.
MAE_DFER_DEVICE void store_vector(char* row, DType dtype, unsigned column, float (&values)[kVector]) {
  alignas(16) uint32_t words[8];
  if (dtype == DType::float32) {
    MAE_DFER_UNROLL
    for (int i = 0; i < kVector; ++i) words[i] = float_to_bits(values[i]);
    copy_16(row + column * 4, words);
    copy_16(row + column * 4 + 16, words + 4);
    return;
  }
  MAE_DFER_UNROLL
  for (int i = 0; i < kVector / 2; ++i) {
    if (dtype == DType::bfloat16) {
      words[i] = pack(BFloat16(), values[2 * i], values[2 * i + 1]);
      unpack(BFloat16(), words[i], values + 2 * i, values + 2 * i + 1);
    } else {
      words[i] = pack(Float16(), values[2 * i], values[2 * i + 1]);
      unpack(Float16(), words[i], values + 2 * i, values + 2 * i + 1);
    }
  }
  copy_16(row + column * 2, words);
}

MAE_DFER_DEVICE int64_t item_size(DType dtype) { return dtype == DType::float32 ? 4 : 2; }

MAE_DFER_DEVICE const char* row_address(const StridedRows& rows, int64_t rows_per_group, int64_t index) {
  const int64_t group = index / rows_per_group;
  const int64_t element = group * rows.group_stride + (index - group * rows_per_group) * rows.row_stride;
  return static_cast<const char*>(rows.data) + element * item_size(rows.dtype);
}

// Row `index` of a contiguous matrix.
MAE_DFER_DEVICE char* row_address(void* matrix, DType dtype, int64_t channels, int64_t index) {
  return static_cast<char*>(matrix) + index * channels * item_size(dtype);
}

// Over the 32 threads of the warp, to all of them.
MAE_DFER_DEVICE float warp_sum(float value) {
  MAE_DFER_UNROLL
  for (int mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

// Mean of a row and 1 / sqrt(variance + eps), in two passes over the registers; values beyond the row are skipped.
template <int kVectors>
struct WarpStatistics {
  float mean, inverse;

  MAE_DFER_DEVICE WarpStatistics(const float (&values)[kVectors][kVector], unsigned channels, float eps) {
    float sum = 0.0f, squares = 0.0f;
    MAE_DFER_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      if (first_column(v) < channels) {
        MAE_DFER_UNROLL
        for (int i = 0; i < kVector; ++i) sum += values[v][i];
      }
    }
    mean = warp_sum(sum) / static_cast<float>(channels);
    MAE_DFER_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      if (first_column(v) < channels) {
        MAE_DFER_UNROLL
        for (int i = 0; i < kVector; ++i) squares += (values[v][i] - mean) * (values[v][i] - mean);
      }
    }
    inverse = inverse_square_root(warp_sum(squares) / static_cast<float>(channels) + eps);
  }

  MAE_DFER_DEVICE static unsigned first_column(int vector) { return (32 * vector + lane_index()) * kVector; }
};

}  // namespace cuda
}  // namespace mae_dfer

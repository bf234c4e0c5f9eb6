// Rows of any storage type, read into and written from the type that is computed in.
#pragma once

#include "cpu/convert.h"
#include "problem.h"

namespace mae_dfer {
namespace MAE_DFER_ISA {
namespace {

template <class T, class E>
inline void widen_row(const E* from, T* to, int width) {
  int c = 0;
  for (; c + kLanes<T> <= width; c += kLanes<T>) store<T>(to + c, load_as<T>(from + c));
  for (; c < width; ++c) to[c] = widen(from[c]);
}

template <class T, class E>
inline void narrow_row(const T* from, E* to, int width) {
  int c = 0;
  for (; c + kLanes<T> <= width; c += kLanes<T>) store_as<T>(to + c, load<T>(from + c));
  for (; c < width; ++c) narrow(from[c], to + c);
}

inline int64_t item_size(DType dtype) {
  return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2;
}

// Row `index` of all G·M rows.
inline const void* row_address(const StridedRows& rows, int64_t rows_per_group, int64_t index) {
  const int64_t element =
      index / rows_per_group * rows.group_stride + index % rows_per_group * rows.row_stride;
  return static_cast<const char*>(rows.data) + element * item_size(rows.dtype);
}

// The row as T: itself where that is its type, else widened into `buffer`.
template <class T>
inline const T* read_row(const void* row, DType dtype, T* buffer, int width) {
  if (item_size(dtype) == static_cast<int64_t>(sizeof(T))) return static_cast<const T*>(row);
  if constexpr (sizeof(T) == sizeof(float)) {
    if (dtype == DType::bfloat16) {
      widen_row<T>(static_cast<const BFloat16*>(row), buffer, width);
    } else {
      widen_row<T>(static_cast<const Float16*>(row), buffer, width);
    }
  }
  return buffer;
}

// Row `index` of a contiguous matrix of `dtype`, from T.
template <class T>
inline void write_row(const T* from, void* matrix, DType dtype, int64_t index, int width) {
  char* const row = static_cast<char*>(matrix) + index * width * item_size(dtype);
  if (item_size(dtype) == static_cast<int64_t>(sizeof(T))) {
    narrow_row<T>(from, reinterpret_cast<T*>(row), width);
  } else if constexpr (sizeof(T) == sizeof(float)) {
    if (dtype == DType::bfloat16) {
      narrow_row<T>(from, reinterpret_cast<BFloat16*>(row), width);
    } else {
      narrow_row<T>(from, reinterpret_cast<Float16*>(row), width);
    }
  }
}

// A vector of the first `lanes` elements at the address, all of them but at a row's end; zeros beyond.
template <class T>
inline Vec<T> load_part(const T* address, int lanes) {
  if (lanes >= kLanes<T>) return load<T>(address);
  T part[kLanes<T>] = {};
  for (int lane = 0; lane < lanes; ++lane) part[lane] = address[lane];
  return load<T>(part);
}

template <class T>
inline void store_part(T* address, Vec<T> value, int lanes) {
  if (lanes >= kLanes<T>) return store<T>(address, value);
  for (int lane = 0; lane < lanes; ++lane) address[lane] = value[lane];
}

// The builtins, since std::sqrt is an inline function that the linker could merge across instruction sets.
inline float square_root(float value) { return __builtin_sqrtf(value); }
inline double square_root(double value) { return __builtin_sqrt(value); }

// Mean of a row and 1 / sqrt(variance + eps), in two passes: the row is in the first-level cache. The second pass
// also finds what rounding left of the mean.
template <class T>
struct RowStatistics {
  T mean, inverse_deviation;

  RowStatistics(const T* row, int width, T eps) {
    Vec<T> sum = broadcast<T>(T(0));
    for (int c = 0; c < width; c += kLanes<T>) sum += load_part(row + c, width - c);
    const T first = reduce_add<T>(sum) / static_cast<T>(width);
    const Vec<T> centre = broadcast<T>(first);
    Vec<T> offs = broadcast<T>(T(0)), squares = broadcast<T>(T(0));
    int c = 0;
    for (; c + kLanes<T> <= width; c += kLanes<T>) {
      const Vec<T> off = load<T>(row + c) - centre;
      offs += off;
      squares += off * off;
    }
    T last_offs = T(0), last_squares = T(0);
    for (; c < width; ++c) {
      last_offs += row[c] - first;
      last_squares += (row[c] - first) * (row[c] - first);
    }
    const T rest = (reduce_add<T>(offs) + last_offs) / static_cast<T>(width);
    mean = first + rest;
    const T variance = (reduce_add<T>(squares) + last_squares) / static_cast<T>(width) - rest * rest;
    inverse_deviation = T(1) / square_root((variance > T(0) ? variance : T(0)) + eps);
  }
};

}  // namespace
}  // namespace MAE_DFER_ISA
}  // namespace mae_dfer

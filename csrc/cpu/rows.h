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

// Where row `index` of a contiguous matrix of `dtype` is made: in its own place where that is of type T, else in
// `buffer`, from where `finish_row` rounds it into its place.
template <class T>
inline T* result_row(void* matrix, DType dtype, int64_t index, T* buffer, int width) {
  return item_size(dtype) == static_cast<int64_t>(sizeof(T)) ? static_cast<T*>(matrix) + index * width : buffer;
}

template <class T>
inline void finish_row(const T* made, void* matrix, DType dtype, int64_t index, int width) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (dtype == DType::bfloat16) {
      narrow_row<T>(made, static_cast<BFloat16*>(matrix) + index * width, width);
    } else if (dtype == DType::float16) {
      narrow_row<T>(made, static_cast<Float16*>(matrix) + index * width, width);
    }
  }
}

// How many lanes a step along a row has: all, as is known when this is compiled, or those left at the row's end.
// `part` tells neighbouring steps apart: each adds to a sum of its own, so that none waits for the one before.
constexpr int kParts = 4;
template <int kPart>
struct WholeVector {
  static constexpr int part = kPart;
};
struct RowEnd {
  static constexpr int part = 0;
  int lanes;
};

// step(c, lanes) for c = 0, L, 2 L, ... along a row.
template <class T, class Step>
inline void along_row(int width, const Step& step) {
  int c = 0;
  for (; c + kParts * kLanes<T> <= width; c += kParts * kLanes<T>) {
    step(c, WholeVector<0>());
    step(c + kLanes<T>, WholeVector<1>());
    step(c + 2 * kLanes<T>, WholeVector<2>());
    step(c + 3 * kLanes<T>, WholeVector<3>());
  }
  for (; c + kLanes<T> <= width; c += kLanes<T>) step(c, WholeVector<0>());
  if (c < width) step(c, RowEnd{width - c});
}

// Sums of a vector along a row, one for each part.
template <class T>
struct RowSum {
  Vec<T> parts[kParts] = {broadcast<T>(T(0)), broadcast<T>(T(0)), broadcast<T>(T(0)), broadcast<T>(T(0))};
  T total() const { return reduce_add<T>((parts[0] + parts[1]) + (parts[2] + parts[3])); }
};

// A vector of the elements at the address, zeros beyond the row's end.
template <class T, int kPart>
inline Vec<T> load_part(const T* address, WholeVector<kPart>) {
  return load<T>(address);
}

template <class T>
inline Vec<T> load_part(const T* address, RowEnd end) {
  T part[kLanes<T>] = {};
  for (int lane = 0; lane < end.lanes; ++lane) part[lane] = address[lane];
  return load<T>(part);
}

template <class T, int kPart>
inline void store_part(T* address, Vec<T> value, WholeVector<kPart>) {
  store<T>(address, value);
}

template <class T>
inline void store_part(T* address, Vec<T> value, RowEnd end) {
  for (int lane = 0; lane < end.lanes; ++lane) address[lane] = value[lane];
}

// The same for elements of another type.
template <class T, class E, int kPart>
inline Vec<T> load_part_as(const E* address, WholeVector<kPart>) {
  return load_as<T>(address);
}

template <class T, class E>
inline Vec<T> load_part_as(const E* address, RowEnd end) {
  E part[kLanes<T>] = {};
  for (int lane = 0; lane < end.lanes; ++lane) part[lane] = address[lane];
  return load_as<T>(part);
}

template <class T, class E, int kPart>
inline void store_part_as(E* address, Vec<T> value, WholeVector<kPart>) {
  store_as<T>(address, value);
}

template <class T, class E>
inline void store_part_as(E* address, Vec<T> value, RowEnd end) {
  E part[kLanes<T>];
  store_as<T>(part, value);
  for (int lane = 0; lane < end.lanes; ++lane) address[lane] = part[lane];
}

// The builtins, since std::sqrt is an inline function that the linker could merge across instruction sets.
inline float square_root(float value) { return __builtin_sqrtf(value); }
inline double square_root(double value) { return __builtin_sqrt(value); }

// Mean of a row and 1 / sqrt(variance + eps), in two passes: the row is in the first-level cache. The second pass
// also finds what rounding left of the mean.
template <class T>
struct RowStatistics {
  T mean, inverse_deviation;

  RowStatistics(const T* row, int width, T eps) : RowStatistics(row, width, eps, sum_of(row, width)) {}

  // Where the row's sum is known already.
  RowStatistics(const T* row, int width, T eps, T sum) {
    const T first = sum / static_cast<T>(width);
    const Vec<T> centre = broadcast<T>(first);
    RowSum<T> offs, squares;
    const int whole = width / kLanes<T> * kLanes<T>;
    along_row<T>(whole, [&](int c, auto lanes) {
      const Vec<T> off = load_part(row + c, lanes) - centre;
      offs.parts[lanes.part] += off;
      squares.parts[lanes.part] += off * off;
    });
    T last_offs = T(0), last_squares = T(0);
    for (int c = whole; c < width; ++c) {
      last_offs += row[c] - first;
      last_squares += (row[c] - first) * (row[c] - first);
    }
    const T rest = (offs.total() + last_offs) / static_cast<T>(width);
    mean = first + rest;
    const T variance = (squares.total() + last_squares) / static_cast<T>(width) - rest * rest;
    inverse_deviation = T(1) / square_root((variance > T(0) ? variance : T(0)) + eps);
  }

 private:
  static T sum_of(const T* row, int width) {
    RowSum<T> sum;
    along_row<T>(width, [&](int c, auto lanes) { sum.parts[lanes.part] += load_part(row + c, lanes); });
    return sum.total();
  }
};

}  // namespace
}  // namespace MAE_DFER_ISA
}  // namespace mae_dfer

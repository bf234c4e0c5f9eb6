// Residual + LayerNorm over a chunk of rows, forward and backward. Compiled once for every instruction set.
//
// Memory bounds it: each row is read once, worked on in the first-level cache, and written once.

#include "cpu/kernels.h"
#include "cpu/rows.h"
#include "cpu/workspace.h"

namespace mae_dfer {
namespace MAE_DFER_ISA {
namespace {

// Rows that a task holds at once: buffers of C elements, each rounded up to a cache line by Workspace.
constexpr int kBuffers = 5;

size_t workspace(const ResidualLayerNorm& problem) {
  const size_t item = problem.x.dtype == DType::float64 ? sizeof(double) : sizeof(float);
  return kBuffers * (static_cast<size_t>(problem.channels) * item + 64);
}

template <class T>
T row_scale(const ResidualLayerNorm& problem, int64_t group) {
  return problem.row_scale ? static_cast<const T*>(problem.row_scale)[group] : T(1);
}

// A row of a task's chunk: its number among all, and where it lies in its group. Counted on, not divided anew.
struct RowNumber {
  int64_t index, end, group, row, rows_per_group;

  static RowNumber first_of(const ResidualLayerNorm& problem, int64_t task) {
    const int64_t first = task * problem.chunk_rows(), all = problem.groups * problem.rows;
    const int64_t end = first + problem.chunk_rows() < all ? first + problem.chunk_rows() : all;
    return {first, end, first / problem.rows, first % problem.rows, problem.rows};
  }
  bool inside() const { return index < end; }
  void next() {
    ++index;
    if (++row == rows_per_group) {
      row = 0;
      ++group;
    }
  }
  const void* address(const StridedRows& rows) const {
    return static_cast<const char*>(rows.data) +
           (group * rows.group_stride + row * rows.row_stride) * item_size(rows.dtype);
  }
};

// Makes the row that is normalised, and returns its total. It is the sum as it is stored: the backward and the next
// block know no other.
template <class T>
T add_update(const ResidualLayerNorm& problem, const RowNumber& row, const T* x, T* update_buffer, T* total) {
  const int width = static_cast<int>(problem.channels);
  const T* const update = read_row<T>(row.address(problem.update), problem.update.dtype, update_buffer, width);
  const Vec<T> scale = broadcast<T>(row_scale<T>(problem, row.group));
  RowSum<T> row_sum;
  along_row<T>(width, [&](int c, auto lanes) {
    const Vec<T> value = load_part(x + c, lanes) + scale * load_part(update + c, lanes);
    store_part<T>(total + c, value, lanes);
    row_sum.parts[lanes.part] += value;
  });
  if (item_size(problem.x.dtype) != static_cast<int64_t>(sizeof(T))) {
    finish_row<T>(total, problem.sum, problem.x.dtype, row.index, width);
    const char* stored = static_cast<const char*>(problem.sum) + row.index * width * item_size(problem.x.dtype);
    read_row<T>(stored, problem.x.dtype, total, width);
  }
  return row_sum.total();
}

template <class T>
void forward_chunk(const ResidualLayerNorm& problem, int64_t task, void* memory) {
  const int width = static_cast<int>(problem.channels);
  Workspace<T> buffers(memory);
  T *const x_buffer = buffers.take(width), *const update_buffer = buffers.take(width);
  T *const total_buffer = buffers.take(width), *const normed_buffer = buffers.take(width);
  const T* const weight = static_cast<const T*>(problem.weight);
  const T* const bias = static_cast<const T*>(problem.bias);
  const T eps = static_cast<T>(problem.eps);
  const bool adds = problem.update.data != nullptr;

  for (RowNumber row = RowNumber::first_of(problem, task); row.inside(); row.next()) {
    const T* const x = read_row<T>(row.address(problem.x), problem.x.dtype, x_buffer, width);
    T* const sum = adds ? result_row<T>(problem.sum, problem.x.dtype, row.index, total_buffer, width) : nullptr;
    const T* const total = adds ? sum : x;
    const RowStatistics<T> statistics =
        adds ? RowStatistics<T>(sum, width, eps, add_update<T>(problem, row, x, update_buffer, sum))
             : RowStatistics<T>(x, width, eps);
    const Vec<T> mean = broadcast<T>(statistics.mean), inverse = broadcast<T>(statistics.inverse_deviation);
    T* const normed = result_row<T>(problem.normed, problem.normed_dtype, row.index, normed_buffer, width);
    along_row<T>(width, [&](int c, auto lanes) {
      const Vec<T> unit = (load_part(total + c, lanes) - mean) * inverse;
      store_part<T>(normed + c, unit * load_part(weight + c, lanes) + load_part(bias + c, lanes), lanes);
    });
    finish_row<T>(normed, problem.normed, problem.normed_dtype, row.index, width);
  }
}

// With u = (sum - mean) / deviation and g = grad_normed · weight:
// grad_x = grad_sum + (g - mean(g) - u · mean(g · u)) / deviation; grad_update = row_scale · grad_x.
template <class T>
void backward_chunk(const ResidualLayerNorm& problem, int64_t task, void* memory) {
  const int width = static_cast<int>(problem.channels);
  Workspace<T> buffers(memory);
  T *const total_buffer = buffers.take(width), *const grad_buffer = buffers.take(width);
  T *const sum_buffer = buffers.take(width), *const x_buffer = buffers.take(width);
  T* const update_buffer = buffers.take(width);
  const T* const weight = static_cast<const T*>(problem.weight);
  T* const weight_sums = static_cast<T*>(problem.partial_sums) + task * 2 * width;
  T* const bias_sums = weight_sums + width;
  for (int c = 0; c < 2 * width; ++c) weight_sums[c] = T(0);

  for (RowNumber row = RowNumber::first_of(problem, task); row.inside(); row.next()) {
    const T* const total = read_row<T>(row.address(problem.x), problem.x.dtype, total_buffer, width);
    const T* const grad =
        read_row<T>(row.address(problem.grad_normed), problem.grad_normed.dtype, grad_buffer, width);
    const RowStatistics<T> statistics(total, width, static_cast<T>(problem.eps));
    const Vec<T> mean = broadcast<T>(statistics.mean), inverse = broadcast<T>(statistics.inverse_deviation);
    RowSum<T> sum_g, sum_gu;
    along_row<T>(width, [&](int c, auto lanes) {
      const Vec<T> unit = (load_part(total + c, lanes) - mean) * inverse;
      const Vec<T> outer = load_part(grad + c, lanes);
      store_part<T>(weight_sums + c, load_part(weight_sums + c, lanes) + outer * unit, lanes);
      store_part<T>(bias_sums + c, load_part(bias_sums + c, lanes) + outer, lanes);
      const Vec<T> g = outer * load_part(weight + c, lanes);
      sum_g.parts[lanes.part] += g;
      sum_gu.parts[lanes.part] += g * unit;
    });
    const Vec<T> mean_g = broadcast<T>(sum_g.total() / static_cast<T>(width));
    const Vec<T> mean_gu = broadcast<T>(sum_gu.total() / static_cast<T>(width));
    const auto through_norm = [&](int c, auto lanes) {
      const Vec<T> unit = (load_part(total + c, lanes) - mean) * inverse;
      const Vec<T> g = load_part(grad + c, lanes) * load_part(weight + c, lanes);
      return (g - mean_g - unit * mean_gu) * inverse;
    };
    T* const grad_x = result_row<T>(problem.grad_x, problem.x.dtype, row.index, x_buffer, width);
    if (problem.grad_sum.data) {
      const T* const grad_sum =
          read_row<T>(row.address(problem.grad_sum), problem.grad_sum.dtype, sum_buffer, width);
      along_row<T>(width, [&](int c, auto lanes) {
        store_part<T>(grad_x + c, load_part(grad_sum + c, lanes) + through_norm(c, lanes), lanes);
      });
    } else {
      along_row<T>(width, [&](int c, auto lanes) { store_part<T>(grad_x + c, through_norm(c, lanes), lanes); });
    }
    if (problem.grad_update) {
      T* const grad_update =
          result_row<T>(problem.grad_update, problem.update.dtype, row.index, update_buffer, width);
      const Vec<T> scale = broadcast<T>(row_scale<T>(problem, row.group));
      along_row<T>(width, [&](int c, auto lanes) {
        store_part<T>(grad_update + c, load_part(grad_x + c, lanes) * scale, lanes);
      });
      finish_row<T>(grad_update, problem.grad_update, problem.update.dtype, row.index, width);
    }
    finish_row<T>(grad_x, problem.grad_x, problem.x.dtype, row.index, width);
  }
}

void forward(const ResidualLayerNorm& problem, int64_t task, void* memory) {
  return problem.x.dtype == DType::float64 ? forward_chunk<double>(problem, task, memory)
                                           : forward_chunk<float>(problem, task, memory);
}

void backward(const ResidualLayerNorm& problem, int64_t task, void* memory) {
  return problem.x.dtype == DType::float64 ? backward_chunk<double>(problem, task, memory)
                                           : backward_chunk<float>(problem, task, memory);
}

}  // namespace

extern const ResidualLayerNormKernels residual_layer_norm;
const ResidualLayerNormKernels residual_layer_norm = {workspace, forward, backward};

}  // namespace MAE_DFER_ISA
}  // namespace mae_dfer

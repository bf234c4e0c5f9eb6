// What every arithmetic of the exchange has in common: how rows are read and written, and the softmax.
#pragma once

#include "cpu/kernels.h"
#include "cpu/rows.h"

namespace mae_dfer {
namespace MAE_DFER_ISA {
namespace {

constexpr int kStep = static_cast<int>(Exchange::kStepRows);

// What one task works on: a chunk of a clip's rows, and what the clip attends to.
template <class T>
struct Chunk {
  int64_t clip, first, end;  // of all G·M rows
  const T* key_bias;
  T row_scale;

  Chunk(const Exchange& problem, int64_t task) : clip(task / problem.chunks()) {
    const int64_t clip_end = (clip + 1) * problem.clip_rows();
    first = clip * problem.clip_rows() + task % problem.chunks() * problem.chunk_rows();
    end = first + problem.chunk_rows() < clip_end ? first + problem.chunk_rows() : clip_end;
    key_bias = static_cast<const T*>(problem.key_bias) + clip * problem.pairs();
    row_scale = problem.row_scale ? static_cast<const T*>(problem.row_scale)[clip] : T(1);
  }

  int step(int64_t row) const { return static_cast<int>(end - row < kStep ? end - row : kStep); }

  // The clip's rows of all keys or values.
  template <class E>
  const E* matrix(const Exchange& problem, const void* all) const {
    return static_cast<const E*>(all) + clip * problem.pairs() * problem.channels;
  }
};

// Where a task of the backward leaves its sums, the last two of them zero to begin with.
template <class T>
struct ChunkSums {
  int64_t width;
  T *keys, *values, *out_bias, *key_bias;

  ChunkSums(const Exchange& problem, int64_t task) : width(problem.sums_width()) {
    const int64_t pairs = problem.pairs();
    keys = static_cast<T*>(problem.sums) + task * (2 * pairs + 1) * width;
    values = keys + pairs * width;
    out_bias = values + pairs * width;
    key_bias = static_cast<T*>(problem.key_bias_sums) + task * pairs;
    for (int64_t c = 0; c < width; ++c) out_bias[c] = T(0);
    for (int64_t j = 0; j < pairs; ++j) key_bias[j] = T(0);
  }
};

template <class T>
const T* read(const StridedRows& rows, const Exchange& problem, int64_t row, T* buffer) {
  return read_row<T>(row_address(rows, problem.rows, row), rows.dtype, buffer, static_cast<int>(problem.channels));
}

template <class T>
Vec<T> update_scale(const Exchange& problem, int64_t row) {
  return broadcast<T>(problem.update_scale ? static_cast<const T*>(problem.update_scale)[row / problem.rows] : T(1));
}

// A row of the stream: x, or x + update_scale · update, which is made in `buffer` every time that it is needed.
template <class T>
const T* read_stream(const Exchange& problem, int64_t row, T* buffer, T* update_buffer) {
  const T* const x = read<T>(problem.x, problem, row, buffer);
  if (!problem.has_update) return x;
  const T* const update = read<T>(problem.update, problem, row, update_buffer);
  const Vec<T> scale = update_scale<T>(problem, row);
  along_row<T>(static_cast<int>(problem.channels), [&](int c, auto lanes) {
    store_part<T>(buffer + c, load_part(x + c, lanes) + scale * load_part(update + c, lanes), lanes);
  });
  return buffer;
}

// Scores (J, rows) become probabilities: softmax down the K lines of each head.
template <class T>
void soften(T* scores, const T* key_bias, const Exchange& problem, int rows) {
  const int context = static_cast<int>(problem.context);
  for (int64_t head = 0; head < problem.heads; ++head, key_bias += context) {
    for (int i = 0; i < rows; i += kLanes<T>) {
      T* const column = scores + head * context * kStep + i;
      const Vec<T> to_powers = broadcast<T>(static_cast<T>(kLog2E));
      Vec<T> top = (load<T>(column) + broadcast<T>(key_bias[0])) * to_powers;
      for (int k = 0; k < context; ++k) {
        const Vec<T> score = (load<T>(column + k * kStep) + broadcast<T>(key_bias[k])) * to_powers;
        store<T>(column + k * kStep, score);
        top = maximum<T>(score, top);
      }
      Vec<T> sum = broadcast<T>(T(0));
      for (int k = 0; k < context; ++k) {
        const Vec<T> value = power_of_two<T>(load<T>(column + k * kStep) - top);
        store<T>(column + k * kStep, value);
        sum += value;
      }
      const Vec<T> factor = broadcast<T>(T(1)) / sum;
      for (int k = 0; k < context; ++k) store<T>(column + k * kStep, load<T>(column + k * kStep) * factor);
    }
  }
}

// dP becomes dS = P ∘ (dP - Σ P∘dP) down the lines of each head, whose sums over the rows are added to `sums`.
template <class T>
void soften_backward(const T* probs, T* grads, const Exchange& problem, int rows, T* sums) {
  const int context = static_cast<int>(problem.context);
  for (int64_t head = 0; head < problem.heads; ++head, sums += context) {
    for (int i = 0; i < rows; i += kLanes<T>) {
      const T* const p = probs + head * context * kStep + i;
      T* const grad = grads + head * context * kStep + i;
      Vec<T> delta = broadcast<T>(T(0));
      for (int k = 0; k < context; ++k) delta += load<T>(p + k * kStep) * load<T>(grad + k * kStep);
      for (int k = 0; k < context; ++k) {
        const Vec<T> value = load<T>(p + k * kStep) * (load<T>(grad + k * kStep) - delta);
        store<T>(grad + k * kStep, value);
        sums[k] += reduce_add<T>(value);  // rows of the padding have no gradient
      }
    }
  }
}

// out = x + row_scale · (branch + out_bias), where rows of the branch lie `stride` apart.
template <class T>
void write_rows(const Exchange& problem, int64_t first, int rows, const T* branch, ptrdiff_t stride, T row_scale,
                T* x_buffer, T* update_buffer) {
  const int width = static_cast<int>(problem.channels);
  const T* const out_bias = static_cast<const T*>(problem.out_bias);
  const Vec<T> scale = broadcast<T>(row_scale);
  for (int i = 0; i < rows; ++i, branch += stride) {
    const T* const x = read_stream<T>(problem, first + i, x_buffer, update_buffer);
    const int64_t place = problem.place(first + i);
    T* const result = result_row<T>(problem.out, problem.x.dtype, place, x_buffer, width);
    along_row<T>(width, [&](int c, auto lanes) {
      const Vec<T> value = load<T>(branch + c) + load_part(out_bias + c, lanes);
      store_part<T>(result + c, load_part(x + c, lanes) + scale * value, lanes);
    });
    finish_row<T>(result, problem.out, problem.x.dtype, place, width);
  }
}

// grad_x = grad_out + (du - mean(du) - u · mean(du · u)) / deviation; grad_update = update_scale · grad_x.
template <class T, class U>
void write_gradients(const Exchange& problem, int64_t first, int rows, const U* unit, ptrdiff_t unit_stride,
                     const T* inverse, const T* unit_grads, ptrdiff_t stride, T* grad_buffer, T* update_buffer) {
  const int width = static_cast<int>(problem.channels);
  for (int i = 0; i < rows; ++i) {
    const U* const u = unit + i * unit_stride;
    const T* const du = unit_grads + i * stride;
    RowSum<T> sum, turned;
    along_row<T>(width, [&](int c, auto lanes) {
      const Vec<T> part = load_part(du + c, lanes);
      sum.parts[lanes.part] += part;
      turned.parts[lanes.part] += part * load_part_as<T>(u + c, lanes);
    });
    const Vec<T> mean = broadcast<T>(sum.total() / static_cast<T>(width));
    const Vec<T> mean_turned = broadcast<T>(turned.total() / static_cast<T>(width));
    const Vec<T> factor = broadcast<T>(inverse[i]);
    const T* grad = read<T>(problem.grad_out, problem, first + i, grad_buffer);
    T* const result = result_row<T>(problem.grad_x, problem.x.dtype, first + i, grad_buffer, width);
    along_row<T>(width, [&](int c, auto lanes) {
      const Vec<T> through = (load<T>(du + c) - mean - load_part_as<T>(u + c, lanes) * mean_turned) * factor;
      store_part<T>(result + c, load_part(grad + c, lanes) + through, lanes);
    });
    if (problem.has_update) {
      const DType dtype = problem.update.dtype;
      T* const grad_update = result_row<T>(problem.grad_update, dtype, first + i, update_buffer, width);
      const Vec<T> scale = update_scale<T>(problem, first + i);
      along_row<T>(width, [&](int c, auto lanes) {
        store_part<T>(grad_update + c, load_part(result + c, lanes) * scale, lanes);
      });
      finish_row<T>(grad_update, problem.grad_update, dtype, first + i, width);
    }
    finish_row<T>(result, problem.grad_x, problem.x.dtype, first + i, width);
  }
}

}  // namespace
}  // namespace MAE_DFER_ISA
}  // namespace mae_dfer

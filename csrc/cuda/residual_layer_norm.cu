// Residual + LayerNorm: a warp a row, whole in its registers. Memory bounds it: every tensor is read or written once.
//
// The backward's blocks take rows in turn, so that their number does not depend on the rows' and each leaves one row of
// sums for the gradients of weight and bias. No atomics: two runs give the same bits.

#include <stdexcept>

#include "cuda/ops.h"
#include "cuda/rows.cuh"

namespace mae_dfer {
namespace cuda {
namespace {

constexpr int kWarps = 4;  // of a block, a row each

MAE_DFER_DEVICE float row_factor(const ResidualLayerNorm& problem, int64_t row) {
  return problem.row_scale ? static_cast<const float*>(problem.row_scale)[row / problem.rows] : 1.0f;
}

// kVectors · 256 channels or fewer.
template <int kVectors>
MAE_DFER_KERNEL((32 * kWarps), 1) residual_forward(const ResidualLayerNorm problem, float eps) {
  const int64_t row = block_index() * kWarps + warp_index();
  if (row >= problem.groups * problem.rows) return;
  const unsigned channels = static_cast<unsigned>(problem.channels);
  const char* const x = row_address(problem.x, problem.rows, row);
  const bool adds = problem.update.data != nullptr;
  const char* const update = adds ? row_address(problem.update, problem.rows, row) : nullptr;
  char* const sum = adds ? row_address(problem.sum, problem.x.dtype, channels, row) : nullptr;
  char* const normed = row_address(problem.normed, problem.normed_dtype, channels, row);
  const float factor = row_factor(problem, row);
  float total[kVectors][kVector] = {};
  MAE_DFER_UNROLL
  for (int v = 0; v < kVectors; ++v) {
    const unsigned column = WarpStatistics<kVectors>::first_column(v);
    if (column < channels) {
      load_vector(x, problem.x.dtype, column, total[v]);
      if (adds) {
        float added[kVector];
        load_vector(update, problem.update.dtype, column, added);
        MAE_DFER_UNROLL
        for (int i = 0; i < kVector; ++i) total[v][i] += factor * added[i];
        // What is normalised is the sum as it is stored: the backward and the next block know no other.
        store_vector(sum, problem.x.dtype, column, total[v]);
      }
    }
  }
  const WarpStatistics<kVectors> statistics(total, channels, eps);
  MAE_DFER_UNROLL
  for (int v = 0; v < kVectors; ++v) {
    const unsigned column = WarpStatistics<kVectors>::first_column(v);
    if (column < channels) {
      float weight[kVector], bias[kVector];
      load_vector(static_cast<const char*>(problem.weight), DType::float32, column, weight);
      load_vector(static_cast<const char*>(problem.bias), DType::float32, column, bias);
      MAE_DFER_UNROLL
      for (int i = 0; i < kVector; ++i) {
        total[v][i] = (total[v][i] - statistics.mean) * statistics.inverse * weight[i] + bias[i];
      }
      store_vector(normed, problem.normed_dtype, column, total[v]);
    }
  }
}

// With u = (sum - mean) / deviation and g = grad_normed · weight:
// grad_x = grad_sum + (g - mean(g) - u · mean(g · u)) / deviation; grad_update = row_scale · grad_x.
template <int kVectors>
MAE_DFER_KERNEL((32 * kWarps), 1) residual_backward(const ResidualLayerNorm problem, float eps) {
  const unsigned channels = static_cast<unsigned>(problem.channels);
  const float share = 1.0f / static_cast<float>(channels);
  float weight_sums[kVectors][kVector] = {}, bias_sums[kVectors][kVector] = {};
  for (int64_t row = block_index() * kWarps + warp_index(); row < problem.groups * problem.rows;
       row += block_count() * kWarps) {
    const char* const sum = row_address(problem.x, problem.rows, row);
    const char* const grad_normed = row_address(problem.grad_normed, problem.rows, row);
    float unit[kVectors][kVector] = {}, inner[kVectors][kVector] = {};
    MAE_DFER_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const unsigned column = WarpStatistics<kVectors>::first_column(v);
      if (column < channels) {
        load_vector(sum, problem.x.dtype, column, unit[v]);
        load_vector(grad_normed, problem.grad_normed.dtype, column, inner[v]);
      }
    }
    const WarpStatistics<kVectors> statistics(unit, channels, eps);
    float mean_inner = 0.0f, mean_turned = 0.0f;
    MAE_DFER_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const unsigned column = WarpStatistics<kVectors>::first_column(v);
      if (column < channels) {
        float weight[kVector];
        load_vector(static_cast<const char*>(problem.weight), DType::float32, column, weight);
        MAE_DFER_UNROLL
        for (int i = 0; i < kVector; ++i) {
          unit[v][i] = (unit[v][i] - statistics.mean) * statistics.inverse;
          weight_sums[v][i] += inner[v][i] * unit[v][i];
          bias_sums[v][i] += inner[v][i];
          inner[v][i] *= weight[i];
          mean_inner += inner[v][i];
          mean_turned += inner[v][i] * unit[v][i];
        }
      }
    }
    mean_inner = warp_sum(mean_inner) * share;
    mean_turned = warp_sum(mean_turned) * share;
    const float factor = row_factor(problem, row);
    MAE_DFER_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const unsigned column = WarpStatistics<kVectors>::first_column(v);
      if (column < channels) {
        float grad_sum[kVector] = {};
        if (problem.grad_sum.data) {
          load_vector(row_address(problem.grad_sum, problem.rows, row), problem.grad_sum.dtype, column, grad_sum);
        }
        float grad[kVector], scaled[kVector];
        MAE_DFER_UNROLL
        for (int i = 0; i < kVector; ++i) {
          grad[i] = grad_sum[i] + (inner[v][i] - mean_inner - unit[v][i] * mean_turned) * statistics.inverse;
          scaled[i] = grad[i] * factor;
        }
        store_vector(row_address(problem.grad_x, problem.x.dtype, channels, row), problem.x.dtype, column, grad);
        if (problem.grad_update) {
          store_vector(row_address(problem.grad_update, problem.update.dtype, channels, row), problem.update.dtype,
                       column, scaled);
        }
      }
    }
  }

  // One row of sums a block, its warps added in their order.
  float* const shared = reinterpret_cast<float*>(shared_memory());
  MAE_DFER_UNROLL
  for (int v = 0; v < kVectors; ++v) {
    const unsigned column = WarpStatistics<kVectors>::first_column(v);
    if (column < channels) {
      MAE_DFER_UNROLL
      for (int i = 0; i < kVector; ++i) {
        shared[(2 * warp_index()) * channels + column + i] = weight_sums[v][i];
        shared[(2 * warp_index() + 1) * channels + column + i] = bias_sums[v][i];
      }
    }
  }
  sync_block();
  float* const sums = static_cast<float*>(problem.partial_sums) + block_index() * 2 * channels;
  for (unsigned index = thread_index(); index < 2 * channels; index += block_threads()) {
    float sum = 0.0f;
    for (unsigned warp = 0; warp < kWarps; ++warp) sum += shared[2 * warp * channels + index];
    sums[index] = sum;
  }
}

template <int kVectors>
void launch_rows(const ResidualLayerNorm& problem, int64_t backward_blocks, void* stream) {
  const float eps = static_cast<float>(problem.eps);
  if (backward_blocks > 0) {
    launch(residual_backward<kVectors>, backward_blocks, 32 * kWarps, 2 * kWarps * problem.channels * sizeof(float),
           stream, problem, eps);
  } else {
    launch(residual_forward<kVectors>, (problem.groups * problem.rows + kWarps - 1) / kWarps, 32 * kWarps, 0, stream,
           problem, eps);
  }
}

void run(const ResidualLayerNorm& problem, int64_t backward_blocks, void* stream) {
  if (problem.channels % kVector != 0 || problem.channels > 2048) {
    throw std::invalid_argument("channels must be a multiple of 8, at most 2048");
  }
  if ((problem.groups * problem.rows + kWarps - 1) / kWarps >= int64_t{1} << 31) {
    throw std::invalid_argument("more blocks than a launch can have");
  }
  if (problem.channels <= 256) return launch_rows<1>(problem, backward_blocks, stream);
  if (problem.channels <= 512) return launch_rows<2>(problem, backward_blocks, stream);
  if (problem.channels <= 768) return launch_rows<3>(problem, backward_blocks, stream);
  if (problem.channels <= 1024) return launch_rows<4>(problem, backward_blocks, stream);
  launch_rows<8>(problem, backward_blocks, stream);
}

}  // namespace

void residual_layer_norm_forward(const ResidualLayerNorm& problem, void* stream) {
  problem.check(false);
  if (!problem.empty()) run(problem, 0, stream);
}

void residual_layer_norm_backward(const ResidualLayerNorm& problem, int64_t blocks, void* stream) {
  problem.check(true);
  if (blocks < 1) throw std::invalid_argument("blocks must be at least 1");
  if (!problem.empty()) run(problem, blocks, stream);
}

}  // namespace cuda
}  // namespace mae_dfer

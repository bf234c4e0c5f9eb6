// The Python module `mae_dfer_kernels._native`. Tensors come as addresses, sizes and strides: no framework's header
// is needed, so one build serves every version of PyTorch.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "arguments.h"
#include "cpu/dispatch.h"
#include "cpu/ops.h"
#if defined(MAE_DFER_CUDA)
#include "cuda/bindings.h"
#endif

namespace py = pybind11;
using mae_dfer::DType;
using mae_dfer::Exchange;
using mae_dfer::GeluGradient;
using mae_dfer::RegionAttention;
using mae_dfer::ResidualLayerNorm;
using mae_dfer::RowsArgument;
using mae_dfer::WeightGradient;
using mae_dfer::input;
using mae_dfer::output;
using mae_dfer::rows;

namespace {

RegionAttention describe(uintptr_t qkv, int64_t region_stride, int64_t token_stride, uintptr_t result, int dtype,
                         int64_t regions, int64_t tokens, int64_t heads, int64_t head_dim, double scale,
                         double dropout_p, uint64_t seed, int threads) {
  RegionAttention problem;
  problem.qkv = reinterpret_cast<const void*>(qkv);
  problem.qkv_region_stride = region_stride;
  problem.qkv_token_stride = token_stride;
  problem.result = reinterpret_cast<void*>(result);
  problem.dtype = static_cast<DType>(dtype);
  problem.regions = regions;
  problem.tokens = tokens;
  problem.heads = heads;
  problem.head_dim = head_dim;
  problem.scale = scale;
  problem.dropout_p = dropout_p;
  problem.seed = seed;
  problem.threads = threads;
  return problem;
}

void forward(uintptr_t qkv, int64_t region_stride, int64_t token_stride, uintptr_t out, int dtype, int64_t regions,
             int64_t tokens, int64_t heads, int64_t head_dim, double scale, double dropout_p, uint64_t seed,
             int threads) {
  mae_dfer::cpu::region_attention_forward(describe(qkv, region_stride, token_stride, out, dtype, regions, tokens,
                                                   heads, head_dim, scale, dropout_p, seed, threads));
}

void backward(uintptr_t grad_out, int64_t grad_region_stride, int64_t grad_token_stride, uintptr_t qkv,
              int64_t region_stride, int64_t token_stride, uintptr_t grad_qkv, int dtype, int64_t regions,
              int64_t tokens, int64_t heads, int64_t head_dim, double scale, double dropout_p, uint64_t seed,
              int threads) {
  RegionAttention problem = describe(qkv, region_stride, token_stride, grad_qkv, dtype, regions, tokens, heads,
                                     head_dim, scale, dropout_p, seed, threads);
  problem.grad_out = reinterpret_cast<const void*>(grad_out);
  problem.grad_out_region_stride = grad_region_stride;
  problem.grad_out_token_stride = grad_token_stride;
  mae_dfer::cpu::region_attention_backward(problem);
}

void residual_layer_norm_forward(const RowsArgument& x, const RowsArgument& update, uintptr_t row_scale,
                                 uintptr_t weight, uintptr_t bias, uintptr_t sum, uintptr_t normed, int normed_dtype,
                                 int64_t groups, int64_t group_rows, int64_t channels, double eps, int threads) {
  ResidualLayerNorm problem;
  problem.groups = groups;
  problem.rows = group_rows;
  problem.channels = channels;
  problem.eps = eps;
  problem.threads = threads;
  problem.x = rows(x);
  problem.update = rows(update);
  problem.row_scale = input(row_scale);
  problem.weight = input(weight);
  problem.bias = input(bias);
  problem.sum = output(sum);
  problem.normed = output(normed);
  problem.normed_dtype = static_cast<DType>(normed_dtype);
  problem.grad_sum.dtype = problem.grad_normed.dtype = problem.x.dtype;
  mae_dfer::cpu::residual_layer_norm_forward(problem);
}

void residual_layer_norm_backward(const RowsArgument& grad_sum, const RowsArgument& grad_normed,
                                  const RowsArgument& sum, uintptr_t row_scale, uintptr_t weight, uintptr_t grad_x,
                                  uintptr_t grad_update, int update_dtype, uintptr_t partial_sums, int64_t groups,
                                  int64_t group_rows, int64_t channels, double eps, int threads) {
  ResidualLayerNorm problem;
  problem.groups = groups;
  problem.rows = group_rows;
  problem.channels = channels;
  problem.eps = eps;
  problem.threads = threads;
  problem.x = rows(sum);
  problem.normed_dtype = problem.x.dtype;
  problem.update.dtype = static_cast<DType>(update_dtype);
  problem.row_scale = input(row_scale);
  problem.weight = input(weight);
  problem.grad_sum = rows(grad_sum);
  problem.grad_normed = rows(grad_normed);
  problem.grad_x = output(grad_x);
  problem.grad_update = output(grad_update);
  problem.partial_sums = output(partial_sums);
  mae_dfer::cpu::residual_layer_norm_backward(problem);
}

int64_t residual_layer_norm_chunks(int64_t groups, int64_t group_rows) {
  ResidualLayerNorm problem;
  problem.groups = groups;
  problem.rows = group_rows;
  return problem.chunks();
}

// (clips, groups, rows a group, channels, heads, representatives)
using ExchangeShape = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>;

Exchange describe_exchange(const ExchangeShape& shape, const RowsArgument& x,
                           const std::optional<RowsArgument>& update, uintptr_t keys, uintptr_t key_bias,
                           uintptr_t values, uintptr_t out_bias, uintptr_t row_scale, uintptr_t update_scale,
                           bool bf16_operands, double eps, int threads) {
  Exchange problem;
  std::tie(problem.clips, problem.groups, problem.rows, problem.channels, problem.heads, problem.context) = shape;
  problem.x = rows(x);
  problem.has_update = update.has_value();
  if (update) problem.update = rows(*update);
  problem.update_scale = input(update_scale);
  problem.keys = input(keys);
  problem.key_bias = input(key_bias);
  problem.values = input(values);
  problem.out_bias = input(out_bias);
  problem.row_scale = input(row_scale);
  problem.bf16_operands = bf16_operands;
  problem.eps = eps;
  problem.threads = threads;
  return problem;
}

void exchange_forward(const ExchangeShape& shape, const RowsArgument& x,
                      const std::optional<RowsArgument>& update, uintptr_t keys, uintptr_t key_bias,
                      uintptr_t values, uintptr_t out_bias, uintptr_t row_scale, uintptr_t update_scale, uintptr_t out,
                      int64_t front, bool bf16_operands, double eps, int threads) {
  Exchange problem = describe_exchange(shape, x, update, keys, key_bias, values, out_bias, row_scale, update_scale,
                                       bf16_operands, eps, threads);
  problem.out = output(out);
  problem.front = front;
  problem.grad_out.dtype = problem.x.dtype;
  mae_dfer::cpu::exchange_forward(problem);
}

void exchange_backward(const ExchangeShape& shape, const RowsArgument& grad_out, const RowsArgument& x,
                       const std::optional<RowsArgument>& update, uintptr_t keys, uintptr_t key_bias, uintptr_t values,
                       uintptr_t out_bias, uintptr_t row_scale, uintptr_t update_scale, uintptr_t grad_x,
                       uintptr_t grad_update, uintptr_t sums, uintptr_t key_bias_sums, bool bf16_operands,
                       double eps, int threads) {
  Exchange problem = describe_exchange(shape, x, update, keys, key_bias, values, out_bias, row_scale, update_scale,
                                       bf16_operands, eps, threads);
  problem.grad_out = rows(grad_out);
  problem.grad_x = output(grad_x);
  problem.grad_update = output(grad_update);
  problem.sums = output(sums);
  problem.key_bias_sums = output(key_bias_sums);
  mae_dfer::cpu::exchange_backward(problem);
}

// (chunks a clip, width of a row of partial sums)
std::pair<int64_t, int64_t> exchange_sums(const ExchangeShape& shape) {
  const Exchange problem = describe_exchange(shape, {}, {}, 0, 0, 0, 0, 0, 0, false, 0.0, 1);
  return {problem.chunks(), problem.sums_width()};
}

void gelu_gradient(const RowsArgument& grad, const RowsArgument& x, uintptr_t grad_x, uintptr_t gelu_x,
                   uintptr_t partial_sums, int64_t row_count, int64_t channels, int threads) {
  GeluGradient problem;
  problem.rows = row_count;
  problem.channels = channels;
  problem.grad = rows(grad);
  problem.x = rows(x);
  problem.grad_x = output(grad_x);
  problem.gelu_x = output(gelu_x);
  problem.partial_sums = output(partial_sums);
  problem.threads = threads;
  mae_dfer::cpu::gelu_gradient(problem);
}

int64_t gelu_gradient_chunks(int64_t row_count) {
  GeluGradient problem;
  problem.rows = row_count;
  return problem.chunks();
}

void weight_gradient(const RowsArgument& grad, const RowsArgument& input, uintptr_t grad_weight, uintptr_t partial_sums,
                     int64_t row_count, int64_t outputs, int64_t inputs, int threads) {
  WeightGradient problem;
  problem.rows = row_count;
  problem.outputs = outputs;
  problem.inputs = inputs;
  problem.grad = rows(grad);
  problem.input = rows(input);
  problem.grad_weight = static_cast<float*>(output(grad_weight));
  problem.partial_sums = static_cast<float*>(output(partial_sums));
  problem.threads = threads;
  mae_dfer::cpu::weight_gradient(problem);
}

int64_t weight_gradient_blocks(int64_t row_count, int dtype) {
  WeightGradient problem;
  problem.rows = row_count;
  problem.grad.dtype = static_cast<DType>(dtype);
  return problem.blocks();
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "Compiled kernels of mae_dfer_kernels; reached through mae_dfer_kernels.native";
  module.def("region_attention_forward", &forward, py::call_guard<py::gil_scoped_release>());
  module.def("region_attention_backward", &backward, py::call_guard<py::gil_scoped_release>());
  module.def("residual_layer_norm_forward", &residual_layer_norm_forward, py::call_guard<py::gil_scoped_release>());
  module.def("residual_layer_norm_backward", &residual_layer_norm_backward, py::call_guard<py::gil_scoped_release>());
  module.def("residual_layer_norm_chunks", &residual_layer_norm_chunks);
  module.def("exchange_forward", &exchange_forward, py::call_guard<py::gil_scoped_release>());
  module.def("exchange_backward", &exchange_backward, py::call_guard<py::gil_scoped_release>());
  module.def("exchange_sums", &exchange_sums);
  module.def("gelu_gradient", &gelu_gradient, py::call_guard<py::gil_scoped_release>());
  module.def("gelu_gradient_chunks", &gelu_gradient_chunks);
  module.def("weight_gradient", &weight_gradient, py::call_guard<py::gil_scoped_release>());
  module.def("weight_gradient_blocks", &weight_gradient_blocks);
#if defined(MAE_DFER_CUDA)
  mae_dfer::cuda::bind(module);
  module.attr("has_cuda") = true;
#else
  module.attr("has_cuda") = false;
#endif
  module.attr("cuda_note") = MAE_DFER_CUDA_NOTE;
  module.def("is_amd", &mae_dfer::cpu::is_amd);
  module.def("instruction_sets", &mae_dfer::cpu::instruction_sets);
  module.def("chosen_instruction_set", &mae_dfer::cpu::chosen_instruction_set);
  module.def("choose_instruction_set", &mae_dfer::cpu::choose_instruction_set, py::arg("name"));
}

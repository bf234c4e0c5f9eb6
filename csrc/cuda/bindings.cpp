#include "cuda/bindings.h"

#include <pybind11/stl.h>

#include "arguments.h"
#include "cuda/ops.h"

namespace py = pybind11;

namespace mae_dfer {
namespace cuda {
namespace {

// (address, region stride, token stride)
using Packed = std::tuple<uintptr_t, int64_t, int64_t>;
// (dtype, regions, tokens, heads, channels a head)
using Shape = std::tuple<int, int64_t, int64_t, int64_t, int64_t>;

RegionAttention describe(const Packed& qkv, uintptr_t result, const Shape& shape, double scale, double dropout_p,
                         uint64_t seed) {
  RegionAttention problem;
  problem.qkv = input(std::get<0>(qkv));
  problem.qkv_region_stride = std::get<1>(qkv);
  problem.qkv_token_stride = std::get<2>(qkv);
  problem.result = output(result);
  problem.dtype = static_cast<DType>(std::get<0>(shape));
  problem.regions = std::get<1>(shape);
  problem.tokens = std::get<2>(shape);
  problem.heads = std::get<3>(shape);
  problem.head_dim = std::get<4>(shape);
  problem.scale = scale;
  problem.dropout_p = dropout_p;
  problem.seed = seed;
  return problem;
}

void forward(const Packed& qkv, uintptr_t out, const Shape& shape, double scale, double dropout_p, uint64_t seed,
             uintptr_t stream) {
  region_attention_forward(describe(qkv, out, shape, scale, dropout_p, seed), reinterpret_cast<void*>(stream));
}

void backward(const Packed& grad_out, const Packed& qkv, uintptr_t grad_qkv, uintptr_t statistics, const Shape& shape,
              double scale, double dropout_p, uint64_t seed, uintptr_t stream) {
  RegionAttention problem = describe(qkv, grad_qkv, shape, scale, dropout_p, seed);
  problem.grad_out = input(std::get<0>(grad_out));
  problem.grad_out_region_stride = std::get<1>(grad_out);
  problem.grad_out_token_stride = std::get<2>(grad_out);
  region_attention_backward(problem, reinterpret_cast<float*>(statistics), reinterpret_cast<void*>(stream));
}

void layer_norm_forward(const RowsArgument& x, const RowsArgument& update, uintptr_t row_scale, uintptr_t weight, uintptr_t bias,
                        uintptr_t sum, uintptr_t normed, int normed_dtype,
                        const std::tuple<int64_t, int64_t, int64_t>& shape, double eps, uintptr_t stream) {
  ResidualLayerNorm problem;
  std::tie(problem.groups, problem.rows, problem.channels) = shape;
  problem.eps = eps;
  problem.x = rows(x);
  problem.update = rows(update);
  problem.row_scale = input(row_scale);
  problem.weight = input(weight);
  problem.bias = input(bias);
  problem.sum = output(sum);
  problem.normed = output(normed);
  problem.normed_dtype = static_cast<DType>(normed_dtype);
  problem.grad_sum.dtype = problem.grad_normed.dtype = problem.x.dtype;
  residual_layer_norm_forward(problem, reinterpret_cast<void*>(stream));
}

void layer_norm_backward(const RowsArgument& grad_sum, const RowsArgument& grad_normed, const RowsArgument& sum, uintptr_t row_scale,
                         uintptr_t weight, uintptr_t grad_x, uintptr_t grad_update, int update_dtype,
                         uintptr_t partial_sums, int64_t blocks, const std::tuple<int64_t, int64_t, int64_t>& shape,
                         double eps, uintptr_t stream) {
  ResidualLayerNorm problem;
  std::tie(problem.groups, problem.rows, problem.channels) = shape;
  problem.eps = eps;
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
  residual_layer_norm_backward(problem, blocks, reinterpret_cast<void*>(stream));
}

// (clips, groups, rows, channels, heads, pairs a head)
using ExchangeShape = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>;
// (keys, key_bias, values, out_bias, row_scale)
using ExchangeInputs = std::tuple<uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t>;

Exchange describe_exchange(const RowsArgument& x, const ExchangeInputs& inputs, const ExchangeShape& shape,
                           double eps) {
  Exchange problem;
  std::tie(problem.clips, problem.groups, problem.rows, problem.channels, problem.heads, problem.context) = shape;
  problem.eps = eps;
  problem.x = rows(x);
  problem.grad_out.dtype = problem.x.dtype;
  problem.keys = input(std::get<0>(inputs));
  problem.key_bias = input(std::get<1>(inputs));
  problem.values = input(std::get<2>(inputs));
  problem.out_bias = input(std::get<3>(inputs));
  problem.row_scale = input(std::get<4>(inputs));
  return problem;
}

void exchange_forward_rows(const RowsArgument& x, const ExchangeInputs& inputs, uintptr_t out, int64_t front,
                           const ExchangeShape& shape, double eps, uintptr_t stream) {
  Exchange problem = describe_exchange(x, inputs, shape, eps);
  problem.out = output(out);
  problem.front = front;
  exchange_forward(problem, reinterpret_cast<void*>(stream));
}

// `scratch`: probabilities, gradients of scores, statistics. `sums`: of keys, key_bias, values, out_bias.
void exchange_backward_rows(const RowsArgument& grad_out, const RowsArgument& x, const ExchangeInputs& inputs,
                            uintptr_t key_sums, uintptr_t grad_x,
                            const std::tuple<uintptr_t, uintptr_t, uintptr_t>& scratch,
                            const std::tuple<uintptr_t, uintptr_t, uintptr_t, uintptr_t>& sums, int64_t splits,
                            const ExchangeShape& shape, double eps, uintptr_t stream) {
  Exchange problem = describe_exchange(x, inputs, shape, eps);
  problem.grad_out = rows(grad_out);
  problem.grad_x = output(grad_x);
  problem.sums = output(std::get<0>(sums));
  problem.key_bias_sums = output(std::get<1>(sums));
  ExchangeBackward backward;
  backward.key_sums = static_cast<const float*>(input(key_sums));
  backward.probs = output(std::get<0>(scratch));
  backward.grad_scores = output(std::get<1>(scratch));
  backward.statistics = static_cast<float*>(output(std::get<2>(scratch)));
  backward.grad_keys = static_cast<float*>(output(std::get<0>(sums)));
  backward.grad_key_bias = static_cast<float*>(output(std::get<1>(sums)));
  backward.grad_values = static_cast<float*>(output(std::get<2>(sums)));
  backward.grad_out_bias = static_cast<float*>(output(std::get<3>(sums)));
  backward.splits = splits;
  exchange_backward(problem, backward, reinterpret_cast<void*>(stream));
}

size_t shared_memory_of_exchange(int dtype, int64_t channels, int64_t pairs) {
  return exchange_shared_memory(static_cast<DType>(dtype), channels, pairs);
}

}  // namespace

void bind(py::module_& module) {
  module.def("cuda_region_attention_forward", &forward, py::call_guard<py::gil_scoped_release>());
  module.def("cuda_region_attention_backward", &backward, py::call_guard<py::gil_scoped_release>());
  module.def("cuda_residual_layer_norm_forward", &layer_norm_forward, py::call_guard<py::gil_scoped_release>());
  module.def("cuda_residual_layer_norm_backward", &layer_norm_backward, py::call_guard<py::gil_scoped_release>());
  module.def("cuda_exchange_forward", &exchange_forward_rows, py::call_guard<py::gil_scoped_release>());
  module.def("cuda_exchange_backward", &exchange_backward_rows, py::call_guard<py::gil_scoped_release>());
  module.def("cuda_exchange_shared_memory", &shared_memory_of_exchange);
  module.def("cuda_available_shared_memory", &available_shared_memory);
}

}  // namespace cuda
}  // namespace mae_dfer

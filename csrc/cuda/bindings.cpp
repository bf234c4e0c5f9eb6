#include "cuda/bindings.h"

#include <pybind11/stl.h>

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
  problem.qkv = reinterpret_cast<const void*>(std::get<0>(qkv));
  problem.qkv_region_stride = std::get<1>(qkv);
  problem.qkv_token_stride = std::get<2>(qkv);
  problem.result = reinterpret_cast<void*>(result);
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
  problem.grad_out = reinterpret_cast<const void*>(std::get<0>(grad_out));
  problem.grad_out_region_stride = std::get<1>(grad_out);
  problem.grad_out_token_stride = std::get<2>(grad_out);
  region_attention_backward(problem, reinterpret_cast<float*>(statistics), reinterpret_cast<void*>(stream));
}

}  // namespace

void bind(py::module_& module) {
  module.def("cuda_region_attention_forward", &forward, py::call_guard<py::gil_scoped_release>());
  module.def("cuda_region_attention_backward", &backward, py::call_guard<py::gil_scoped_release>());
}

}  // namespace cuda
}  // namespace mae_dfer

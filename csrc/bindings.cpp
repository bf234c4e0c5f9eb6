// The Python module `mae_dfer_kernels._native`. Tensors come as addresses, sizes and strides: no framework's header
// is needed, so one build serves every version of PyTorch.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/region_attention.h"

namespace py = pybind11;
using mae_dfer::RegionAttention;

namespace {

RegionAttention describe(uintptr_t qkv, int64_t region_stride, int64_t token_stride, uintptr_t result, int dtype,
                         int64_t regions, int64_t tokens, int64_t heads, int64_t head_dim, double scale,
                         double dropout_p, uint64_t seed, int threads) {
  RegionAttention problem;
  problem.qkv = reinterpret_cast<const void*>(qkv);
  problem.qkv_region_stride = region_stride;
  problem.qkv_token_stride = token_stride;
  problem.result = reinterpret_cast<void*>(result);
  problem.dtype = static_cast<mae_dfer::DType>(dtype);
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

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "Compiled kernels of mae_dfer_kernels; reached through mae_dfer_kernels.native";
  module.def("region_attention_forward", &forward, py::call_guard<py::gil_scoped_release>());
  module.def("region_attention_backward", &backward, py::call_guard<py::gil_scoped_release>());
  module.def("instruction_sets", &mae_dfer::cpu::instruction_sets);
  module.def("chosen_instruction_set", &mae_dfer::cpu::chosen_instruction_set);
  module.def("choose_instruction_set", &mae_dfer::cpu::choose_instruction_set, py::arg("name"));
}

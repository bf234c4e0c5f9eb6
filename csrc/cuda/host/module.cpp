// The CUDA operators as a Python module that runs them on the CPU, for the tests.
#include "cuda/bindings.h"
#include "cuda/host/machine.h"

PYBIND11_MODULE(_cuda_on_host, module) {
  mae_dfer::cuda::bind(module);
  module.attr("has_cuda") = true;
  module.def("seed", [](uint64_t seed) { mae_dfer::cuda::host::machine().seed(seed); });
  module.def("limit_shared_memory", [](size_t bytes) { mae_dfer::cuda::host::machine().limit_shared_memory(bytes); });
}

#pragma once

#include <pybind11/pybind11.h>

namespace mae_dfer {
namespace cuda {

// Adds the operators of the CUDA backend to the module, each named cuda_….
void bind(pybind11::module_& module);

}  // namespace cuda
}  // namespace mae_dfer

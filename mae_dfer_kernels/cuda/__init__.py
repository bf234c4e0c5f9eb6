"""The operators by the CUDA kernels of the compiled library, one module an operator."""

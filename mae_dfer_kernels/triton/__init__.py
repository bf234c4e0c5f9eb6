"""The Triton backend: fused kernels for NVIDIA GPUs of compute capability 8.0 and above.

Importing this package does not import Triton, which is absent on some platforms.
"""

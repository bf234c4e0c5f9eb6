// The instructions that the CUDA kernels are written in, each once, behind one header.
//
// Compiled by nvcc they are PTX. Compiled with MAE_DFER_CUDA_ON_HOST by any C++ compiler they are a host machine that
// executes the very same kernel bodies thread by thread (cuda/host/), which is how the kernels are tested where there
// is no GPU. So kernels use nothing of CUDA that is not named here.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(MAE_DFER_CUDA_ON_HOST)
#include "cuda/host/primitives.h"
#else

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

// A kernel of at most `threads` threads a block, compiled so that `blocks` of them fit a multiprocessor.
#define MAE_DFER_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define MAE_DFER_DEVICE __device__ __forceinline__
#define MAE_DFER_UNROLL _Pragma("unroll")
// Loops whose every turn would otherwise load ahead for the next ones, into registers that are not there.
#define MAE_DFER_ROLL _Pragma("unroll 1")

namespace mae_dfer {
namespace cuda {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

MAE_DFER_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
MAE_DFER_DEVICE int block_threads() { return static_cast<int>(blockDim.x); }
MAE_DFER_DEVICE int64_t block_index() { return static_cast<int64_t>(blockIdx.x); }
MAE_DFER_DEVICE int64_t block_count() { return static_cast<int64_t>(gridDim.x); }
MAE_DFER_DEVICE char* shared_memory() {
  extern __shared__ __align__(128) char memory[];
  return memory;
}

MAE_DFER_DEVICE void sync_block() { __syncthreads(); }
MAE_DFER_DEVICE void sync_warp() { __syncwarp(); }
MAE_DFER_DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }

MAE_DFER_DEVICE float exp2_approx(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
MAE_DFER_DEVICE float inverse_approx(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
MAE_DFER_DEVICE float inverse_square_root(float x) { return 1.0f / sqrtf(x); }
MAE_DFER_DEVICE float bits_to_float(uint32_t bits) { return __uint_as_float(bits); }
MAE_DFER_DEVICE uint32_t float_to_bits(float value) { return __float_as_uint(value); }
MAE_DFER_DEVICE uint32_t multiply_high(uint32_t a, uint32_t b) { return __umulhi(a, b); }

// Two numbers rounded to the nearest of the type, the first in the low half of the word.
MAE_DFER_DEVICE uint32_t pack(BFloat16, float first, float second) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  return word;
}
MAE_DFER_DEVICE uint32_t pack(Float16, float first, float second) {
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  return word;
}
MAE_DFER_DEVICE void unpack(BFloat16, uint32_t word, float* first, float* second) {
  *first = __uint_as_float(word << 16);
  *second = __uint_as_float(word & 0xffff0000u);
}
// Volatile, so that the compiler converts again where a word is used again: the numbers would fill the registers.
MAE_DFER_DEVICE void unpack(Float16, uint32_t word, float* first, float* second) {
  asm volatile("{ .reg .b16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high; }"
      : "=f"(*first), "=f"(*second)
      : "r"(word));
}
// The nearest number with the ten bits of mantissa that tensor cores read of an fp32 operand.
MAE_DFER_DEVICE float round_to_tf32(float value) {
  uint32_t word;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(word) : "f"(value));
  return __uint_as_float(word);
}

// Sixteen bytes from global to shared memory, in the background; zeros where not `valid`. Both addresses are multiples
// of sixteen.
MAE_DFER_DEVICE void copy_async(void* shared, const void* global, bool valid) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(bytes) : "memory");
}
// Sixteen bytes, at once.
MAE_DFER_DEVICE void copy_16(void* to, const void* from) {
  *static_cast<uint4*>(to) = *static_cast<const uint4*>(from);
}
// Closes this thread's group of copies.
MAE_DFER_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until all groups of this thread but the newest `kNewest` have arrived.
template <int kNewest>
MAE_DFER_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kNewest) : "memory");
}

// Four 8 × 8 matrices of 16-bit elements (or 8 × 4 of 32 bits) from shared memory: thread 8·m + r names the sixteen
// bytes that are row r of matrix m, and thread 4·r + c gets word c of row r of each.
MAE_DFER_DEVICE void load_matrices(uint32_t (&words)[4], const void* row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address)
               : "memory");
}
// The same, but thread 4·c + p gets elements (2p, c) and (2p + 1, c) of each matrix: rows of its transpose.
MAE_DFER_DEVICE void load_matrices_transposed(uint32_t (&words)[4], const void* row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address)
               : "memory");
}

// C (16 × 8, fp32) += A (16 × 16) B (16 × 8), one warp; who holds what: PTX ISA, "Matrix Fragments for mma.m16n8k16".
MAE_DFER_DEVICE void multiply_add(BFloat16, float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
MAE_DFER_DEVICE void multiply_add(Float16, float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// C (16 × 8) += A (16 × 8) B (8 × 8) of fp32 words, of which the low 13 bits are not read ("mma.m16n8k8", .tf32).
MAE_DFER_DEVICE void multiply_add_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Two neighbouring elements; the address is a multiple of their size.
MAE_DFER_DEVICE void store_pair(float* to, float first, float second) {
  *reinterpret_cast<float2*>(to) = make_float2(first, second);
}
template <class E>
MAE_DFER_DEVICE void store_pair(E* to, float first, float second) {
  *reinterpret_cast<uint32_t*>(to) = pack(E(), first, second);
}

inline void require_success(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string(what) + ": CUDA says " + cudaGetErrorString(status));
  }
}

// Bytes of shared memory that a block can have on the current device.
inline size_t shared_memory_limit() {
  int device = 0, bytes = 0;
  require_success(cudaGetDevice(&device), "there is no current device");
  require_success(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
                  "the device does not tell its shared memory");
  return static_cast<size_t>(bytes);
}

// Starts `blocks` blocks of `threads` threads with `shared_bytes` of shared memory on the current device.
template <class... Parameters>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared_bytes, void* stream,
            Parameters... parameters) {
  if (shared_bytes > 48 * 1024) {  // beyond this, a kernel must ask first
    require_success(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                         cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
                    "the GPU has too little shared memory for the kernel");
  }
  kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(parameters...);
  require_success(cudaGetLastError(), "the kernel could not be launched");
}

}  // namespace cuda
}  // namespace mae_dfer

#endif

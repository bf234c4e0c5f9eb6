// GELU, its gradient and the gradient's sums over a chunk of rows. Compiled once for every instruction set.
//
// Memory bounds it: each row is read once and written once.

#include "cpu/kernels.h"
#include "cpu/rows.h"

namespace mae_dfer {
namespace MAE_DFER_ISA {
namespace {

// Of the normal distribution at x: what lies below, and the density.
template <class T>
struct Normal {
  Vec<T> below, density;
};

// The density's power serves both: what lies beyond |x| is density · Q(|x|), where Q is smooth, by a polynomial in
// t = 1 / (1 + 0.34 |x|) of relative error 3e-8 (minimax), exact at x = 0. The far tail keeps its precision, which
// 1 + erf(x) loses.
inline Normal<float> normal(Vec<float> x) {
  constexpr float kTerms[] = {0.13562050461769104f,   0.13611219823360443f, 0.11519765108823776f,
                              0.11535919457674026f,   -0.04471854120492935f, 0.2021828144788742f,
                              -0.27313289046287537f, 0.13949957489967346f,  -0.026120491325855255f};
  const Vec<float> zero = broadcast(0.0f), one = broadcast(1.0f);
  const Vec<float> t = one / (one + broadcast(0.34f) * (x < zero ? -x : x));
  const Vec<float> exponent = x * x * broadcast(static_cast<float>(-0.5 * kLog2E));
  // Nothing, where power_of_two leaves its least number: a large x would make much of it.
  const Vec<float> power = exponent > broadcast(Power<float>::kLowest) ? power_of_two<float>(exponent) : zero;
  Vec<float> sum = broadcast(kTerms[8]);
#pragma GCC unroll 8
  for (int k = 7; k >= 0; --k) sum = sum * t + broadcast(kTerms[k]);
  const Vec<float> beyond = power * (sum * t);
  return {x < zero ? beyond : one - beyond, power * broadcast(0.3989422804014327f)};
}

// float64 is for tests. The builtins, since std::erfc is an inline function that the linker could merge across
// instruction sets.
inline Normal<double> normal(Vec<double> x) {
  Normal<double> result;
  for (int lane = 0; lane < kLanes<double>; ++lane) {
    result.below[lane] = 0.5 * __builtin_erfc(x[lane] * -0.70710678118654752440);
    result.density[lane] = 0.39894228040143267794 * __builtin_exp(-0.5 * x[lane] * x[lane]);
  }
  return result;
}

template <class T, class E>
void chunk_of(const GeluGradient& problem, int64_t task) {
  const int width = static_cast<int>(problem.channels);
  T* const sums = static_cast<T*>(problem.partial_sums) + task * width;
  for (int c = 0; c < width; ++c) sums[c] = T(0);
  const int64_t first = task * problem.chunk_rows(), next = first + problem.chunk_rows();
  const int64_t end = next < problem.rows ? next : problem.rows;
  for (int64_t row = first; row < end; ++row) {
    const E* const grad_row = static_cast<const E*>(problem.grad.data) + row * problem.grad.row_stride;
    const E* const x_row = static_cast<const E*>(problem.x.data) + row * problem.x.row_stride;
    E* const grad_x_row = static_cast<E*>(problem.grad_x) + row * width;
    E* const gelu_x_row = static_cast<E*>(problem.gelu_x) + row * width;
    along_row<T>(width, [&](int c, auto lanes) {
      const Vec<T> x = load_part_as<T>(x_row + c, lanes);
      const Normal<T> at_x = normal(x);
      const Vec<T> grad_x = load_part_as<T>(grad_row + c, lanes) * (at_x.below + x * at_x.density);
      store_part<T>(sums + c, load_part(sums + c, lanes) + grad_x, lanes);
      store_part_as<T>(grad_x_row + c, grad_x, lanes);
      store_part_as<T>(gelu_x_row + c, x * at_x.below, lanes);
    });
  }
}

void chunk(const GeluGradient& problem, int64_t task) {
  switch (problem.x.dtype) {
    case DType::float64: return chunk_of<double, double>(problem, task);
    case DType::float32: return chunk_of<float, float>(problem, task);
    case DType::bfloat16: return chunk_of<float, BFloat16>(problem, task);
    case DType::float16: return chunk_of<float, Float16>(problem, task);
  }
}

}  // namespace

extern const GeluGradientKernels gelu_gradient;
const GeluGradientKernels gelu_gradient = {chunk};

}  // namespace MAE_DFER_ISA
}  // namespace mae_dfer

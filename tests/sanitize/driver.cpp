// Runs every kernel of every instruction set on buffers that end where the tensors do, for the sanitizers to watch.
//
//     driver [operator]
//
// Each case runs twice and must give the same bits: on one thread with zeroed memory, and on three threads with memory
// full of ones. So what is read before it was written, or never written at all, is found as well. Then the operator's
// own entry point runs, with its own threads and workspaces. A new operator is one function and one line of `main`.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/ops.h"

namespace {

using namespace mae_dfer;

constexpr DType kDTypes[] = {DType::float64, DType::float32, DType::bfloat16, DType::float16};

size_t item_size(DType dtype) { return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2; }
DType computed_in(DType dtype) { return dtype == DType::float64 ? DType::float64 : DType::float32; }

uint32_t random_word() {
  static uint64_t state = 88172645463325252u;
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return static_cast<uint32_t>(state >> 16);
}

// Memory of exactly so many elements. `shift` elements in front of them spoil its alignment.
class Buffer {
 public:
  Buffer(int64_t elements, DType dtype, int shift = 0)
      : dtype_(dtype), bytes_(static_cast<size_t>(elements) * item_size(dtype)), skipped_(shift * item_size(dtype)),
        memory_(new char[bytes_ + skipped_]) {}

  void* data() const { return memory_.get() + skipped_; }

  void fill(unsigned char byte) const { std::memset(data(), byte, bytes_); }

  // Numbers in ±(0.5 … 2), built from their bits so that no conversion of ours is trusted.
  const Buffer& randomise() const {
    const size_t item = item_size(dtype_);
    for (size_t at = 0; at < bytes_; at += item) {
      const uint32_t word = random_word();
      const uint64_t sign = word & 1u, exponent = word >> 1 & 1u, fraction = word >> 2;
      uint64_t bits = 0;
      switch (dtype_) {
        case DType::float64: bits = sign << 63 | (1022 + exponent) << 52 | fraction << 20; break;
        case DType::float32: bits = sign << 31 | (126 + exponent) << 23 | (fraction & 0x7fffffu); break;
        case DType::bfloat16: bits = sign << 15 | (126 + exponent) << 7 | (fraction & 0x7fu); break;
        case DType::float16: bits = sign << 15 | (14 + exponent) << 10 | (fraction & 0x3ffu); break;
      }
      std::memcpy(static_cast<char*>(data()) + at, &bits, item);
    }
    return *this;
  }

  // The bytes, but for the elements beyond the first `used` of every `width`.
  std::vector<char> copy(int64_t width, int64_t used) const {
    const char* first = static_cast<const char*>(data());
    std::vector<char> bytes(first, first + bytes_);
    const size_t row = width * item_size(dtype_), kept = used * item_size(dtype_);
    for (size_t at = 0; at + row <= bytes_ && kept < row; at += row) std::memset(&bytes[at + kept], 0, row - kept);
    return bytes;
  }

 private:
  DType dtype_;
  size_t bytes_, skipped_;
  std::unique_ptr<char[]> memory_;
};

// How the rows of a tensor lie: side by side, with room between rows and groups, or one row for all.
enum class Lie { dense, gapped, expanded };

struct StridedBuffer {
  int64_t group_stride, row_stride;
  DType dtype;
  Buffer buffer;

  StridedBuffer(int64_t groups, int64_t rows, int64_t width, DType type, Lie lie, int shift)
      : group_stride(lie == Lie::dense ? rows * width : lie == Lie::gapped ? rows * (width + 4) + 6 : 0),
        row_stride(lie == Lie::dense ? width : lie == Lie::gapped ? width + 4 : 0),
        dtype(type),
        buffer(groups * rows == 0 ? 0 : (groups - 1) * group_stride + (rows - 1) * row_stride + width, type, shift) {
    buffer.randomise();
  }
  StridedRows rows() const { return {buffer.data(), group_stride, row_stride, dtype}; }
};

using Task = std::function<void(int64_t, void*)>;

// Tasks in turn on so many threads, each with a workspace of exactly `bytes`.
void run_tasks(int64_t tasks, int threads, unsigned char fill, size_t bytes, const Task& task) {
  const auto work = [&](int64_t first) {
    void* workspace = nullptr;
    if (posix_memalign(&workspace, 64, bytes) != 0) std::abort();
    std::memset(workspace, fill, bytes);
    for (int64_t index = first; index < tasks; index += threads) task(index, workspace);
    std::free(workspace);
  };
  std::vector<std::thread> team;
  for (int thread = 1; thread < threads; ++thread) team.emplace_back(work, thread);
  work(0);
  for (std::thread& thread : team) thread.join();
}

// What all runs of a case must agree on: a buffer, or of each of its rows of `width` the first `used` elements.
struct Output {
  const Buffer* buffer;
  int64_t width = 1, used = 1;
};

void check(const std::string& name, const std::vector<Output>& outputs, int64_t tasks, size_t bytes, const Task& task,
           const std::function<void()>& entry) {
  std::vector<std::vector<char>> first;
  const auto fill = [&](unsigned char byte) {
    for (const Output& output : outputs) output.buffer->fill(byte);
  };
  const auto compare = [&](const char* how) {
    for (size_t i = 0; i < outputs.size(); ++i) {
      if (outputs[i].buffer->copy(outputs[i].width, outputs[i].used) == first[i]) continue;
      std::fprintf(stderr, "%s: output %zu depends on %s\n", name.c_str(), i, how);
      std::exit(1);
    }
  };
  fill(0x00);
  run_tasks(tasks, 1, 0x00, bytes, task);
  for (const Output& output : outputs) first.push_back(output.buffer->copy(output.width, output.used));
  fill(0xff);
  run_tasks(tasks, 3, 0xff, bytes, task);
  compare("threads, or on what memory held before");
  if (!entry) return;
  fill(0x55);
  entry();
  compare("whether the entry point or this driver runs its tasks");
}

std::string text(const char* op, const char* isa, DType dtype, std::initializer_list<int64_t> sizes) {
  std::string name = std::string(op) + " [" + isa + "] dtype " + std::to_string(static_cast<int>(dtype)) + " sizes";
  for (const int64_t size : sizes) name += " " + std::to_string(size);
  return name;
}

int region_attention(const Kernels& kernels, bool has_entry) {
  struct Shape {
    int64_t regions, tokens, heads, head_dim;
  };
  // Around a vector's width, a block of rows (64, 128) and nothing at all; 129 and 201 need a second pass.
  const Shape shapes[] = {{0, 3, 1, 4},  {2, 0, 1, 4},   {1, 1, 1, 1},   {3, 1, 2, 5},   {2, 2, 1, 3},  {2, 5, 3, 7},
                          {2, 7, 1, 8},  {3, 11, 2, 16}, {1, 13, 2, 17}, {2, 17, 1, 24}, {1, 41, 2, 9}, {1, 63, 1, 31},
                          {1, 64, 1, 33}, {1, 65, 2, 4},  {1, 128, 1, 6}, {1, 129, 1, 5}, {1, 201, 1, 16}};
  int cases = 0;
  for (const Shape& shape : shapes) {
    for (const DType dtype : kDTypes) {
      for (const double dropout_p : {0.0, 0.4}) {
        const Lie lies[] = {Lie::dense, Lie::gapped, Lie::expanded};
        const Lie lie = lies[cases % 3];
        const int shift = cases / 3 % 2;
        const int64_t model = shape.heads * shape.head_dim, rows = shape.regions * shape.tokens;
        const StridedBuffer qkv(shape.regions, shape.tokens, 3 * model, dtype, lie, 2 * shift);
        const StridedBuffer grad(shape.regions, shape.tokens, model, dtype, lies[(cases + 1) % 3], shift);
        const Buffer out(rows * model, dtype, shift), grad_qkv(rows * 3 * model, dtype, shift);
        RegionAttention problem;
        problem.qkv = qkv.buffer.data();
        problem.qkv_region_stride = qkv.group_stride;
        problem.qkv_token_stride = qkv.row_stride;
        problem.grad_out = grad.buffer.data();
        problem.grad_out_region_stride = grad.group_stride;
        problem.grad_out_token_stride = grad.row_stride;
        problem.result = out.data();
        problem.dtype = dtype;
        problem.regions = shape.regions;
        problem.tokens = shape.tokens;
        problem.heads = shape.heads;
        problem.head_dim = shape.head_dim;
        problem.scale = 0.3;
        problem.dropout_p = dropout_p;
        problem.seed = 0x123456789abcdefu;
        problem.threads = 3;
        const std::string name = text("region_attention", kernels.name, dtype,
                                      {shape.regions, shape.tokens, shape.heads, shape.head_dim});
        const RegionAttentionKernels& kernel = *kernels.region_attention;
        const int64_t tasks = problem.empty() ? 0 : shape.regions * shape.heads;
        problem.check(false);
        check(name + " forward", {{&out}}, tasks, kernel.forward_workspace(problem),
              [&](int64_t task, void* workspace) { kernel.forward(problem, task, workspace); },
              has_entry ? std::function<void()>([&] { cpu::region_attention_forward(problem); }) : nullptr);
        problem.result = grad_qkv.data();
        problem.check(true);
        check(name + " backward", {{&grad_qkv}}, tasks, kernel.backward_workspace(problem),
              [&](int64_t task, void* workspace) { kernel.backward(problem, task, workspace); },
              has_entry ? std::function<void()>([&] { cpu::region_attention_backward(problem); }) : nullptr);
        cases += 2;
      }
    }
  }
  return cases;
}

int residual_layer_norm(const Kernels& kernels, bool has_entry) {
  struct Shape {
    int64_t groups, rows, channels;
  };
  // More than 16 rows make several chunks.
  const Shape shapes[] = {{0, 3, 4}, {2, 0, 4},  {1, 1, 1},  {3, 1, 2},  {2, 5, 3},  {1, 7, 4},   {3, 6, 5},
                          {2, 9, 7}, {5, 7, 8},  {1, 33, 9}, {2, 3, 15}, {1, 4, 16}, {3, 17, 17}, {2, 2, 31},
                          {1, 3, 33}, {2, 2, 64}, {1, 2, 257}};
  int cases = 0;
  for (const Shape& shape : shapes) {
    for (const DType dtype : kDTypes) {
      for (const DType other : kDTypes) {
        if (computed_in(dtype) != computed_in(other)) continue;
        const Lie lies[] = {Lie::dense, Lie::gapped, Lie::expanded};
        const int shift = cases / 3 % 2;
        const int64_t elements = shape.groups * shape.rows * shape.channels;
        const auto strided = [&](DType type, int turn) {
          return StridedBuffer(shape.groups, shape.rows, shape.channels, type, lies[(cases + turn) % 3], shift);
        };
        const DType compute = computed_in(dtype);
        const StridedBuffer x = strided(dtype, 0), update = strided(other, 1);
        const StridedBuffer grad_sum = strided(dtype, 1), grad_normed = strided(other, 2);
        const Buffer row_scale(shape.groups, compute), weight(shape.channels, compute, shift);
        const Buffer bias(shape.channels, compute, 1 - shift);
        const Buffer sum(elements, dtype, shift), normed(elements, other, shift);
        const bool adds = cases % 10 != 0;
        row_scale.randomise(), weight.randomise(), bias.randomise();
        ResidualLayerNorm problem;
        problem.groups = shape.groups;
        problem.rows = shape.rows;
        problem.channels = shape.channels;
        problem.eps = 1e-6;
        problem.threads = 3;
        problem.x = x.rows();
        problem.update = update.rows();
        if (!adds) problem.update.data = nullptr;
        problem.row_scale = cases % 4 == 0 ? nullptr : row_scale.data();
        problem.weight = weight.data();
        problem.bias = bias.data();
        problem.sum = adds ? sum.data() : nullptr;
        problem.normed = normed.data();
        problem.normed_dtype = other;
        problem.grad_sum = grad_sum.rows();
        if (cases % 8 == 0) problem.grad_sum.data = nullptr;
        problem.grad_normed = grad_normed.rows();
        const std::string name = text("residual_layer_norm", kernels.name, dtype,
                                      {shape.groups, shape.rows, shape.channels, static_cast<int64_t>(other)});
        const ResidualLayerNormKernels& kernel = *kernels.residual_layer_norm;
        const int64_t tasks = problem.empty() ? 0 : problem.chunks();
        problem.check(false);
        std::vector<Output> made = {{&normed}};
        if (adds) made.push_back({&sum});
        check(name + " forward", made, tasks, kernel.workspace(problem),
              [&](int64_t task, void* workspace) { kernel.forward(problem, task, workspace); },
              has_entry ? std::function<void()>([&] { cpu::residual_layer_norm_forward(problem); }) : nullptr);
        const Buffer grad_x(elements, dtype, shift), grad_update(elements, other, shift);
        const Buffer partial_sums(tasks * 2 * shape.channels, compute, shift);
        problem.grad_x = grad_x.data();
        problem.grad_update = grad_update.data();
        problem.partial_sums = partial_sums.data();
        problem.check(true);
        check(name + " backward", {{&grad_x}, {&grad_update}, {&partial_sums}}, tasks, kernel.workspace(problem),
              [&](int64_t task, void* workspace) { kernel.backward(problem, task, workspace); },
              has_entry ? std::function<void()>([&] { cpu::residual_layer_norm_backward(problem); }) : nullptr);
        cases += 2;
      }
    }
  }
  return cases;
}

int exchange(const Kernels& kernels, bool has_entry) {
  struct Shape {
    int64_t clips, groups, rows, channels, heads, context;
  };
  // 48 rows are a step, 1800 make chunks of three; one head, one representative token, nothing at all.
  const Shape shapes[] = {{0, 0, 3, 4, 1, 2},  {2, 4, 0, 4, 1, 2},   {1, 1, 1, 1, 1, 1},   {2, 2, 1, 2, 1, 3},
                          {2, 4, 5, 3, 3, 1},  {1, 3, 7, 4, 2, 2},   {3, 3, 9, 5, 1, 5},   {2, 6, 3, 7, 1, 8},
                          {1, 2, 13, 8, 2, 3}, {2, 2, 17, 9, 3, 4},  {1, 4, 12, 16, 4, 2}, {1, 7, 7, 17, 1, 4},
                          {1, 5, 20, 31, 1, 2}, {2, 4, 33, 33, 3, 3}, {1, 2, 48, 64, 8, 1}, {1, 1, 97, 12, 2, 8},
                          {1, 1, 51, 48, 5, 1},
                          {1, 3, 600, 6, 2, 2}};
  int cases = 0;
  for (const Shape& shape : shapes) {
    for (const DType dtype : kDTypes) {
      for (const DType other : kDTypes) {
        if (computed_in(dtype) != computed_in(other)) continue;
        const Lie lies[] = {Lie::dense, Lie::gapped, Lie::expanded};
        const int shift = cases / 3 % 2;
        const DType compute = computed_in(dtype);
        const int64_t pairs = shape.heads * shape.context, elements = shape.groups * shape.rows * shape.channels;
        const StridedBuffer x(shape.groups, shape.rows, shape.channels, dtype, lies[cases % 3], shift);
        const StridedBuffer grad(shape.groups, shape.rows, shape.channels, other, lies[(cases + 1) % 3], shift);
        const StridedBuffer update(shape.groups, shape.rows, shape.channels, other, lies[(cases + 2) % 3], shift);
        const Buffer update_scale(shape.groups, compute), grad_update(elements, other, shift);
        const bool bf16_operands = compute == DType::float32 && cases % 3 == 0;
        const DType matrix = bf16_operands ? DType::bfloat16 : compute;
        const Buffer keys(shape.clips * pairs * shape.channels, matrix, shift);
        const Buffer values(shape.clips * pairs * shape.channels, matrix, 1 - shift);
        const Buffer key_bias(shape.clips * pairs, compute, shift), out_bias(shape.channels, compute, shift);
        const Buffer row_scale(shape.clips, compute), out(elements, dtype, shift), grad_x(elements, dtype, shift);
        keys.randomise(), values.randomise(), key_bias.randomise(), out_bias.randomise(), row_scale.randomise();
        update_scale.randomise();
        Exchange problem;
        problem.clips = shape.clips;
        problem.groups = shape.groups;
        problem.rows = shape.rows;
        problem.channels = shape.channels;
        problem.heads = shape.heads;
        problem.context = shape.context;
        problem.eps = 1e-6;
        problem.threads = 3;
        problem.x = x.rows();
        problem.has_update = cases % 10 != 0;
        problem.update = update.rows();
        problem.update_scale = cases % 8 == 0 ? nullptr : update_scale.data();
        problem.keys = keys.data();
        problem.key_bias = key_bias.data();
        problem.values = values.data();
        problem.bf16_operands = bf16_operands;
        problem.out_bias = out_bias.data();
        problem.row_scale = cases % 4 == 0 ? nullptr : row_scale.data();
        problem.out = out.data();
        problem.grad_out = grad.rows();
        problem.grad_x = grad_x.data();
        problem.grad_update = grad_update.data();
        const int64_t tasks = shape.clips * problem.chunks(), width = problem.sums_width();
        const Buffer sums(tasks * (2 * pairs + 1) * width, compute), key_bias_sums(tasks * pairs, compute, shift);
        problem.sums = sums.data();
        problem.key_bias_sums = key_bias_sums.data();
        const std::string name = text("exchange", kernels.name, dtype,
                                      {shape.clips, shape.groups, shape.rows, shape.channels, shape.heads,
                                       shape.context, static_cast<int64_t>(other)});
        const ExchangeKernels& kernel = *kernels.exchange;
        problem.check(false);
        check(name + " forward", {{&out}}, tasks, kernel.forward_workspace(problem),
              [&](int64_t task, void* workspace) { kernel.forward(problem, task, workspace); },
              has_entry ? std::function<void()>([&] { cpu::exchange_forward(problem); }) : nullptr);
        problem.check(true);
        std::vector<Output> made = {{&grad_x}, {&sums, width, shape.channels}, {&key_bias_sums}};
        if (problem.has_update) made.push_back({&grad_update});
        check(name + " backward", made, tasks,
              kernel.backward_workspace(problem),
              [&](int64_t task, void* workspace) { kernel.backward(problem, task, workspace); },
              has_entry ? std::function<void()>([&] { cpu::exchange_backward(problem); }) : nullptr);
        cases += 2;
      }
    }
  }
  return cases;
}

int gelu_gradient(const Kernels& kernels, bool has_entry) {
  struct Shape {
    int64_t rows, channels;
  };
  // More than 16 rows make several chunks.
  const Shape shapes[] = {{0, 4}, {1, 1}, {3, 2}, {17, 5}, {5, 8}, {33, 9}, {4, 16}, {2, 31}, {3, 64}, {2, 257}};
  int cases = 0;
  for (const Shape& shape : shapes) {
    for (const DType dtype : kDTypes) {
      const Lie lies[] = {Lie::dense, Lie::gapped, Lie::expanded};
      const int shift = cases / 3 % 2;
      const StridedBuffer grad(1, shape.rows, shape.channels, dtype, lies[cases % 3], shift);
      const StridedBuffer x(1, shape.rows, shape.channels, dtype, lies[(cases + 1) % 3], shift);
      const int64_t elements = shape.rows * shape.channels;
      const Buffer grad_x(elements, dtype, shift), gelu_x(elements, dtype, shift);
      GeluGradient problem;
      problem.rows = shape.rows;
      problem.channels = shape.channels;
      problem.threads = 3;
      problem.grad = grad.rows();
      problem.x = x.rows();
      problem.grad_x = grad_x.data();
      problem.gelu_x = gelu_x.data();
      const Buffer partial_sums(problem.chunks() * shape.channels, computed_in(dtype), shift);
      problem.partial_sums = partial_sums.data();
      problem.check();
      check(text("gelu_gradient", kernels.name, dtype, {shape.rows, shape.channels}),
            {{&grad_x}, {&gelu_x}, {&partial_sums}}, problem.chunks(), 64,
            [&](int64_t task, void*) { kernels.gelu_gradient->run(problem, task); },
            has_entry ? std::function<void()>([&] { cpu::gelu_gradient(problem); }) : nullptr);
      ++cases;
    }
  }
  return cases;
}

int weight_gradient(const Kernels& kernels, bool has_entry) {
  struct Shape {
    int64_t rows, outputs, inputs;
  };
  // Around a tile of any instruction set; more inputs and more rows than a block has.
  const Shape shapes[] = {{0, 3, 2},  {2, 1, 1},   {7, 5, 9},    {4, 13, 33},   {12, 25, 31},  {3, 49, 64},
                          {4, 3, 530}, {515, 6, 17}, {257, 12, 32}, {1031, 14, 3}, {6, 100, 7}};
  int cases = 0;
  for (const Shape& shape : shapes) {
    for (const DType dtype : {DType::float32, DType::bfloat16}) {
      if (!kernels.weight_gradient->takes(dtype)) continue;
      for (const bool has_bias : {false, true}) {
        const Lie lies[] = {Lie::dense, Lie::gapped, Lie::expanded};
        const int shift = cases / 3 % 2;
        const StridedBuffer grad(1, shape.rows, shape.outputs, dtype, lies[cases % 3], shift);
        const StridedBuffer input(1, shape.rows, shape.inputs, dtype, lies[(cases + 1) % 3], shift);
        const Buffer grad_weight(shape.outputs * shape.inputs, DType::float32, shift);
        WeightGradient problem;
        problem.rows = shape.rows;
        problem.outputs = shape.outputs;
        problem.inputs = shape.inputs;
        problem.grad = grad.rows();
        problem.input = input.rows();
        problem.grad_weight = static_cast<float*>(grad_weight.data());
        const Buffer sums(has_bias ? problem.blocks() * shape.outputs : 0, DType::float32, shift);
        problem.partial_sums = has_bias ? static_cast<float*>(sums.data()) : nullptr;
        problem.threads = 1 + cases % 6;
        problem.check();
        check(text("weight_gradient", kernels.name, dtype, {shape.rows, shape.outputs, shape.inputs}),
              {{&grad_weight}, {&sums}}, problem.parts(), kernels.weight_gradient->workspace(),
              [&](int64_t task, void* workspace) { kernels.weight_gradient->run(problem, task, workspace); },
              has_entry ? std::function<void()>([&] { cpu::weight_gradient(problem); }) : nullptr);
        ++cases;
      }
    }
  }
  return cases;
}

}  // namespace

int main(int count, char** arguments) {
  const std::string wanted = count > 1 ? arguments[1] : "";
  // The dispatcher is compiled for the portable kernels alone, so its entry points run those.
#define USE(isa) \
  {#isa, &mae_dfer::isa::region_attention, &mae_dfer::isa::residual_layer_norm, &mae_dfer::isa::exchange, \
   &mae_dfer::isa::gelu_gradient, &mae_dfer::isa::weight_gradient},
  const Kernels sets[] = {EACH_INSTRUCTION_SET(USE)};
#undef USE
  for (const Kernels& set : sets) {
    const bool has_entry = std::string(set.name) == "portable";
    const auto run = [&](const char* name, int (*op)(const Kernels&, bool)) {
      if (!wanted.empty() && wanted != name) return;
      std::printf("%s [%s]: %d cases\n", name, set.name, op(set, has_entry));
    };
    run("region_attention", region_attention);
    run("residual_layer_norm", residual_layer_norm);
    run("exchange", exchange);
    run("gelu_gradient", gelu_gradient);
    run("weight_gradient", weight_gradient);
  }
  return 0;
}

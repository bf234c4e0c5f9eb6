// Runs the threads of a CUDA block on one CPU thread, as fibers in random order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace mae_dfer {
namespace cuda {
namespace host {

class Machine {
 public:
  // The order of threads and the moments at which copies arrive follow from the seed.
  void seed(uint64_t seed);
  // What `shared_memory_limit` says from now on; kernels choose their way by it.
  void limit_shared_memory(size_t bytes);
  size_t shared_memory_limit() const;
  // Runs every block in turn, in random order. Throws std::runtime_error where threads wait for one another for ever,
  // where a warp's threads come to different things, or where a thread leaves copies unawaited.
  void run(int64_t blocks, int threads, size_t shared_bytes, const std::function<void()>& body);

  // What follows is called by the threads.
  int thread() const;
  int threads() const;
  int64_t block() const;
  int64_t blocks() const;
  char* shared_memory() const;
  void sync_block();
  // Returns when all 32 threads of the warp have come here; the last to come calls `act` with what each brought.
  using Act = void (*)(void* const* lanes);
  void together(void* mine, Act act);
  // Sixteen bytes; zeros where `global` is null.
  void copy_async(void* shared, const void* global);
  void copy_commit();
  void copy_wait(int newest);
};

Machine& machine();

}  // namespace host
}  // namespace cuda
}  // namespace mae_dfer

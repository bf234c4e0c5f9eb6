#include "cuda/host/machine.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace mae_dfer {
namespace cuda {
namespace host {
namespace {

constexpr size_t kStackBytes = 256 * 1024;
constexpr int kWarp = 32;

struct Copy {
  void* to;
  const void* from;
};

void perform(const Copy& copy) {
  if (copy.from) {
    std::memcpy(copy.to, copy.from, 16);
  } else {
    std::memset(copy.to, 0, 16);
  }
}

struct Fiber {
  ucontext_t context;  // how it starts; from then on it is left and entered by jumps, which make no system call
  jmp_buf resume;
  bool started = false;
  std::unique_ptr<char[]> stack;
  std::deque<std::vector<Copy>> groups;  // committed, not yet arrived
  std::vector<Copy> open;
};

struct Warp {
  void* lanes[kWarp];
  Machine::Act act;
  int arrived = 0;
};

struct State {
  std::mt19937_64 random{0};
  ucontext_t unused;
  jmp_buf scheduler;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<int> runnable;
  std::vector<uint64_t> shared;  // in words, for alignment
  const std::function<void()>* body = nullptr;
  int threads = 0, running = 0, waiting = 0, finished = 0;
  bool one_warp_ahead = false;  // or all at about the same pace
  int64_t block = 0, blocks = 0;
  size_t shared_limit = 227 * 1024;  // an H100's
  std::string error;
};

State state;

// Takes a runnable thread at random; where one warp shall run ahead, one of the warp that ran last, if it has any.
int pick() {
  std::vector<int>& ready = state.runnable;
  size_t at = state.random() % ready.size();
  if (state.one_warp_ahead) {
    for (size_t i = 0; i < ready.size() && ready[at] / kWarp != state.running / kWarp; ++i) at = (at + 1) % ready.size();
  }
  const int thread = ready[at];
  ready[at] = ready.back();
  ready.pop_back();
  return thread;
}

// Gives the processor to another thread; it returns when the scheduler picks this one again.
void leave() {
  if (_setjmp(state.fibers[state.running].resume) == 0) _longjmp(state.scheduler, 1);
}

void enter(Fiber& fiber) {
  if (_setjmp(state.scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.resume, 1);
  fiber.started = true;
  swapcontext(&state.unused, &fiber.context);
}

void fiber_main() {
  (*state.body)();
  Fiber& fiber = state.fibers[state.running];
  if (!fiber.open.empty() || !fiber.groups.empty()) state.error = "a thread ended with copies that it never awaited";
  ++state.finished;
  leave();
}

void start(int thread) {
  Fiber& fiber = state.fibers[thread];
  if (!fiber.stack) fiber.stack.reset(new char[kStackBytes]);
  fiber.groups.clear();
  fiber.open.clear();
  fiber.started = false;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, fiber_main, 0);
}

void run_block(int threads, size_t shared_bytes) {
  // A row of ones in every type is NaN.
  state.shared.assign(shared_bytes / 8 + 17, ~uint64_t{0});
  state.warps.assign(threads / kWarp, Warp());
  state.runnable.clear();
  state.waiting = state.finished = 0;
  state.one_warp_ahead = state.random() % 2;
  for (int thread = 0; thread < threads; ++thread) {
    start(thread);
    state.runnable.push_back(thread);
  }
  while (!state.runnable.empty() && state.error.empty()) {
    state.running = pick();
    enter(state.fibers[state.running]);
  }
  if (state.error.empty() && state.finished != threads) {
    state.error = "threads wait for others that never come: a barrier or a warp-wide step that not all reach";
  }
}

}  // namespace

Machine& machine() {
  static Machine machine;
  return machine;
}

void Machine::seed(uint64_t seed) { state.random.seed(seed); }

void Machine::limit_shared_memory(size_t bytes) { state.shared_limit = bytes; }
size_t Machine::shared_memory_limit() const { return state.shared_limit; }

void Machine::run(int64_t blocks, int threads, size_t shared_bytes, const std::function<void()>& body) {
  if (threads % kWarp != 0) throw std::runtime_error("blocks must be whole warps");
  if (shared_bytes > state.shared_limit) throw std::runtime_error("more shared memory than there is");
  if (static_cast<int>(state.fibers.size()) < threads) state.fibers.resize(threads);
  state.error.clear();
  state.body = &body;
  state.threads = threads;
  state.blocks = blocks;
  std::vector<int64_t> order(blocks);
  for (int64_t block = 0; block < blocks; ++block) order[block] = block;
  std::shuffle(order.begin(), order.end(), state.random);
  for (int64_t block : order) {
    state.block = block;
    run_block(threads, shared_bytes);
    if (!state.error.empty()) throw std::runtime_error(state.error);
  }
}

int Machine::thread() const { return state.running; }
int Machine::threads() const { return state.threads; }
int64_t Machine::block() const { return state.block; }
int64_t Machine::blocks() const { return state.blocks; }

char* Machine::shared_memory() const {
  char* memory = reinterpret_cast<char*>(state.shared.data());
  return memory + (128 - reinterpret_cast<uintptr_t>(memory) % 128) % 128;
}

void Machine::sync_block() {
  if (++state.waiting == state.threads) {
    state.waiting = 0;
    for (int thread = 0; thread < state.threads; ++thread) {
      if (thread != state.running) state.runnable.push_back(thread);
    }
    return;
  }
  leave();
}

void Machine::together(void* mine, Act act) {
  const int first = state.running / kWarp * kWarp;
  Warp& warp = state.warps[state.running / kWarp];
  if (warp.arrived > 0 && warp.act != act) {
    state.error = "threads of one warp come to different warp-wide steps";
    leave();
  }
  warp.act = act;
  warp.lanes[state.running - first] = mine;
  if (++warp.arrived < kWarp) {
    leave();
    return;
  }
  warp.arrived = 0;
  act(warp.lanes);
  for (int thread = first; thread < first + kWarp; ++thread) {
    if (thread != state.running) state.runnable.push_back(thread);
  }
}

void Machine::copy_async(void* shared, const void* global) {
  const Copy copy{shared, global};
  if (state.random() % 2) {
    perform(copy);
  } else {
    state.fibers[state.running].open.push_back(copy);
  }
}

void Machine::copy_commit() {
  Fiber& fiber = state.fibers[state.running];
  fiber.groups.push_back(std::move(fiber.open));
  fiber.open.clear();
}

void Machine::copy_wait(int newest) {
  Fiber& fiber = state.fibers[state.running];
  while (static_cast<int>(fiber.groups.size()) > newest) {
    for (const Copy& copy : fiber.groups.front()) perform(copy);
    fiber.groups.pop_front();
  }
}

}  // namespace host
}  // namespace cuda
}  // namespace mae_dfer

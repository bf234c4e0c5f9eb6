// Which instruction set runs, and on which threads.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace mae_dfer {
namespace cpu {

// The kernels of the chosen instruction set.
const Kernels& kernels();

using Task = std::function<void(int64_t index, void* workspace)>;

// Runs tasks 0 … `tasks` - 1 on at most `threads` threads, each with a workspace of its own. They share nothing, so
// any order and any number of threads give the same bits. `work` is about how many multiplications there are in all.
void run(int64_t tasks, int threads, double work, size_t workspace_bytes, const Task& task);

// Whether AMD made the processor.
bool is_amd();

// The instruction sets compiled in that this processor executes, slowest first.
std::vector<std::string> instruction_sets();
std::string chosen_instruction_set();
// Throws std::invalid_argument for a name that is not among them.
void choose_instruction_set(const std::string& name);

}  // namespace cpu
}  // namespace mae_dfer

// Region attention on the CPU: the instruction set, the threads, the workspaces.
#pragma once

#include <string>
#include <vector>

#include "problem.h"

namespace mae_dfer {
namespace cpu {

void region_attention_forward(const RegionAttention& problem);
void region_attention_backward(const RegionAttention& problem);

// The instruction sets compiled in that this processor executes, slowest first.
std::vector<std::string> instruction_sets();
std::string chosen_instruction_set();
// Throws std::invalid_argument for a name that is not among them.
void choose_instruction_set(const std::string& name);

}  // namespace cpu
}  // namespace mae_dfer

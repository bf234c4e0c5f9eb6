#include "problem.h"

#include <stdexcept>
#include <string>

namespace mae_dfer {
namespace {

void require(bool holds, const char* complaint) {
  if (!holds) throw std::invalid_argument(std::string("region_attention: ") + complaint);
}

}  // namespace

void RegionAttention::check(bool backward) const {
  require(static_cast<int>(dtype) >= 0 && static_cast<int>(dtype) <= 3, "dtype code is not known");
  require(regions >= 0 && tokens >= 0, "regions and tokens must not be negative");
  require(heads >= 1 && head_dim >= 1, "heads and head_dim must be at least 1");
  require(tokens <= 1 << 24 && head_dim <= 1 << 24, "tokens and head_dim must be at most 2^24");
  require(dropout_p >= 0.0 && dropout_p < 1.0, "dropout_p must be in [0, 1)");
  require(threads >= 1, "threads must be at least 1");
  if (empty()) return;
  require(qkv != nullptr && result != nullptr, "an address is null");
  require(!backward || grad_out != nullptr, "the address of grad_out is null");
}

}  // namespace mae_dfer

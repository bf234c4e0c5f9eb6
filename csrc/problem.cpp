#include "problem.h"

#include <stdexcept>

namespace mae_dfer {
namespace {

void require(bool holds, const char* complaint) {
  if (!holds) throw std::invalid_argument(complaint);
}

bool known(DType dtype) { return static_cast<int>(dtype) >= 0 && static_cast<int>(dtype) <= 3; }

}  // namespace

void RegionAttention::check(bool backward) const {
  require(known(dtype), "dtype code is not known");
  require(regions >= 0 && tokens >= 0, "regions and tokens must not be negative");
  require(heads >= 1 && head_dim >= 1, "heads and head_dim must be at least 1");
  require(tokens <= 1 << 24 && head_dim <= 1 << 24, "tokens and head_dim must be at most 2^24");
  require(dropout_p >= 0.0 && dropout_p < 1.0, "dropout_p must be in [0, 1)");
  require(threads >= 1, "threads must be at least 1");
  if (empty()) return;
  require(qkv != nullptr, "qkv has no memory: its storage was freed");
  require(!backward || grad_out != nullptr, "grad_out has no memory: its storage was freed");
  require(result != nullptr, "the result has no memory");
}

uint32_t RegionAttention::dropout_threshold() const {
  // The product is exact, and below 2^52 the cast truncates exactly.
  const double exact = dropout_p * 4294967296.0;
  uint64_t whole = static_cast<uint64_t>(exact);
  const double rest = exact - static_cast<double>(whole);
  if (rest > 0.5 || (rest == 0.5 && (whole & 1u))) ++whole;
  return static_cast<uint32_t>(whole < 0xffffffffu ? whole : 0xffffffffu);
}

void ResidualLayerNorm::check(bool backward) const {
  require(groups >= 0 && rows >= 0, "groups and rows must not be negative");
  require(channels >= 1 && channels <= 1 << 24, "channels must be between 1 and 2^24");
  require(threads >= 1, "threads must be at least 1");
  for (const DType dtype : {x.dtype, update.dtype, normed_dtype, grad_sum.dtype, grad_normed.dtype}) {
    require(known(dtype), "dtype code is not known");
    require((dtype == DType::float64) == (x.dtype == DType::float64), "float64 goes with float64 alone");
  }
  if (empty()) return;
  require(weight != nullptr, "weight has no memory: its storage was freed");
  require(x.data != nullptr, "x has no memory: its storage was freed");
  if (backward) {
    require(grad_normed.data != nullptr, "grad_normed has no memory: its storage was freed");
    require(grad_x != nullptr && partial_sums != nullptr, "a result has no memory");
  } else {
    require((update.data != nullptr) == (sum != nullptr), "update or the sum has no memory: its storage was freed");
    require(bias != nullptr, "bias has no memory: its storage was freed");
    require(normed != nullptr, "a result has no memory");
  }
}

void GeluGradient::check() const {
  require(rows >= 0, "rows must not be negative");
  require(channels >= 1 && channels <= 1 << 24, "channels must be between 1 and 2^24");
  require(threads >= 1, "threads must be at least 1");
  require(known(x.dtype) && grad.dtype == x.dtype, "dtype code is not known, or not the same for grad and x");
  if (rows == 0) return;
  require(grad.data != nullptr, "grad has no memory: its storage was freed");
  require(x.data != nullptr, "x has no memory: its storage was freed");
  require(grad_x != nullptr && gelu_x != nullptr && partial_sums != nullptr, "a result has no memory");
}

int64_t WeightGradient::blocks() const {
  const int64_t most = kBlockTerms * (grad.dtype == DType::bfloat16 ? 2 : 1);
  return rows <= most ? 1 : (rows + most - 1) / most;
}

int64_t WeightGradient::block_rows() const { return ((rows + blocks() - 1) / blocks() + 1) / 2 * 2; }

int64_t WeightGradient::output_parts() const {
  // Every part of the outputs copies all inputs that it multiplies with, every part of the inputs all outputs.
  const auto copies = [&](int64_t parts) { return parts * inputs + threads / parts * outputs; };
  int64_t best = 1;
  for (int64_t parts = 2; parts <= threads; ++parts) {
    if (threads % parts == 0 && copies(parts) < copies(best)) best = parts;
  }
  return best;
}

void WeightGradient::check() const {
  require(rows >= 0 && rows <= int64_t{1} << 40, "rows must be between 0 and 2^40");
  require(outputs >= 1 && outputs <= 1 << 24, "outputs must be between 1 and 2^24");
  require(inputs >= 1 && inputs <= 1 << 24, "inputs must be between 1 and 2^24");
  require(threads >= 1, "threads must be at least 1");
  require(grad.dtype == DType::float32 || grad.dtype == DType::bfloat16, "grad must be float32 or bfloat16");
  require(input.dtype == grad.dtype, "input must have the dtype of grad");
  require(grad_weight != nullptr, "the result has no memory");
  if (rows == 0) return;
  require(grad.data != nullptr, "grad has no memory: its storage was freed");
  require(input.data != nullptr, "input has no memory: its storage was freed");
}

int64_t Exchange::chunk_rows() const {
  const int64_t chunks_a_clip = (15 + clips) / clips;
  const int64_t share = (clip_rows() + chunks_a_clip - 1) / chunks_a_clip;
  return (share + kStepRows - 1) / kStepRows * kStepRows;
}

void Exchange::check(bool backward) const {
  require(clips >= 0 && groups >= 0 && rows >= 0 && front >= 0, "counts must not be negative");
  require(channels >= 1 && channels <= 1 << 24, "channels must be between 1 and 2^24");
  require(heads >= 1 && context >= 1 && heads * context <= 1 << 20, "heads and context must be at least 1");
  require(clips == 0 ? groups == 0 : groups % clips == 0, "clips must divide groups");
  require(threads >= 1, "threads must be at least 1");
  require(known(x.dtype) && known(grad_out.dtype), "dtype code is not known");
  const bool wide = x.dtype == DType::float64;
  require(wide == (grad_out.dtype == DType::float64), "float64 goes with float64 alone");
  require(!wide || !bf16_operands, "keys and values in bfloat16 do not go with float64");
  require(!has_update || (known(update.dtype) && wide == (update.dtype == DType::float64)),
          "dtype code of update is not known, or float64 where x is not");
  if (empty()) return;
  require(!has_update || update.data != nullptr, "an address is null");
  require(x.data != nullptr && keys != nullptr && key_bias != nullptr && values != nullptr && out_bias != nullptr,
          "an address is null");
  if (backward) {
    require(grad_out.data != nullptr && grad_x != nullptr, "an address is null");
    require(!has_update || grad_update != nullptr, "an address is null");
    require(sums != nullptr && key_bias_sums != nullptr, "an address is null");
  } else {
    require(out != nullptr, "an address is null");
  }
}

}  // namespace mae_dfer

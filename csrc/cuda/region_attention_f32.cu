#include "cuda/region_attention_launch.cuh"

namespace mae_dfer {
namespace cuda {

template void run_region_attention<float>(const RegionAttention&, bool, float*, void*);

}  // namespace cuda
}  // namespace mae_dfer

#include "cuda/region_attention_launch.cuh"

namespace mae_dfer {
namespace cuda {

template void run_region_attention<Float16>(const RegionAttention&, bool, float*, void*);

}  // namespace cuda
}  // namespace mae_dfer

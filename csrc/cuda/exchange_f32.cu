#include "cuda/exchange_launch.cuh"

namespace mae_dfer {
namespace cuda {

template void run_exchange<float>(const Exchange&, const ExchangeBackward*, void*);
template size_t exchange_shared_bytes<float>(int64_t, int64_t);

}  // namespace cuda
}  // namespace mae_dfer

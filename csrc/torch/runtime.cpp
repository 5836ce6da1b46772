// monarch_kernels::cuda_runtime: the facts of cuda/runtime.h, for monarch_kernels.info.
#include "cuda/runtime.h"

#include <cstdint>
#include <string>
#include <tuple>

#include "torch/stable_abi.h"

namespace monarch {
namespace {

// cuda_runtime() -> (int runtime, int driver, int devices, str architectures)
std::tuple<int64_t, int64_t, int64_t, std::string> cuda_runtime() {
  return {cuda::runtime_version(), cuda::driver_version(), cuda::device_count(),
          cuda::architectures()};
}

// Without a tensor argument there is no device to dispatch on: this key serves every case.
[[maybe_unused]] const abi::Library& registered =
    (new abi::Library("monarch_kernels", "CompositeExplicitAutograd"))
        ->impl<&cuda_runtime>("cuda_runtime");

}  // namespace
}  // namespace monarch

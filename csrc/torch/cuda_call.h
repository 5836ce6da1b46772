// What every operator on CUDA does around its launches: the device of the tensors is current, the
// stream is torch's, scratch memory is torch's, and a range is open for Nsight Systems.
// A guard by name: tests/cuda_binding.cpp, which runs the bindings without a GPU, has its own
// CudaCall in this one's place.
#ifndef MONARCH_TORCH_CUDA_CALL_H
#define MONARCH_TORCH_CUDA_CALL_H

#include <cstdint>

#if __has_include(<nvtx3/nvToolsExt.h>)
#include <nvtx3/nvToolsExt.h>
#define MONARCH_HAVE_NVTX 1
#endif

#include "cuda/runtime.h"
#include "torch/stable_abi.h"

namespace monarch {

// A range of NVTX: one load and one branch at each end while no tool is attached.
class NvtxRange {
 public:
#ifdef MONARCH_HAVE_NVTX
  explicit NvtxRange(const char* name) { nvtxRangePushA(name); }
  ~NvtxRange() { nvtxRangePop(); }
#else
  explicit NvtxRange(const char*) {}
#endif
  NvtxRange(const NvtxRange&) = delete;
  NvtxRange& operator=(const NvtxRange&) = delete;
};

class CudaCall {
 public:
  static constexpr const char* kDispatchKey = "CUDA";

  CudaCall(const abi::Tensor& like, const char* operation)
      : range_(operation), like_(checked(like, operation)), guard_(like.device_index()) {
    launch_.stream = abi::current_cuda_stream(like.device_index());
    launch_.device = cuda::device_limits(like.device_index());
  }

  const cuda::Launch& launch() const { return launch_; }

  // Returned to torch's allocator when the call ends: in stream order, so that a kernel still to
  // run keeps it, and seen by CUDA graphs.
  abi::Tensor scratch(int64_t bytes) const {
    return like_.new_empty({(bytes + 3) / 4}, abi::DType::Float32);
  }

 private:
  static const abi::Tensor& checked(const abi::Tensor& like, const char* operation) {
    MONARCH_CHECK(like.is_cuda(), operation, ": expected CUDA tensors");
    return like;
  }

  NvtxRange range_;
  const abi::Tensor& like_;
  abi::DeviceGuard guard_;
  cuda::Launch launch_;
};

}  // namespace monarch

#endif  // MONARCH_TORCH_CUDA_CALL_H

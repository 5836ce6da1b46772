// Built by test_cuda_binding.py, never shipped.
//
// The CUDA bindings of csrc/torch on CPU tensors, for emulated kernels: everything between
// torch.ops and the kernels but the stream and the device guard. In the process that loads it, it
// takes the place of the CPU's operators.
#define MONARCH_TORCH_CUDA_CALL_H  // the real one needs a GPU

#include "cuda/launch.h"
#include "torch/stable_abi.h"

namespace monarch {

class CudaCall {
 public:
  static constexpr const char* kDispatchKey = "CPU";

  CudaCall(const abi::Tensor& like, const char* operation) : like_(like) {
    MONARCH_CHECK(like.is_cpu(), operation, ": expected CPU tensors");
    launch_.device.multiprocessors = 4;
    launch_.device.shared_bytes = 99 << 10;
  }

  const cuda::Launch& launch() const { return launch_; }
  abi::Tensor scratch(int64_t bytes) const {
    return like_.new_empty({(bytes + 3) / 4}, abi::DType::Float32);
  }

 private:
  const abi::Tensor& like_;
  cuda::Launch launch_;
};

}  // namespace monarch

#include "../csrc/torch/block_diagonal_cuda.cpp"
#include "../csrc/torch/fft_conv_cuda.cpp"
#include "../csrc/torch/glu_mlp_cuda.cpp"
#include "../csrc/torch/mixer_conv_cuda.cpp"
#include "../csrc/torch/monarch_matmul_cuda.cpp"
#include "../csrc/torch/short_conv_cuda.cpp"

// torch operators of fft_conv on CUDA.
#include "torch/cuda_device.h"
#include "torch/fft_conv_operators.h"

namespace monarch {
namespace {

[[maybe_unused]] const bool fft_conv_registered =
    (FftConvOperators<CudaDevice>::register_for(CudaCall::kDispatchKey), true);

}  // namespace
}  // namespace monarch

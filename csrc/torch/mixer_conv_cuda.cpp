// torch operators of mixer_conv on CUDA.
#include "cuda/mixer_conv.h"

#include "torch/cuda_device.h"
#include "torch/mixer_conv_operators.h"

namespace monarch {
namespace {

class CudaMixerConv : public CudaDevice {
 public:
  static constexpr bool kMakesSpectra = false, kBackwardByRows = true;
  using CudaDevice::CudaDevice;

  void mixer_conv_fwd(const MixerConvParams& p) const {
    run(p, cuda::mixer_conv_fwd_scratch, cuda::mixer_conv_fwd);
  }
  void mixer_conv_bwd(const MixerConvBackwardParams& p) const {
    run(p, cuda::mixer_conv_bwd_scratch, cuda::mixer_conv_bwd);
  }
};

[[maybe_unused]] const bool mixer_conv_registered =
    (MixerConvOperators<CudaMixerConv>::register_for(CudaCall::kDispatchKey), true);

}  // namespace
}  // namespace monarch

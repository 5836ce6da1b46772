// torch operators of short_conv on CUDA. Nothing here waits for the GPU or reads its memory, so
// that a CUDA graph can capture every call.
#include "cuda/short_conv.h"

#include "torch/cuda_call.h"
#include "torch/short_conv_operators.h"

namespace monarch {
namespace {

class CudaShortConv {
 public:
  CudaShortConv(const Tensor& like, const char* operation) : call_(like, operation) {}

  void fresh(void*, int64_t) const {}
  void short_conv_fwd(const ShortConvParams& p) const { cuda::short_conv_fwd(p, call_.launch()); }
  void short_conv_bwd(const ShortConvBackwardParams& p) const {
    const Tensor scratch = call_.scratch(cuda::short_conv_bwd_scratch(p, call_.launch().device));
    cuda::short_conv_bwd(p, scratch.data(), call_.launch());
  }

 private:
  CudaCall call_;
};

[[maybe_unused]] const bool short_conv_registered =
    (ShortConvOperators<CudaShortConv>::register_for(CudaCall::kDispatchKey), true);

}  // namespace
}  // namespace monarch

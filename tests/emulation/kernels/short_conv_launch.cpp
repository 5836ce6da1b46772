// The entry points of csrc/cuda/short_conv.h for ctypes.
#include "cuda/short_conv.h"

#include "emulation/kernels/launch.h"

using namespace monarch;

namespace {

int64_t no_scratch(const ShortConvParams&, const cuda::DeviceLimits&) { return 0; }

void forward(const ShortConvParams& params, void*, const cuda::Launch& launch) {
  cuda::short_conv_fwd(params, launch);
}

}  // namespace

extern "C" {

const char* launch_short_conv_fwd(const ShortConvParams* params, void* scratch,
                                  int64_t* scratch_bytes, const cuda::DeviceLimits* device) {
  return measure_or_run(no_scratch, forward, *params, scratch, scratch_bytes, *device);
}

const char* launch_short_conv_bwd(const ShortConvBackwardParams* params, void* scratch,
                                  int64_t* scratch_bytes, const cuda::DeviceLimits* device) {
  return measure_or_run(cuda::short_conv_bwd_scratch, cuda::short_conv_bwd, *params, scratch,
                        scratch_bytes, *device);
}
}

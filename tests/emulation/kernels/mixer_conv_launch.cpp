// The entry points of csrc/cuda/mixer_conv.h for ctypes.
#include "cuda/mixer_conv.h"

#include "emulation/kernels/launch.h"

using namespace monarch;

extern "C" {

const char* launch_mixer_conv_fwd(const MixerConvParams* params, void* scratch,
                                  int64_t* scratch_bytes, const cuda::DeviceLimits* device) {
  return measure_or_run(cuda::mixer_conv_fwd_scratch, cuda::mixer_conv_fwd, *params, scratch,
                        scratch_bytes, *device);
}

const char* launch_mixer_conv_bwd(const MixerConvBackwardParams* params, void* scratch,
                                  int64_t* scratch_bytes, const cuda::DeviceLimits* device) {
  return measure_or_run(cuda::mixer_conv_bwd_scratch, cuda::mixer_conv_bwd, *params, scratch,
                        scratch_bytes, *device);
}

// So that ctypes and the compiler agree where everything lies.
int64_t size_of_mixer_conv_bwd() { return sizeof(MixerConvBackwardParams); }
}

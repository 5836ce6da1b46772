// fft_conv with every outer plan over inner rows of 128 points: all kernels for long rows, at
// lengths that an emulator does in no time; for test_fft_conv.py.
#include "core/chain.h"

namespace monarch {
using NoBlockPlans = PlanList<>;
using ShortInnerPlans = PlanList<BlockPlan<Plan<16, 8>, 64>>;
}  // namespace monarch

// What follows sees no others.
#define BlockPlans NoBlockPlans
#define InnerPlans ShortInnerPlans
#define ChainPlans NoBlockPlans

#include "../../../csrc/cuda/fft_conv.cu"
#include "../../../csrc/cuda/fft_conv_backward.cu"
#include "../../../csrc/cuda/fft_conv_chain.cu"
#include "../../../csrc/cuda/fft_conv_toeplitz.cu"

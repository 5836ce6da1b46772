// fft_conv with a handful of plans, so that it compiles in seconds; for test_fft_conv_ptx.py. nvcc
// makes PTX of the kernels. From g++ come the launchers, and the kernels to compare with.
// ONE_PLAN: one plan and one dtype. ONE_OF_EACH: one plan for short rows and one for long ones.
#include "core/chain.h"

namespace monarch {
using NoChainPlans = PlanList<>;
#if defined(ONE_PLAN)
using FewBlockPlans = PlanList<BlockPlan<Plan<24, 16>, 16>>;
using FewInnerPlans = PlanList<>;
using FewOuterPlans = PlanList<>;
#elif defined(ONE_OF_EACH)
using FewBlockPlans = PlanList<BlockPlan<Plan<16, 16>, 16>>;
using FewInnerPlans = PlanList<BlockPlan<Plan<16, 8>, 64>>;
using FewOuterPlans = PlanList<Plan<4>>;
#else
using FewBlockPlans = PlanList<BlockPlan<Plan<16, 16>, 16>, BlockPlan<Plan<24, 16>, 16>,
                               BlockPlan<Plan<6, 16, 16>, 96>>;
// Rows of 512 and of 8192 points are long ones here. Of inner rows, each has a block, as in plan.h.
using FewInnerPlans = PlanList<BlockPlan<Plan<16, 8>, 64>>;
using FewOuterPlans = PlanList<Plan<4>, Plan<8, 8>>;
#endif
}  // namespace monarch

// What follows sees no others.
#define BlockPlans FewBlockPlans
#define InnerPlans FewInnerPlans
#define OuterPlans FewOuterPlans
#define ChainPlans NoChainPlans

#include "ptx_runner.h"

#include "cuda/fft_conv_launch.cuh"

#if defined(ONE_PLAN)
namespace monarch::cuda {
template <class Use>
void with_float16(Scalar, Use use) {
  use(Float16{});
}
}  // namespace monarch::cuda
#define with_scalar with_float16
#endif

#include "cuda/fft_conv.cu"
#include "cuda/fft_conv_backward.cu"
#include "cuda/fft_conv_chain.cu"
#if !defined(__CUDACC__)  // its launchers only: none of these calls runs a kernel of it
#include "cuda/fft_conv_toeplitz.cu"
#endif

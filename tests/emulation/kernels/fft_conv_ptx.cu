// fft_conv with a handful of plans, so that it compiles in seconds; for test_fft_conv_ptx.py. nvcc
// makes PTX of the kernels. From g++ come the launchers, and the kernels to compare with.
// ONE_PLAN: one plan and one dtype.
#include "core/plan.h"

namespace monarch {
#if defined(ONE_PLAN)
using FewBlockPlans = PlanList<BlockPlan<Plan<24, 16>, 16>>;
using FewInnerPlans = PlanList<>;
using FewOuterPlans = PlanList<>;
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

#include "cuda/device.cuh"

#if !defined(__CUDACC__)
namespace monarch::cuda::device {

// Runs a kernel somehow: its address, grid, block, dynamic shared memory, and parameters.
using Runner = void (*)(const void* kernel, int64_t grid, int64_t block, int64_t shared_bytes,
                        const void* const* parameters, const int64_t* sizes, int count);
inline Runner runner = nullptr;

template <class... Parameters>
const char* launch_by_runner(void (*kernel)(Parameters...), dim3 grid, dim3 block,
                             size_t shared_bytes, void* stream,
                             const std::type_identity_t<Parameters>&... parameters) {
  if (runner == nullptr) return launch(kernel, grid, block, shared_bytes, stream, parameters...);
  const void* const addresses[] = {&parameters...};
  const int64_t sizes[] = {static_cast<int64_t>(sizeof(Parameters))...};
  runner(reinterpret_cast<const void*>(kernel), grid.x, block.x, static_cast<int64_t>(shared_bytes),
         addresses, sizes, static_cast<int>(sizeof...(Parameters)));
  return nullptr;
}

}  // namespace monarch::cuda::device

extern "C" void run_kernels_by(monarch::cuda::device::Runner runner) {
  monarch::cuda::device::runner = runner;
}
#define launch launch_by_runner
#endif

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
#if !defined(__CUDACC__)  // its launchers only: none of these calls runs a kernel of it
#include "cuda/fft_conv_toeplitz.cu"
#endif

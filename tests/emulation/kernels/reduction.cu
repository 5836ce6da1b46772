// Sum of an array: shuffles within a warp, shared memory within a block, one atomic a block.
#include "cuda/device.cuh"

namespace {

namespace device = monarch::cuda::device;

constexpr int kThreads = 256, kWarps = kThreads / 32;

// total[0] += the sum of x[0 .. count), for any grid.
__global__ void __launch_bounds__(kThreads)
    reduction_kernel(const float* __restrict__ x, int count, float* __restrict__ total) {
  MONARCH_STATIC_SHARED(float, partial, kWarps);
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  float sum = 0.0f;
  for (int i = blockIdx.x * kThreads + thread; i < count; i += gridDim.x * kThreads)
    sum += device::load_readonly(x + i);
  for (int step = 16; step > 0; step /= 2) sum += device::shuffle_down(sum, step);
  if (lane == 0) partial[warp] = sum;
  device::sync_threads();
  if (warp == 0) {
    sum = lane < kWarps ? partial[lane] : 0.0f;
    for (int step = 16; step > 0; step /= 2) sum += device::shuffle_xor(sum, step);
    if (lane == 0) device::atomic_add(total, sum);
  }
}

}  // namespace

extern "C" const char* reduction(const float* x, int count, float* total, int blocks) {
  return device::launch(reduction_kernel, blocks, kThreads, 0, nullptr, x, count, total);
}

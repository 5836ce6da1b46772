// Nothing but barriers, for what they cost; and a block as large as they come.
#include "cuda/device.cuh"

namespace device = monarch::cuda::device;

static __global__ void barriers_kernel(uint32_t* __restrict__ y, int count) {
  MONARCH_DYNAMIC_SHARED(raw);
  auto* values = reinterpret_cast<uint32_t*>(raw);
  const unsigned thread = threadIdx.x, threads = blockDim.x;
  values[thread] = thread;
  uint32_t value = thread;
  for (int i = 0; i < count; ++i) {
    device::sync_threads();
    value = values[(thread + 1) % threads];
    device::sync_threads();
    values[thread] = value;
  }
  y[blockIdx.x * threads + thread] = value;
}

extern "C" const char* barriers(uint32_t* y, int blocks, int threads, int count) {
  return device::launch(barriers_kernel, blocks, threads, threads * 4, nullptr, y, count);
}

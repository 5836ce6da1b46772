// Barriers of less than a block: a warp that reverses its lanes through shared memory, and two
// halves of a block of which one makes what the other takes.
#include "cuda/device.cuh"

namespace {

namespace device = monarch::cuda::device;

// y[32 w + i] = x[32 w + 31 - i], twice in a row: y = x after an even number of rounds.
__global__ void reverse_kernel(const uint32_t* __restrict__ x, uint32_t* __restrict__ y,
                               int rounds) {
  MONARCH_STATIC_SHARED(uint32_t, lanes, 128);
  const int thread = threadIdx.x, lane = thread % 32;
  uint32_t* own = lanes + thread - lane;
  uint32_t value = x[thread];
  for (int round = 0; round < rounds; ++round) {
    own[lane] = value;
    device::sync_warp();
    value = own[31 - lane];
    device::sync_warp();  // all have read before the next round writes
  }
  y[thread] = value;
}

constexpr int kFilled = 1, kEmptied = 2;  // barriers

// y[i] = 2 x[i + 1], cyclic within 64. Threads 0 to 63 produce, 64 to 127 consume, item by item.
__global__ void handover_kernel(const uint32_t* __restrict__ x, uint32_t* __restrict__ y,
                                int items) {
  MONARCH_STATIC_SHARED(uint32_t, slot, 64);
  const int thread = threadIdx.x, i = thread % 64;
  for (int item = 0; item < items; ++item) {
    if (thread < 64) {
      slot[i] = 2 * x[item * 64 + i];
      device::sync_group(kFilled, 128);
      device::sync_group(kEmptied, 128);
    } else {
      device::sync_group(kFilled, 128);
      y[item * 64 + i] = slot[(i + 1) % 64];
      device::sync_group(kEmptied, 128);
    }
  }
}

// Every quarter of the block writes its number, then reads it 32 threads on, within 64 threads.
__global__ void pairs_kernel(uint32_t* __restrict__ y) {
  MONARCH_STATIC_SHARED(uint32_t, numbers, 128);
  const int thread = threadIdx.x, pair = thread / 64;
  numbers[thread] = thread;
  device::sync_group(pair + 1, 64);
  y[thread] = numbers[thread ^ 32];
}

// Warp 0 makes, warp 2 takes; the two never meet, but each meets warp 1, in this order.
__global__ void relay_kernel(uint32_t* __restrict__ y) {
  MONARCH_STATIC_SHARED(uint32_t, made, 32);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (warp == 0) {
    made[lane] = 7 * lane;
    device::sync_group(1, 64);
  } else if (warp == 1) {
    device::sync_group(1, 64);
    device::sync_group(2, 64);
  } else {
    device::sync_group(2, 64);
    y[lane] = made[31 - lane];
  }
}

// y[i] = x[i] + 1 by one launch, y[i] *= 2 by the next.
__global__ void increment_kernel(const uint32_t* __restrict__ x, uint32_t* __restrict__ y) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  y[i] = x[i] + 1;
}
__global__ void double_kernel(uint32_t* __restrict__ y, int count) {
  const int i = count - 1 - static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  y[i] *= 2;
}

}  // namespace

extern "C" const char* reverse(const uint32_t* x, uint32_t* y, int rounds) {
  return device::launch(reverse_kernel, 1, 128, 0, nullptr, x, y, rounds);
}
extern "C" const char* handover(const uint32_t* x, uint32_t* y, int items) {
  return device::launch(handover_kernel, 1, 128, 0, nullptr, x, y, items);
}
extern "C" const char* pairs(uint32_t* y) {
  return device::launch(pairs_kernel, 1, 128, 0, nullptr, y);
}
extern "C" const char* relay(uint32_t* y) {
  return device::launch(relay_kernel, 1, 96, 0, nullptr, y);
}
extern "C" const char* two_launches(const uint32_t* x, uint32_t* y, int blocks) {
  if (const char* error = device::launch(increment_kernel, blocks, 64, 0, nullptr, x, y))
    return error;
  return device::launch(double_kernel, blocks, 64, 0, nullptr, y, 64 * blocks);
}

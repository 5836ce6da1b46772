// Kernels that are wrong in ways that no correct kernel is one edit away from.
#include "cuda/device.cuh"

namespace {

namespace device = monarch::cuda::device;

// A pointer to a local variable, given to another thread.
__global__ void foreign_local_kernel(float* __restrict__ out) {
  MONARCH_STATIC_SHARED(float*, pointers, 32);
  float own[2] = {static_cast<float>(threadIdx.x), 0.0f};
  pointers[threadIdx.x] = own;
  device::sync_threads();
  out[threadIdx.x] = *pointers[threadIdx.x ^ 1];
  device::sync_threads();
}

__global__ void shift_kernel(uint32_t* __restrict__ out) {
  out[threadIdx.x] = 1u << (threadIdx.x + 1);
}

// Exits before its copies have landed.
__global__ void lost_copy_kernel(const float* __restrict__ x) {
  MONARCH_STATIC_SHARED(float, slot, 32);
  device::copy_async_4(device::shared_address(slot + threadIdx.x), x + threadIdx.x);
  device::copy_async_commit();
}

// One lane never comes.
__global__ void stuck_kernel(float* __restrict__ out) {
  if (threadIdx.x != 5) {
    device::sync_warp();
  } else {
    device::sync_group(1, 32);
  }
  out[threadIdx.x] = 1.0f;
}

__global__ void part_of_a_warp_kernel() {
  MONARCH_STATIC_SHARED(uint4, rows, 32);
  uint32_t matrix;
  device::load_matrix_x1(matrix, device::shared_address(rows + threadIdx.x));
}

__global__ void not_shared_kernel(const float* __restrict__ x) {
  uint32_t matrix;
  device::load_matrix_x1(matrix, device::shared_address(x));
}

__global__ void too_much_static_kernel() {
  MONARCH_STATIC_SHARED(float, half, 8192);
  MONARCH_STATIC_SHARED(float, more, 8192);
  half[0] = more[0] = 0.0f;
}

__global__ void wild_store_kernel(float* __restrict__ out, long distance) {
  out[threadIdx.x + distance] = 1.0f;
}

__global__ void division_kernel(int* __restrict__ out) {
  out[threadIdx.x] = 1000 / out[threadIdx.x];
}

// A different write by every thread: as many findings as there are lines, and not more.
__global__ void storm_kernel(float* __restrict__ out) {
  for (int i = 0; i < 100; ++i) out[0] = static_cast<float>(threadIdx.x);
}

}  // namespace

extern "C" {

const char* foreign_local(float* out) {
  return device::launch(foreign_local_kernel, 1, 32, 0, nullptr, out);
}
const char* shift(uint32_t* out) { return device::launch(shift_kernel, 1, 32, 0, nullptr, out); }
const char* lost_copy(const float* x) {
  return device::launch(lost_copy_kernel, 1, 32, 0, nullptr, x);
}
const char* stuck(float* out) { return device::launch(stuck_kernel, 1, 32, 0, nullptr, out); }
const char* part_of_a_warp(float*) {
  return device::launch(part_of_a_warp_kernel, 1, 16, 0, nullptr);
}
const char* not_shared(float* x) { return device::launch(not_shared_kernel, 1, 32, 0, nullptr, x); }
const char* too_much_static(float*) {
  return device::launch(too_much_static_kernel, 1, 1, 0, nullptr);
}
const char* wild_store(float* out) {
  return device::launch(wild_store_kernel, 1, 32, 0, nullptr, out, 1l << 40);
}
const char* division(int* out) { return device::launch(division_kernel, 1, 32, 0, nullptr, out); }
const char* storm(float* out) { return device::launch(storm_kernel, 2, 64, 0, nullptr, out); }

}  // extern "C"

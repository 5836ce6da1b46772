// One kernel for each thing that the emulator itself must get right.
#include "cuda/device.cuh"

namespace {

namespace device = monarch::cuda::device;
using monarch::BFloat16;
using monarch::Float16;

// Out (5, threads): shuffle, up, down and xor by `operand` in groups of `width`, then a ballot.
__global__ void exchange_kernel(const uint32_t* __restrict__ x, int operand, int width,
                                uint32_t* __restrict__ out) {
  const int thread = threadIdx.x, threads = blockDim.x;
  const uint32_t value = x[thread];
  out[thread] = device::shuffle(value, operand, width);
  out[threads + thread] = device::shuffle_up(value, operand, width);
  out[2 * threads + thread] = device::shuffle_down(value, operand, width);
  out[3 * threads + thread] = device::shuffle_xor(value, operand, width);
  out[4 * threads + thread] = device::ballot(value % 3 == 0);
}

// Who comes when: tickets in the order in which threads take them.
__global__ void tickets_kernel(uint32_t* __restrict__ next, uint32_t* __restrict__ tickets) {
  const uint32_t block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const uint32_t within = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const uint32_t threads = blockDim.x * blockDim.y * blockDim.z;
  tickets[block * threads + within] = device::atomic_add(next, 1);
}

// Shared memory as a block finds it, then ruins it for the next one.
__global__ void fresh_kernel(float* __restrict__ out) {
  MONARCH_DYNAMIC_SHARED(raw);
  MONARCH_STATIC_SHARED(float, fixed, 32);
  float* dynamic = reinterpret_cast<float*>(raw);
  const int thread = threadIdx.x;
  out[blockIdx.x * 64 + thread] = dynamic[thread];
  out[blockIdx.x * 64 + 32 + thread] = fixed[thread];
  dynamic[thread] = fixed[thread] = 1.0f;
}

// What a copy shows before the wait (against the rules) and after; source_bytes of 16.
__global__ void copy_kernel(const float4* __restrict__ x, float4* __restrict__ out,
                            int source_bytes) {
  MONARCH_STATIC_SHARED(float4, slot, 32);
  const int thread = threadIdx.x;
  slot[thread] = make_float4(7, 7, 7, 7);
  device::copy_async_16(device::shared_address(slot + thread), x + thread, source_bytes);
  device::copy_async_commit();
  out[thread] = slot[thread];
  device::copy_async_wait<0>();
  out[32 + thread] = slot[thread];
}

template <class T>
__global__ void convert_kernel(const float* __restrict__ x, T* __restrict__ out,
                               float* __restrict__ back, int count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  out[i] = device::from_float<T>(device::load_streaming(x + i));
  device::store_streaming(back + i, device::to_float(out[i]));
}

// Out (4, threads): bf16 and f16 pairs of (x, y), tf32 of x, the bits of x y + x.
__global__ void pack_kernel(const float* __restrict__ x, const float* __restrict__ y,
                            uint32_t* __restrict__ out) {
  const int i = threadIdx.x, threads = blockDim.x;
  out[i] = device::pack<BFloat16>(x[i], y[i]);
  out[threads + i] = device::pack<Float16>(x[i], y[i]);
  out[2 * threads + i] = device::to_tf32(x[i]);
  out[3 * threads + i] = device::float_as_bits(device::fma(x[i], y[i], x[i]));
}

__global__ void sincospi_kernel(const double* __restrict__ x, double* __restrict__ out) {
  const int i = threadIdx.x;
  double sine, cosine;  // CUDA's own stores into local variables
  device::sincospi(x[i], &sine, &cosine);
  out[2 * i] = sine;
  out[2 * i + 1] = cosine;
}

__global__ void maximum_kernel(const uint32_t* __restrict__ x, uint32_t* __restrict__ out) {
  device::atomic_max(out, x[blockIdx.x * blockDim.x + threadIdx.x]);
}

template <class T>
const char* convert(const float* x, T* out, float* back, int count) {
  return device::launch(convert_kernel<T>, (count + 127) / 128, 128, 0, nullptr, x, out, back,
                        count);
}

}  // namespace

extern "C" {

const char* exchange_lanes(const uint32_t* x, int threads, int operand, int width, uint32_t* out) {
  return device::launch(exchange_kernel, 1, threads, 0, nullptr, x, operand, width, out);
}
const char* tickets(uint32_t* next, uint32_t* out) {
  return device::launch(tickets_kernel, dim3(2, 3, 2), dim3(8, 4, 2), 0, nullptr, next, out);
}
const char* fresh(float* out) { return device::launch(fresh_kernel, 2, 32, 128, nullptr, out); }
const char* copy(const float4* x, float4* out, int source_bytes) {
  return device::launch(copy_kernel, 1, 32, 0, nullptr, x, out, source_bytes);
}
const char* convert_float32(const float* x, float* out, float* back, int count) {
  return convert(x, out, back, count);
}
const char* convert_bfloat16(const float* x, BFloat16* out, float* back, int count) {
  return convert(x, out, back, count);
}
const char* convert_float16(const float* x, Float16* out, float* back, int count) {
  return convert(x, out, back, count);
}
const char* pack(const float* x, const float* y, uint32_t* out) {
  return device::launch(pack_kernel, 1, 64, 0, nullptr, x, y, out);
}
const char* sincospi_of(const double* x, double* out, int count) {
  return device::launch(sincospi_kernel, 1, count, 0, nullptr, x, out);
}
const char* maximum(const uint32_t* x, uint32_t* out) {
  return device::launch(maximum_kernel, 4, 64, 0, nullptr, x, out);
}
const char* launch_of(int blocks, int threads, int shared_bytes, float* out) {
  return device::launch(fresh_kernel, blocks, threads, shared_bytes, nullptr, out);
}

}  // extern "C"

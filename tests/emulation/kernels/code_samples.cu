// Kernels whose machine code is known in advance: test_cuda_code.py must count it right and report
// what is wrong with it. Not run.

// The loop has 64 multiply-adds, which cannot be merged or moved out of it.
extern "C" __global__ void __launch_bounds__(128) counted_loop(const float* x, float* y, int n) {
  float sum = 0.0f;
#pragma unroll 1
  for (int i = threadIdx.x; i < n; i += 128) {
    const float v = x[i];
#pragma unroll
    for (int k = 0; k < 64; ++k) asm volatile("fma.rn.f32 %0, %0, %1, %1;" : "+f"(sum) : "f"(v));
  }
  y[threadIdx.x] = sum;
}

extern "C" __global__ void straight(const float* x, float* y) {
  y[threadIdx.x] = 2.0f * x[threadIdx.x];
}

// 64 numbers live at the same time: spills if the compiler is given fewer registers.
extern "C" __global__ void crowded(const float* x, float* y) {
  float held[64];
#pragma unroll
  for (int k = 0; k < 64; ++k) held[k] = x[k * 32 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int k = 0; k < 64; ++k) y[k * 32 + threadIdx.x] = held[63 - k] * held[(7 * k) & 63];
}

// An array with a run-time index: local memory, though nothing is spilled.
extern "C" __global__ void indexed(const int* x, int* y) {
  int held[32] = {};
  for (int k = 0; k < 64; ++k) held[x[k] & 31] += k;
  for (int k = 0; k < 32; ++k) y[32 * threadIdx.x + k] = held[k];
}

// One kernel for each group of functions of device.cuh, and for what nvcc itself makes of C++: run
// from its PTX and compared with numpy by test_ptx.py. Blocks of one warp unless said otherwise.
#include "cuda/device.cuh"

namespace device = monarch::cuda::device;
using monarch::BFloat16;
using monarch::Float16;

struct Row {
  const float* input;
  float* output;
  long long length;
  float scale, offset;
};

__constant__ float kTable[4] = {1.0f, -2.0f, 0.5f, 8.0f};

extern "C" __global__ void shuffles(const float* x, float* y, uint32_t* votes, int lane) {
  const int i = threadIdx.x;
  y[i] = device::shuffle(x[i], lane);
  y[32 + i] = device::shuffle_xor(x[i], 5);
  y[64 + i] = device::shuffle_up(x[i], 3);
  y[96 + i] = device::shuffle_down(x[i], 3);
  y[128 + i] = device::shuffle(x[i], lane, 8);
  y[160 + i] = device::shuffle_xor(x[i], 12, 8);
  votes[i] = device::ballot(x[i] > 0.0f);
}

extern "C" __global__ void reductions(const uint32_t* x, uint32_t* y) {
  y[threadIdx.x] = device::reduce_max(x[threadIdx.x]);
}

extern "C" __global__ void conversions(const float* x, uint32_t* pairs, uint16_t* halves,
                                       float* back, uint32_t* tf32) {
  const int i = threadIdx.x;
  pairs[i] = device::pack_f16(x[2 * i], x[2 * i + 1]);
  pairs[32 + i] = device::pack_bf16(x[2 * i], x[2 * i + 1]);
  halves[i] = device::from_float<Float16>(x[i]).bits;
  halves[32 + i] = device::from_float<BFloat16>(x[i]).bits;
  back[i] = device::to_float(Float16{halves[i]});
  back[32 + i] = device::to_float(BFloat16{halves[32 + i]});
  tf32[i] = device::to_tf32(x[i]);
}

// Three groups of copies; the first two are waited for while the third is in flight.
extern "C" __global__ void copies(const float* x, float* y, int bytes) {
  MONARCH_STATIC_SHARED(float, tile, 32 * 7);
  const int i = threadIdx.x;
  device::copy_async_16(device::shared_address(tile + 4 * i), x + 4 * i, bytes);
  device::copy_async_commit();
  device::copy_async_8(device::shared_address(tile + 128 + 2 * i), x + 128 + 2 * i);
  device::copy_async_commit();
  device::copy_async_4(device::shared_address(tile + 192 + i), x + 192 + i);
  device::copy_async_commit();
  device::copy_async_wait<1>();
  device::sync_threads();
  for (int k = 0; k < 6; ++k) y[32 * k + i] = tile[32 * k + i];
  device::copy_async_wait<0>();
  y[192 + i] = tile[192 + i];
}

// Matrices of the shared tile (32 rows of 8) as x1, x2, x4 and the same transposed.
extern "C" __global__ void matrices(const uint4* rows, uint32_t* y) {
  MONARCH_STATIC_SHARED(uint4, tile, 32);
  const int i = threadIdx.x;
  tile[i] = rows[i];
  device::sync_warp();
  const uint32_t address = device::shared_address(tile + i);
  uint32_t one, two[2], four[4];
  device::load_matrix_x1(one, address);
  device::load_matrix_x2(two, address);
  device::load_matrix_x4(four, address);
  y[i] = one;
  for (int k = 0; k < 2; ++k) y[32 * (1 + k) + i] = two[k];
  for (int k = 0; k < 4; ++k) y[32 * (3 + k) + i] = four[k];
  device::load_matrix_x1_transposed(one, address);
  device::load_matrix_x2_transposed(two, address);
  device::load_matrix_x4_transposed(four, address);
  y[32 * 7 + i] = one;
  for (int k = 0; k < 2; ++k) y[32 * (8 + k) + i] = two[k];
  for (int k = 0; k < 4; ++k) y[32 * (10 + k) + i] = four[k];
}

// Fragments in the registers' order to the rows of the matrices, directly and transposed.
extern "C" __global__ void stored_matrices(const uint32_t* fragments, uint4* rows) {
  MONARCH_STATIC_SHARED(uint4, tile, 64);
  const int i = threadIdx.x;
  uint32_t four[4];
  for (int k = 0; k < 4; ++k) four[k] = fragments[32 * k + i];
  device::store_matrix_x4(device::shared_address(tile + i), four);
  device::store_matrix_x4_transposed(device::shared_address(tile + 32 + i), four);
  device::sync_warp();
  rows[i] = tile[i];
  rows[32 + i] = tile[32 + i];
}

template <int kKind>
__device__ void product(const uint32_t* a, const uint32_t* b, float* c) {
  const int i = threadIdx.x;
  uint32_t left[4], right[2];
  float sum[4];
  for (int k = 0; k < 4; ++k) left[k] = a[4 * i + k], sum[k] = c[4 * i + k];
  for (int k = 0; k < 2; ++k) right[k] = b[2 * i + k];
  if constexpr (kKind == 0) device::multiply_accumulate_f16(sum, left, right);
  if constexpr (kKind == 1) device::multiply_accumulate_bf16(sum, left, right);
  if constexpr (kKind == 2) device::multiply_accumulate_tf32(sum, left, right);
  for (int k = 0; k < 4; ++k) c[4 * i + k] = sum[k];
}
extern "C" __global__ void product_f16(const uint32_t* a, const uint32_t* b, float* c) {
  product<0>(a, b, c);
}
extern "C" __global__ void product_bf16(const uint32_t* a, const uint32_t* b, float* c) {
  product<1>(a, b, c);
}
extern "C" __global__ void product_tf32(const uint32_t* a, const uint32_t* b, float* c) {
  product<2>(a, b, c);
}

// Any grid and block: a struct by value, vectors, a table, double precision, blocks past the end.
extern "C" __global__ void rows(Row row, const double* angles, double* waves) {
  const long long i = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x;
  if (4 * i >= row.length) return;
  float4 v = device::load_streaming(reinterpret_cast<const float4*>(row.input) + i);
  const float4 w = device::load_readonly(reinterpret_cast<const float4*>(row.input) + i);
  v.x = device::fma(v.x, row.scale, row.offset);
  v.y *= kTable[i & 3];
  v.z -= w.x;
  device::store_streaming(reinterpret_cast<float4*>(row.output) + i, v);
  device::sincospi(angles[i], &waves[2 * i], &waves[2 * i + 1]);
}

// 128 threads. Two halves meet at barriers of their own, each warp a different number of times;
// then all add to a histogram in shared memory and reduce it to y[32 + 0 .. 3].
extern "C" __global__ void __launch_bounds__(128) barriers(int* y) {
  MONARCH_DYNAMIC_SHARED(raw);
  int* const slots = reinterpret_cast<int*>(raw);
  MONARCH_STATIC_SHARED(int, counts, 4);
  const int i = threadIdx.x, half = i / 64;
  if (i < 4) counts[i] = 0;
  slots[i] = i;
  for (int turn = 0; turn < 3 + half; ++turn) {
    device::sync_group(1 + half, 64);
    const int other = slots[64 * half + (i + 33) % 64];
    device::sync_group(1 + half, 64);
    slots[i] = other + 1;
  }
  device::sync_threads();
  device::atomic_add(&counts[i % 4], slots[127 - i]);
  device::atomic_max(y + 4, slots[i]);
  device::sync_threads();
  if (i < 4) y[i] = counts[i];
}

// Integer instructions: z (32, 12) from x and y.
extern "C" __global__ void integers(const int* x, const int* y, long long* z) {
  const int i = threadIdx.x, a = x[i], b = y[i];
  const uint32_t u = a, v = b;
  long long* out = z + 12 * i;
  out[0] = a / (b | 1);
  out[1] = u % (v | 1u);
  out[2] = __mulhi(a, b);
  out[3] = __umul64hi(0x123456789abcdefull * u, 0xfedcba987654321ull * v);
  out[4] = static_cast<long long>(a) * b + i;
  out[5] = __funnelshift_l(u, v, i);
  out[6] = __byte_perm(u, v, 0x7214);
  out[7] = (u & v) | (~u & static_cast<uint32_t>(i));
  out[8] = __popc(u) + 100 * __clz(a) + 10000 * __ffs(v);
  out[9] = __brev(u) >> (i & 15);
  out[10] = min(a, b) - static_cast<long long>(max(u, v));
  out[11] = (static_cast<long long>(a) << (i & 31)) >> 7;
}

// An array with a run-time index lies in local memory.
extern "C" __global__ void local_array(const float* x, float* y, int shift) {
  float held[8];
  for (int k = 0; k < 8; ++k) held[k] = x[8 * threadIdx.x + k];
  for (int k = 0; k < 8; ++k) y[8 * threadIdx.x + k] = held[(k + shift + threadIdx.x) & 7];
}

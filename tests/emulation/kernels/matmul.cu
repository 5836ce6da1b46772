// C = A B^T on tensor cores: a ring of tiles that asynchronous copies fill ahead of the products.
#include "cuda/device.cuh"

namespace {

namespace device = monarch::cuda::device;
using monarch::BFloat16;
using monarch::Float16;

constexpr int kTile = 64, kDepth = 32, kStages = 3, kThreads = 128;
constexpr int kStage = kTile * kDepth;  // elements of one operand's tile
constexpr int kSharedBytes = 2 * kStages * kStage * 2;

// A row has four chunks of 16 bytes. Exchanging them by row puts the eight rows that a matrix load
// reads at a time into different banks.
MONARCH_DEVICE int swizzled(int row, int chunk) {
  return row * kDepth + ((chunk ^ (row / 2 % 4)) * 8);
}

// One 64 x 64 tile of C a block: grid (N / 64, ceil(M / 64)). A (M, K), B (N, K), C (M, N); N is a
// multiple of 64, K of 32.
template <class T>
__global__ void __launch_bounds__(kThreads)
    matmul_kernel(const T* __restrict__ A, const T* __restrict__ B, float* __restrict__ C, int M,
                  int N, int K) {
  MONARCH_DYNAMIC_SHARED(raw);
  T* a_tiles = reinterpret_cast<T*>(raw);   // (kStages, kTile, kDepth)
  T* b_tiles = a_tiles + kStages * kStage;  // the same
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int first_row = blockIdx.y * kTile, first_column = blockIdx.x * kTile;
  const int warp_row = warp / 2 * 32, warp_column = warp % 2 * 32;

  const auto fetch = [&](int step) {
    const int stage = step % kStages * kStage;
    for (int i = thread; i < kTile * 4; i += kThreads) {
      const int row = i / 4, chunk = i % 4, k = step * kDepth + chunk * 8;
      const bool inside = first_row + row < M;  // rows past the last are zero
      device::copy_async_16(device::shared_address(a_tiles + stage + swizzled(row, chunk)),
                            A + (inside ? (first_row + row) * K + k : 0), inside ? 16 : 0);
      device::copy_async_16(device::shared_address(b_tiles + stage + swizzled(row, chunk)),
                            B + (first_column + row) * K + k);
    }
  };

  float c[2][4][4] = {};
  const int steps = K / kDepth;
  for (int step = 0; step < kStages - 1; ++step) {
    if (step < steps) fetch(step);
    device::copy_async_commit();
  }
  for (int step = 0; step < steps; ++step) {
    device::copy_async_wait<kStages - 2>();
    // Everyone's copies of this step are there, and everyone has left the stage that is next.
    device::sync_threads();
    if (step + kStages - 1 < steps) fetch(step + kStages - 1);
    device::copy_async_commit();
    const int stage = step % kStages * kStage;
    for (int k = 0; k < kDepth / 8; k += 2) {
      uint32_t a[2][4], b[2][4];
      for (int i = 0; i < 2; ++i) {
        const int row = warp_row + 16 * i + lane % 16;
        const T* source = a_tiles + stage + swizzled(row, k + lane / 16);
        device::load_matrix_x4(a[i], device::shared_address(source));
      }
      for (int j = 0; j < 2; ++j) {
        const int row = warp_column + 16 * j + lane % 8 + lane / 16 * 8;
        const T* source = b_tiles + stage + swizzled(row, k + lane / 8 % 2);
        device::load_matrix_x4(b[j], device::shared_address(source));
      }
      for (int i = 0; i < 2; ++i) {
        for (int j = 0; j < 4; ++j) {
          const uint32_t column[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
          device::multiply_accumulate<T>(c[i][j], a[i], column);
        }
      }
    }
  }
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 4; ++j) {
      for (int half = 0; half < 2; ++half) {
        const int row = first_row + warp_row + 16 * i + 8 * half + lane / 4;
        const int column = first_column + warp_column + 8 * j + lane % 4 * 2;
        const float2 pair = make_float2(c[i][j][2 * half], c[i][j][2 * half + 1]);
        if (row < M) *reinterpret_cast<float2*>(C + row * N + column) = pair;
      }
    }
  }
}

template <class T>
const char* matmul(const T* A, const T* B, float* C, int M, int N, int K) {
  const dim3 grid(N / kTile, (M + kTile - 1) / kTile);
  return device::launch(matmul_kernel<T>, grid, kThreads, kSharedBytes, nullptr, A, B, C, M, N, K);
}

}  // namespace

extern "C" const char* matmul_f16(const Float16* A, const Float16* B, float* C, int M, int N,
                                  int K) {
  return matmul(A, B, C, M, N, K);
}
extern "C" const char* matmul_bf16(const BFloat16* A, const BFloat16* B, float* C, int M, int N,
                                   int K) {
  return matmul(A, B, C, M, N, K);
}

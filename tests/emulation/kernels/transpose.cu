// y = x^T through a tile of shared memory; vectors of four on the way in and on the way out.
#include "cuda/device.cuh"

namespace {

namespace device = monarch::cuda::device;

constexpr int kTile = 32, kThreads = 256;
constexpr int kPitch = kTile + 4;  // a multiple of a vector that is none of the 32 banks
constexpr int kSharedBytes = kTile * kPitch * sizeof(float);

// One tile a block: grid (columns / 32, rows / 32). x (rows, columns), y (columns, rows); both
// extents are multiples of 4.
__global__ void __launch_bounds__(kThreads)
    transpose_kernel(const float* __restrict__ x, float* __restrict__ y, int rows, int columns) {
  MONARCH_DYNAMIC_SHARED(raw);
  float* tile = reinterpret_cast<float*>(raw);  // (kTile, kPitch)
  const int line = threadIdx.x / 8, quad = 4 * (threadIdx.x % 8);
  const int row = blockIdx.y * kTile + line, column = blockIdx.x * kTile + quad;
  if (row < rows && column < columns) {
    const float4 in =
        device::load_readonly(reinterpret_cast<const float4*>(x + row * columns + column));
    *reinterpret_cast<float4*>(tile + line * kPitch + quad) = in;
  }
  device::sync_threads();
  const int out_row = blockIdx.x * kTile + line, out_column = blockIdx.y * kTile + quad;
  if (out_row < columns && out_column < rows) {
    float values[4];
    for (int i = 0; i < 4; ++i) values[i] = tile[(quad + i) * kPitch + line];
    *reinterpret_cast<float4*>(y + out_row * rows + out_column) =
        make_float4(values[0], values[1], values[2], values[3]);
  }
}

}  // namespace

extern "C" const char* transpose(const float* x, float* y, int rows, int columns) {
  const dim3 grid((columns + kTile - 1) / kTile, (rows + kTile - 1) / kTile);
  return device::launch(transpose_kernel, grid, kThreads, kSharedBytes, nullptr, x, y, rows,
                        columns);
}

// The kernels of glu_mlp beside its products. U is the width of u = W_in x: 2 I, or I without gate.
#pragma once
#include "cuda/gelu.cuh"
#include "cuda/product.cuh"

namespace monarch::cuda {

// ---- Everything in one kernel

// One block of threads makes 128 rows of one block of z, and goes through the hidden units 64 at a
// time: a and b of those, then h, to shared memory, then what they add to z. Warps are 4 x 2, each
// with 32 rows and half of the columns: 64 sums of a and b, 96 of z.
struct GluShape {
  static constexpr int kRows = 128, kUnits = 64, kThreads = 256;
  static constexpr int kWidth = 192;  // the most features of a block
  static constexpr int kPanels = 3;   // of 64 features
  static constexpr int kPanelBytes = kRows * kRowBytes, kUnitBytes = kUnits * kRowBytes;
  static constexpr int kStageBytes = kWidth * kRowBytes;  // W_out's, or two of W_in
  static_assert(kStageBytes >= 2 * kUnitBytes);

  // x of two blocks (a and b see different ones), h, and tiles of weights.
  static constexpr int shared_bytes(int stages) {
    return (2 * kPanels + 1) * kPanelBytes + stages * kStageBytes;
  }
};

template <class T>
struct GluParams {
  Operand<T> x;
  const T *w_in, *w_out;
  int64_t units;  // I / P
  uint32_t blocks;
  bool gated, aligned;  // aligned: the weights begin at multiples of 16 bytes
  int stages;           // 2 or 3
  RowsOutput<T> output;
};

// The weights that produce the units of output block p, and the block of x that they see.
struct HalfOfInput {
  int64_t block, row;
};
MONARCH_DEVICE HalfOfInput input_of(int64_t p, int64_t units, bool gated) {
  if (!gated) return {p, 0};
  return {p / 2, p % 2 * units};  // W_in's blocks have 2 I / P rows
}

// h = gelu(a) b of a chunk, in 16 bits, as a tile; a and b become 0.
template <class T>
MONARCH_DEVICE void store_hidden(unsigned char* hidden, float (&a)[2][4][4], float (&b)[2][4][4],
                                 bool gated, int row, int column) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const float gelu = a[i][j][n] * normal_cdf(a[i][j][n]);
        a[i][j][n] = gated ? gelu * b[i][j][n] : gelu;
      }
    }
  }
  each_pair(a, row, column, [&](int r, int n, float low, float high) {
    unsigned char* const chunk = hidden + chunk_offset<GluShape::kRows, true>(r, n / 8);
    device::store_shared(reinterpret_cast<uint32_t*>(chunk + n % 8 * 2),
                         device::pack<T>(low, high));
  });
  set_zero(a);
  set_zero(b);
}

template <class T>
__global__ void __launch_bounds__(GluShape::kThreads, 1) glu_kernel(const GluParams<T> p) {
  using Shape = GluShape;
  MONARCH_DYNAMIC_SHARED(shared);
  unsigned char* const x_a = shared;
  unsigned char* const hidden = shared + 2 * Shape::kPanels * Shape::kPanelBytes;
  unsigned char* const stages = hidden + Shape::kPanelBytes;
  const int64_t block = blockIdx.x % p.blocks;
  const int64_t first_row = int64_t{blockIdx.x / p.blocks} * Shape::kRows;
  const int64_t in_rows = (p.gated ? 2 : 1) * p.units, width = p.x.columns;
  const HalfOfInput a = input_of(block, p.units, p.gated);
  const HalfOfInput b = input_of(p.blocks + block, p.units, true);
  const bool two = p.gated && a.block != b.block;
  unsigned char* const x_b = two ? x_a + Shape::kPanels * Shape::kPanelBytes : x_a;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
  const int row = warp / 2 * 32, column = warp % 2;
  const int panels = static_cast<int>((width + kDepth<T> - 1) / kDepth<T>), parts = panels + 1;
  const int steps = static_cast<int>((p.units + Shape::kUnits - 1) / Shape::kUnits) * parts;

  const auto copy_x = [&](unsigned char* to, int64_t from_block) {
    const Matrix<T> from = p.x.matrix(from_block);
    for (int k = 0; k < panels; ++k) {
      TileCopy<T, Shape::kRows, 8, Shape::kThreads, true>(from, first_row, k * kDepth<T>, thread)
          .copy(to + k * Shape::kPanelBytes);
    }
  };
  const auto weights = [&](const HalfOfInput& half) {
    const T* const data = p.w_in + (half.block * in_rows + half.row) * width;
    return Matrix<T>{data, width, p.units, width, p.aligned && width % kChunk<T> == 0};
  };
  // Weights of a step into its stage: W_in's of 64 units and 64 features, or W_out's of the units.
  const auto copy_weights = [&](int step, unsigned char* to) {
    const int64_t unit = int64_t{step / parts} * Shape::kUnits;
    const int part = step % parts;
    if (part < panels) {
      using Copy = TileCopy<T, Shape::kUnits, 8, Shape::kThreads, true>;
      Copy(weights(a), unit, part * kDepth<T>, thread).copy(to);
      if (p.gated) Copy(weights(b), unit, part * kDepth<T>, thread).copy(to + Shape::kUnitBytes);
    } else {
      const Matrix<T> from{p.w_out + block * width * p.units, p.units, width, p.units,
                           p.aligned && p.units % kChunk<T> == 0};
      TileCopy<T, Shape::kWidth, 8, Shape::kThreads, true>(from, 0, unit, thread).copy(to);
    }
  };
  float sums_a[2][4][4] = {}, sums_b[2][4][4] = {}, z[2][12][4] = {};
  copy_x(x_a, a.block);
  if (two) copy_x(x_b, b.block);
  for (int step = 0; step < p.stages - 1; ++step) {
    if (step < steps) copy_weights(step, stages + step * Shape::kStageBytes);
    device::copy_async_commit();
  }
  int stage = 0, part = 0;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    if (p.stages == 3) {
      device::copy_async_wait<1>();
    } else {
      device::copy_async_wait<0>();
    }
    // The weights of this step are there, h too, and the stage that is filled next is not in use.
    device::sync_threads();
    const int ahead = step + p.stages - 1;
    const int next = stage == 0 ? p.stages - 1 : stage - 1;
    if (ahead < steps) copy_weights(ahead, stages + next * Shape::kStageBytes);
    device::copy_async_commit();
    const unsigned char* const w = stages + stage * Shape::kStageBytes;
    if (part < panels) {
      multiply_tiles<T, false, false>(sums_a, x_a + part * Shape::kPanelBytes, row, w, 32 * column);
      if (p.gated) {
        multiply_tiles<T, false, false>(sums_b, x_b + part * Shape::kPanelBytes, row,
                                        w + Shape::kUnitBytes, 32 * column);
      }
    } else {
      multiply_tiles<T, false, false>(z, hidden, row, w, 96 * column);
    }
    if (++part == panels) store_hidden<T>(hidden, sums_a, sums_b, p.gated, row, 32 * column);
    if (part == parts) part = 0;
    stage = stage + 1 == p.stages ? 0 : stage + 1;
  }
  each_pair(z, row, 96 * column, [&](int r, int n, float low, float high) {
    p.output.store(first_row + r, block, 0, n, low, high);
  });
}

// ---- Steps of their own: where the one kernel does not fit, and for the gradients

inline constexpr int kElementThreads = 256;

// Hidden unit `unit` of a row: h = gelu(a) b, or gelu(a). Grid: one thread a number of h.
template <class T>
__global__ void __launch_bounds__(kElementThreads)
    gate_kernel(const T* __restrict__ u, T* __restrict__ h, int64_t size, int64_t units,
                bool gated) {
  const int64_t i = int64_t{blockIdx.x} * kElementThreads + threadIdx.x;
  if (i >= size) return;
  const int64_t row = i / units, unit = i % units;
  const T* const from = u + row * (gated ? 2 * units : units) + unit;
  const float a = device::to_float(from[0]), gelu = a * normal_cdf(a);
  h[i] = device::from_float<T>(gated ? gelu * device::to_float(from[units]) : gelu);
}

// From u and dh, in their places, the gradient of u and h.
template <class T>
__global__ void __launch_bounds__(kElementThreads)
    gate_backward_kernel(T* __restrict__ u, T* __restrict__ dh, int64_t size, int64_t units,
                         bool gated) {
  const int64_t i = int64_t{blockIdx.x} * kElementThreads + threadIdx.x;
  if (i >= size) return;
  const int64_t row = i / units, unit = i % units;
  T* const from = u + row * (gated ? 2 * units : units) + unit;
  const float a = device::to_float(from[0]), b = gated ? device::to_float(from[units]) : 1.0f;
  const float cdf = normal_cdf(a), gradient = device::to_float(dh[i]);
  from[0] = device::from_float<T>(gradient * b * device::fma(a, normal_density(a), cdf));
  if (gated) from[units] = device::from_float<T>(gradient * a * cdf);
  dh[i] = device::from_float<T>(a * cdf * b);
}

MONARCH_DEVICE float sum_of_warp(float x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) x += device::shuffle_xor(x, mask);
  return x;
}

inline constexpr int kNormRows = 8;  // of a block: one a warp

// LayerNorm of the rows of y (rows, width), in place. shift may be nullptr.
template <class T>
__global__ void __launch_bounds__(32 * kNormRows)
    norm_kernel(T* __restrict__ y, int64_t rows, int64_t width, const float* __restrict__ scale,
                const float* __restrict__ shift, float eps) {
  const int lane = lane_of_warp();
  const int64_t row = int64_t{blockIdx.x} * kNormRows + threadIdx.x / 32;
  if (row >= rows) return;
  T* const values = y + row * width;
  const float each = 1.0f / static_cast<float>(width);
  float sum = 0, squares = 0;
  for (int64_t i = lane; i < width; i += 32) sum += device::to_float(values[i]);
  const float mean = sum_of_warp(sum) * each;
  for (int64_t i = lane; i < width; i += 32) {
    const float x = device::to_float(values[i]) - mean;
    squares = device::fma(x, x, squares);
  }
  const float factor = device::inverse_sqrt(device::fma(sum_of_warp(squares), each, eps));
  for (int64_t i = lane; i < width; i += 32) {
    const float x = (device::to_float(values[i]) - mean) * factor;
    const float scaled = x * device::load_readonly(scale + i);
    values[i] = device::from_float<T>(shift == nullptr ? scaled
                                                       : scaled + device::load_readonly(shift + i));
  }
}

}  // namespace monarch::cuda

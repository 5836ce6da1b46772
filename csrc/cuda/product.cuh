// Products with block-diagonal matrices, and the sums over rows that their gradients need.
#pragma once
#include "cuda/tile.cuh"

namespace monarch::cuda {

// One block of threads makes 128 x 96 of a product: 192 and 768 columns, the blocks of M2-BERT,
// have no rest. Four warps of 64 x 48 each; two tiles of each operand in shared memory.
struct ProductShape {
  static constexpr int kRows = 128, kColumns = 96, kThreads = 128, kStages = 2;
  static constexpr int kTall = 4, kWide = 6;  // of 16 x 8 sums, of a warp
};
// Blocks on a multiprocessor: three leave a thread 168 registers, two all that there are, for the
// addresses of transposed operands and for the terms of float32.
template <class T, bool kTransposedA, bool kTransposedB>
inline constexpr int kProductBlocks = sizeof(T) == 2 && !kTransposedA && !kTransposedB ? 3 : 2;

// Copies of an operand: tiles of kOuter rows with the terms of a step, or, transposed, of as many
// columns.
template <class T, int kOuter, bool kTransposed>
using OperandCopy =
    TileCopy<T, kTransposed ? kDepth<T> : kOuter, (kTransposed ? kOuter : kDepth<T>) / kChunk<T>,
             ProductShape::kThreads, kExchanged<T, kTransposed>>;

template <class T, bool kTransposedA, bool kTransposedB>
inline constexpr int kProductSharedBytes =
    ProductShape::kStages * (OperandCopy<T, ProductShape::kRows, kTransposedA>::kBytes +
                             OperandCopy<T, ProductShape::kColumns, kTransposedB>::kBytes);

// P matrices: matrix p begins p * block elements after the first. Together they have `width`
// columns, so that the last may have fewer than `columns`, or none.
template <class T>
struct Operand {
  const T* data;
  int64_t stride, block, rows, columns, width;
  bool aligned;

  MONARCH_DEVICE Matrix<T> matrix(int64_t p) const {
    const int64_t left = width - p * columns;
    return {data + p * block, stride, rows, min(left, columns), aligned};
  }
};

// Which product a block of threads makes a tile of. Terms are summed in `slices` parts.
struct ProductGrid {
  uint32_t row_tiles, column_tiles, blocks, slices;
  int64_t terms, slice_terms;  // slice_terms: a multiple of the terms of a step, if slices > 1
};

// Rows of activations: column n of block p is column p * columns + n. With `inner` set, columns
// are exchanged as (outer, inner) to (inner, outer). bias and residual may be nullptr.
template <class T>
struct RowsOutput {
  T* data;
  int64_t stride, rows, columns, width;
  const float* bias;
  const T* residual;
  int64_t residual_stride;
  uint32_t inner, outer;
  bool paired;  // two neighbours are one store

  MONARCH_DEVICE void store(int64_t row, int64_t p, int64_t, int64_t n, float low,
                            float high) const {
    if (row >= rows || n >= columns) return;
    const int64_t column = p * columns + n;
    if (paired && n + 1 < columns && column + 1 < width) {
      store_pair(row, column, low, high);
    } else {
      store_one(row, column, low);
      if (n + 1 < columns) store_one(row, column + 1, high);
    }
  }

 private:
  MONARCH_DEVICE void store_pair(int64_t row, int64_t column, float low, float high) const {
    if (bias != nullptr) {
      low += device::load_readonly(bias + column);
      high += device::load_readonly(bias + column + 1);
    }
    if (residual != nullptr) {
      const T* const added = residual + row * residual_stride + column;
      low += device::to_float(added[0]);
      high += device::to_float(added[1]);
    }
    T* const target = data + row * stride + column;
    if constexpr (sizeof(T) == 2) {
      *reinterpret_cast<uint32_t*>(target) = device::pack<T>(low, high);
    } else {
      *reinterpret_cast<float2*>(target) = make_float2(low, high);
    }
  }
  MONARCH_DEVICE void store_one(int64_t row, int64_t column, float value) const {
    if (inner != 0) {
      const auto number = static_cast<uint32_t>(column);
      column = int64_t{number % inner} * outer + number / inner;
    }
    if (column >= width) return;
    if (bias != nullptr) value += device::load_readonly(bias + column);
    if (residual != nullptr) value += device::to_float(residual[row * residual_stride + column]);
    data[row * stride + column] = device::from_float<T>(value);
  }
};

// Gradients of weights, of each slice of the rows by themselves: (slices, P, rows, columns).
struct PartialOutput {
  float* data;
  int64_t blocks, rows, columns;
  bool continued;  // adds to what is there

  MONARCH_DEVICE void store(int64_t row, int64_t p, int64_t slice, int64_t n, float low,
                            float high) const {
    if (row >= rows) return;
    float* const target = data + ((slice * blocks + p) * rows + row) * columns + n;
    if (n < columns) target[0] = low + (continued ? target[0] : 0.0f);
    if (n + 1 < columns) target[1] = high + (continued ? target[1] : 0.0f);
  }
};

// out = a b: a tile of one block's product. Grid: column tiles, blocks, row tiles, slices, the
// first fastest: what reads the same rows of a runs at the same time.
template <class T, bool kTransposedA, bool kTransposedB, class Output>
__global__ void __launch_bounds__(ProductShape::kThreads,
                                  (kProductBlocks<T, kTransposedA, kTransposedB>))
    product_kernel(const Operand<T> a, const Operand<T> b, const Output output,
                   const ProductGrid grid) {
  using Shape = ProductShape;
  using CopyA = OperandCopy<T, Shape::kRows, kTransposedA>;
  using CopyB = OperandCopy<T, Shape::kColumns, kTransposedB>;
  MONARCH_DYNAMIC_SHARED(shared);
  unsigned char *const a_tiles = shared, *const b_tiles = shared + Shape::kStages * CopyA::kBytes;
  const uint32_t block = blockIdx.x / grid.column_tiles % grid.blocks;
  const uint32_t rest = blockIdx.x / grid.column_tiles / grid.blocks;
  const uint32_t slice = rest / grid.row_tiles;
  const int64_t first_row = int64_t{rest % grid.row_tiles} * Shape::kRows;
  const int64_t first_column = int64_t{blockIdx.x % grid.column_tiles} * Shape::kColumns;
  const int64_t first_term = slice * grid.slice_terms;
  const int64_t terms = min(grid.slice_terms, grid.terms - first_term);
  const int steps = static_cast<int>((terms + kDepth<T> - 1) / kDepth<T>);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
  const int row = warp / 2 * 16 * Shape::kTall, column = warp % 2 * 8 * Shape::kWide;
  CopyA copy_a(a.matrix(block), kTransposedA ? first_term : first_row,
               kTransposedA ? first_row : first_term, thread);
  CopyB copy_b(b.matrix(block), kTransposedB ? first_term : first_column,
               kTransposedB ? first_column : first_term, thread);

  const auto copy = [&](int stage) {
    copy_a.copy(a_tiles + stage * CopyA::kBytes);
    copy_b.copy(b_tiles + stage * CopyB::kBytes);
    device::copy_async_commit();
    kTransposedA ? copy_a.next_rows(kDepth<T>) : copy_a.next_columns(kDepth<T>);
    kTransposedB ? copy_b.next_rows(kDepth<T>) : copy_b.next_columns(kDepth<T>);
  };
  float sums[Shape::kTall][Shape::kWide][4] = {};
  if (steps > 0) copy(0);
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    device::copy_async_wait<0>();
    // The copies of all threads are there, and all have left the tiles that are filled next.
    device::sync_threads();
    const int stage = step % Shape::kStages;
    if (step + 1 < steps) copy((step + 1) % Shape::kStages);
    multiply_tiles<T, kTransposedA, kTransposedB>(sums, a_tiles + stage * CopyA::kBytes, row,
                                                  b_tiles + stage * CopyB::kBytes, column);
  }
  each_pair(sums, row, column, [&](int r, int n, float low, float high) {
    output.store(first_row + r, block, slice, first_column + n, low, high);
  });
}

// out[i] = the sum over slices of partial[slice][i], in their order.
template <class T>
__global__ void __launch_bounds__(256)
    slice_sum_kernel(const float* __restrict__ partial, int64_t slices, int64_t size,
                     T* __restrict__ out) {
  const int64_t i = int64_t{blockIdx.x} * 256 + threadIdx.x;
  if (i >= size) return;
  float sum = 0;
  for (int64_t slice = 0; slice < slices; ++slice) sum += partial[slice * size + i];
  out[i] = device::from_float<T>(sum);
}

// The rows that one block of threads adds up, 32 columns at a time.
inline constexpr int kSumRows = 512;

// partial[slice][column] = the sum of kSumRows rows of x. Grid: columns / 32, slices; 8 warps, each
// with every eighth row.
template <class T>
__global__ void __launch_bounds__(256)
    column_sum_kernel(const Matrix<T> x, uint32_t column_tiles, float* __restrict__ partial) {
  MONARCH_STATIC_SHARED(float, sums, 256);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t column = int64_t{blockIdx.x % column_tiles} * 32 + lane;
  const int64_t slice = blockIdx.x / column_tiles, end = min((slice + 1) * kSumRows, x.rows);
  float sum = 0;
  if (column < x.columns) {
    for (int64_t row = slice * kSumRows + warp; row < end; row += 8)
      sum += device::to_float(x.data[row * x.stride + column]);
  }
  sums[threadIdx.x] = sum;
  device::sync_threads();
  if (warp != 0 || column >= x.columns) return;
  for (int other = 1; other < 8; ++other) sum += sums[32 * other + lane];
  partial[slice * x.columns + column] = sum;
}

}  // namespace monarch::cuda

// Launchers of block_diagonal and of the products that the other operators share.
#include <algorithm>

#include "cuda/product.cuh"
#include "cuda/product.h"
#include "cuda/products.h"

namespace monarch::cuda {
namespace {

template <class T>
bool is_aligned(const void* data, int64_t bytes, int64_t elements, int64_t more = 0) {
  const int64_t unit = bytes / static_cast<int64_t>(sizeof(T));
  return reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(bytes) == 0 &&
         elements % unit == 0 && more % unit == 0;
}

// Blocks of `columns` features side by side.
template <class T>
Operand<T> features(const Activations& x, int64_t rows, int64_t columns, int64_t width) {
  return {static_cast<const T*>(x.data),
          x.stride,
          columns,
          rows,
          columns,
          width,
          is_aligned<T>(x.data, kChunkBytes, x.stride, columns)};
}

template <class T>
Operand<T> weights(const Blocks& w) {
  return {static_cast<const T*>(w.data),
          w.columns,
          w.rows * w.columns,
          w.rows,
          w.columns,
          w.count * w.columns,
          is_aligned<T>(w.data, kChunkBytes, w.columns)};
}

std::string shape_of(int64_t rows, const Blocks& w) {
  std::ostringstream text;
  text << rows << " rows and weights (" << w.count << ", " << w.rows << ", " << w.columns << ")";
  return text.str();
}

template <bool kTransposedA, bool kTransposedB, class T, class Output>
void start_product(const Operand<T>& a, const Operand<T>& b, const Output& output, int64_t rows,
                   int64_t columns, const Blocks& w, int64_t terms, int64_t slices,
                   const std::string& shape, const Launch& launch) {
  const int64_t row_tiles = divide_up(rows, ProductShape::kRows);
  const int64_t column_tiles = divide_up(columns, ProductShape::kColumns);
  const int64_t slice_terms = divide_up(divide_up(terms, slices), kDepth<T>) * kDepth<T>;
  if (slice_terms > kMostTerms)
    throw std::runtime_error("product_kernel for " + shape + ": sums are too long");
  const ProductGrid grid{static_cast<uint32_t>(row_tiles),
                         static_cast<uint32_t>(column_tiles),
                         static_cast<uint32_t>(w.count),
                         static_cast<uint32_t>(slices),
                         terms,
                         slice_terms};
  start("product_kernel", shape, launch, product_kernel<T, kTransposedA, kTransposedB, Output>,
        row_tiles * column_tiles * w.count * slices, ProductShape::kThreads,
        kProductSharedBytes<T, kTransposedA, kTransposedB>, a, b, output, grid);
}

}  // namespace

void multiply(const Product& p, const Launch& launch) {
  const int64_t in = p.transposed ? p.w.rows : p.w.columns;
  const int64_t out = p.transposed ? p.w.columns : p.w.rows;
  with_element(p.scalar, [&](auto scalar) {
    using T = decltype(scalar);
    const bool paired = p.inner == 0 && is_aligned<T>(p.y, 2 * sizeof(T), p.out_features, out);
    const RowsOutput<T> output{static_cast<T*>(p.y),
                               p.out_features,
                               p.rows,
                               out,
                               p.out_features,
                               p.bias,
                               static_cast<const T*>(p.residual.data),
                               p.residual.stride,
                               static_cast<uint32_t>(p.inner),
                               static_cast<uint32_t>(p.outer),
                               paired};
    const Operand<T> x = features<T>(p.x, p.rows, in, p.in_features), w = weights<T>(p.w);
    const std::string shape = shape_of(p.rows, p.w);
    if (p.transposed) {
      start_product<false, true>(x, w, output, p.rows, out, p.w, in, 1, shape, launch);
    } else {
      start_product<false, false>(x, w, output, p.rows, out, p.w, in, 1, shape, launch);
    }
  });
}

// Blocks of threads enough for the GPU, each with a few steps at least, and no more than 64 slices
// to be written and read again.
int64_t gradient_slices(int64_t rows, const Blocks& w, const DeviceLimits& device) {
  constexpr int64_t kLeastRows = 256, kMost = 64;
  const int64_t tiles = w.count * divide_up(w.rows, ProductShape::kRows) *
                        divide_up(w.columns, ProductShape::kColumns);
  const int64_t wanted =
      divide_up(int64_t{device.multiprocessors} * kProductBlocks<BFloat16, true, true>,
                std::max<int64_t>(tiles, 1));
  const int64_t most = std::min(kMost, divide_up(rows, kLeastRows));
  return std::clamp<int64_t>(wanted, 1, std::max<int64_t>(most, 1));
}

void multiply_rows(const WeightGradient& g, const Launch& launch) {
  with_element(g.scalar, [&](auto scalar) {
    using T = decltype(scalar);
    const PartialOutput output{g.partial, g.w.count, g.w.rows, g.w.columns, g.continued};
    start_product<true, true>(features<T>(g.dy, g.rows, g.w.rows, g.out_features),
                              features<T>(g.x, g.rows, g.w.columns, g.in_features), output,
                              g.w.rows, g.w.columns, g.w, g.rows, g.slices, shape_of(g.rows, g.w),
                              launch);
  });
}

void add_slices(const float* partial, int64_t slices, int64_t size, Scalar scalar, void* out,
                const Launch& launch) {
  with_element(scalar, [&](auto element) {
    using T = decltype(element);
    start("slice_sum_kernel", std::to_string(size) + " sums", launch, slice_sum_kernel<T>,
          divide_up(size, 256), 256, 0, partial, slices, size, static_cast<T*>(out));
  });
}

int64_t block_diagonal_fwd_scratch(const BlockDiagonalParams&, const DeviceLimits&) { return 0; }

void block_diagonal_fwd(const BlockDiagonalParams& p, void*, const Launch& launch) {
  Product product;
  product.scalar = p.scalar;
  product.rows = p.rows;
  product.in_features = p.in_features;
  product.out_features = p.out_features;
  product.x = p.x;
  product.w = p.w;
  product.bias = p.bias;
  product.y = p.y;
  multiply(product, launch);
}

namespace {

struct BackwardScratch {
  float *dw, *dbias;  // sums of slices
  int64_t bytes;
};

BackwardScratch divide(const BlockDiagonalBackwardParams& p, void* data,
                       const DeviceLimits& device) {
  Scratch scratch(data);
  const int64_t size = p.w.count * p.w.rows * p.w.columns;
  const int64_t slices = p.dw == nullptr ? 0 : gradient_slices(p.rows, p.w, device);
  const int64_t sums = p.dbias == nullptr ? 0 : divide_up(p.rows, kSumRows);
  float* const dw = scratch.floats(slices * size);
  float* const dbias = scratch.floats(sums * p.out_features);
  return {dw, dbias, scratch.bytes()};
}

void add_columns(const BlockDiagonalBackwardParams& p, float* partial, const Launch& launch) {
  const int64_t tiles = divide_up(p.out_features, 32), slices = divide_up(p.rows, kSumRows);
  with_element(p.scalar, [&](auto scalar) {
    using T = decltype(scalar);
    const Matrix<T> dy{static_cast<const T*>(p.dy.data), p.dy.stride, p.rows, p.out_features,
                       false};
    start("column_sum_kernel", shape_of(p.rows, p.w), launch, column_sum_kernel<T>, tiles * slices,
          256, 0, dy, static_cast<uint32_t>(tiles), partial);
  });
  add_slices(partial, slices, p.out_features, Scalar::kFloat32, p.dbias, launch);
}

}  // namespace

int64_t block_diagonal_bwd_scratch(const BlockDiagonalBackwardParams& p,
                                   const DeviceLimits& device) {
  return divide(p, nullptr, device).bytes;
}

void block_diagonal_bwd(const BlockDiagonalBackwardParams& p, void* data, const Launch& launch) {
  const BackwardScratch scratch = divide(p, data, launch.device);
  if (p.dx != nullptr) {
    Product product;
    product.scalar = p.scalar;
    product.rows = p.rows;
    product.in_features = p.out_features;
    product.out_features = p.in_features;
    product.transposed = true;
    product.x = p.dy;
    product.w = p.w;
    product.y = p.dx;
    multiply(product, launch);
  }
  if (p.dw != nullptr) {
    const int64_t slices = gradient_slices(p.rows, p.w, launch.device);
    multiply_rows({p.scalar, p.rows, p.in_features, p.out_features, p.dy, p.x, p.w, slices,
                   scratch.dw, false},
                  launch);
    add_slices(scratch.dw, slices, p.w.count * p.w.rows * p.w.columns, p.scalar, p.dw, launch);
  }
  if (p.dbias != nullptr) add_columns(p, scratch.dbias, launch);
}

}  // namespace monarch::cuda

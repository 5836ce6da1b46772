// Launchers of glu_mlp.
#include <algorithm>

#include "cuda/glu_mlp.cuh"
#include "cuda/product.h"
#include "cuda/products.h"

namespace monarch::cuda {
namespace {

std::string shape_of(int64_t rows, int64_t width, const Blocks& w_out) {
  std::ostringstream text;
  text << rows << " rows of " << width << " and " << w_out.count << " blocks of " << w_out.columns
       << " hidden units";
  return text.str();
}

Activations rows_from(const Activations& x, int64_t row, Scalar scalar) {
  if (x.data == nullptr) return x;
  return {static_cast<const unsigned char*>(x.data) + row * x.stride * bytes_of(scalar), x.stride};
}
void* rows_from(void* data, int64_t row, int64_t width, Scalar scalar) {
  return static_cast<unsigned char*>(data) + row * width * bytes_of(scalar);
}

// Hidden activations of so many rows are in memory at a time that they stay in half of the L2
// cache: u and h, of `in` and `hidden` numbers a row.
int64_t part_rows(int64_t rows, int64_t in, int64_t hidden, Scalar scalar,
                  const DeviceLimits& device) {
  const int64_t fitting = device.l2_bytes / 2 / ((in + hidden) * bytes_of(scalar));
  const int64_t whole = std::max<int64_t>(fitting / ProductShape::kRows, 1) * ProductShape::kRows;
  return std::min(rows, whole);
}

struct Hidden {  // scratch memory of a part
  int64_t part, in_width, units;
  void *u, *h;
};
Hidden hidden_of(int64_t rows, const Blocks& w_in, const Blocks& w_out, Scalar scalar,
                 Scratch& scratch, const DeviceLimits& device) {
  const int64_t in = w_in.count * w_in.rows, units = w_out.count * w_out.columns;
  const int64_t part = part_rows(rows, in, units, scalar, device), bytes = bytes_of(scalar);
  void* const u = scratch.take(part * in * bytes);
  void* const h = scratch.take(part * units * bytes);
  return {part, in, units, u, h};
}

// How many stages of weights the one kernel has; 0 if it does not fit, or would leave most of the
// GPU idle. float32 has no tensor cores, beside which the hidden activations' way is short.
int fused_stages(const GluMlpParams& p, const DeviceLimits& device) {
  const int64_t tiles = divide_up(p.rows, GluShape::kRows) * p.w_out.count;
  if (p.scalar == Scalar::kFloat32 || p.w_in.columns > GluShape::kWidth) return 0;
  if (2 * tiles < device.multiprocessors) return 0;
  for (int stages = 3; stages >= 2; --stages) {
    if (GluShape::shared_bytes(stages) <= device.shared_bytes) return stages;
  }
  return 0;
}

template <class T>
bool is_aligned(const void* data) {
  return reinterpret_cast<uintptr_t>(data) % kChunkBytes == 0;
}

template <class T>
void fused(const GluMlpParams& p, int stages, const Launch& launch) {
  const int64_t width = p.w_in.columns;
  const bool paired =
      width % 2 == 0 && p.width % 2 == 0 && reinterpret_cast<uintptr_t>(p.y) % (2 * sizeof(T)) == 0;
  const Operand<T> x{
      static_cast<const T*>(p.x.data),
      p.x.stride,
      width,
      p.rows,
      width,
      p.width,
      is_aligned<T>(p.x.data) && p.x.stride % kChunk<T> == 0 && width % kChunk<T> == 0};
  const RowsOutput<T> output{static_cast<T*>(p.y),
                             p.width,
                             p.rows,
                             width,
                             p.width,
                             p.bias,
                             static_cast<const T*>(p.residual.data),
                             p.residual.stride,
                             0,
                             0,
                             paired};
  const GluParams<T> params{x,
                            static_cast<const T*>(p.w_in.data),
                            static_cast<const T*>(p.w_out.data),
                            p.w_out.columns,
                            static_cast<uint32_t>(p.w_out.count),
                            p.gated,
                            is_aligned<T>(p.w_in.data) && is_aligned<T>(p.w_out.data),
                            stages,
                            output};
  start("glu_kernel", shape_of(p.rows, p.width, p.w_out), launch, glu_kernel<T>,
        divide_up(p.rows, GluShape::kRows) * p.w_out.count, GluShape::kThreads,
        GluShape::shared_bytes(stages), params);
}

Product product_of(const GluMlpParams& p, const Blocks& w, int64_t rows) {
  Product product;
  product.scalar = p.scalar;
  product.rows = rows;
  product.w = w;
  return product;
}

void composed(const GluMlpParams& p, void* data, const Launch& launch) {
  Scratch scratch(data);
  const Hidden hidden = hidden_of(p.rows, p.w_in, p.w_out, p.scalar, scratch, launch.device);
  for (int64_t first = 0; first < p.rows; first += hidden.part) {
    const int64_t rows = std::min(hidden.part, p.rows - first), size = rows * hidden.units;
    Product in = product_of(p, p.w_in, rows), out = product_of(p, p.w_out, rows);
    in.in_features = p.width;
    in.out_features = hidden.in_width;
    in.x = rows_from(p.x, first, p.scalar);
    in.y = hidden.u;
    multiply(in, launch);
    with_element(p.scalar, [&](auto scalar) {
      using T = decltype(scalar);
      start("gate_kernel", shape_of(rows, p.width, p.w_out), launch, gate_kernel<T>,
            divide_up(size, kElementThreads), kElementThreads, 0, static_cast<const T*>(hidden.u),
            static_cast<T*>(hidden.h), size, hidden.units, p.gated);
    });
    out.in_features = hidden.units;
    out.out_features = p.width;
    out.x = {hidden.h, hidden.units};
    out.residual = rows_from(p.residual, first, p.scalar);
    out.bias = p.bias;
    out.y = rows_from(p.y, first, p.width, p.scalar);
    multiply(out, launch);
  }
}

}  // namespace

int64_t glu_mlp_fwd_scratch(const GluMlpParams& p, const DeviceLimits& device) {
  if (fused_stages(p, device) > 0) return 0;
  Scratch scratch(nullptr);
  hidden_of(p.rows, p.w_in, p.w_out, p.scalar, scratch, device);
  return scratch.bytes();
}

void glu_mlp_fwd(const GluMlpParams& p, void* scratch, const Launch& launch) {
  const int stages = fused_stages(p, launch.device);
  if (stages == 0) {
    composed(p, scratch, launch);
  } else if (p.scalar == Scalar::kBFloat16) {
    fused<BFloat16>(p, stages, launch);
  } else {
    fused<Float16>(p, stages, launch);
  }
  if (p.norm_weight == nullptr) return;
  with_element(p.scalar, [&](auto scalar) {
    using T = decltype(scalar);
    start("norm_kernel", shape_of(p.rows, p.width, p.w_out), launch, norm_kernel<T>,
          divide_up(p.rows, kNormRows), 32 * kNormRows, 0, static_cast<T*>(p.y), p.rows, p.width,
          p.norm_weight, p.norm_bias, p.eps);
  });
}

// ---- Gradients of the products

namespace {

struct GluBackwardScratch {
  Hidden hidden;
  int64_t slices_in, slices_out;
  float *dw_in, *dw_out;  // sums of slices
  int64_t bytes;
};

GluBackwardScratch divide(const GluMlpBackwardParams& p, void* data, const DeviceLimits& device) {
  Scratch scratch(data);
  const Hidden hidden = hidden_of(p.rows, p.w_in, p.w_out, p.scalar, scratch, device);
  const auto slices = [&](const void* wanted, const Blocks& w) {
    return wanted == nullptr || p.rows == 0 ? 0 : gradient_slices(hidden.part, w, device);
  };
  const auto size = [](const Blocks& w) { return w.count * w.rows * w.columns; };
  const int64_t in = slices(p.dw_in_result, p.w_in), out = slices(p.dw_out_result, p.w_out);
  float* const dw_in = scratch.floats(in * size(p.w_in));
  float* const dw_out = scratch.floats(out * size(p.w_out));
  return {hidden, in, out, dw_in, dw_out, scratch.bytes()};
}

// What the products of one part of the rows have in common.
Product part_product(const GluMlpBackwardParams& p, const Blocks& w, int64_t rows, bool transposed,
                     int64_t in, int64_t out, const Activations& x, void* y) {
  Product product;
  product.scalar = p.scalar;
  product.rows = rows;
  product.in_features = in;
  product.out_features = out;
  product.transposed = transposed;
  product.x = x;
  product.w = w;
  product.y = y;
  return product;
}

// u and dh, then in their places du and h, of rows `first` to `first` + `rows` - 1.
void hidden_gradients(const GluMlpBackwardParams& p, const Hidden& hidden, int64_t first,
                      int64_t rows, const Launch& launch) {
  multiply(part_product(p, p.w_in, rows, false, p.width, hidden.in_width,
                        rows_from(p.x, first, p.scalar), hidden.u),
           launch);
  multiply(part_product(p, p.w_out, rows, true, p.width, hidden.units,
                        rows_from(p.dz, first, p.scalar), hidden.h),
           launch);
  const int64_t size = rows * hidden.units;
  with_element(p.scalar, [&](auto scalar) {
    using T = decltype(scalar);
    start("gate_backward_kernel", shape_of(rows, p.width, p.w_out), launch, gate_backward_kernel<T>,
          divide_up(size, kElementThreads), kElementThreads, 0, static_cast<T*>(hidden.u),
          static_cast<T*>(hidden.h), size, hidden.units, p.gated);
  });
}

}  // namespace

int64_t glu_mlp_bwd_scratch(const GluMlpBackwardParams& p, const DeviceLimits& device) {
  return divide(p, nullptr, device).bytes;
}

void glu_mlp_bwd(const GluMlpBackwardParams& p, void* data, const Launch& launch) {
  const GluBackwardScratch scratch = divide(p, data, launch.device);
  const Hidden& hidden = scratch.hidden;
  for (int64_t first = 0; first < p.rows; first += hidden.part) {
    const int64_t rows = std::min(hidden.part, p.rows - first);
    hidden_gradients(p, hidden, first, rows, launch);
    const Activations du{hidden.u, hidden.in_width}, h{hidden.h, hidden.units};
    if (p.dx != nullptr) {
      multiply(part_product(p, p.w_in, rows, true, hidden.in_width, p.width, du,
                            rows_from(p.dx, first, p.width, p.scalar)),
               launch);
    }
    const bool continued = first > 0;
    if (p.dw_in_result != nullptr) {
      multiply_rows({p.scalar, rows, p.width, hidden.in_width, du, rows_from(p.x, first, p.scalar),
                     p.w_in, scratch.slices_in, scratch.dw_in, continued},
                    launch);
    }
    if (p.dw_out_result != nullptr) {
      multiply_rows({p.scalar, rows, hidden.units, p.width, rows_from(p.dz, first, p.scalar), h,
                     p.w_out, scratch.slices_out, scratch.dw_out, continued},
                    launch);
    }
  }
  const auto finish = [&](const Blocks& w, int64_t slices, const float* sums, void* result) {
    if (result == nullptr) return;
    add_slices(sums, slices, w.count * w.rows * w.columns, p.scalar, result, launch);
  };
  finish(p.w_in, scratch.slices_in, scratch.dw_in, p.dw_in_result);
  finish(p.w_out, scratch.slices_out, scratch.dw_out, p.dw_out_result);
}

}  // namespace monarch::cuda

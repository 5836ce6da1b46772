// What the bindings of block_diagonal, monarch_matmul and glu_mlp share: checks, and weights in
// the dtype that the kernels multiply.
#pragma once

#include <algorithm>

#include "core/block_diagonal.h"
#include "torch/stable_abi.h"

namespace monarch {

using abi::Tensor;
using MaybeTensor = std::optional<Tensor>;

inline Scalar activation_scalar(const Tensor& x, const char* op) {
  switch (x.dtype()) {
    case abi::DType::Float32:
      return Scalar::kFloat32;
    case abi::DType::BFloat16:
      return Scalar::kBFloat16;
    case abi::DType::Float16:
      return Scalar::kFloat16;
    default:
      abi::fail(op, ": x must be float32, bfloat16 or float16, got ", abi::dtype_name(x.dtype()));
  }
}

// (rows, width) on the CPU; kept alive and, where its rows are not contiguous, copied.
class RowTensor {
 public:
  RowTensor() = default;
  RowTensor(const Tensor& t, const Tensor& x, int64_t width, const char* op, const char* name) {
    MONARCH_CHECK(t.is_cpu(), op, ": expected CPU tensors");
    MONARCH_CHECK(t.dim() == 2 && x.dim() == 2 && t.size(0) == x.size(0) && t.size(1) == width &&
                      t.dtype() == x.dtype(),
                  op, ": ", name, " must have shape (", x.dim() == 2 ? x.size(0) : -1, ", ", width,
                  ") and the dtype of x");
    tensor_ = t.stride(1) == 1 || width == 1 ? t.alias() : t.contiguous();
    view_ = {tensor_.data(), tensor_.stride(0)};
  }
  const Activations& view() const { return view_; }

 private:
  Tensor tensor_;
  Activations view_;
};

// Weights (P, q, c), of x's dtype or (`transposed`) with each block's rows and columns exchanged,
// in what the kernels multiply.
class Weights {
 public:
  Weights() = default;
  Weights(const Tensor& w, const Tensor& x, const char* op, const char* name,
          bool transposed = false) {
    MONARCH_CHECK(w.is_cpu() && w.dim() == 3 && w.dtype() == x.dtype(), op, ": ", name,
                  " must be a CPU tensor of three dimensions and x's dtype");
    MONARCH_CHECK(w.numel() > 0, op, ": ", name, " is empty");
    blocks_ = {nullptr, w.size(0), w.size(transposed ? 2 : 1), w.size(transposed ? 1 : 2)};
    const Scalar scalar = activation_scalar(w, op);
    const bool pairs = scalar == Scalar::kBFloat16 && cpu::bfloat16_products();
    Tensor whole = w.contiguous();
    if (!transposed && (pairs || scalar == Scalar::kFloat32)) {
      tensor_ = std::move(whole);
    } else {
      const auto dtype = pairs ? abi::DType::BFloat16 : abi::DType::Float32;
      tensor_ = w.new_empty({w.numel()}, dtype);
      cpu::ConvertParams p{whole.data(), scalar,     w.size(0), w.size(1),
                           w.size(2),    transposed, pairs,     tensor_.data()};
      abi::parallel_for(0, cpu::convert_items(p), 64,
                        [&](int64_t begin, int64_t end) { cpu::convert(p, begin, end); });
    }
    blocks_.data = tensor_.data();
  }
  const Blocks& blocks() const { return blocks_; }

 private:
  Tensor tensor_;
  Blocks blocks_;
};

inline bool multiplies_pairs(const Tensor& x) {
  return x.dtype() == abi::DType::BFloat16 && cpu::bfloat16_products();
}

inline const float* vector_data(const MaybeTensor& t, int64_t size, const char* op,
                                const char* name) {
  if (!t) return nullptr;
  MONARCH_CHECK(t->is_cpu() && t->dim() == 1 && t->size(0) == size &&
                    t->dtype() == abi::DType::Float32 && (t->stride(0) == 1 || size == 1),
                op, ": ", name, " must be ", size, " contiguous float32 on the CPU");
  return t->data<const float>();
}

// `width` features are blocks of `size`, the last ones padded.
inline void check_width(int64_t width, int64_t blocks, int64_t size, const char* op,
                        const char* name) {
  MONARCH_CHECK(blocks * (size - 1) < width && width <= blocks * size, op, ": ", name, " is ",
                width, ", not ", blocks, " blocks of ", size);
}

// Items of so many products that a thread is worth waking.
inline int64_t products_grain(double products, int64_t items) {
  constexpr double kWorth = 100e3;
  const double each = std::max(products / static_cast<double>(std::max<int64_t>(items, 1)), 1.0);
  return std::max<int64_t>(1, static_cast<int64_t>(kWorth / each));
}

}  // namespace monarch

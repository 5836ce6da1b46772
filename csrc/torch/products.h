// What the bindings of block_diagonal, monarch_matmul and glu_mlp share on the CPU: weights in the
// dtype that the kernels multiply, and the division of work.
#pragma once

#include <algorithm>

#include "torch/product_operands.h"

namespace monarch {

// Weights (P, q, c), of x's dtype or (`transposed`) with each block's rows and columns exchanged,
// in what the kernels multiply.
class Weights {
 public:
  Weights() = default;
  Weights(const Tensor& w, const Tensor& x, const char* op, const char* name,
          bool transposed = false) {
    MONARCH_CHECK(w.is_cpu(), op, ": expected CPU tensors");
    check_weights(w, x, op, name);
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

// Items of so many products that a thread is worth waking.
inline int64_t products_grain(double products, int64_t items) {
  constexpr double kWorth = 100e3;
  const double each = std::max(products / static_cast<double>(std::max<int64_t>(items, 1)), 1.0);
  return std::max<int64_t>(1, static_cast<int64_t>(kWorth / each));
}

}  // namespace monarch

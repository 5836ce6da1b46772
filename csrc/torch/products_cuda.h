// What the bindings of block_diagonal, monarch_matmul and glu_mlp share on CUDA. CudaCall is
// included before: tests/cuda_binding.cpp has its own.
#pragma once

#include <utility>
#include <vector>

#include "cuda/products.h"
#include "torch/product_operands.h"

namespace monarch {

// Weights (P, q, c) of x's dtype and device; kept alive and, where not contiguous, copied.
class BlockTensor {
 public:
  BlockTensor(const Tensor& w, const Tensor& x, const char* op, const char* name) {
    check_weights(w, x, op, name);
    tensor_ = w.contiguous();
    view_ = {tensor_.data(), w.size(0), w.size(1), w.size(2)};
  }
  const Blocks& view() const { return view_; }

 private:
  Tensor tensor_;
  Blocks view_;
};

// The gradient of t, contiguous; empty if it is not wanted. `data` is nullptr if it is empty.
inline Tensor gradient_like(const Tensor& t, bool wanted, void*& data) {
  std::vector<int64_t> sizes = {0};
  if (wanted) sizes.assign(t.sizes(), t.sizes() + t.dim());
  Tensor gradient = t.new_empty(sizes);
  data = gradient.numel() > 0 ? gradient.data() : nullptr;
  return gradient;
}

template <class Call, class Params>
void run(const Call& call, const Params& p,
         int64_t (*bytes)(const Params&, const cuda::DeviceLimits&),
         void (*enqueue)(const Params&, void*, const cuda::Launch&)) {
  const Tensor scratch = call.scratch(bytes(p, call.launch().device));
  enqueue(p, scratch.data(), call.launch());
}

}  // namespace monarch

// The products that the launchers of block_diagonal, monarch_matmul and glu_mlp are made of;
// compiled once, in block_diagonal.cu.
#pragma once
#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

#include "core/block_diagonal.h"
#include "cuda/device.cuh"
#include "cuda/launch.h"

namespace monarch::cuda {

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t bytes_of(Scalar scalar) { return scalar == Scalar::kFloat32 ? 4 : 2; }

// The parts of a call's scratch memory, 256-byte aligned. With nullptr only sizes are counted.
class Scratch {
 public:
  explicit Scratch(void* data) : data_(static_cast<unsigned char*>(data)) {}
  void* take(int64_t bytes) {
    void* const part = data_ == nullptr ? nullptr : data_ + used_;
    used_ += divide_up(bytes, 256) * 256;
    return part;
  }
  float* floats(int64_t count) { return static_cast<float*>(take(4 * count)); }
  int64_t bytes() const { return used_; }

 private:
  unsigned char* data_;
  int64_t used_ = 0;
};

template <class Use>
void with_element(Scalar scalar, Use use) {
  switch (scalar) {
    case Scalar::kFloat32:
      return use(float{});
    case Scalar::kBFloat16:
      return use(BFloat16{});
    case Scalar::kFloat16:
      return use(Float16{});
  }
}

template <class Kernel, class... Arguments>
void start(const char* name, const std::string& shape, const Launch& launch, Kernel kernel,
           int64_t grid, int block, int64_t shared_bytes, const Arguments&... arguments) {
  if (grid == 0) return;
  const char* error = nullptr;
  if (grid > 0x7fffffff) {
    error = "too many blocks";
  } else if (shared_bytes > launch.device.shared_bytes) {
    error = "a block needs more shared memory than the GPU gives it";
  } else {
    error = device::launch(kernel, dim3(static_cast<unsigned>(grid)),
                           dim3(static_cast<unsigned>(block)), static_cast<size_t>(shared_bytes),
                           launch.stream, arguments...);
  }
  if (error == nullptr) return;
  std::ostringstream message;
  message << name << " for " << shape << " on cuda:" << launch.device.index << ": " << error;
  throw std::runtime_error(message.str());
}

// y = x W^T + bias + residual, or, transposed, x W.
struct Product {
  Scalar scalar = Scalar::kFloat32;
  int64_t rows = 0, in_features = 0, out_features = 0;
  bool transposed = false;
  Activations x, residual;
  Blocks w;
  const float* bias = nullptr;
  void* y = nullptr;  // (rows, out_features), contiguous
  // The columns of the product, (outer, inner), are exchanged to (inner, outer); 0: they are not.
  int64_t inner = 0, outer = 0;
};
void multiply(const Product& product, const Launch& launch);

// The sums over rows of dy^T x, block by block, in `slices` parts for a fixed order of additions.
struct WeightGradient {
  Scalar scalar = Scalar::kFloat32;
  int64_t rows = 0, in_features = 0, out_features = 0;
  Activations dy, x;  // (rows, out_features), (rows, in_features)
  Blocks w;           // sizes only
  int64_t slices = 1;
  float* partial = nullptr;  // (slices, P, q, c)
  bool continued = false;    // adds to `partial`
};
int64_t gradient_slices(int64_t rows, const Blocks& w, const DeviceLimits& device);
void multiply_rows(const WeightGradient& gradient, const Launch& launch);
// out[i] = the sum of partial[slice][i], in the dtype of `scalar`.
void add_slices(const float* partial, int64_t slices, int64_t size, Scalar scalar, void* out,
                const Launch& launch);

}  // namespace monarch::cuda

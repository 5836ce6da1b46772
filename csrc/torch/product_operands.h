// What the bindings of block_diagonal, monarch_matmul and glu_mlp check, once for all devices.
#pragma once

#include <optional>

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

inline void check_same_device(const Tensor& t, const Tensor& x, const char* op, const char* name) {
  MONARCH_CHECK(t.device_type() == x.device_type() && t.device_index() == x.device_index(), op,
                ": ", name, " is not on the device of x");
}

// (rows, width) on x's device; kept alive and, where its rows are not contiguous, copied.
class RowTensor {
 public:
  RowTensor() = default;
  RowTensor(const Tensor& t, const Tensor& x, int64_t width, const char* op, const char* name) {
    check_same_device(t, x, op, name);
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

inline void check_weights(const Tensor& w, const Tensor& x, const char* op, const char* name) {
  check_same_device(w, x, op, name);
  MONARCH_CHECK(w.dim() == 3 && w.dtype() == x.dtype(), op, ": ", name,
                " must have three dimensions and x's dtype");
  MONARCH_CHECK(w.numel() > 0, op, ": ", name, " is empty");
}

inline const float* vector_data(const MaybeTensor& t, int64_t size, const Tensor& x, const char* op,
                                const char* name) {
  if (!t) return nullptr;
  check_same_device(*t, x, op, name);
  MONARCH_CHECK(t->dim() == 1 && t->size(0) == size && t->dtype() == abi::DType::Float32 &&
                    (t->stride(0) == 1 || size == 1),
                op, ": ", name, " must be ", size, " contiguous float32");
  return t->data<const float>();
}

// `width` features are blocks of `size`, the last ones padded.
inline void check_width(int64_t width, int64_t blocks, int64_t size, const char* op,
                        const char* name) {
  MONARCH_CHECK(blocks * (size - 1) < width && width <= blocks * size, op, ": ", name, " is ",
                width, ", not ", blocks, " blocks of ", size);
}

// The shapes of glu_mlp's operands.
inline void check_glu_mlp(const Tensor& x, const Tensor& w_in, const Tensor& w_out, bool gated) {
  constexpr const char* kName = "glu_mlp";
  MONARCH_CHECK(x.dim() == 2 && w_in.dim() == 3 && w_out.dim() == 3, kName,
                ": x must have two dimensions, w_in and w_out three");
  MONARCH_CHECK(w_in.size(0) == w_out.size(0) && w_in.size(1) == (gated ? 2 : 1) * w_out.size(2),
                kName, ": the weights do not fit together");
  check_width(x.size(1), w_in.size(0), w_in.size(2), kName, "the width of x");
  check_width(x.size(1), w_out.size(0), w_out.size(1), kName, "the width of x");
}

}  // namespace monarch

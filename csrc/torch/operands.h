// What the operators of a convolution check and prepare, once for all devices: activations, and a
// filter or its spectrum. A message begins with the name of the operator, `op`.
#pragma once

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "core/fft_conv.h"
#include "core/plan.h"
#include "torch/stable_abi.h"

namespace monarch {

using abi::Tensor;
using MaybeTensor = std::optional<Tensor>;

inline Scalar scalar_of(const char* op, const Tensor& u) {
  switch (u.dtype()) {
    case abi::DType::Float32:
      return Scalar::kFloat32;
    case abi::DType::BFloat16:
      return Scalar::kBFloat16;
    case abi::DType::Float16:
      return Scalar::kFloat16;
    default:
      abi::fail(op, ": activations must be float32, bfloat16 or float16, got ",
                abi::dtype_name(u.dtype()));
  }
}

inline int64_t bytes_of(const Tensor& t) {
  return t.numel() * (t.dtype() == abi::DType::Float32 ? int64_t{4} : int64_t{2});
}

inline void check_device(const char* op, const Tensor& t, const Tensor& like, const char* name) {
  MONARCH_CHECK(t.device_type() == like.device_type() && t.device_index() == like.device_index(),
                op, ": ", name, " is not on the device of the other tensors");
}

// An activation: (B, H, L) of the dtype and device of u; kept alive and, where its rows are not
// contiguous, copied.
class Activation {
 public:
  Activation() = default;
  Activation(const char* op, const Tensor& t, const Tensor& u, const char* name) {
    MONARCH_CHECK(t.dim() == 3 && u.dim() == 3, op, ": ", name, " must have 3 dimensions");
    MONARCH_CHECK(std::equal(t.sizes(), t.sizes() + 3, u.sizes()) && t.dtype() == u.dtype(), op,
                  ": ", name, " must have the shape and dtype of u");
    check_device(op, t, u, name);
    const bool rows = t.stride(2) == 1 || t.size(2) == 1;
    tensor_ = rows ? t.alias() : t.contiguous();
    rows_ = {tensor_.data(), tensor_.stride(0), tensor_.stride(1)};
  }
  Activation(const char* op, const MaybeTensor& t, const Tensor& u, const char* name)
      : Activation(t ? Activation(op, *t, u, name) : Activation()) {}

  const Rows& rows() const { return rows_; }

 private:
  Tensor tensor_;
  Rows rows_;
};

// ---- Filters

struct FilterOperand {  // a filter, or the spectrum of one
  const MaybeTensor &k, &k_rev, &skip, &spectrum;
};

struct Spectrum {
  Tensor tensor;
  const float* numbers = nullptr;
};

inline const float* filter_data(const char* op, const MaybeTensor& t, int64_t dims,
                                const Tensor& like, int64_t channels, const char* name) {
  if (!t) return nullptr;
  MONARCH_CHECK(t->dim() == dims && t->size(0) == channels && t->dtype() == abi::DType::Float32 &&
                    t->is_contiguous(),
                op, ": ", name, " must be a contiguous float32 tensor with ", channels, " rows");
  check_device(op, *t, like, name);
  return t->data<const float>();
}

// The filter of a spectrum that is still to be made.
inline FilterSpectrumParams filter_params(const char* op, const Tensor& k, const MaybeTensor& k_rev,
                                          const MaybeTensor& skip, int64_t length, bool circular) {
  MONARCH_CHECK(length >= 1 && length <= kMaxLength, op, ": length ", length, " is not in 1 .. ",
                kMaxLength);
  MONARCH_CHECK(k.dim() == 2, op, ": k must have shape (H, taps)");
  FilterSpectrumParams p;
  p.channels = k.size(0);
  p.length = length;
  p.k = filter_data(op, k.alias(), 2, k, p.channels, "k");
  p.taps = k.size(1);
  p.k_rev = filter_data(op, k_rev, 2, k, p.channels, "k_rev");
  p.reverse_taps = k_rev ? k_rev->size(1) : 0;
  p.skip = filter_data(op, skip, 1, k, p.channels, "skip");
  p.circular = circular;
  MONARCH_CHECK(p.taps <= length && p.reverse_taps <= length, op,
                ": a filter is longer than the sequence (", length, ")");
  MONARCH_CHECK(!(circular && k_rev), op, ": k_rev has no meaning with circular=True");
  return p;
}

template <class Device>
Tensor make_spectrum(const char* op, const Device& device, const Tensor& k,
                     const MaybeTensor& k_rev, const MaybeTensor& skip, int64_t length,
                     bool circular) {
  FilterSpectrumParams p = filter_params(op, k, k_rev, skip, length, circular);
  Tensor out = k.new_empty({device.spectrum_numel(p.channels, length)}, abi::DType::Float32);
  p.spectrum = device.spectrum_numbers(out, p.channels, length);
  device.fresh(p.spectrum, out.numel() * 4);
  if (p.channels > 0) device.filter_spectrum(p);
  return out;
}

inline void check_filter(const char* op, const Tensor& like, int64_t channels,
                         const FilterOperand& filter) {
  const auto& [k, k_rev, skip, spectrum] = filter;
  MONARCH_CHECK(k.has_value() != spectrum.has_value() && !(spectrum && (k_rev || skip)), op,
                ": give either filters (k, k_rev, skip) or a spectrum");
  if (!k) return;
  check_device(op, *k, like, "k");
  MONARCH_CHECK(k->dim() == 2 && k->size(0) == channels, op,
                ": k must have as many rows as u channels");
}

// The spectrum for `channels` rows of `length` samples on the device of `like`.
template <class Device>
Spectrum find_or_make(const char* op, const Device& device, const Tensor& like, int64_t channels,
                      int64_t length, const FilterOperand& filter, bool circular) {
  const auto& [k, k_rev, skip, spectrum] = filter;
  check_filter(op, like, channels, filter);
  if (k) {
    Tensor made = make_spectrum(op, device, *k, k_rev, skip, length, circular);
    const float* numbers = device.spectrum_numbers(std::as_const(made), channels, length);
    return {std::move(made), numbers};
  }
  check_device(op, *spectrum, like, "spectrum");
  MONARCH_CHECK(
      spectrum->dim() == 1 && spectrum->is_contiguous() && spectrum->dtype() == abi::DType::Float32,
      op, ": spectrum is not one that filter_spectrum made");
  return {spectrum->alias(), device.spectrum_numbers(*spectrum, channels, length)};
}

// A float32 gradient of the shape of `like`; empty where it is not wanted.
inline Tensor filter_gradient(const Tensor& on, const MaybeTensor& like, bool wanted,
                              float*& data) {
  std::vector<int64_t> sizes = {0};
  if (wanted && like) sizes.assign(like->sizes(), like->sizes() + like->dim());
  Tensor t = on.new_empty(sizes, abi::DType::Float32);
  data = t.numel() > 0 ? t.data<float>() : nullptr;
  return t;
}

}  // namespace monarch

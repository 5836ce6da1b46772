// The operators of fft_conv, once for all devices: checks, allocation, parameters. Schemas and the
// meaning of the arguments: monarch_kernels/fft_conv.py, which validates for its users; what is
// checked here is what keeps the kernels inside their arrays.
//
// A `Device` is made for each call and has
//   Device(const Tensor& like, const char* operation)    throws if it has no kernels for the tensor
//   int64_t spectrum_numel(channels, length)             size of a spectrum as a tensor
//   float* spectrum_numbers(Tensor&, channels, length)   of a new one: where the kernel writes
//   const float* spectrum_numbers(const Tensor&, ...)    of a given one; throws if it is another's
//   void fresh(void*, bytes)                             is told of each large result
//   filter_spectrum, fft_conv_fwd, fft_conv_bwd(params)  run the kernels
// all const.
#pragma once

#include <algorithm>

#include "core/fft_conv.h"
#include "core/plan.h"
#include "torch/stable_abi.h"

namespace monarch {

using abi::Tensor;
using MaybeTensor = std::optional<Tensor>;

inline Scalar scalar_of(const Tensor& u) {
  switch (u.dtype()) {
    case abi::DType::Float32:
      return Scalar::kFloat32;
    case abi::DType::BFloat16:
      return Scalar::kBFloat16;
    case abi::DType::Float16:
      return Scalar::kFloat16;
    default:
      abi::fail("fft_conv: u must be float32, bfloat16 or float16, got ",
                abi::dtype_name(u.dtype()));
  }
}

inline int64_t bytes_of(const Tensor& t) {
  return t.numel() * (t.dtype() == abi::DType::Float32 ? int64_t{4} : int64_t{2});
}

inline void check_device(const Tensor& t, const Tensor& like, const char* name) {
  MONARCH_CHECK(t.device_type() == like.device_type() && t.device_index() == like.device_index(),
                "fft_conv: ", name, " is not on the device of the other tensors");
}

// An activation: (B, H, L) of the dtype and device of u; kept alive and, where its rows are not
// contiguous, copied.
class Activation {
 public:
  Activation() = default;
  Activation(const Tensor& t, const Tensor& u, const char* name) {
    MONARCH_CHECK(t.dim() == 3 && u.dim() == 3, "fft_conv: ", name, " must have 3 dimensions");
    MONARCH_CHECK(std::equal(t.sizes(), t.sizes() + 3, u.sizes()) && t.dtype() == u.dtype(),
                  "fft_conv: ", name, " must have the shape and dtype of u");
    check_device(t, u, name);
    const bool rows = t.stride(2) == 1 || t.size(2) == 1;
    tensor_ = rows ? t.alias() : t.contiguous();
    rows_ = {tensor_.data(), tensor_.stride(0), tensor_.stride(1)};
  }
  Activation(const MaybeTensor& t, const Tensor& u, const char* name)
      : Activation(t ? Activation(*t, u, name) : Activation()) {}

  const Rows& rows() const { return rows_; }

 private:
  Tensor tensor_;
  Rows rows_;
};

template <class Device>
class FftConvOperators {
 public:
  static Tensor filter_spectrum(const Tensor& k, const MaybeTensor& k_rev, const MaybeTensor& skip,
                                int64_t length, bool circular) {
    const Device device(k, "monarch_kernels::filter_spectrum");
    return make_spectrum(device, k, k_rev, skip, length, circular);
  }

  static Tensor fwd(const Tensor& u, const MaybeTensor& k, const MaybeTensor& k_rev,
                    const MaybeTensor& skip, const MaybeTensor& spectrum,
                    const MaybeTensor& pregate, const MaybeTensor& postgate, bool circular) {
    const Device device(u, "monarch_kernels::fft_conv_fwd");
    const Activation in(u, u, "u"), pre(pregate, u, "pregate"), post(postgate, u, "postgate");
    const Spectrum made = find_or_make(device, u, k, k_rev, skip, spectrum, circular);
    FftConvParams p;
    set_shape(p, u);
    p.u = in.rows();
    p.pregate = pre.rows();
    p.postgate = post.rows();
    p.spectrum = made.numbers;
    Tensor y = u.new_empty({p.batch, p.channels, p.length});
    if (y.numel() == 0) return y;
    p.y = y.data();
    device.fresh(p.y, bytes_of(y));
    device.fft_conv_fwd(p);
    return y;
  }

  // A result that nobody wants is an empty tensor.
  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> bwd(
      const Tensor& dy, const Tensor& u, const MaybeTensor& k, const MaybeTensor& k_rev,
      const MaybeTensor& skip, const MaybeTensor& spectrum, const MaybeTensor& pregate,
      const MaybeTensor& postgate, bool circular, bool need_u, bool need_filter, bool need_pregate,
      bool need_postgate) {
    const Device device(u, "monarch_kernels::fft_conv_bwd");
    const Activation out(dy, u, "dy"), in(u, u, "u");
    const Activation pre(pregate, u, "pregate"), post(postgate, u, "postgate");
    const Spectrum made = find_or_make(device, u, k, k_rev, skip, spectrum, circular);
    FftConvBackwardParams p;
    set_shape(p, u);
    p.dy = out.rows();
    p.u = in.rows();
    p.pregate = pre.rows();
    p.postgate = post.rows();
    p.spectrum = made.numbers;
    p.circular = circular;

    const auto activation = [&](bool wanted, void*& data) {
      Tensor t = wanted ? u.new_empty({p.batch, p.channels, p.length}) : u.new_empty({int64_t{0}});
      data = t.numel() > 0 ? t.data() : nullptr;
      if (data) device.fresh(data, bytes_of(t));
      return t;
    };
    const auto filter = [&](const MaybeTensor& like, float*& data) {
      std::vector<int64_t> sizes = {0};
      if (need_filter && like) sizes.assign(like->sizes(), like->sizes() + like->dim());
      Tensor t = u.new_empty(sizes, abi::DType::Float32);
      data = t.numel() > 0 ? t.data<float>() : nullptr;
      return t;
    };
    Tensor du = activation(need_u, p.du);
    Tensor dpregate = activation(need_pregate && pregate, p.dpregate);
    Tensor dpostgate = activation(need_postgate && postgate, p.dpostgate);
    Tensor dk = filter(k, p.dk), dk_rev = filter(k_rev, p.dk_rev), dskip = filter(skip, p.dskip);
    p.taps = k ? k->size(1) : 0;
    p.reverse_taps = k_rev ? k_rev->size(1) : 0;
    // Without a batch the filter's gradient is still written: zeros.
    if (p.channels > 0) device.fft_conv_bwd(p);
    return {std::move(du),    std::move(dk),       std::move(dk_rev),
            std::move(dskip), std::move(dpregate), std::move(dpostgate)};
  }

  // Implements the three operators for a dispatch key.
  static void register_for(const char* key) {
    auto* library = new abi::Library("monarch_kernels", key);
    library->template impl<&filter_spectrum>("filter_spectrum");
    library->template impl<&fwd>("fft_conv_fwd");
    library->template impl<&bwd>("fft_conv_bwd");
  }

 private:
  struct Spectrum {
    Tensor tensor;
    const float* numbers;
  };

  template <class Params>
  static void set_shape(Params& p, const Tensor& u) {
    p.batch = u.size(0);
    p.channels = u.size(1);
    p.length = u.size(2);
    p.scalar = scalar_of(u);
  }

  static const float* filter_data(const MaybeTensor& t, int64_t dims, const Tensor& like,
                                  int64_t channels, const char* name) {
    if (!t) return nullptr;
    MONARCH_CHECK(t->dim() == dims && t->size(0) == channels && t->dtype() == abi::DType::Float32 &&
                      t->is_contiguous(),
                  "fft_conv: ", name, " must be a contiguous float32 tensor with ", channels,
                  " rows");
    check_device(*t, like, name);
    return t->data<const float>();
  }

  static Tensor make_spectrum(const Device& device, const Tensor& k, const MaybeTensor& k_rev,
                              const MaybeTensor& skip, int64_t length, bool circular) {
    MONARCH_CHECK(length >= 1 && length <= kMaxLength, "fft_conv: length ", length,
                  " is not in 1 .. ", kMaxLength);
    MONARCH_CHECK(k.dim() == 2, "fft_conv: k must have shape (H, taps)");
    FilterSpectrumParams p;
    p.channels = k.size(0);
    p.length = length;
    p.k = filter_data(k.alias(), 2, k, p.channels, "k");
    p.taps = k.size(1);
    p.k_rev = filter_data(k_rev, 2, k, p.channels, "k_rev");
    p.reverse_taps = k_rev ? k_rev->size(1) : 0;
    p.skip = filter_data(skip, 1, k, p.channels, "skip");
    p.circular = circular;
    MONARCH_CHECK(p.taps <= length && p.reverse_taps <= length,
                  "fft_conv: a filter is longer than the sequence (", length, ")");
    MONARCH_CHECK(!(circular && k_rev), "fft_conv: k_rev has no meaning with circular=True");
    Tensor out = k.new_empty({device.spectrum_numel(p.channels, length)}, abi::DType::Float32);
    p.spectrum = device.spectrum_numbers(out, p.channels, length);
    device.fresh(p.spectrum, out.numel() * 4);
    if (p.channels > 0) device.filter_spectrum(p);
    return out;
  }

  static Spectrum find_or_make(const Device& device, const Tensor& u, const MaybeTensor& k,
                               const MaybeTensor& k_rev, const MaybeTensor& skip,
                               const MaybeTensor& spectrum, bool circular) {
    MONARCH_CHECK(u.dim() == 3, "fft_conv: u must have shape (B, H, L)");
    MONARCH_CHECK(k.has_value() != spectrum.has_value() && !(spectrum && (k_rev || skip)),
                  "fft_conv: give either filters (k, k_rev, skip) or a spectrum");
    const int64_t channels = u.size(1), length = u.size(2);
    if (k) {
      check_device(*k, u, "k");
      MONARCH_CHECK(k->dim() == 2 && k->size(0) == channels,
                    "fft_conv: k must have as many rows as u channels");
      Tensor made = make_spectrum(device, *k, k_rev, skip, length, circular);
      const float* numbers = device.spectrum_numbers(std::as_const(made), channels, length);
      return {std::move(made), numbers};
    }
    check_device(*spectrum, u, "spectrum");
    MONARCH_CHECK(spectrum->dim() == 1 && spectrum->is_contiguous() &&
                      spectrum->dtype() == abi::DType::Float32,
                  "fft_conv: spectrum is not one that filter_spectrum made");
    return {spectrum->alias(), device.spectrum_numbers(*spectrum, channels, length)};
  }
};

}  // namespace monarch

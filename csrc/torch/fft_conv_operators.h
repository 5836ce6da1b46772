// The operators of fft_conv, once for all devices: checks, allocation, parameters. Schemas and the
// meaning of the arguments: monarch_kernels/fft_conv.py, which validates for its users; what is
// checked here is what keeps the kernels inside their arrays.
//
// A `Device` is made for each call and has
//   Device(const Tensor& like, const char* operation, Precision)
//                                                        throws if it has no kernels for the tensor
//   int64_t spectrum_numel(channels, length)             size of a spectrum as a tensor
//   float* spectrum_numbers(Tensor&, channels, length)   of a new one: where the kernel writes
//   const float* spectrum_numbers(const Tensor&, ...)    of a given one; throws if it is another's
//   void fresh(void*, bytes)                             is told of each large result
//   filter_spectrum, fft_conv_fwd, fft_conv_bwd(params)  run the kernels
// all const.
#pragma once

#include "core/fft_conv.h"
#include "torch/operands.h"
#include "torch/stable_abi.h"

namespace monarch {

template <class Device>
class FftConvOperators {
 public:
  static Tensor filter_spectrum(const Tensor& k, const MaybeTensor& k_rev, const MaybeTensor& skip,
                                int64_t length, bool circular, int64_t precision) {
    const Device device(k, "monarch_kernels::filter_spectrum", checked(precision));
    return make_spectrum(kOp, device, k, k_rev, skip, length, circular);
  }

  static Tensor fwd(const Tensor& u, const MaybeTensor& k, const MaybeTensor& k_rev,
                    const MaybeTensor& skip, const MaybeTensor& spectrum,
                    const MaybeTensor& pregate, const MaybeTensor& postgate, bool circular,
                    int64_t precision) {
    const Device device(u, "monarch_kernels::fft_conv_fwd", precision_for(u, precision));
    const Activation in(kOp, u, u, "u"), pre(kOp, pregate, u, "pregate");
    const Activation post(kOp, postgate, u, "postgate");
    const Spectrum made =
        find_or_make(kOp, device, u, u.size(1), u.size(2), {k, k_rev, skip, spectrum}, circular);
    FftConvParams p;
    set_shape(p, u);
    p.u = in.rows();
    p.pregate = pre.rows();
    p.postgate = post.rows();
    p.spectrum = made.numbers;
    p.precision = precision_for(u, precision);
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
      bool need_postgate, int64_t precision) {
    const Device device(u, "monarch_kernels::fft_conv_bwd", precision_for(u, precision));
    const Activation out(kOp, dy, u, "dy"), in(kOp, u, u, "u");
    const Activation pre(kOp, pregate, u, "pregate"), post(kOp, postgate, u, "postgate");
    const Spectrum made =
        find_or_make(kOp, device, u, u.size(1), u.size(2), {k, k_rev, skip, spectrum}, circular);
    FftConvBackwardParams p;
    set_shape(p, u);
    p.dy = out.rows();
    p.u = in.rows();
    p.pregate = pre.rows();
    p.postgate = post.rows();
    p.spectrum = made.numbers;
    p.circular = circular;
    p.precision = precision_for(u, precision);

    const auto activation = [&](bool wanted, void*& data) {
      Tensor t = wanted ? u.new_empty({p.batch, p.channels, p.length}) : u.new_empty({int64_t{0}});
      data = t.numel() > 0 ? t.data() : nullptr;
      if (data) device.fresh(data, bytes_of(t));
      return t;
    };
    Tensor du = activation(need_u, p.du);
    Tensor dpregate = activation(need_pregate && pregate, p.dpregate);
    Tensor dpostgate = activation(need_postgate && postgate, p.dpostgate);
    Tensor dk = filter_gradient(u, k, need_filter, p.dk);
    Tensor dk_rev = filter_gradient(u, k_rev, need_filter, p.dk_rev);
    Tensor dskip = filter_gradient(u, skip, need_filter, p.dskip);
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
  static constexpr const char* kOp = "fft_conv";

  static Precision checked(int64_t precision) {
    MONARCH_CHECK(0 <= precision && precision <= 2, kOp, ": precision ", precision,
                  " is not 0 (exact), 1 (high) or 2 (fast)");
    return static_cast<Precision>(precision);
  }
  // float32 activations have exact kernels only.
  static Precision precision_for(const Tensor& u, int64_t precision) {
    const Precision asked = checked(precision);
    return u.dtype() == abi::DType::Float32 ? Precision::kExact : asked;
  }

  template <class Params>
  static void set_shape(Params& p, const Tensor& u) {
    p.batch = u.size(0);
    p.channels = u.size(1);
    p.length = u.size(2);
    p.scalar = scalar_of(kOp, u);
  }
};

}  // namespace monarch

// The operators of mixer_conv, once for all devices: checks, allocation, parameters. Schemas and
// the meaning of the arguments: monarch_kernels/mixer_conv.py, which validates for its users; what
// is checked here is what keeps the kernels inside their arrays.
//
// A `Device` is one of fft_conv_operators.h, of which filter_spectrum is used, and has
//   static bool kMakesSpectra       its kernels can make the spectrum of a filter themselves
//   static bool kBackwardByRows     its backward reads u by rows only
//   mixer_conv_fwd, mixer_conv_bwd(params)               run the kernels
#pragma once

#include "core/mixer_conv.h"
#include "torch/operands.h"
#include "torch/stable_abi.h"

namespace monarch {

inline constexpr const char* kMixerConv = "mixer_conv";

// The arguments that forward and backward share, checked and kept alive.
template <class Device>
class MixerConvArguments {
 public:
  MixerConvArguments(const Device& device, const Tensor& q, const MaybeTensor& s,
                     const MaybeTensor& s_bias, const FilterOperand& filter, const MaybeTensor& u,
                     const FilterOperand& residual_filter, bool u_by_rows = false)
      : q_(kMixerConv, q, q, "q") {
    const int64_t rows = q.size(1);
    MONARCH_CHECK(rows % 3 == 0, kMixerConv, ": q must have 3 H channels, got ", rows);
    p_.batch = q.size(0);
    p_.channels = rows / 3;
    p_.length = q.size(2);
    p_.scalar = scalar_of(kMixerConv, q);
    p_.q = q_.rows();
    p_.s = filter_data(kMixerConv, s, 2, q, rows, "s");
    p_.s_bias = filter_data(kMixerConv, s_bias, 1, q, rows, "s_bias");
    MONARCH_CHECK(s || !s_bias, kMixerConv, ": s_bias without s");
    if (s) {
      p_.taps = s->size(1);
      MONARCH_CHECK(1 <= p_.taps && p_.taps <= kMaxMixerTaps, kMixerConv, ": s must have 1 to ",
                    kMaxMixerTaps, " taps, got ", p_.taps);
    }
    spectrum_ = set_filter(device, q, filter, p_.spectrum, p_.filter);
    const bool given = residual_filter.k || residual_filter.spectrum;
    MONARCH_CHECK(u.has_value() == given, kMixerConv, ": u goes with k2 or its spectrum");
    if (!u) return;
    set_u(*u, q, u_by_rows);
    residual_spectrum_ =
        set_filter(device, q, residual_filter, p_.residual_spectrum, p_.residual_filter);
  }

  const MixerConvOperands& params() const { return p_; }

 private:
  // A filter that is used for one batch row alone gets no spectrum in memory where the kernels can
  // make each channel's as they need it, and save 24 bytes a sample to and from memory.
  Spectrum set_filter(const Device& device, const Tensor& q, const FilterOperand& filter,
                      const float*& numbers, FilterSpectrumParams& params) const {
    if (Device::kMakesSpectra && filter.k && p_.batch == 1) {
      check_filter(kMixerConv, q, p_.channels, filter);
      params = filter_params(kMixerConv, *filter.k, filter.k_rev, filter.skip, p_.length, false);
      return {};
    }
    Spectrum spectrum = find_or_make(kMixerConv, device, q, p_.channels, p_.length, filter, false);
    numbers = spectrum.numbers;
    return spectrum;
  }

  void set_u(const Tensor& u, const Tensor& q, bool by_rows) {
    MONARCH_CHECK(u.dim() == 3 && u.size(0) == p_.batch && u.size(1) == p_.channels &&
                      u.size(2) == p_.length && u.dtype() == q.dtype(),
                  kMixerConv, ": u must have the dtype of q and a third of its channels");
    check_device(kMixerConv, u, q, "u");
    u_ = by_rows && u.stride(2) != 1 && u.size(2) != 1 ? u.contiguous() : u.alias();
    p_.u = {u_.data(), u_.stride(0), u_.stride(1)};
    p_.u_sample_stride = u.size(2) == 1 ? 1 : u_.stride(2);
  }

  Activation q_;
  Tensor u_;
  Spectrum spectrum_, residual_spectrum_;
  MixerConvOperands p_;
};

template <class Device>
class MixerConvOperators {
 public:
  static Tensor fwd(const Tensor& q, const MaybeTensor& s, const MaybeTensor& s_bias,
                    const MaybeTensor& k, const MaybeTensor& k_rev, const MaybeTensor& skip,
                    const MaybeTensor& spectrum, const MaybeTensor& u, const MaybeTensor& k2,
                    const MaybeTensor& k2_rev, const MaybeTensor& skip2,
                    const MaybeTensor& spectrum2) {
    const Device device(q, "monarch_kernels::mixer_conv_fwd");
    const MixerConvArguments operands(device, q, s, s_bias, {k, k_rev, skip, spectrum}, u,
                                      {k2, k2_rev, skip2, spectrum2});
    MixerConvParams p;
    static_cast<MixerConvOperands&>(p) = operands.params();
    Tensor z = q.new_empty({p.batch, p.channels, p.length});
    if (z.numel() == 0) return z;
    p.z = z.data();
    device.fresh(p.z, bytes_of(z));
    device.mixer_conv_fwd(p);
    return z;
  }

  // A result that nobody wants is an empty tensor.
  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
  bwd(const Tensor& dz, const Tensor& q, const MaybeTensor& s, const MaybeTensor& s_bias,
      const MaybeTensor& k, const MaybeTensor& k_rev, const MaybeTensor& skip,
      const MaybeTensor& spectrum, const MaybeTensor& u, const MaybeTensor& k2,
      const MaybeTensor& k2_rev, const MaybeTensor& skip2, const MaybeTensor& spectrum2,
      bool need_q, bool need_s, bool need_filter, bool need_u, bool need_filter2) {
    const Device device(q, "monarch_kernels::mixer_conv_bwd");
    const MixerConvArguments operands(device, q, s, s_bias, {k, k_rev, skip, spectrum}, u,
                                      {k2, k2_rev, skip2, spectrum2}, Device::kBackwardByRows);
    MixerConvBackwardParams p;
    static_cast<MixerConvOperands&>(p) = operands.params();
    MONARCH_CHECK(dz.dim() == 3 && dz.size(0) == p.batch && dz.size(1) == p.channels &&
                      dz.size(2) == p.length && dz.dtype() == q.dtype(),
                  kMixerConv, ": dz must have the dtype of q and a third of its channels");
    check_device(kMixerConv, dz, q, "dz");
    const Activation gradient(kMixerConv, dz, dz, "dz");
    p.dz = gradient.rows();

    const auto activation = [&](bool wanted, int64_t channels, void*& data) {
      Tensor t = wanted ? q.new_empty({p.batch, channels, p.length}) : q.new_empty({int64_t{0}});
      data = t.numel() > 0 ? t.data() : nullptr;
      if (data) device.fresh(data, bytes_of(t));
      return t;
    };
    Tensor dq = activation(need_q, 3 * p.channels, p.dq);
    Tensor du = activation(need_u && u, p.channels, p.du);
    Tensor ds = filter_gradient(q, s, need_s, p.ds);
    Tensor ds_bias = filter_gradient(q, s_bias, need_s, p.ds_bias);
    const auto filter = [&](FilterGradients& out, bool wanted, const MaybeTensor& taps,
                            const MaybeTensor& reverse_taps, const MaybeTensor& center) {
      Tensor dk = filter_gradient(q, taps, wanted, out.dk);
      Tensor dk_rev = filter_gradient(q, reverse_taps, wanted, out.dk_rev);
      Tensor dskip = filter_gradient(q, center, wanted, out.dskip);
      out.taps = taps ? taps->size(1) : 0;
      out.reverse_taps = reverse_taps ? reverse_taps->size(1) : 0;
      return std::tuple(std::move(dk), std::move(dk_rev), std::move(dskip));
    };
    auto [dk, dk_rev, dskip] = filter(p.dfilter, need_filter, k, k_rev, skip);
    auto [dk2, dk2_rev, dskip2] = filter(p.dresidual_filter, need_filter2, k2, k2_rev, skip2);
    // Without a batch the filters' gradients are still written: zeros.
    if (p.channels > 0) device.mixer_conv_bwd(p);
    return {std::move(dq),      std::move(ds),    std::move(ds_bias), std::move(dk),
            std::move(dk_rev),  std::move(dskip), std::move(du),      std::move(dk2),
            std::move(dk2_rev), std::move(dskip2)};
  }

  // Implements the two operators for a dispatch key.
  static void register_for(const char* key) {
    auto* library = new abi::Library("monarch_kernels", key);
    library->template impl<&fwd>("mixer_conv_fwd");
    library->template impl<&bwd>("mixer_conv_bwd");
  }
};

}  // namespace monarch

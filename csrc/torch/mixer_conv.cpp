// torch operators of mixer_conv on the CPU: checks, allocation, parameters. Schemas and the meaning
// of the arguments: monarch_kernels/mixer_conv.py, which validates for its users; what is checked
// here is what keeps the kernels inside their arrays.
#include "core/mixer_conv.h"

#include "torch/cpu_device.h"
#include "torch/operands.h"

namespace monarch {
namespace {

constexpr const char* kOp = "mixer_conv";

// The arguments that forward and backward share, checked and kept alive.
class Operands {
 public:
  Operands(const CpuDevice& device, const Tensor& q, const MaybeTensor& s,
           const MaybeTensor& s_bias, const FilterOperand& filter, const MaybeTensor& u,
           const FilterOperand& residual_filter)
      : q_(kOp, q, q, "q") {
    const int64_t rows = q.size(1);
    MONARCH_CHECK(rows % 3 == 0, kOp, ": q must have 3 H channels, got ", rows);
    p_.batch = q.size(0);
    p_.channels = rows / 3;
    p_.length = q.size(2);
    p_.scalar = scalar_of(kOp, q);
    p_.q = q_.rows();
    p_.s = filter_data(kOp, s, 2, q, rows, "s");
    p_.s_bias = filter_data(kOp, s_bias, 1, q, rows, "s_bias");
    MONARCH_CHECK(s || !s_bias, kOp, ": s_bias without s");
    if (s) {
      p_.taps = s->size(1);
      MONARCH_CHECK(1 <= p_.taps && p_.taps <= kMaxMixerTaps, kOp, ": s must have 1 to ",
                    kMaxMixerTaps, " taps, got ", p_.taps);
    }
    spectrum_ = set_filter(device, q, filter, p_.spectrum, p_.filter);
    const bool given = residual_filter.k || residual_filter.spectrum;
    MONARCH_CHECK(u.has_value() == given, kOp, ": u goes with k2 or its spectrum");
    if (!u) return;
    set_u(*u, q);
    residual_spectrum_ =
        set_filter(device, q, residual_filter, p_.residual_spectrum, p_.residual_filter);
  }

  const MixerConvOperands& params() const { return p_; }

 private:
  // A filter that is used for one batch row alone gets no spectrum in memory: the kernels make each
  // channel's where they need it, and save 24 bytes a sample to and from memory.
  Spectrum set_filter(const CpuDevice& device, const Tensor& q, const FilterOperand& filter,
                      const float*& numbers, FilterSpectrumParams& params) const {
    if (filter.k && p_.batch == 1) {
      check_filter(kOp, q, p_.channels, filter);
      params = filter_params(kOp, *filter.k, filter.k_rev, filter.skip, p_.length, false);
      return {};
    }
    Spectrum spectrum = find_or_make(kOp, device, q, p_.channels, p_.length, filter, false);
    numbers = spectrum.numbers;
    return spectrum;
  }

  void set_u(const Tensor& u, const Tensor& q) {
    MONARCH_CHECK(u.dim() == 3 && u.size(0) == p_.batch && u.size(1) == p_.channels &&
                      u.size(2) == p_.length && u.dtype() == q.dtype(),
                  kOp, ": u must have the dtype of q and a third of its channels");
    check_device(kOp, u, q, "u");
    u_ = u.alias();
    p_.u = {u_.data(), u_.stride(0), u_.stride(1)};
    p_.u_sample_stride = u.size(2) == 1 ? 1 : u_.stride(2);
  }

  Activation q_;
  Tensor u_;
  Spectrum spectrum_, residual_spectrum_;
  MixerConvOperands p_;
};

Tensor fwd(const Tensor& q, const MaybeTensor& s, const MaybeTensor& s_bias, const MaybeTensor& k,
           const MaybeTensor& k_rev, const MaybeTensor& skip, const MaybeTensor& spectrum,
           const MaybeTensor& u, const MaybeTensor& k2, const MaybeTensor& k2_rev,
           const MaybeTensor& skip2, const MaybeTensor& spectrum2) {
  const CpuDevice device(q, "monarch_kernels::mixer_conv_fwd");
  const Operands operands(device, q, s, s_bias, {k, k_rev, skip, spectrum}, u,
                          {k2, k2_rev, skip2, spectrum2});
  MixerConvParams p;
  static_cast<MixerConvOperands&>(p) = operands.params();
  Tensor z = q.new_empty({p.batch, p.channels, p.length});
  if (z.numel() == 0) return z;
  p.z = z.data();
  device.fresh(p.z, bytes_of(z));
  const int64_t items = cpu::mixer_conv_fwd_items(p);
  abi::parallel_for(0, items, grain(p, items),
                    [&](int64_t begin, int64_t end) { cpu::mixer_conv_fwd(p, begin, end); });
  return z;
}

// A result that nobody wants is an empty tensor.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> bwd(
    const Tensor& dz, const Tensor& q, const MaybeTensor& s, const MaybeTensor& s_bias,
    const MaybeTensor& k, const MaybeTensor& k_rev, const MaybeTensor& skip,
    const MaybeTensor& spectrum, const MaybeTensor& u, const MaybeTensor& k2,
    const MaybeTensor& k2_rev, const MaybeTensor& skip2, const MaybeTensor& spectrum2, bool need_q,
    bool need_s, bool need_filter, bool need_u, bool need_filter2) {
  const CpuDevice device(q, "monarch_kernels::mixer_conv_bwd");
  const Operands operands(device, q, s, s_bias, {k, k_rev, skip, spectrum}, u,
                          {k2, k2_rev, skip2, spectrum2});
  MixerConvBackwardParams p;
  static_cast<MixerConvOperands&>(p) = operands.params();
  MONARCH_CHECK(dz.dim() == 3 && dz.size(0) == p.batch && dz.size(1) == p.channels &&
                    dz.size(2) == p.length && dz.dtype() == q.dtype(),
                kOp, ": dz must have the dtype of q and a third of its channels");
  check_device(kOp, dz, q, "dz");
  const Activation gradient(kOp, dz, dz, "dz");
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
  if (p.channels > 0) {
    abi::parallel_for(0, cpu::mixer_conv_bwd_items(p), 1,
                      [&](int64_t begin, int64_t end) { cpu::mixer_conv_bwd(p, begin, end); });
  }
  return {std::move(dq),      std::move(ds),    std::move(ds_bias), std::move(dk),
          std::move(dk_rev),  std::move(dskip), std::move(du),      std::move(dk2),
          std::move(dk2_rev), std::move(dskip2)};
}

[[maybe_unused]] const abi::Library& registered = (new abi::Library("monarch_kernels", "CPU"))
                                                      ->impl<&fwd>("mixer_conv_fwd")
                                                      .impl<&bwd>("mixer_conv_bwd");

}  // namespace
}  // namespace monarch

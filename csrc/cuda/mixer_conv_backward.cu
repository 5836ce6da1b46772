// Launchers of mixer_conv: backward. Its steps are those of the two operators that it is made of,
// with everything between them in float32 in scratch memory: the filtered rows of q, the backward
// of a gated fft_conv, and that of short_conv. They run for a group of channels at a time.
#include <algorithm>

#include "cuda/fft_conv.h"
#include "cuda/mixer_conv.h"
#include "cuda/short_conv.h"

namespace monarch::cuda {
namespace {

constexpr int kX1 = 0, kX2 = 1, kV = 2;  // the parts of q

// A group of channels of q, and where its rows in scratch memory are: (part, row, channel, sample).
class ChannelGroup {
 public:
  ChannelGroup(const MixerConvBackwardParams& params, int64_t first, int64_t channels)
      : p_(params), first_(first), channels_(channels) {}

  bool need_rows() const { return p_.dq != nullptr || need_short(); }
  bool need_short() const { return p_.ds != nullptr || p_.ds_bias != nullptr; }
  bool needed() const { return need_rows() || p_.dfilter.wanted(); }

  // The filtered rows, dz unless it is float32 already, and the gradients of the filtered rows.
  int64_t rows_bytes() const { return aligned((converts() ? 7 : 6) * part() * 4); }
  int64_t partials_bytes() const {
    return need_short() ? aligned(short_partial_floats(short_rows()) * 4) : 0;
  }
  int64_t scratch_bytes(const DeviceLimits& device) const {
    return rows_bytes() +
           std::max(partials_bytes(), fft_conv_bwd_scratch(long_params(nullptr), device));
  }

  void run(void* scratch, const Launch& launch) const {
    auto* rows = static_cast<float*>(scratch);
    void* rest = static_cast<unsigned char*>(scratch) + rows_bytes();
    const SampleArray q{
        static_cast<const unsigned char*>(p_.q.data) + first_ * p_.q.channel_stride * element(),
        p_.scalar,
        p_.q.batch_stride,
        p_.q.channel_stride,
        1,
        p_.channels * p_.q.channel_stride};
    filter_rows(short_rows(), q, in_scratch(rows), {}, launch);
    if (converts()) {
      ShortRows copy{"mixer_conv", p_.batch, channels_, p_.length, nullptr, nullptr, 1, 0, false};
      const SampleArray dz{dz_data(), p_.scalar, p_.dz.batch_stride, p_.dz.channel_stride};
      filter_rows(copy, dz, in_scratch(rows + 6 * part()), {}, launch);
    }
    fft_conv_bwd_from(first_, long_params(rows), rest, launch);
    const SampleArray gradients = in_scratch(rows + 3 * part());
    if (p_.dq != nullptr) {
      ShortRows adjoint = short_rows();
      adjoint.s_bias = nullptr;
      const SampleArray dq{static_cast<unsigned char*>(p_.dq) + first_ * p_.length * element(),
                           p_.scalar,
                           3 * p_.channels * p_.length,
                           p_.length,
                           1,
                           p_.channels * p_.length};
      filter_rows(adjoint, gradients, dq, {true, false}, launch);
    }
    if (need_short()) {
      const auto of_group = [&](float* data, int64_t columns) {
        return data == nullptr ? nullptr : data + first_ * columns;
      };
      short_filter_gradient(short_rows(), q, gradients, static_cast<float*>(rest),
                            of_group(p_.ds, p_.taps), of_group(p_.ds_bias, 1), launch);
    }
  }

 private:
  bool converts() const { return p_.scalar != Scalar::kFloat32; }
  int64_t element() const { return converts() ? 2 : 4; }
  int64_t part() const { return p_.batch * channels_ * p_.length; }  // numbers
  const void* dz_data() const {
    return static_cast<const unsigned char*>(p_.dz.data) +
           first_ * p_.dz.channel_stride * element();
  }

  ShortRows short_rows() const {
    const bool filter = p_.s != nullptr;
    return {"mixer_conv",
            p_.batch,
            3 * channels_,
            p_.length,
            filter ? p_.s + first_ * p_.taps : nullptr,
            p_.s_bias == nullptr ? nullptr : p_.s_bias + first_,
            filter ? p_.taps : 1,
            filter ? p_.taps - 1 : 0,
            false,
            3,
            p_.channels};
  }
  SampleArray in_scratch(float* data) const {
    return {data, Scalar::kFloat32, channels_ * p_.length, p_.length, 1, part()};
  }

  // The gated long convolution of the group, from the rows in scratch memory.
  FftConvBackwardParams long_params(float* rows) const {
    const auto number = [&](int index) {
      return rows == nullptr ? nullptr : rows + index * part();
    };
    const auto input = [&](int index) {
      return Rows{number(index), channels_ * p_.length, p_.length};
    };
    FftConvBackwardParams out;
    out.batch = p_.batch;
    out.channels = channels_;
    out.length = p_.length;
    out.dy = converts() ? input(6) : Rows{dz_data(), p_.dz.batch_stride, p_.dz.channel_stride};
    out.u = input(kV);
    out.pregate = input(kX1);
    out.postgate = input(kX2);
    out.spectrum = p_.spectrum;
    if (need_rows()) {
      out.dpregate = number(3 + kX1);
      out.dpostgate = number(3 + kX2);
      out.du = number(3 + kV);
    }
    const FilterGradients& filter = p_.dfilter;
    const auto of_group = [&](float* data, int64_t columns) {
      return data == nullptr ? nullptr : data + first_ * columns;
    };
    out.dk = of_group(filter.dk, filter.taps);
    out.dk_rev = of_group(filter.dk_rev, filter.reverse_taps);
    out.dskip = of_group(filter.dskip, 1);
    out.taps = filter.taps;
    out.reverse_taps = filter.reverse_taps;
    return out;
  }

  const MixerConvBackwardParams& p_;
  const int64_t first_, channels_;
};

// Channels of a group. Their rows stay in the L2 cache only in part: so that the launches of a
// group take less time than its work, it is several times as large.
int64_t group_channels(const MixerConvBackwardParams& p, const DeviceLimits& device) {
  const int64_t most = std::max<int64_t>(
      1, 4 * device.l2_bytes / std::max<int64_t>(1, ChannelGroup(p, 0, 1).rows_bytes()));
  const int64_t groups = (p.channels + most - 1) / most;
  return (p.channels + groups - 1) / std::max<int64_t>(1, groups);
}

FftConvBackwardParams residual_params(const MixerConvBackwardParams& p) {
  FftConvBackwardParams out;
  out.batch = p.batch;
  out.channels = p.channels;
  out.length = p.length;
  out.scalar = p.scalar;
  out.dy = p.dz;
  out.u = p.u;
  out.spectrum = p.residual_spectrum;
  out.du = p.du;
  out.dk = p.dresidual_filter.dk;
  out.dk_rev = p.dresidual_filter.dk_rev;
  out.dskip = p.dresidual_filter.dskip;
  out.taps = p.dresidual_filter.taps;
  out.reverse_taps = p.dresidual_filter.reverse_taps;
  return out;
}
bool needs_residual(const MixerConvBackwardParams& p) {
  return p.residual_spectrum != nullptr && (p.du != nullptr || p.dresidual_filter.wanted());
}

// use(group) for all groups of channels.
template <class Use>
void each_group(const MixerConvBackwardParams& p, const DeviceLimits& device, Use use) {
  const int64_t channels = group_channels(p, device);
  for (int64_t c = 0; c < p.channels; c += channels) {
    const ChannelGroup group(p, c, std::min(channels, p.channels - c));
    if (group.needed()) use(group);
  }
}

}  // namespace

int64_t mixer_conv_bwd_scratch(const MixerConvBackwardParams& p, const DeviceLimits& device) {
  int64_t bytes = needs_residual(p) ? fft_conv_bwd_scratch(residual_params(p), device) : 0;
  each_group(p, device, [&](const ChannelGroup& group) {
    bytes = std::max(bytes, group.scratch_bytes(device));
  });
  return bytes;
}

void mixer_conv_bwd(const MixerConvBackwardParams& p, void* scratch, const Launch& launch) {
  each_group(p, launch.device, [&](const ChannelGroup& group) { group.run(scratch, launch); });
  if (needs_residual(p)) fft_conv_bwd(residual_params(p), scratch, launch);
}

}  // namespace monarch::cuda

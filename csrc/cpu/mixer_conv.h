// How a call of mixer_conv is divided into items, and the scratch of one. Known to the entry points
// (compiled once) and to the kernels (once per instruction set).
#pragma once
#include <cstdint>

#include "core/mixer_conv.h"
#include "cpu/plan.h"

namespace monarch::cpu {

constexpr int64_t kCacheLine = 64;
// What the rows of one item may take beside those of a single channel.
constexpr int64_t kItemBytes = int64_t{8} << 20;

// Real rows in scratch: S samples, zero or garbage from L on. One more cache line, so that neither
// columns of them lie in one cache set nor a read beyond the last sample leaves the row.
static constexpr int64_t real_row_floats(const Plan& plan) { return plan.size + 16; }

// u is read by columns: its channels lie side by side, its samples do not.
static inline bool reads_columns(const MixerConvOperands& p) {
  return p.u.data != nullptr && p.u_sample_stride != 1 && p.u.channel_stride == 1;
}

// Channels of an item. Interleaved plans: one per lane. Rows: one; but if u is read by columns, the
// channels of a cache line, as long as their rows fit in scratch.
static inline int64_t item_channels(const MixerConvOperands& p, const Plan& plan,
                                    int64_t bytes_per_channel) {
  if (plan.interleaved) return plan.lanes;
  if (!reads_columns(p)) return 1;
  int64_t channels = kCacheLine / (p.scalar == Scalar::kFloat32 ? 4 : 2);
  while (channels > 1 && channels * bytes_per_channel > kItemBytes) channels /= 2;
  return channels;
}

// The forward holds a real row per channel; the backward that and two gradients of spectra.
static inline int64_t fwd_channels(const MixerConvOperands& p, const Plan& plan) {
  return item_channels(p, plan, real_row_floats(plan) * 4);
}
static inline int64_t bwd_channels(const MixerConvBackwardParams& p, const Plan& plan) {
  if (!plan.interleaved && !p.dresidual_filter.wanted()) return 1;  // u is not read
  return item_channels(p, plan, (real_row_floats(plan) + 2 * row_floats(plan)) * 4);
}

// Rows that a plan transforms at once.
static inline int64_t unit_channels(const Plan& plan) { return plan.interleaved ? plan.lanes : 1; }
static inline int64_t staging_floats(const Plan& plan) {
  return plan.interleaved ? plan.size * plan.lanes : 0;
}

// One channel's spectrum, or those of a unit, if it is not given.
static inline int64_t spectrum_scratch_floats(const MixerConvOperands& p, const Plan& plan) {
  const bool given =
      p.spectrum != nullptr && (p.u.data == nullptr || p.residual_spectrum != nullptr);
  return given ? 0 : plan.columns * 2 * plan.lanes;
}

static inline int64_t fwd_workspace_floats(const MixerConvParams& p, const Plan& plan) {
  return row_floats(plan) + staging_floats(plan) + spectrum_scratch_floats(p, plan) +
         (fwd_channels(p, plan) + unit_channels(plan)) * real_row_floats(plan);
}

constexpr int64_t kMixerSums = 3 * (kMaxMixerTaps + 1);  // doubles per channel

static inline int64_t bwd_workspace_floats(const MixerConvBackwardParams& p, const Plan& plan) {
  const int64_t channels = bwd_channels(p, plan), units = channels / unit_channels(plan);
  return (2 + 2 * units) * row_floats(plan) + staging_floats(plan) +
         spectrum_scratch_floats(p, plan) +
         (channels + 2 * unit_channels(plan)) * real_row_floats(plan) + 2 * kMixerSums * channels;
}

}  // namespace monarch::cpu

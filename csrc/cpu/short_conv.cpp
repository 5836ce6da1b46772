// Entry points of short_conv: workspace, the chosen instruction set's kernels.
#include "core/short_conv.h"

#include "cpu/dispatch.h"
#include "cpu/workspace.h"

namespace monarch::cpu {
namespace {

constexpr int64_t kSamples = 64, kBackwardSamples = 256;  // of an item, of a chunk, (B, L, H)

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The layouts of short_conv.inl.
int64_t fwd_floats(const ShortConvParams& p, int64_t lanes) {
  return p.channels_last ? ceil_div(p.channels, lanes) * lanes * (p.taps + 1) : 0;
}
int64_t bwd_floats(const ShortConvBackwardParams& p, int64_t lanes) {
  if (p.channels_last) return (4 * (p.taps + 1) + kBackwardSamples + p.taps) * lanes;
  return p.length + 5 * (p.taps + 16) + 64;
}

}  // namespace

int64_t short_conv_fwd_items(const ShortConvParams& params) {
  return params.batch *
         (params.channels_last ? ceil_div(params.length, kSamples) : params.channels);
}
void short_conv_fwd(const ShortConvParams& params, int64_t begin, int64_t end) {
  const KernelTable& table = kernels();
  const Workspace workspace(fwd_floats(params, table.lanes));
  table.short_conv_fwd(params, workspace.data(), begin, end);
}

int64_t short_conv_bwd_items(const ShortConvBackwardParams& params) {
  return params.channels_last ? ceil_div(params.channels, kernels().lanes) : params.channels;
}
void short_conv_bwd(const ShortConvBackwardParams& params, int64_t begin, int64_t end) {
  const KernelTable& table = kernels();
  const Workspace workspace(bwd_floats(params, table.lanes));
  table.short_conv_bwd(params, workspace.data(), begin, end);
}

}  // namespace monarch::cpu

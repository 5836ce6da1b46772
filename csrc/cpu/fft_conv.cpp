// Entry points of fft_conv: plan, workspace, the chosen instruction set's kernels.
#include "core/fft_conv.h"

#include "cpu/dispatch.h"
#include "cpu/workspace.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace monarch::cpu {
namespace {

// Rows held at once: the transform's, and for the backward those of u and of the filter's gradient.
int64_t workspace_floats(const Plan& plan, int rows) {
  const int64_t real = plan.interleaved ? plan.size * plan.lanes : plan.size;
  return rows * row_floats(plan) + real;
}

int64_t units(int64_t channels, const Plan& plan) {
  return plan.interleaved ? (channels + plan.lanes - 1) / plan.lanes : channels;
}

template <class Params, class Kernel>
void run(const Params& params, Kernel KernelTable::* kernel, int rows, int64_t begin, int64_t end) {
  const KernelTable& table = kernels();
  const Plan& plan = plan_for(params.length, table.lanes);
  const Workspace workspace(workspace_floats(plan, rows));
  (table.*kernel)(params, Context{plan, workspace.data()}, begin, end);
}

template <class Params>
int64_t channel_units(const Params& params) {
  return units(params.channels, plan_for(params.length, kernels().lanes));
}

}  // namespace

int64_t spectrum_floats(int64_t channels, int64_t length) {
  const Plan& plan = plan_for(length, kernels().lanes);
  return units(channels, plan) * plan.columns * 2 * plan.lanes;
}
int kernel_lanes() { return kernels().lanes; }

int64_t filter_spectrum_items(const FilterSpectrumParams& params) { return channel_units(params); }
void filter_spectrum(const FilterSpectrumParams& params, int64_t begin, int64_t end) {
  run(params, &KernelTable::filter_spectrum, 1, begin, end);
}

int64_t fft_conv_fwd_items(const FftConvParams& params) {
  return channel_units(params) * params.batch;
}
void fft_conv_fwd(const FftConvParams& params, int64_t begin, int64_t end) {
  run(params, &KernelTable::fft_conv_fwd, 1, begin, end);
}

int64_t fft_conv_bwd_items(const FftConvBackwardParams& params) { return channel_units(params); }
void fft_conv_bwd(const FftConvBackwardParams& params, int64_t begin, int64_t end) {
  run(params, &KernelTable::fft_conv_bwd, 3, begin, end);
}

void advise_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__)
  constexpr int64_t kHugePage = int64_t{2} << 20, kPage = 4096;
  if (bytes < 2 * kHugePage) return;
  const auto first = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const auto last =
      (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) / kPage * kPage;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

}  // namespace monarch::cpu

// Entry points of mixer_conv: plan, workspace, the chosen instruction set's kernels.
#include "cpu/mixer_conv.h"

#include "cpu/dispatch.h"
#include "cpu/workspace.h"

namespace monarch::cpu {
namespace {

int64_t groups(int64_t channels, int64_t of) { return (channels + of - 1) / of; }

}  // namespace

int64_t mixer_conv_fwd_items(const MixerConvParams& params) {
  const Plan& plan = plan_for(params.length, kernels().lanes);
  return groups(params.channels, fwd_channels(params, plan)) * params.batch;
}
void mixer_conv_fwd(const MixerConvParams& params, int64_t begin, int64_t end) {
  const KernelTable& table = kernels();
  const Plan& plan = plan_for(params.length, table.lanes);
  const Workspace workspace(fwd_workspace_floats(params, plan));
  table.mixer_conv_fwd(params, Context{plan, workspace.data()}, begin, end);
}

int64_t mixer_conv_bwd_items(const MixerConvBackwardParams& params) {
  const Plan& plan = plan_for(params.length, kernels().lanes);
  return groups(params.channels, bwd_channels(params, plan));
}
void mixer_conv_bwd(const MixerConvBackwardParams& params, int64_t begin, int64_t end) {
  const KernelTable& table = kernels();
  const Plan& plan = plan_for(params.length, table.lanes);
  const Workspace workspace(bwd_workspace_floats(params, plan));
  table.mixer_conv_bwd(params, Context{plan, workspace.data()}, begin, end);
}

}  // namespace monarch::cpu

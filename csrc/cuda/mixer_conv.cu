// Launchers of mixer_conv: forward.
#include "cuda/mixer_conv.h"

#include "cuda/fft_conv_launch.cuh"
#include "cuda/mixer_conv.cuh"

namespace monarch::cuda {
namespace {

// Parts of the scratch memory, for one launch or one group of long rows.
struct ForwardPlan {
  TransformShape choice;
  Group group;
  int slices = 1;
  bool holds_in_shared = false;
  int64_t held_bytes = 0, rows_bytes = 0;

  int64_t total() const { return held_bytes + rows_bytes; }
};

// How many blocks a multiprocessor has at once; it has 1 KB more shared memory than a block may
// have, and keeps 1 KB for each.
template <class Block>
int64_t resident(int64_t shared_bytes, const DeviceLimits& device) {
  return std::min<int64_t>(kMixerBlocks<Block>,
                           (device.shared_bytes + 1024) / (shared_bytes + 1024));
}

template <class Block>
constexpr int64_t kHeldRowBytes = Block::Row::kSize * static_cast<int64_t>(sizeof(float));

ForwardPlan plan_forward(const MixerConvParams& p, const DeviceLimits& device) {
  ForwardPlan plan;
  plan.choice = choose(p.length, device);
  const bool residual = p.residual_spectrum != nullptr;
  if (!plan.choice.is_long()) {
    with_block(BlockPlans{}, plan.choice.columns(), [&](auto block) {
      using B = decltype(block);
      using S = BlockShape<B>;
      plan.slices = slices_for<B>(p.channels, p.batch, device);
      const int64_t shared = S::kSharedBytes, held = kHeldRowBytes<B> * S::kTeams;
      // Where no block loses its place for it.
      plan.holds_in_shared = residual && shared + held <= device.shared_bytes &&
                             resident<B>(shared + held, device) == resident<B>(shared, device);
      if (!residual || plan.holds_in_shared) return;
      const Work work{p.channels, p.batch, plan.slices};
      plan.held_bytes = aligned(blocks_of<B>(work) * held);
    });
    return plan;
  }
  plan.group = group_for(p.channels, p.batch, plan.choice, residual ? 2 : 1, device);
  const int64_t rows = plan.group.channels * plan.group.rows;
  plan.rows_bytes = aligned(rows * plan.choice.size * static_cast<int64_t>(sizeof(float2)));
  if (residual) plan.held_bytes = aligned(rows * p.length * static_cast<int64_t>(sizeof(float)));
  return plan;
}

template <class T>
FilteredRows<T> filtered_rows(const MixerConvParams& p, int part) {
  const int64_t first = part * p.channels;
  return {static_cast<const T*>(p.q.data) + first * p.q.channel_stride,
          p.q.batch_stride,
          p.q.channel_stride,
          1,
          p.s == nullptr ? nullptr : p.s + first * p.taps,
          p.s_bias == nullptr ? nullptr : p.s_bias + first,
          p.s == nullptr ? 1 : static_cast<int>(p.taps),
          {p.scalar}};
}
template <class T>
FilteredRows<T> residual_rows(const MixerConvParams& p) {
  return {static_cast<const T*>(p.u.data),
          p.u.batch_stride,
          p.u.channel_stride,
          p.u_sample_stride,
          nullptr,
          nullptr,
          1,
          {p.scalar}};
}

template <class T>
void forward_of_blocks(const MixerConvParams& p, const ForwardPlan& plan, const MixerRows<T>& rows,
                       const Launch& launch) {
  const Spectrum spectrum(p.spectrum, plan.choice);
  const CallShape shape{p.batch, p.channels, p.length, "mixer_conv"};
  with_block(BlockPlans{}, plan.choice.columns(), [&](auto block) {
    using B = decltype(block);
    using S = BlockShape<B>;
    const Work work{p.channels, p.batch, plan.slices};
    const int64_t held = plan.holds_in_shared ? kHeldRowBytes<B> * S::kTeams : 0;
    start("mixer_conv_kernel", shape, launch, mixer_conv_kernel<B, T>, blocks_of<B>(work),
          S::kThreads, S::kSharedBytes + held, rows, work, spectrum.inner_table(plan.choice));
  });
}

template <class T>
void forward_of_long_rows(const MixerConvParams& p, const ForwardPlan& plan,
                          const MixerRows<T>& all, float2* data, const Launch& launch) {
  const TransformShape& choice = plan.choice;
  const CallShape shape{p.batch, p.channels, p.length, "mixer_conv"};
  const auto branch = [&](const MixerInput<T>& input, const Spectrum& spectrum,
                          const MixerOutput<T>& output, int64_t channels) {
    const int64_t c = output.channel, rows = output.rows;
    const LongRows each = long_rows(choice, spectrum, data, c, output.row, rows);
    const ComplexRows<false> inner = complex_rows(choice, data, rows);
    outer_forward(choice, input, each, channels * rows, shape, launch);
    with_block(InnerPlans{}, choice.columns(), [&](auto block) {
      using S = BlockShape<decltype(block)>;
      const int64_t units = channels * choice.rows();
      const Work work{units, rows, slices_for<decltype(block)>(units, rows, launch.device)};
      start("fft_conv_kernel", shape, launch,
            fft_conv_kernel<decltype(block), ComplexRows<false>, ComplexRows<false>>,
            blocks_of<decltype(block)>(work), S::kThreads, S::kSharedBytes, inner, inner, work,
            spectrum.inner_table(choice), spectrum.values + c * (choice.size / 2));
    });
    outer_inverse(choice, output, each, channels * rows, shape, launch);
  };
  each_group(
      p.channels, p.batch, plan.group, [&](int64_t c, int64_t channels, int64_t row, int64_t rows) {
        MixerOutput<T> output{all.gate, nullptr, all.held, p.channels, p.length, c, row, rows};
        if (all.residual_spectrum != nullptr) {
          branch(all.u, Spectrum(p.residual_spectrum, choice), output, channels);
        }
        output.z = all.z;
        branch(all.g, Spectrum(p.spectrum, choice), output, channels);
      });
}

}  // namespace

int64_t mixer_conv_fwd_scratch(const MixerConvParams& p, const DeviceLimits& device) {
  return plan_forward(p, device).total();
}

void mixer_conv_fwd(const MixerConvParams& p, void* scratch, const Launch& launch) {
  const ForwardPlan plan = plan_forward(p, launch.device);
  const bool residual = p.residual_spectrum != nullptr;
  auto* bytes = static_cast<unsigned char*>(scratch);
  auto* held = plan.held_bytes == 0 ? nullptr : reinterpret_cast<float*>(bytes);
  const auto run = [&](auto scalar) {
    using T = decltype(scalar);
    const FilteredRows<T> none{};
    const MixerRows<T> rows{{filtered_rows<T>(p, 0), filtered_rows<T>(p, 2), p.length},
                            {residual_rows<T>(p), none, p.length},
                            filtered_rows<T>(p, 1),
                            static_cast<T*>(p.z),
                            p.channels,
                            p.length,
                            Spectrum(p.spectrum, plan.choice).values,
                            residual ? Spectrum(p.residual_spectrum, plan.choice).values : nullptr,
                            held};
    if (!plan.choice.is_long()) {
      forward_of_blocks(p, plan, rows, launch);
    } else {
      forward_of_long_rows(p, plan, rows, reinterpret_cast<float2*>(bytes + plan.held_bytes),
                           launch);
    }
  };
  if (p.scalar == Scalar::kFloat32) {
    run(float{});
  } else {
    run(SixteenBits{});
  }
}

}  // namespace monarch::cuda

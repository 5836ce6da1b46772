// Launchers of fft_conv: backward. A file of its own, so that both compile at the same time.
#include "cuda/fft_conv.h"
#include "cuda/fft_conv_chain.h"
#include "cuda/fft_conv_launch.cuh"
#include "cuda/fft_conv_toeplitz.h"

namespace monarch::cuda {
namespace {

// The gradients of k, k_rev and skip from that of the polynomial, c.
struct FilterGradientParams {
  const float2* c;  // channels rows, `pitch` apart, of size numbers; nullptr: zeros
  int64_t channels, pitch, size, length, taps, reverse_taps;
  bool circular;
  float *dk, *dk_rev, *dskip;
};

__global__ void __launch_bounds__(256) filter_gradient_taps_kernel(FilterGradientParams p) {
  const int64_t columns = p.taps + p.reverse_taps + 1;
  const int64_t index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (index >= p.channels * columns) return;
  const int64_t channel = index / columns, column = index % columns;
  const float2* c = p.c + channel * p.pitch;
  if (column < p.taps) {
    if (p.dk == nullptr) return;
    float value = p.c == nullptr ? 0.0f : c[column].x;
    if (p.circular && p.c != nullptr) value -= c[p.size - p.length + column].y;
    p.dk[channel * p.taps + column] = value;
  } else if (column < p.taps + p.reverse_taps) {
    const int64_t j = column - p.taps;
    if (p.dk_rev == nullptr) return;
    const bool reaches = p.c != nullptr && j < p.length - 1;
    p.dk_rev[channel * p.reverse_taps + j] = reaches ? -c[p.size - 1 - j].y : 0.0f;
  } else if (p.dskip != nullptr) {
    p.dskip[channel] = p.c == nullptr ? 0.0f : c[0].x;
  }
}

}  // namespace

namespace {

// Parts of the scratch memory of a backward, each for one group.
struct BackwardPlan {
  TransformShape choice;
  Group group;
  int slices = 1;
  bool holds_in_shared = false;
  int64_t parts = 1;  // partial sums a unit
  int64_t held_bytes = 0, partials_bytes = 0, rows_bytes = 0;

  int64_t total() const { return held_bytes + partials_bytes + 2 * rows_bytes; }
};

BackwardPlan plan_backward(const FftConvBackwardParams& p, const DeviceLimits& device) {
  BackwardPlan plan;
  plan.choice = choose(p.length, device);
  const TransformShape& c = plan.choice;
  plan.group =
      !c.is_long() ? Group{p.channels, p.batch} : group_for(p.channels, p.batch, c, 2, device);
  const int64_t units = plan.group.channels * c.rows();
  const int64_t row_bytes = c.columns() * static_cast<int64_t>(sizeof(float2));
  int64_t teams = 0;  // of a launch
  const auto of_block = [&](auto block) {
    using S = BlockShape<decltype(block)>;
    plan.slices = slices_for<decltype(block)>(units, plan.group.rows, device);
    plan.parts = plan.slices == 0 ? plan.group.rows : int64_t{plan.slices} * S::kTeams;
    const Work work{units, plan.group.rows, plan.slices};
    teams = blocks_of<decltype(block)>(work) * S::kTeams;
    // In shared memory where two blocks still fit a multiprocessor, which has 1 KB more than a
    // block may have, and keeps 1 KB for each.
    const int64_t shared = S::kSharedBytes + S::kHeldBytes + 1024;
    plan.holds_in_shared = 2 * shared <= device.shared_bytes + 1024;
    if (!plan.holds_in_shared) plan.held_bytes = aligned(teams * row_bytes);
  };
  if (!c.is_long()) {
    with_block(BlockPlans{}, c.columns(), of_block);
  } else {
    with_block(InnerPlans{}, c.columns(), of_block);
    plan.rows_bytes = aligned(plan.group.channels * plan.group.rows * c.size *
                              static_cast<int64_t>(sizeof(float2)));
  }
  if (p.dk != nullptr || p.dk_rev != nullptr || p.dskip != nullptr) {
    plan.partials_bytes = aligned(teams * row_bytes);
    // One row a channel for the inverse of the sum, where no input row is needed any more.
    const int64_t whole = plan.group.channels * c.size * static_cast<int64_t>(sizeof(float2));
    if (c.is_long()) plan.rows_bytes = std::max(plan.rows_bytes, aligned(whole));
  }
  return plan;
}

// All there is to know in the launchers below.
struct Backward {
  const FftConvBackwardParams& p;
  const BackwardPlan plan;
  const Spectrum spectrum;
  const CallShape shape;
  const Launch& launch;
  float4 *held, *partials;
  float2 *d_rows, *g_rows;

  Backward(const FftConvBackwardParams& params, int64_t first_channel, void* scratch,
           const Launch& l)
      : p(params),
        plan(plan_backward(params, l.device)),
        spectrum(params.spectrum, plan.choice, first_channel),
        shape{params.batch, params.channels, params.length},
        launch(l) {
    auto* bytes = static_cast<unsigned char*>(scratch);
    held = reinterpret_cast<float4*>(bytes);
    partials = reinterpret_cast<float4*>(bytes + plan.held_bytes);
    d_rows = reinterpret_cast<float2*>(bytes + plan.held_bytes + plan.partials_bytes);
    g_rows = d_rows + plan.rows_bytes / static_cast<int64_t>(sizeof(float2));
  }

  bool need_filter() const { return p.dk != nullptr || p.dk_rev != nullptr || p.dskip != nullptr; }
  bool need_input() const { return p.du != nullptr || p.dpregate != nullptr; }
  bool need_gate() const { return p.dpostgate != nullptr; }

  template <class Plans, class Input, class InputOutput, class GateOutput>
  void rows(Plans plans, const Input& d, const Input& g, const InputOutput& input_output,
            const GateOutput& gate_output, int64_t channel, int64_t units, int64_t count,
            bool add) const {
    with_block(plans, plan.choice.columns(), [&](auto block) {
      using S = BlockShape<decltype(block)>;
      const Work work{units, count, plan.slices};
      const BackwardScratch scratch{plan.holds_in_shared ? nullptr : held,
                                    need_filter() ? partials : nullptr, add};
      start("fft_conv_backward_kernel", shape, launch,
            fft_conv_backward_kernel<decltype(block), Input, InputOutput, GateOutput>,
            blocks_of<decltype(block)>(work), S::kThreads,
            S::kSharedBytes + (plan.holds_in_shared ? S::kHeldBytes : 0), d, g, input_output,
            gate_output, need_input(), need_gate(), work, spectrum.inner_table(plan.choice),
            spectrum.values + channel * (plan.choice.size / 2), scratch);
    });
  }

  template <class Plans, class Output>
  void filter_gradient(Plans plans, const Output& output, int64_t units) const {
    with_block(plans, plan.choice.columns(), [&](auto block) {
      using S = FilterShape<decltype(block)>;
      start("filter_gradient_kernel", shape, launch,
            filter_gradient_kernel<decltype(block), Output>, quotient(units, S::kTeams),
            S::kThreads, S::kSharedBytes, partials, static_cast<int>(plan.parts), units,
            spectrum.inner_table(plan.choice), output, scale_of(plan.choice));
    });
  }

  void taps(const float2* c, int64_t pitch, int64_t channel, int64_t channels) const {
    const auto from = [&](float* data, int64_t columns) {
      return data == nullptr ? nullptr : data + channel * columns;
    };
    const FilterGradientParams params{c,
                                      channels,
                                      pitch,
                                      plan.choice.size,
                                      p.length,
                                      p.taps,
                                      p.reverse_taps,
                                      p.circular,
                                      from(p.dk, p.taps),
                                      from(p.dk_rev, p.reverse_taps),
                                      from(p.dskip, 1)};
    start("filter_gradient_taps_kernel", shape, launch, filter_gradient_taps_kernel,
          quotient(channels * (p.taps + p.reverse_taps + 1), 256), 256, 0, params);
  }
};

template <class T>
void backward_of_blocks(const Backward& b, const RealInput<T>& d, const RealInput<T>& g,
                        const RealOutput<T, 2>& input_output, const RealOutput<T, 1>& gate_output) {
  b.rows(BlockPlans{}, d, g, input_output, gate_output, 0, b.p.channels, b.p.batch, false);
  if (!b.need_filter()) return;
  // The inverse goes where the first partial sum of its channel was.
  auto* c = reinterpret_cast<float2*>(b.partials);
  const int64_t pitch = b.plan.parts * b.plan.choice.size;
  b.filter_gradient(BlockPlans{}, ComplexRows<true>{c, 1, pitch, 1}, b.p.channels);
  b.taps(c, pitch, 0, b.p.channels);
}

template <class T>
void backward_of_long_rows(const Backward& b, const RealInput<T>& d, const RealInput<T>& g,
                           const RealOutput<T, 2>& input_output,
                           const RealOutput<T, 1>& gate_output) {
  const TransformShape& choice = b.plan.choice;
  const auto run = [&](int64_t c, int64_t channels, int64_t row, int64_t rows) {
    const LongRows d_all = long_rows(choice, b.spectrum, b.d_rows, c, row, rows);
    const LongRows g_all = long_rows(choice, b.spectrum, b.g_rows, c, row, rows);
    const ComplexRows<false> d_inner = complex_rows(choice, b.d_rows, rows);
    const ComplexRows<false> g_inner = complex_rows(choice, b.g_rows, rows);
    const int64_t count = channels * rows;
    if (b.need_filter() || b.need_input()) {
      outer_forward(choice, d, d_all, count, b.shape, b.launch);
    }
    if (b.need_filter() || b.need_gate()) {
      outer_forward(choice, g, g_all, count, b.shape, b.launch);
    }
    b.rows(InnerPlans{}, d_inner, g_inner, d_inner, g_inner, c, channels * choice.rows(), rows,
           row > 0);
    if (b.need_input()) outer_inverse(choice, input_output, d_all, count, b.shape, b.launch);
    if (b.need_gate()) outer_inverse(choice, gate_output, g_all, count, b.shape, b.launch);
    if (!b.need_filter() || row + rows < b.p.batch) return;
    const ComplexRows<false> whole = complex_rows(choice, b.d_rows, 1);
    b.filter_gradient(InnerPlans{}, whole, channels * choice.rows());
    const LongRows sums = long_rows(choice, b.spectrum, b.d_rows, 0, 0, 1);
    outer_inverse(choice, ComplexRows<true>{b.g_rows, 1, choice.size, 1}, sums, channels, b.shape,
                  b.launch);
    b.taps(b.g_rows, choice.size, c, channels);
  };
  each_group(b.p.channels, b.p.batch, b.plan.group, run);
}

}  // namespace

int64_t fft_conv_bwd_scratch(const FftConvBackwardParams& p, const DeviceLimits& device) {
  if (kind_of(p, device) == KernelKind::kToeplitz) return toeplitz::fft_conv_bwd_scratch(p, device);
  if (kind_of(p, device) == KernelKind::kChain) return chain::fft_conv_bwd_scratch(p, device);
  return p.batch == 0 ? 0 : plan_backward(p, device).total();
}

void fft_conv_bwd(const FftConvBackwardParams& p, void* scratch, const Launch& launch) {
  if (kind_of(p, launch.device) == KernelKind::kToeplitz) {
    return toeplitz::fft_conv_bwd(p, scratch, launch);
  }
  if (kind_of(p, launch.device) == KernelKind::kChain) {
    return chain::fft_conv_bwd(p, scratch, launch);
  }
  fft_conv_bwd_from(0, p, scratch, launch);
}

void fft_conv_bwd_from(int64_t first_channel, const FftConvBackwardParams& p, void* scratch,
                       const Launch& launch) {
  const Backward b(p, first_channel, scratch, launch);
  if (p.batch == 0) {  // the filter's gradient is still written: zeros
    if (b.need_filter()) b.taps(nullptr, 0, 0, p.channels);
    return;
  }
  with_scalar(p.scalar, [&](auto scalar) {
    using T = decltype(scalar);
    const RealInput<T> d{p.dy, p.postgate, p.length}, g{p.u, p.pregate, p.length};
    const RealOutput<T, 2> input_output{
        {{static_cast<T*>(p.du), p.pregate}, {static_cast<T*>(p.dpregate), p.u}},
        p.channels,
        p.length};
    const RealOutput<T, 1> gate_output{
        {{static_cast<T*>(p.dpostgate), p.dy}}, p.channels, p.length};
    if (!b.plan.choice.is_long()) {
      backward_of_blocks(b, d, g, input_output, gate_output);
    } else {
      backward_of_long_rows(b, d, g, input_output, gate_output);
    }
  });
}

}  // namespace monarch::cuda

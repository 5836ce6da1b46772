// What the launchers of fft_conv share: the plan for a length and a GPU, grids, and the passes over
// rows that no block can hold.
#pragma once
#include <algorithm>
#include <sstream>
#include <stdexcept>

#include "core/fft_conv_dispatch.h"
#include "cuda/columns.cuh"
#include "cuda/fft_conv.cuh"
#include "cuda/launch.h"

namespace monarch::cuda {

constexpr int64_t quotient(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---- Plans

// use(block) for the block plan of a size.
template <class Plans, class Use>
bool with_block(Plans plans, int64_t size, Use use) {
  bool found = false;
  for_each(plans, [&](auto block) {
    if (!found && decltype(block)::Row::kSize == size) {
      found = true;
      use(block);
    }
  });
  return found;
}

template <class Use>
void with_outer(int64_t size, Use use) {
  for_each(OuterPlans{}, [&](auto plan) {
    if (decltype(plan)::kSize == size) use(plan);
  });
}

template <class Use>
void with_scalar(Scalar scalar, Use use) {
  switch (scalar) {
    case Scalar::kFloat32:
      return use(float{});
    case Scalar::kBFloat16:
      return use(BFloat16{});
    case Scalar::kFloat16:
      return use(Float16{});
  }
}

inline TransformShape choose(int64_t length, const DeviceLimits& device) {
  const TransformShape choice = cuda_transform(length, device.shared_bytes);
  if (choice.size == 0) {
    std::ostringstream message;
    message << "fft_conv: cuda:" << device.index << " gives a block " << device.shared_bytes
            << " bytes of shared memory, too little for length " << length;
    throw std::runtime_error(message.str());
  }
  return choice;
}

template <class Params>
KernelKind kind_of(const Params& p, const DeviceLimits& device) {
  return kernel_kind(p.length, p.scalar, p.precision, device.shared_bytes);
}

// Groups of long rows differ in size: teams that take rows of any unit (Work) would number their
// partial sums differently from group to group.
template <class... Blocks>
constexpr bool one_team_each(PlanList<Blocks...>) {
  return ((BlockShape<Blocks>::kTeams == 1) && ...);
}
static_assert(one_team_each(InnerPlans{}));

// Where the parts of a spectrum lie.
struct Spectrum {
  float4* table;   // of the outer plan, if any, then of the inner one
  float4* values;  // size / 2 pairs a channel

  Spectrum(const float* data, const TransformShape& shape)
      : table(reinterpret_cast<float4*>(const_cast<float*>(data))), values(table + shape.pairs()) {}
  const float4* inner_table(const TransformShape& shape) const {
    return table + shape.inner_offset();
  }
  const float4* phases(const TransformShape& shape) const { return table + shape.phase_offset(); }
};

// 1/S without the odd part, which is in the table.
inline float scale_of(const TransformShape& choice) {
  return static_cast<float>(odd_part(choice.size)) / static_cast<float>(choice.size);
}

// ---- Launching

struct CallShape {
  int64_t batch, channels, length;
};

template <class Kernel, class... Arguments>
void start(const char* name, const CallShape& shape, const Launch& launch, Kernel kernel,
           int64_t grid, int block, int64_t shared_bytes, const Arguments&... arguments) {
  if (grid == 0) return;
  const char* error = nullptr;
  if (grid > 0x7fffffff) {
    error = "too many blocks";
  } else if (shared_bytes > launch.device.shared_bytes) {
    error = "a block needs more shared memory than the GPU gives it";
  } else {
    error = device::launch(kernel, dim3(static_cast<unsigned>(grid)),
                           dim3(static_cast<unsigned>(block)), static_cast<size_t>(shared_bytes),
                           launch.stream, arguments...);
  }
  if (error == nullptr) return;
  std::ostringstream message;
  message << "fft_conv: " << name << " for (B, H, L) = (" << shape.batch << ", " << shape.channels
          << ", " << shape.length << ") on cuda:" << launch.device.index << ": " << error;
  throw std::runtime_error(message.str());
}

// How many blocks share the rows of a unit: what ends soonest if all blocks that fit the GPU run at
// once and each turn takes as long. 0: see Work.
template <class Block>
int slices_for(int64_t units, int64_t rows, const DeviceLimits& device) {
  using S = BlockShape<Block>;
  if (rows < S::kTeams) return 0;
  const int64_t at_once = std::max<int64_t>(1, int64_t{device.multiprocessors} * S::kBlocks);
  const int64_t most = device.multiprocessors == 0 ? 1 : quotient(rows, S::kTeams);
  int64_t best = 1, best_turns = 0;
  for (int64_t slices = 1; slices <= std::min<int64_t>(most, 1024); ++slices) {
    const int64_t waves = quotient(units * slices, at_once);
    const int64_t turns = waves * quotient(quotient(rows, S::kTeams), slices);
    if (slices == 1 || turns < best_turns) best = slices, best_turns = turns;
  }
  return static_cast<int>(best);
}

template <class Block>
int64_t blocks_of(const Work& work) {
  if (work.slices > 0) return work.rows == 0 ? 0 : work.units * work.slices;
  return quotient(work.units * work.rows, BlockShape<Block>::kTeams);
}

// ---- Rows longer than a block, in groups whose scratch stays in the L2 cache

struct Group {
  int64_t channels, rows;  // of one group; rows < batch only if channels == 1
};

inline Group group_for(int64_t channels, int64_t batch, const TransformShape& choice, int buffers,
                       const DeviceLimits& device) {
  const int64_t row_bytes = choice.size * static_cast<int64_t>(sizeof(float2)) * buffers;
  const int64_t fitting = std::max<int64_t>(1, device.l2_bytes / 2 / row_bytes);
  if (batch == 0) return {channels, 0};
  // Groups of equal size: a small last one would leave most of the GPU idle.
  if (fitting < batch) return {1, quotient(batch, quotient(batch, fitting))};
  const int64_t most = std::max<int64_t>(1, std::min(channels, fitting / batch));
  return {quotient(channels, quotient(std::max<int64_t>(1, channels), most)), batch};
}

template <class Use>
void each_group(int64_t channels, int64_t batch, const Group& group, Use use) {
  for (int64_t c = 0; c < channels; c += group.channels) {
    for (int64_t b = 0; b < batch; b += group.rows) {
      use(c, std::min(group.channels, channels - c), b, std::min(group.rows, batch - b));
    }
  }
}

inline LongRows long_rows(const TransformShape& choice, const Spectrum& spectrum, float2* data,
                          int64_t channel, int64_t row, int64_t rows) {
  return {channel,
          row,
          static_cast<uint32_t>(rows),
          static_cast<int>(choice.columns()),
          choice.size,
          data,
          spectrum.table,
          reinterpret_cast<const float2*>(spectrum.phases(choice)),
          spectrum.phases(choice) + kFinePhases / 2};
}

template <class Input>
void outer_forward(const TransformShape& choice, const Input& input, const LongRows& rows,
                   int64_t count, const CallShape& shape, const Launch& launch) {
  with_outer(choice.rows(), [&](auto plan) {
    using C = ColumnShape<decltype(plan)>;
    start("outer_forward_kernel", shape, launch, outer_forward_kernel<decltype(plan), Input>,
          choice.columns() / C::kColumns * count, C::kThreads, C::kSharedBytes, input, rows);
  });
}

template <class Output>
void outer_inverse(const TransformShape& choice, const Output& output, const LongRows& rows,
                   int64_t count, const CallShape& shape, const Launch& launch) {
  with_outer(choice.rows(), [&](auto plan) {
    using C = ColumnShape<decltype(plan)>;
    start("outer_inverse_kernel", shape, launch, outer_inverse_kernel<decltype(plan), Output>,
          choice.columns() / C::kColumns * count, C::kThreads, C::kSharedBytes, output, rows);
  });
}

// Writes the table of the transform for a length, with which a spectrum begins.
void twiddle_table(int64_t length, float* table, const Launch& launch);

inline ComplexRows<false> complex_rows(const TransformShape& choice, float2* data, int64_t rows) {
  return {data, rows, choice.columns(), static_cast<int>(choice.rows())};
}

}  // namespace monarch::cuda

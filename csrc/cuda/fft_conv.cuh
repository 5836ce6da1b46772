// The kernels of fft_conv (docs/math.md). A "unit" is what has a spectrum of its own: a channel, or
// one inner row of a channel whose rows are too long for a block. Spectra, and everything else that
// is indexed by frequency, lie in the order in which the last forward stage leaves them in
// registers: pair i of butterfly b is float4 number i * butterflies + b.
#pragma once
#include "cuda/memory.cuh"
#include "cuda/transform.cuh"

namespace monarch::cuda {

template <class P>
constexpr int largest_radix() {
  int largest = 0;
  for (int i = 0; i < P::kStages; ++i) largest = P::radix(i) > largest ? P::radix(i) : largest;
  return largest;
}

// How many rows a block works on at a time, and its threads and registers. kWide: of the kernels
// for filters, whose points take twice the registers (wide.cuh).
template <class Block, bool kWide = false>
struct BlockShape {
  static constexpr int kTeam = kWide && Block::kThreads > 256 ? 256 : Block::kThreads;
  // Teams of a warp or less share a block of four warps.
  static constexpr int kTeams = kTeam <= 32 ? 128 / kTeam : 1;
  static constexpr int kThreads = kTeam * kTeams;
  static constexpr int kLargest = largest_radix<typename Block::Row>();
  // As many blocks as leave each thread the registers that a radix needs. Large blocks have to do
  // with 128: one of 256 threads alone would hide too little latency.
  static constexpr int kRegisters = kWide ? (kLargest > 16 ? 255 : 168)
                                    : kTeam <= 32 && Block::Row::kSize > 256 ? 168
                                                                             : 128;
  static constexpr int kBlocks = 65536 / (kRegisters * kThreads);
  // The backward needs a few more.
  static constexpr int kBackwardBlocks = kBlocks > 2 ? kBlocks - 1 : kBlocks;

  using Transform = RowTransform<typename Block::Row, kTeam, 1, kWide>;
  static constexpr int kSize = Block::Row::kSize;
  static constexpr int kRowBytes =
      (Transform::Shape::kPoints + Block::kGap) * static_cast<int>(sizeof(float2));
  static constexpr int kSharedBytes = kRowBytes * kTeams;
  static_assert(kTeams > 1 || kRowBytes == row_bytes(PlanShape::of<typename Block::Row>()));
  // The spectra of the rows, for a while.
  static constexpr int kHeldBytes = kSize * static_cast<int>(sizeof(float2)) * kTeams;
};

// Which rows of which units the teams have. `slices` blocks share the rows of one unit; if that
// would leave teams without a row, slices is 0, and each team has one row of any unit.
struct Work {
  int64_t units, rows;
  int slices;
};

// A team's part of the work: rows first + offset, first + step + offset, ... of a unit. `first` is
// the same for all teams of a block, which must take the same turns. `number` counts the teams of
// the grid: those of a unit are neighbours.
struct Share {
  int64_t unit, first, step, offset, number;

  template <class Shape>
  MONARCH_DEVICE static Share of(const Work& work) {
    const uint32_t team = Shape::kTeams == 1 ? 0 : threadIdx.x / Shape::kTeam;
    const int64_t number = int64_t{blockIdx.x} * Shape::kTeams + team;
    if (Shape::kTeams > 1 && work.slices == 0) {
      const int64_t unit = number / work.rows;
      if (unit >= work.units) return {0, 0, work.rows, work.rows, number};  // nothing to do
      return {unit, 0, work.rows, number % work.rows, number};
    }
    const uint32_t slice = blockIdx.x % work.slices;
    return {blockIdx.x / work.slices, int64_t{slice} * Shape::kTeams,
            int64_t{work.slices} * Shape::kTeams, team, number};
  }
};

template <class Block>
using FilterShape = BlockShape<Block, true>;

template <class Shape>
MONARCH_DEVICE typename Shape::Transform make_transform(unsigned char* shared,
                                                        const float4* table) {
  if constexpr (Shape::kTeams == 1) {
    return {reinterpret_cast<float2*>(shared), table, threadIdx.x};
  } else {
    const unsigned team = threadIdx.x / Shape::kTeam;
    return {reinterpret_cast<float2*>(shared + team * Shape::kRowBytes), table,
            threadIdx.x % Shape::kTeam};
  }
}

// Calls use(slot, residue, number) for each slot of a butterfly with its entry of a
// frequency-ordered array.
template <int kRadix, int kCount, class Load, class Use>
MONARCH_DEVICE void each_entry(int butterfly, Load load, Use use) {
  constexpr Residues<kRadix> kResidues;
#pragma unroll
  for (int i = 0; i < kRadix / 2; ++i) {
    const float4 pair = load(i * kCount + butterfly);
    use(2 * i, kResidues.of[2 * i], make_float2(pair.x, pair.y));
    use(2 * i + 1, kResidues.of[2 * i + 1], make_float2(pair.z, pair.w));
  }
}

// spectrum = F(filter) * scale, a power of two. One team a unit.
template <class Block, class Input>
__global__ void __launch_bounds__(FilterShape<Block>::kThreads, FilterShape<Block>::kBlocks)
    filter_spectrum_kernel(Input input, int64_t units, const float4* table, float4* spectrum,
                           float scale) {
  using Shape = FilterShape<Block>;
  MONARCH_DYNAMIC_SHARED(shared);
  const auto transform = make_transform<Shape>(shared, table);
  const int64_t unit = int64_t{blockIdx.x} * Shape::kTeams + threadIdx.x / Shape::kTeam;
  const auto in = input.at(unit, 0, unit < units);
  transform.template forward<float2>(
      [&](auto butterfly, auto& points) { in.load(butterfly.low, butterfly.kStride, points); },
      [&](auto butterfly, auto& x) {
        constexpr int kRadix = decltype(butterfly)::kRadix, kCount = Shape::kSize / kRadix;
        if (unit >= units) return;
        float4* out = spectrum + unit * (Shape::kSize / 2) + butterfly.index;
#pragma unroll
        for (int i = 0; i < kRadix / 2; ++i) {
          out[i * kCount] = make_float4(x[2 * i].x * scale, x[2 * i].y * scale,
                                        x[2 * i + 1].x * scale, x[2 * i + 1].y * scale);
        }
      });
}

// output = F^-1(spectrum . F(input)). Grid: units * slices.
template <class Block, class Input, class Output>
__global__ void __launch_bounds__(BlockShape<Block>::kThreads, BlockShape<Block>::kBlocks)
    fft_conv_kernel(Input input, Output output, Work work, const float4* table,
                    const float4* spectrum) {
  using Shape = BlockShape<Block>;
  MONARCH_DYNAMIC_SHARED(shared);
  const auto transform = make_transform<Shape>(shared, table);
  const Share share = Share::of<Shape>(work);
  const float4* own_spectrum = spectrum + share.unit * (Shape::kSize / 2);
  for (int64_t first = share.first; first < work.rows; first += share.step) {
    const int64_t row = first + share.offset;
    const bool active = row < work.rows;
    const auto in = input.at(share.unit, row, active);
    const auto out = output.at(share.unit, row, active);
    const auto write = [&](auto butterfly, auto& x, const auto& untwist) {
      out.store(butterfly.low, butterfly.kStride, x, untwist);
    };
    transform.template forward<typename Input::Value>(
        [&](auto butterfly, auto& points) { in.load(butterfly.low, butterfly.kStride, points); },
        [&](auto butterfly, auto& x) {
          constexpr int kRadix = decltype(butterfly)::kRadix;
          float2 product[kRadix];
          each_entry<kRadix, Shape::kSize / kRadix>(
              butterfly.index, [&](int i) { return device::load_readonly(own_spectrum + i); },
              [&](int slot, int s, float2 k) { product[s] = multiply(x[slot], k); });
          transform.begin_inverse(butterfly, product, write);
        });
    transform.end_inverse(write);
    // No barrier: a thread's first stage of the next row writes what its last stage of this read.
  }
}

// Spectra that a thread writes and reads again by itself; in shared memory or in scratch.
struct BackwardScratch {
  float4* held;      // of d: one a team; nullptr: in shared memory
  float4* partials;  // sums over rows of d conj(g): one a team; or nullptr
  bool add;          // to what partials holds
};

// sums (+)= held conj(g). Loads of several entries go out before the first store, which might
// change what a later one reads, for all that the compiler knows.
template <int kRadix, int kCount>
MONARCH_DEVICE void accumulate(float4* sums, const float4* held, int butterfly,
                               const float2 (&g)[kRadix], bool add) {
  constexpr int kGroup = 4;
  static_assert(kRadix / 2 % kGroup == 0 || kRadix == 4);
#pragma unroll
  for (int first = 0; first < kRadix / 2; first += kGroup) {
    float4 d[kGroup], sum[kGroup];
#pragma unroll
    for (int i = 0; i < kGroup && first + i < kRadix / 2; ++i) {
      const int entry = (first + i) * kCount + butterfly;
      d[i] = held[entry];
      sum[i] = add ? sums[entry] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
#pragma unroll
    for (int i = 0; i < kGroup && first + i < kRadix / 2; ++i) {
      const int slot = 2 * (first + i);
      const float2 a = multiply_conjugate(make_float2(d[i].x, d[i].y), g[slot]);
      const float2 b = multiply_conjugate(make_float2(d[i].z, d[i].w), g[slot + 1]);
      sums[(first + i) * kCount + butterfly] =
          make_float4(sum[i].x + a.x, sum[i].y + a.y, sum[i].z + b.x, sum[i].w + b.y);
    }
  }
}

// With d and g the two inputs: input_output = F^-1(conj(spectrum) . F(d)), gate_output =
// F^-1(spectrum . F(g)), partials = sum over the rows of F(d) conj(F(g)). Each is made only if
// wanted. Grid: units * slices.
template <class Block, class Input, class InputOutput, class GateOutput>
__global__ void __launch_bounds__(BlockShape<Block>::kThreads, BlockShape<Block>::kBackwardBlocks)
    fft_conv_backward_kernel(Input d_input, Input g_input, InputOutput input_output,
                             GateOutput gate_output, bool need_input, bool need_gate, Work work,
                             const float4* table, const float4* spectrum, BackwardScratch scratch) {
  using Shape = BlockShape<Block>;
  using Transform = typename Shape::Transform;
  constexpr int kRadix = Transform::kLastRadix, kCount = Shape::kSize / kRadix,
                kEntries = Shape::kSize / 2;
  MONARCH_DYNAMIC_SHARED(shared);
  const auto transform = make_transform<Shape>(shared, table);
  const Share share = Share::of<Shape>(work);
  const float4* own_spectrum = spectrum + share.unit * kEntries;
  const int team = Shape::kTeams == 1 ? 0 : static_cast<int>(threadIdx.x) / Shape::kTeam;
  float4* held = scratch.held == nullptr
                     ? reinterpret_cast<float4*>(shared + Shape::kSharedBytes) + team * kEntries
                     : scratch.held + share.number * kEntries;
  float4* sums = scratch.partials == nullptr ? nullptr : scratch.partials + share.number * kEntries;
  bool add = scratch.add;
  for (int64_t first = share.first; first < work.rows; first += share.step) {
    const int64_t row = first + share.offset;
    const bool active = row < work.rows;
    const auto reader = [&](const Input& input) {
      return [from = input.at(share.unit, row, active)](auto butterfly, auto& points) {
        from.load(butterfly.low, butterfly.kStride, points);
      };
    };
    const auto writer = [&](const auto& output) {
      return
          [to = output.at(share.unit, row, active)](auto butterfly, auto& x, const auto& untwist) {
            to.store(butterfly.low, butterfly.kStride, x, untwist);
          };
    };
    if (need_input || sums != nullptr) {
      transform.template forward<typename Input::Value>(
          reader(d_input), [&](auto butterfly, auto& x) {
#pragma unroll
            for (int i = 0; i < kRadix / 2; ++i) {
              held[i * kCount + butterfly.index] =
                  make_float4(x[2 * i].x, x[2 * i].y, x[2 * i + 1].x, x[2 * i + 1].y);
            }
          });
      Transform::Shape::sync();  // the next stage reads and writes other points
    }
    if (need_gate || sums != nullptr) {
      const auto write = writer(gate_output);
      transform.template forward<typename Input::Value>(
          reader(g_input), [&](auto butterfly, auto& x) {
            if (sums != nullptr) accumulate<kRadix, kCount>(sums, held, butterfly.index, x, add);
            if (!need_gate) return;
            float2 product[kRadix];
            each_entry<kRadix, kCount>(
                butterfly.index, [&](int i) { return device::load_readonly(own_spectrum + i); },
                [&](int slot, int s, float2 k) { product[s] = multiply(x[slot], k); });
            transform.begin_inverse(butterfly, product, write);
          });
      if (need_gate) {
        transform.end_inverse(write);
        Transform::Shape::sync();
      }
    }
    if (need_input) {
      const auto write = writer(input_output);
      transform.template each<Transform::kLast>([&](auto butterfly) {
        float2 in[kRadix];
        each_entry<kRadix, kCount>(
            butterfly.index,
            [&](int i) {
              const float4 d = held[i], k = device::load_readonly(own_spectrum + i);
              const float2 a = multiply_conjugate(make_float2(d.x, d.y), make_float2(k.x, k.y));
              const float2 b = multiply_conjugate(make_float2(d.z, d.w), make_float2(k.z, k.w));
              return make_float4(a.x, a.y, b.x, b.y);
            },
            [&](int, int s, float2 value) { in[s] = value; });
        transform.begin_inverse(butterfly, in, write);
      });
      transform.end_inverse(write);
    }
    add = true;
    if (!need_input) Transform::Shape::sync();
  }
}

// output = F^-1(scale * sum of the `parts` spectra of each unit). One team a unit; a row of output
// may be the memory of its own spectra.
template <class Block, class Output>
__global__ void __launch_bounds__(FilterShape<Block>::kThreads, FilterShape<Block>::kBlocks)
    filter_gradient_kernel(const float4* partials, int parts, int64_t units, const float4* table,
                           Output output, float scale) {
  using Shape = FilterShape<Block>;
  using Transform = typename Shape::Transform;
  constexpr int kRadix = Transform::kLastRadix, kCount = Shape::kSize / kRadix,
                kEntries = Shape::kSize / 2;
  MONARCH_DYNAMIC_SHARED(shared);
  const auto transform = make_transform<Shape>(shared, table);
  const int64_t unit = int64_t{blockIdx.x} * Shape::kTeams + threadIdx.x / Shape::kTeam;
  const bool active = Shape::kTeams == 1 || unit < units;
  const auto out = output.at(unit, 0, active);
  const auto write = [&](auto butterfly, auto& x, const auto& untwist) {
    out.store(butterfly.low, butterfly.kStride, x, untwist);
  };
  transform.template each<Transform::kLast>([&](auto butterfly) {
    float2 in[kRadix];
#pragma unroll
    for (int i = 0; i < kRadix; ++i) in[i] = make_float2(0.0f, 0.0f);
    const float4* own = partials + unit * parts * kEntries;
#pragma unroll 1
    for (int part = 0; part < (active ? parts : 0); ++part, own += kEntries) {
      each_entry<kRadix, kCount>(
          butterfly.index, [&](int i) { return own[i]; },
          [&](int, int s, float2 value) {
            in[s] = make_float2(in[s].x + value.x, in[s].y + value.y);
          });
    }
#pragma unroll
    for (int i = 0; i < kRadix; ++i) in[i] = cuda::scale(in[i], scale);
    transform.begin_inverse(butterfly, in, write);
  });
  transform.end_inverse(write);
}

}  // namespace monarch::cuda

// Rows longer than a block: an outer transform over columns leaves rows of an inner plan, and back.
#pragma once
#include "cuda/memory.cuh"
#include "cuda/transform.cuh"

namespace monarch::cuda {

// Filters and their gradients are transformed once a channel, by wide.cuh; 32 points of it are more
// than a thread has registers for.
template <class P, class Rows>
constexpr bool kIsWide = P::radix(0) < 32 && (std::is_same_v<Rows, FilterInput> ||
                                              std::is_same_v<Rows, ComplexRows<true>>);

template <class P, bool kWide = false>
struct ColumnShape {
  static constexpr bool kOneStage = P::kStages == 1;
  // Enough columns for whole sectors, few enough for the shared memory of every GPU.
  static constexpr int kColumns = kOneStage ? 128 : P::kSize > 256 ? 16 : 32;
  static constexpr int kThreads = kOneStage ? 128 : 256;
  // Large radices need more than 128 registers; their many loads hide latency by themselves.
  static constexpr int kRegisters = kWide || P::radix(0) == 32 ? 255 : kOneStage ? 168 : 128;
  static constexpr int kBlocks = 65536 / (kRegisters * kThreads);
  using Transform = RowTransform<P, kThreads, kColumns, kWide>;
  static constexpr int kSharedBytes =
      kOneStage ? 0 : Transform::Shape::kPoints * static_cast<int>(sizeof(float2));
};

// What outer and inner transforms share. Row r is channel `channel + r / rows`, row
// `row + r % rows` of the operator's arrays and number r of the scratch rows.
struct LongRows {
  int64_t channel, row;
  uint32_t rows;
  int columns;  // of an inner row
  int64_t size;
  float2* data;  // scratch: (row, block, column)
  const float4* table;
  const float2* fine;  // phases (core/twiddle.h)
  const float4* coarse;
};

// e^(2 pi i m / 4S) for m = multiplier * v. A residue of the outer transform is one modulo
// x^columns - e^(2 pi i theta), theta = (1/4 + frequency) / blocks; coefficient v times
// e^(2 pi i (theta - 1/4) v / columns) makes it one modulo x^columns - i. Back, the twist of the
// inner rows is undone too, so theta - 1/4 becomes theta.
MONARCH_DEVICE float2 outer_twiddle(const LongRows& p, int multiplier, int v) {
  const int product = multiplier * v;  // below 4S = 2^24 in magnitude
  const auto m =
      static_cast<uint32_t>(product < 0 ? product + 4 * static_cast<int>(p.size) : product);
  const float2 fine = device::load_readonly(p.fine + m % kFinePhases);
  const float4 coarse = device::load_readonly(p.coarse + m / kFinePhases);
  const float2 rest =
      make_float2(device::fma(coarse.x, fine.x, device::fma(-coarse.y, fine.y, coarse.z)),
                  device::fma(coarse.x, fine.y, device::fma(coarse.y, fine.x, coarse.w)));
  return make_float2(coarse.x + rest.x, coarse.y + rest.y);
}

// scratch = outer transform of the input's columns, twiddled. Grid: tiles of columns * rows.
template <class P, class Input, class Shape = ColumnShape<P, kIsWide<P, Input>>>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    outer_forward_kernel(Input input, LongRows p) {
  MONARCH_DYNAMIC_SHARED(shared);
  const auto tiles = static_cast<uint32_t>(p.columns / Shape::kColumns);
  const uint32_t r = blockIdx.x / tiles;
  const int column = static_cast<int>(blockIdx.x % tiles) * Shape::kColumns;
  const auto in = input.at(p.channel + r / p.rows, p.row + r % p.rows);
  float2* out = p.data + r * p.size + column;
  const typename Shape::Transform transform{reinterpret_cast<float2*>(shared), p.table,
                                            threadIdx.x};
  transform.template forward<typename Input::Value>(
      [&](auto butterfly, auto& points) {
        // Point j of the butterfly is n = j * stride + low in units of whole inner rows.
        const int digit = butterfly.low / Shape::kColumns, c = butterfly.low % Shape::kColumns;
        in.load(digit * p.columns + column + c, P::below(0) * p.columns, points);
      },
      [&](auto butterfly, auto& x) {
        constexpr int kLast = P::kStages - 1, kRadix = P::radix(kLast);
        constexpr Residues<kRadix> kResidues;
        const int c = butterfly.low, above = P::above(kLast);
        const int frequency =
            static_cast<int>(PlanShape::of<P>().frequency(kLast, butterfly.block));
#pragma unroll
        for (int slot = 0; slot < kRadix; ++slot) {
          const int s = kResidues.of[slot];
          const float2 w = outer_twiddle(p, 1 + 4 * (frequency + above * s) - P::kSize, column + c);
          out[(butterfly.block * kRadix + s) * p.columns + c] = multiply(x[slot], w);
        }
      });
}

// The way back. Grid: tiles of columns * rows.
template <class P, class Output, class Shape = ColumnShape<P, kIsWide<P, Output>>>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    outer_inverse_kernel(Output output, LongRows p) {
  constexpr int kLast = P::kStages - 1, kRadix = P::radix(kLast);
  MONARCH_DYNAMIC_SHARED(shared);
  const auto tiles = static_cast<uint32_t>(p.columns / Shape::kColumns);
  const uint32_t r = blockIdx.x / tiles;
  const int column = static_cast<int>(blockIdx.x % tiles) * Shape::kColumns;
  const auto out = output.at(p.channel + r / p.rows, p.row + r % p.rows);
  const float2* in = p.data + r * p.size + column;
  const typename Shape::Transform transform{reinterpret_cast<float2*>(shared), p.table,
                                            threadIdx.x};
  const auto write = [&](auto butterfly, auto& x, const auto& untwist) {
    const int digit = butterfly.low / Shape::kColumns, c = butterfly.low % Shape::kColumns;
    out.store(digit * p.columns + column + c, P::below(0) * p.columns, x, untwist);
  };
  transform.template each<kLast>([&](auto butterfly) {
    const int c = butterfly.low, above = P::above(kLast);
    const int frequency = static_cast<int>(PlanShape::of<P>().frequency(kLast, butterfly.block));
    float2 value[kRadix];
#pragma unroll
    for (int s = 0; s < kRadix; ++s) {
      const float2 w = outer_twiddle(p, 1 + 4 * (frequency + above * s), column + c);
      value[s] = multiply_conjugate(in[(butterfly.block * kRadix + s) * p.columns + c], w);
    }
    transform.begin_inverse(butterfly, value, write);
  });
  transform.end_inverse(write);
}

}  // namespace monarch::cuda

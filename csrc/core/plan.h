// Which transform sizes exist and how each factors. The one owner of these facts: the CPU and CUDA
// kernels include this file, Python asks `_host`.
#pragma once
#include <cstdint>
#include <initializer_list>

namespace monarch {

constexpr int64_t kMaxLength = int64_t{1} << 22;

// ---- CPU
// A size is {1, 3, 5} * 2^a, at least 32. A row of `columns` vectors is 16 * (product of the
// radices): the radices are the passes over the row, the 16 is what a leaf transforms. Odd radices
// come first, so that all strides below the first pass are powers of two.

constexpr int kLeafColumns = 16;
constexpr int kMaxPasses = 16;

// Up to this size the CPU kernels interleave channels (a vector holds one sample of several
// channels); above it a vector holds consecutive samples of one row, and sizes are multiples of 256
// so that every instruction set has whole leaves.
constexpr int64_t kInterleavedMax = 256;

// The smallest supported size S >= length; 0 when length is out of range.
constexpr int64_t transform_size(int64_t length) {
  if (length < 1 || length > kMaxLength) return 0;
  int64_t best = 0;
  for (int64_t odd : {1, 3, 5}) {
    int64_t size = odd;
    while (size < length || size < 32 || size % (size <= kInterleavedMax ? 16 : 256) != 0)
      size *= 2;
    if (best == 0 || size < best) best = size;
  }
  return best;
}

// Radices of the passes over `columns` vectors, columns = 16 * product. Few passes (8 is the
// largest radix that stays in registers), and the largest first: that pass reads real input, its
// inverse writes real output, at half the cost.
struct Radices {
  int count = 0;
  int radix[kMaxPasses] = {};
};

constexpr Radices factor(int64_t columns) {
  Radices out;
  int64_t rest = columns / kLeafColumns;
  for (int odd : {3, 5}) {
    if (rest % odd == 0) {
      out.radix[out.count++] = odd;
      rest /= odd;
    }
  }
  int bits = 0;
  while ((int64_t{1} << bits) < rest) ++bits;
  for (; bits == 3 || bits > 4; bits -= 3) out.radix[out.count++] = 8;
  for (; bits > 1; bits -= 2) out.radix[out.count++] = 4;
  if (bits == 1) out.radix[out.count++] = 2;
  return out;
}

// ---- CUDA
// Plans are template arguments. A block transforms a whole row in shared memory up to 16384 points;
// above that, an outer plan over strided columns leaves rows of an inner plan.

template <int... kRadices>
struct Plan {
  static constexpr int kStages = sizeof...(kRadices);
  static constexpr int kSize = (kRadices * ...);

  static constexpr int radix(int stage) {
    const int radices[] = {kRadices...};
    return radices[stage];
  }
  // The product of the radices before, and of those after, a stage.
  static constexpr int above(int stage) {
    int product = 1;
    for (int i = 0; i < stage; ++i) product *= radix(i);
    return product;
  }
  static constexpr int below(int stage) { return kSize / (above(stage) * radix(stage)); }
};

template <class... Entries>
struct PlanList {};

// A plan and the threads that share one row. Few stages, and of three the last two of radix 16,
// for which shared memory has no bank conflicts.
// Short rows of several teams lie in one block, `gap` numbers apart so that the teams' banks
// differ.
template <class PlanOfRow, int threads, int gap = 0>
struct BlockPlan {
  using Row = PlanOfRow;
  static constexpr int kThreads = threads, kGap = gap;
};

using BlockPlans =
    PlanList<BlockPlan<Plan<8, 4>, 4, 4>, BlockPlan<Plan<8, 8>, 8>, BlockPlan<Plan<12, 8>, 8, 12>,
             BlockPlan<Plan<16, 8>, 8, 8>, BlockPlan<Plan<12, 16>, 16>, BlockPlan<Plan<16, 16>, 16>,
             BlockPlan<Plan<24, 16>, 16>, BlockPlan<Plan<32, 16>, 16>, BlockPlan<Plan<24, 32>, 32>,
             BlockPlan<Plan<32, 32>, 32>, BlockPlan<Plan<6, 16, 16>, 96>,
             BlockPlan<Plan<8, 16, 16>, 128>, BlockPlan<Plan<12, 16, 16>, 64>,
             BlockPlan<Plan<16, 16, 16>, 256>, BlockPlan<Plan<16, 24, 16>, 128>,
             BlockPlan<Plan<16, 32, 16>, 256>, BlockPlan<Plan<24, 32, 16>, 256>,
             BlockPlan<Plan<32, 32, 16>, 512>>;

// Rows longer than a block can hold: size = outer * inner.
using OuterPlans = PlanList<Plan<2>, Plan<4>, Plan<8>, Plan<16>, Plan<32>, Plan<8, 8>, Plan<16, 8>,
                            Plan<16, 16>, Plan<32, 16>>;
using InnerPlans = PlanList<BlockPlan<Plan<16, 24, 16>, 128>, BlockPlan<Plan<16, 32, 16>, 256>>;

// The Toeplitz matrix of a short filter, in tiles of 16 x 16.
constexpr int kToeplitzTile = 16;

template <int tiles>
struct ToeplitzPlan {
  static constexpr int kTiles = tiles, kSize = kToeplitzTile * tiles;
};

using ToeplitzPlans = PlanList<ToeplitzPlan<8>, ToeplitzPlan<16>>;

template <class Visit, class... Entries>
constexpr void for_each(PlanList<Entries...>, Visit visit) {
  (visit(Entries{}), ...);
}

// The smallest Toeplitz matrix for a length; 0 if there is none.
constexpr int toeplitz_size(int64_t length) {
  int best = 0;
  for_each(ToeplitzPlans{}, [&](auto plan) {
    constexpr int kSize = decltype(plan)::kSize;
    if (kSize >= length && (best == 0 || kSize < best)) best = kSize;
  });
  return best;
}
constexpr int toeplitz_longest() {
  int longest = 0;
  for_each(ToeplitzPlans{}, [&](auto plan) {
    if (decltype(plan)::kSize > longest) longest = decltype(plan)::kSize;
  });
  return longest;
}

// The smallest CUDA transform size >= length; 0 when length is out of range.
constexpr int64_t cuda_transform_size(int64_t length) {
  if (length < 1 || length > kMaxLength) return 0;
  int64_t best = 2 * kMaxLength;
  const auto offer = [&](int64_t size) {
    if (size >= length && size < best) best = size;
  };
  for_each(BlockPlans{}, [&](auto block) { offer(decltype(block)::Row::kSize); });
  for_each(InnerPlans{}, [&](auto inner) {
    for_each(OuterPlans{}, [&](auto outer) {
      offer(int64_t{decltype(inner)::Row::kSize} * decltype(outer)::kSize);
    });
  });
  return best;
}

}  // namespace monarch

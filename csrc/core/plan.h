// Which transform sizes exist and how each factors. The one owner of this fact: Python asks
// `_host.transform_size`, the CPU and CUDA kernels include this file.
//
// A size is {1, 3, 5} * 2^a, at least 32. A row of `columns` vectors is 16 * (product of the
// radices): the radices are the passes over the row, the 16 is what a leaf transforms. Odd radices
// come first, so that all strides below the first pass are powers of two.
#pragma once
#include <cstdint>
#include <initializer_list>

namespace monarch {

constexpr int64_t kMaxLength = int64_t{1} << 22;
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

}  // namespace monarch

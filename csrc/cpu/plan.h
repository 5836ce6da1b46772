// A transform size bound to an instruction set's vector width, with its twiddle tables.
#pragma once
#include <cstdint>

#include "core/plan.h"

namespace monarch::cpu {

struct Plan {
  int64_t size = 0;          // S, complex points
  bool interleaved = false;  // a vector holds one sample of `lanes` channels, not `lanes` samples
  int lanes = 0;             // floats in a vector
  int64_t columns = 0;       // vectors in a row: S (interleaved) or S / lanes
  Radices passes;            // columns = 16 * product
  // Both streams are in the order in which a depth-first walk needs them, see docs/math.md.
  const float* scalars = nullptr;          // (re, im) per pass and leaf
  const double* double_scalars = nullptr;  // scalars before rounding, if interleaved
  const float* vectors = nullptr;          // (lanes re, lanes im) per leaf; 64-byte aligned
};

// Built once per (size, lanes), kept for the life of the process, safe to call from any thread.
// `length` must be in [1, kMaxLength].
const Plan& plan_for(int64_t length, int lanes);

// A row of complex vectors is padded by one vector per 4 KiB: the streams of a pass lie a power of
// two apart and would otherwise fall into one set of the first-level cache.
constexpr int64_t padded(int64_t vector, int lanes) { return vector + vector / (512 / lanes); }
// Floats of such a row, a multiple of 64 bytes; two rows do not start in the same cache set either.
constexpr int64_t row_floats(const Plan& plan) {
  return (2 * plan.lanes * (padded(plan.columns, plan.lanes) + 1) + 15) / 16 * 16 + 16;
}

}  // namespace monarch::cpu

// Twiddles of the transform modulo x^S - i (docs/math.md, section 3): their phases as exact
// fractions of a turn, and where each lies in the table that the CUDA kernels read.
#pragma once
#include <cstdint>

#include "core/plan.h"

namespace monarch {

// e^(2 pi i numerator / denominator)
struct Phase {
  int64_t numerator, denominator;
};

// A DFT of radix R whose input has twiddles e^(2 pi i theta j / R) splits x^R - e^(2 pi i theta)
// level by level, a factor 3 first and then factors 2. Blocks of one level in the order of the
// registers ("slots") have the residues `residue(R, slot)`; blocks 2b and 2b+1 have twiddles that
// differ by a factor i, so a level of n blocks needs n/2 of them (the first level needs 1).
constexpr int power_part(int radix) { return radix % 3 == 0 ? radix / 3 : radix; }

constexpr int reverse_bits(int value, int count) {
  int out = 0;
  for (int bit = 0; bit < count; ++bit) out |= (value >> bit & 1) << (count - 1 - bit);
  return out;
}

constexpr int log2_of(int power) {
  int bits = 0;
  while ((1 << bits) < power) ++bits;
  return bits;
}

constexpr int residue(int radix, int slot) {
  const int power = power_part(radix);
  const int inner = reverse_bits(slot % power, log2_of(power));
  return radix == power ? inner : slot / power + 3 * inner;
}

// The same as a table: a compiler that unrolls a loop over slots need not evaluate anything.
template <int kRadix>
struct Residues {
  int of[kRadix] = {};
  constexpr Residues() {
    for (int slot = 0; slot < kRadix; ++slot) of[slot] = residue(kRadix, slot);
  }
};

constexpr int twiddle_count(int radix) {
  const int power = power_part(radix);
  return radix == power ? power / 2 : 2 + 3 * (power / 2);
}
// Tables hold pairs, to be loaded 16 bytes at a time.
constexpr int twiddle_pairs(int radix) { return (twiddle_count(radix) + 1) / 2; }

// Index of the twiddle of blocks 2b and 2b+1 at `level` of a power of two.
constexpr int twiddle_index(int level, int block) {
  return level == 0 ? 0 : (1 << (level - 1)) + block / 2;
}

// The phase of twiddle `index` for theta = numerator / denominator.
constexpr Phase twiddle_phase(int radix, int index, int64_t numerator, int64_t denominator) {
  const int power = power_part(radix);
  if (radix != power) {
    if (index < 2) return {(index + 1) * numerator, 3 * denominator};
    const int per_residue = power / 2 > 0 ? power / 2 : 1;
    numerator += (index - 2) / per_residue * denominator;
    denominator *= 3;
    index = (index - 2) % per_residue;
  }
  int level = 0;
  while (level + 1 < 31 && twiddle_index(level + 1, 0) <= index) ++level;
  const int block = level == 0 ? 0 : 2 * (index - (1 << (level - 1)));
  return {numerator + reverse_bits(block, level) * denominator, denominator << (level + 1)};
}

// ---- The table of one plan, in pairs of complex numbers
// forward(stage >= 1): for each block of the stage. inverse(stage < last): for each position below
// the stage. Both as (cosine, tangent). untwist: e^(2 pi i n / 4S) as (cosine, sine), in the order
// in which the last inverse stage has its results. low: what the rounding of each (cosine, tangent)
// left of (cosine, sine). Within each, pair by pair: neighbouring threads read neighbouring pairs.

struct PlanShape {
  static constexpr int kMost = 3;
  int stages = 0;
  int radix[kMost] = {};

  template <class P>
  static constexpr PlanShape of() {
    PlanShape shape;
    shape.stages = P::kStages;
    for (int i = 0; i < P::kStages; ++i) shape.radix[i] = P::radix(i);
    return shape;
  }
  // Loops of constant length: on a GPU the radices then stay in registers.
  constexpr int above(int stage) const {
    int product = 1;
    for (int i = 0; i < kMost; ++i) product *= i < stage ? radix[i] : 1;
    return product;
  }
  constexpr int below(int stage) const {
    int product = 1;
    for (int i = 0; i < kMost; ++i) product *= stage < i && i < stages ? radix[i] : 1;
    return product;
  }
  constexpr int size() const { return above(stages); }

  constexpr int forward_offset(int stage) const {
    int offset = 0;
    for (int i = 1; i < kMost; ++i) offset += i < stage ? twiddle_pairs(radix[i]) * above(i) : 0;
    return offset;
  }
  constexpr int inverse_offset(int stage) const {
    int offset = forward_offset(stages);
    for (int i = 0; i < kMost; ++i) offset += i < stage ? twiddle_pairs(radix[i]) * below(i) : 0;
    return offset;
  }
  constexpr int untwist_offset() const { return inverse_offset(stages > 0 ? stages - 1 : 0); }
  constexpr int low_offset() const { return untwist_offset() + size() / 2; }
  constexpr int pairs() const { return low_offset() + untwist_offset(); }

  // The frequency, without the quarter, of a block of `stage`: the first digit counts least.
  constexpr int64_t frequency(int stage, int block) const {
    int64_t value = 0;
    for (int i = kMost - 1; i >= 0; --i) {
      if (i >= stage) continue;
      value += int64_t{block % radix[i]} * above(i);
      block /= radix[i];
    }
    return value;
  }

  // The phase of number `half` (0 or 1) of a pair. An unused half repeats the first twiddle.
  constexpr Phase phase(int pair, int half) const {
    if (pair >= low_offset()) pair -= low_offset();
    for (int i = 1; i < kMost; ++i) {
      const int blocks = above(i), local = pair - forward_offset(i);
      if (i < stages && local >= 0 && local < twiddle_pairs(radix[i]) * blocks) {
        const int index = 2 * (local / blocks) + half;
        return twiddle_phase(radix[i], index < twiddle_count(radix[i]) ? index : 0,
                             1 + 4 * frequency(i, local % blocks), int64_t{4} * blocks);
      }
    }
    for (int i = 0; i + 1 < kMost; ++i) {
      const int positions = below(i), local = pair - inverse_offset(i);
      if (i + 1 < stages && local >= 0 && local < twiddle_pairs(radix[i]) * positions) {
        const int index = 2 * (local / positions) + half;
        return twiddle_phase(radix[i], index < twiddle_count(radix[i]) ? index : 0,
                             local % positions, positions);
      }
    }
    const int columns = below(0), local = pair - untwist_offset();
    const int slot = 2 * (local / columns) + half;
    return {int64_t{residue(radix[0], slot)} * columns + local % columns, int64_t{4} * size()};
  }
};

// ---- The tables of a transform

// The part of 1/S that is no power of two goes where it costs no rounding: into the untwist.
constexpr int64_t odd_part(int64_t size) {
  while (size % 2 == 0) size /= 2;
  return size;
}

// Phases m / 4S of the step between outer and inner transform: e^(2 pi i m / 4S) = coarse + coarse
// * fine, with fine = e^(2 pi i m / 4S) - 1 of small m, and coarse a pair, the number and its
// rounding error: the sum is then rounded once.
constexpr int kFinePhases = 1024;
constexpr int64_t coarse_phases(int64_t size) { return 4 * size / kFinePhases + 1; }

// Of `size` points: rows of a block plan (outer.stages == 0), or an outer and an inner plan. The
// table holds that of outer, that of inner, and the phases.
struct TransformShape {
  int64_t size = 0;  // 0: there is none
  PlanShape outer, inner;

  constexpr bool is_long() const { return outer.stages > 0; }
  constexpr int64_t rows() const { return is_long() ? outer.size() : 1; }
  constexpr int64_t columns() const { return inner.size(); }
  constexpr int64_t inner_offset() const { return is_long() ? outer.pairs() : 0; }
  constexpr int64_t phase_offset() const { return inner_offset() + inner.pairs(); }
  constexpr int64_t pairs() const {
    return phase_offset() + (is_long() ? kFinePhases / 2 + coarse_phases(size) : 0);
  }
};

constexpr TransformShape block_transform(int64_t size) {
  TransformShape found;
  for_each(BlockPlans{}, [&](auto block) {
    using Row = typename decltype(block)::Row;
    if (Row::kSize == size) found = {size, {}, PlanShape::of<Row>()};
  });
  return found;
}

constexpr TransformShape long_transform(int64_t size) {
  TransformShape found;
  for_each(InnerPlans{}, [&](auto block) {
    for_each(OuterPlans{}, [&](auto outer) {
      using Row = typename decltype(block)::Row;
      using Outer = decltype(outer);
      if (int64_t{Row::kSize} * Outer::kSize == size)
        found = {size, PlanShape::of<Outer>(), PlanShape::of<Row>()};
    });
  });
  return found;
}

// Shared memory of one row: one number in as many as the last radix is left out (RowShape).
constexpr int64_t row_bytes(const PlanShape& row) {
  return 8 * (row.size() + row.size() / row.radix[row.stages - 1]);
}

// The transform for a length on a GPU that gives a block `shared_bytes`: of a block plan if there
// is one whose row fits, else a long one, if there is one whose inner row fits, else none.
constexpr TransformShape cuda_transform(int64_t length, int64_t shared_bytes) {
  const int64_t size = cuda_transform_size(length);
  const TransformShape block = block_transform(size), split = long_transform(size);
  if (block.size > 0 && row_bytes(block.inner) <= shared_bytes) return block;
  if (split.size > 0 && row_bytes(split.inner) <= shared_bytes) return split;
  return {};
}

// Size of a spectrum on CUDA: the twiddles of its transform, then 2 numbers a point and channel.
// Spectra of two transforms of one size never have the same: one cannot be taken for the other.
constexpr int64_t cuda_spectrum_floats(int64_t channels, const TransformShape& shape) {
  return 4 * shape.pairs() + 2 * shape.size * channels;
}
constexpr bool pairs_differ() {
  bool differ = true;
  for_each(BlockPlans{}, [&](auto block) {
    const TransformShape split = long_transform(decltype(block)::Row::kSize);
    differ &= split.pairs() != block_transform(split.size).pairs() || split.size == 0;
  });
  return differ;
}
static_assert(pairs_differ());

// ---- Values at compile time

// cos and sin of numerator / denominator turns, exact to rounding: reduced to an eighth of a turn
// in integers, then a power series.
struct CosSin {
  double cosine, sine;
};

constexpr CosSin cos_sin_series(double x) {
  double cosine = 0, sine = 0, term = 1;
  for (int n = 0; n < 20; ++n) {
    const double signed_term = n % 4 < 2 ? term : -term;
    (n % 2 == 0 ? cosine : sine) += signed_term;
    term *= x / (n + 1);
  }
  return {cosine, sine};
}

constexpr CosSin cos_sin(Phase phase) {
  constexpr double kTau = 6.283185307179586476925286766559;
  const int64_t den = phase.denominator;
  const int64_t num = (phase.numerator % den + den) % den;
  const int64_t quadrant = 4 * num / den, rest = 4 * num % den;  // rest / (4 den) of a turn
  const bool swap = 2 * rest > den;
  const double x = kTau * static_cast<double>(swap ? den - rest : rest) / (4.0 * den);
  const CosSin first = cos_sin_series(x);
  const double c = swap ? first.sine : first.cosine, s = swap ? first.cosine : first.sine;
  return quadrant == 0   ? CosSin{c, s}
         : quadrant == 1 ? CosSin{-s, c}
         : quadrant == 2 ? CosSin{-c, -s}
                         : CosSin{s, -c};
}

}  // namespace monarch

// The transform of a row that lies in shared memory, stage by stage and in place: a butterfly reads
// and writes the same points, so one barrier between stages is enough. Letters: docs/math.md.
#pragma once
#include "cuda/wide.cuh"

namespace monarch::cuda {

// A row of P::kSize points, each of kColumns numbers that are transformed side by side, worked on
// by a team of kTeam threads: a whole block, or up to 32 neighbours in a warp.
template <class P, int kTeam, int kColumns = 1>
struct RowShape {
  static constexpr int kLast = P::kStages - 1;
  static constexpr PlanShape kPlan = PlanShape::of<P>();

  static constexpr int stride(int stage) { return P::below(stage) * kColumns; }
  static constexpr int butterflies(int stage) { return P::kSize * kColumns / P::radix(stage); }

  // One complex number in kPad is left out: then neighbouring threads find their points in
  // different banks in every stage. Columns do that by themselves.
  static constexpr int kPad = kColumns > 1 ? 0 : P::radix(kLast);
  static constexpr int padded(int point) {
    return kPad == 0 ? point : point + point / (kPad == 0 ? 1 : kPad);
  }
  static constexpr int kPoints = padded(P::kSize * kColumns);

  MONARCH_DEVICE static void sync() {
    if constexpr (kTeam <= 32) {
      device::sync_warp();
    } else {
      device::sync_threads();
    }
  }
};

// A butterfly of one stage: points j * stride + low of its block, j < radix.
template <class Shape, class P, int kStage>
struct Butterfly {
  static constexpr int kRadix = P::radix(kStage), kStride = Shape::stride(kStage);
  int index, block, low;

  // Unsigned, since a division of signed numbers by a power of two takes four instructions.
  MONARCH_DEVICE explicit Butterfly(unsigned i)
      : index(static_cast<int>(i)),
        block(static_cast<int>(i / kStride)),
        low(static_cast<int>(i % kStride)) {}

  MONARCH_DEVICE int first() const { return Shape::padded(block * (kRadix * kStride) + low); }
  // Constant, since the padding unit divides the stride or the stride divides it.
  MONARCH_DEVICE static constexpr int offset(int j) { return Shape::padded(j * kStride); }
  static_assert(Shape::kPad == 0 || kStride % Shape::kPad == 0 || Shape::kPad % kStride == 0);

  MONARCH_DEVICE void load(const float2* row, float2 (&in)[kRadix]) const {
    const float2* point = row + first();
#pragma unroll
    for (int j = 0; j < kRadix; ++j) in[j] = point[offset(j)];
  }
  MONARCH_DEVICE void store(float2* row, const float2 (&x)[kRadix]) const {
    constexpr Residues<kRadix> kResidues;
    float2* point = row + first();
#pragma unroll
    for (int slot = 0; slot < kRadix; ++slot) point[offset(kResidues.of[slot])] = x[slot];
  }
};

// kWide: the DFTs are those of wide.cuh.
template <class P, int kTeam, int kColumns = 1, bool kWide = false>
struct RowTransform {
  using Shape = RowShape<P, kTeam, kColumns>;
  static constexpr int kLast = Shape::kLast, kFirstRadix = P::radix(0),
                       kLastRadix = P::radix(kLast);
  template <int kStage>
  using Butterfly = cuda::Butterfly<Shape, P, kStage>;

  float2* row;
  const float4* table;
  unsigned rank;  // of this thread in its team

  template <int kStage, class Body>
  MONARCH_DEVICE void each(Body body) const {
    constexpr unsigned kCount = Shape::butterflies(kStage);
    if constexpr (kCount == kTeam) {
      body(Butterfly<kStage>(rank));
    } else {
#pragma unroll 1
      for (unsigned i = rank; i < kCount; i += kTeam) body(Butterfly<kStage>(i));
    }
  }

  // All stages, the last one's result to use(butterfly, x). source(butterfly, in) gives the first
  // one its input, float or float2 as Value says.
  template <class Value, class Source, class Use>
  MONARCH_DEVICE void forward(Source source, Use use) const {
    each<0>([&](auto butterfly) {
      Value in[kFirstRadix];
      float2 x[kFirstRadix];
      source(butterfly, in);
      constant_dft<kFirstRadix, false, 1, 4>(in, x);
      if constexpr (kLast == 0) {
        use(butterfly, x);
      } else {
        butterfly.store(row, x);
      }
    });
    if constexpr (kLast == 2) {
      Shape::sync();
      forward_stage<1>([&](auto butterfly, auto& x) { butterfly.store(row, x); });
    }
    if constexpr (kLast > 0) {
      Shape::sync();
      forward_stage<kLast>(use);
    }
  }

  // From in[residue] of a butterfly of the last stage to the points of the row (or, of a plan of
  // one stage, to the result).
  template <class B, class Sink>
  MONARCH_DEVICE void begin_inverse(B butterfly, const float2 (&in)[kLastRadix],
                                    Sink&& sink) const {
    float2 x[kLastRadix];
    constant_dft<kLastRadix, true, 0, 1>(in, x);
    if constexpr (kLast == 0) {
      finish(butterfly, x, sink);
    } else {
      butterfly.store(row, x);
    }
  }

  // The other stages; results to sink(butterfly, x, untwist), see finish.
  template <class Sink>
  MONARCH_DEVICE void end_inverse(Sink sink) const {
    if constexpr (kLast == 2) {
      Shape::sync();
      inverse_stage<1>([&](auto butterfly, auto& x) { butterfly.store(row, x); });
    }
    if constexpr (kLast > 0) {
      Shape::sync();
      inverse_stage<0>([&](auto butterfly, auto& x) { finish(butterfly, x, sink); });
    }
  }

 private:
  template <int kRadix, bool kInverse, int kNumerator, int kDenominator, class Value>
  MONARCH_DEVICE static void constant_dft(const Value (&in)[kRadix], float2 (&x)[kRadix]) {
    if constexpr (kWide) {
      wide_dft<kRadix, kInverse>(in, x, ConstantWideTwiddles<kRadix, kNumerator, kDenominator>());
    } else {
      dft<kRadix, kInverse>(in, x, ConstantTwiddles<kRadix, kNumerator, kDenominator>());
    }
  }
  // Of pairs `count` apart.
  template <int kRadix, bool kInverse>
  MONARCH_DEVICE static void table_dft(const float2 (&in)[kRadix], float2 (&x)[kRadix],
                                       const float4* pairs, int count) {
    if constexpr (kWide) {
      constexpr int kLow = Shape::kPlan.low_offset();
      wide_dft<kRadix, kInverse>(in, x, LoadedWideTwiddles{pairs, kLow, count});
    } else {
      dft<kRadix, kInverse>(in, x, LoadedTwiddles<twiddle_pairs(kRadix)>(pairs, count));
    }
  }

  template <int kStage, class Use>
  MONARCH_DEVICE void forward_stage(Use use) const {
    constexpr int kRadix = P::radix(kStage), kBlocks = P::above(kStage);
    each<kStage>([&](auto butterfly) {
      float2 in[kRadix], x[kRadix];
      butterfly.load(row, in);
      const float4* pairs = table + Shape::kPlan.forward_offset(kStage) + butterfly.block;
      table_dft<kRadix, false>(in, x, pairs, kBlocks);
      use(butterfly, x);
    });
  }

  template <int kStage, class Use>
  MONARCH_DEVICE void inverse_stage(Use use) const {
    constexpr int kRadix = P::radix(kStage), kPositions = P::below(kStage);
    each<kStage>([&](auto butterfly) {
      float2 in[kRadix], x[kRadix];
      butterfly.load(row, in);
      const float4* pairs = table + Shape::kPlan.inverse_offset(kStage) + butterfly.low / kColumns;
      table_dft<kRadix, true>(in, x, pairs, kPositions);
      use(butterfly, x);
    });
  }

  // What remains is e^(-2 pi i n / 4S): sink(butterfly, x, untwist) has point
  // n = residue(slot) * stride + low in x[slot], to be multiplied by conj(untwist[slot]).
  template <class B, class Sink>
  MONARCH_DEVICE void finish(B butterfly, const float2 (&x)[kFirstRadix], Sink& sink) const {
    const float4* pairs = table + Shape::kPlan.untwist_offset() + butterfly.low / kColumns;
    if constexpr (kFirstRadix >= 24) {
      sink(butterfly, x, LazyTwiddles{pairs, P::below(0)});
    } else {
      sink(butterfly, x, LoadedTwiddles<kFirstRadix / 2>(pairs, P::below(0)));
    }
  }
};

}  // namespace monarch::cuda

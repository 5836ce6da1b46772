// The kernels of a product with the filter's Toeplitz matrix (docs/math.md, section 11), on tensor
// cores. All operands are bfloat16 pairs (hi, lo) whose sum has 16 bits: the filter's, and those of
// an input that is no bfloat16 number itself. Their range is that of float32, so that nothing is
// scaled.
//
// A warp holds the fragments of the matrix for its rows of tiles and multiplies 16 rows of the
// batch in each turn. Sample 4 c + 2 e + b of a tile of 16 is element b of fragment register e of
// lanes (r, c): a lane's share of a row are 4 neighbours, 8 bytes. The element of the matrix
// between input 4 c + 2 e + b and output 4 n + 2 e' + b', which lane (2 n + b', c) holds, is the
// tap of distance 2 (e' - e) + 4 (n - c) + b' - b from that between the tiles.
#pragma once
#include "core/fft_conv.h"
#include "core/plan.h"
#include "cuda/memory.cuh"

namespace monarch::cuda {

// ---- Pairs and octets of 16-bit numbers

MONARCH_DEVICE float low_of(BFloat16, uint32_t pair) { return device::bits_as_float(pair << 16); }
MONARCH_DEVICE float high_of(BFloat16, uint32_t pair) {
  return device::bits_as_float(pair & 0xffff0000u);
}
MONARCH_DEVICE float low_of(Float16, uint32_t pair) {
  return device::to_float(Float16{static_cast<uint16_t>(pair)});
}
MONARCH_DEVICE float high_of(Float16, uint32_t pair) {
  return device::to_float(Float16{static_cast<uint16_t>(pair >> 16)});
}

struct Quartet {
  uint32_t pair[2];
};

// What of a lane's quartets is there. kWhole: all of each, aligned to 8 bytes. Else the numbers
// before `end`, and only `aligned` may they be moved together.
template <bool kWhole, int kWay>
struct Extent {
  bool aligned;
  int end[2];  // of the lane's two rows, less the lane's column in tile 0
  int tiles;   // that are there, in the direction kWay: 1 or -1

  MONARCH_DEVICE static int offset(int tile) { return kWay * kToeplitzTile * tile; }
  MONARCH_DEVICE int left(int half, int tile) const {
    return tile < tiles ? end[half] - offset(tile) : 0;
  }

  // kPairs: in two loads. What goes into fragments as it is should come into the right registers,
  // which are no neighbours.
  template <bool kPairs, class T>
  MONARCH_DEVICE Quartet load(const T* row, int half, int tile) const {
    uint2 v = make_uint2(0, 0);
    const T* from = row + offset(tile);
    if (kWhole || (aligned && left(half, tile) > 0)) {
      if constexpr (kPairs) {
        const auto* pairs = reinterpret_cast<const uint32_t*>(from);
        v = make_uint2(device::load_readonly(pairs), device::load_readonly(pairs + 1));
      } else {
        v = device::load_readonly(reinterpret_cast<const uint2*>(from));
      }
    } else if (!aligned) {
      const auto* numbers = reinterpret_cast<const uint16_t*>(from);
      const int count = left(half, tile);
#pragma unroll 1
      for (int i = 3; i >= 0; --i) {
        const uint32_t bits = i < count ? device::load_readonly(numbers + i) : uint16_t{0};
        v = make_uint2(v.x << 16 | bits, v.y << 16 | v.x >> 16);
      }
    }
    return {{v.x, v.y}};
  }
  template <class T>
  MONARCH_DEVICE void store(T* row, int half, int tile, const Quartet& quartet) const {
    uint2 v = make_uint2(quartet.pair[0], quartet.pair[1]);
    T* to = row + offset(tile);
    if (kWhole || (aligned && left(half, tile) > 0)) {
      device::store_streaming(reinterpret_cast<uint2*>(to), v);
    } else if (!aligned) {
      auto* numbers = reinterpret_cast<uint16_t*>(to);
      const int count = left(half, tile);
#pragma unroll 1
      for (int i = 0; i < 4; ++i) {
        if (i < count) device::store_streaming(numbers + i, static_cast<uint16_t>(v.x));
        v = make_uint2(v.x >> 16 | v.y << 16, v.y >> 16);
      }
    }
  }
};

// Whether a kernel has a gate or factor. kEither: asked in the kernel, to compile fewer.
enum class Gate { kAbsent, kPresent, kEither };

template <Gate kGate>
MONARCH_DEVICE bool present(const void* data) {
  return kGate == Gate::kPresent || (kGate == Gate::kEither && data != nullptr);
}

// An input that is a bfloat16 number as it is needs one part, others two.
template <class T, Gate kGate>
inline constexpr int kPartsOf = std::is_same_v<T, BFloat16> && kGate == Gate::kAbsent ? 1 : 2;

// A pair of numbers as one bfloat16 pair, or as the sum of two.
template <class T, int kParts>
MONARCH_DEVICE void split(uint32_t x, uint32_t gate, bool gated, uint32_t (&part)[kParts]) {
  if constexpr (kParts == 1) {
    static_assert(std::is_same_v<T, BFloat16>);
    part[0] = x;
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    part[0] = gated ? device::multiply_bf16x2(x, gate) : x;
    part[1] = gated ? device::multiply_subtract_bf16x2(x, gate, part[0]) : 0;
  } else {
    float low = low_of(T{}, x), high = high_of(T{}, x);
    if (gated) low *= low_of(T{}, gate), high *= high_of(T{}, gate);
    part[0] = device::pack_bf16(low, high);
    part[1] =
        device::pack_bf16(low - low_of(BFloat16{}, part[0]), high - high_of(BFloat16{}, part[0]));
  }
}

// ---- The filter

// word[size + x] of a channel is the tap of distance x = output - input as (hi, lo); word[0] tells
// whether there are taps of negative distance.
struct ToeplitzFilter {
  const float *k, *k_rev, *skip;
  int64_t channels, length, taps, reverse_taps;
  int size;
  bool circular;
  uint32_t* words;
};

__global__ void __launch_bounds__(256) toeplitz_filter_kernel(ToeplitzFilter f) {
  const int64_t index = int64_t{blockIdx.x} * 256 + threadIdx.x;
  const int64_t channel = index / (2 * f.size);
  if (channel >= f.channels) return;
  const int distance = static_cast<int>(index % (2 * f.size)) - f.size;
  if (distance == -f.size) {
    f.words[index] = f.circular || f.k_rev != nullptr ? 1 : 0;
    return;
  }
  const int64_t behind = f.circular && distance < 0 ? distance + f.length : distance;
  float tap = 0.0f;
  if (0 <= behind && behind < f.taps) {
    tap = f.k[channel * f.taps + behind];
  } else if (behind < 0 && f.k_rev != nullptr && -behind <= f.reverse_taps) {
    tap = f.k_rev[channel * f.reverse_taps - behind - 1];
  }
  if (distance == 0 && f.skip != nullptr) tap += f.skip[channel];
  const BFloat16 hi = device::from_float<BFloat16>(tap);
  const BFloat16 lo = device::from_float<BFloat16>(tap - device::to_float(hi));
  f.words[index] = hi.bits | uint32_t{lo.bits} << 16;
}

// ---- The product

// A (B, H, L) array; distances in bytes, so that each is an operand as it lies in constant memory.
struct ToeplitzArray {
  const void* data;                  // nullptr: absent
  int64_t channel, row, half, turn;  // between channels, rows, 8 rows, a team's turns

  // A lane's row; of an absent array, a pointer that must not be used.
  template <class T>
  MONARCH_DEVICE const T* at(uint32_t channel_index, int row_index, int column) const {
    return moved(static_cast<const T*>(data) + column, channel_index * channel + row_index * row);
  }
  template <class T>
  MONARCH_DEVICE static T* moved(T* pointer, int64_t bytes) {
    using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
    return reinterpret_cast<T*>(reinterpret_cast<Byte*>(pointer) + bytes);
  }
};

struct ToeplitzInput {
  ToeplitzArray x, gate;
};

// y = factor * (matrix or its transpose) (gate * x), to each result that is there.
template <int kResults>
struct ToeplitzTask {
  struct Result {
    ToeplitzArray y, factor;
  };
  ToeplitzInput input;
  Result result[kResults];
};

struct ToeplitzWork {
  uint32_t channels, slices;  // `slices` teams share the rows of a channel
  int batch, length;
  bool aligned;  // all rows to 8 bytes, and length is a multiple of 4
  bool whole;    // and the size of the matrix
};

// What a warp has of a matrix: as many rows of tiles as its registers can hold with the input.
template <class Plan, int kParts>
struct ToeplitzShape {
  static constexpr int kTiles = Plan::kTiles;
  static constexpr int kOwn = (kTiles == 8 ? 8 : 4) / kParts;
  static constexpr int kDiagonals = kTiles + kOwn - 1;  // that the warp meets
  static constexpr int kLoad = kOwn < 4 ? kOwn : 4;     // tiles of input in registers
  static constexpr int kWarps = kTiles / kOwn;          // of a team
  static constexpr int kThreads = kWarps > 4 ? 32 * kWarps : 128;
  static constexpr int kTeams = kThreads / 32 / kWarps, kBlocks = 256 / kThreads;
};

// The fragments of a warp's part of the matrix, all in registers: of a diagonal of tiles and e',
// those of e = 0 and 1, which a product wants side by side.
template <class Shape>
struct ToeplitzFragments {
  uint32_t hi[Shape::kDiagonals][2][2], lo[Shape::kDiagonals][2][2];

  // `words` at distance 0 of the warp's first diagonal. kSign is -1 for the transpose, whose tiles
  // are counted from the end: so it is lower triangular too.
  template <int kSign>
  MONARCH_DEVICE void load(const uint32_t* words, int r, int c) {
    const uint32_t* own = words + kSign * (4 * (r / 2 - c) + r % 2);
#pragma unroll
    for (int d = 0; d < Shape::kDiagonals; ++d) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t* at = own + kToeplitzTile * d + kSign * 2 * (i / 2 - i % 2);
        const uint32_t even = device::load_readonly(at), odd = device::load_readonly(at - kSign);
        hi[d][i / 2][i % 2] = (even & 0xffffu) | odd << 16;
        lo[d][i / 2][i % 2] = even >> 16 | (odd & 0xffff0000u);
      }
    }
  }

  // sums += x times the tile on a diagonal: hi hi, x's hi with the tile's lo, x's lo with hi.
  template <int kParts>
  MONARCH_DEVICE void multiply(float (&sums)[2][4], const uint32_t (&x)[kParts][4],
                               int diagonal) const {
#pragma unroll
    for (int product = 0; product <= kParts; ++product) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        device::multiply_accumulate_bf16(sums[e], x[product / 2],
                                         product == 1 ? lo[diagonal][e] : hi[diagonal][e]);
      }
    }
  }
};

// A lane's row of the input, its gate, a result or the factor of that; a second one is 8 further.
// What is absent has nullptr in the task, which all lanes know alike.
template <class T>
struct LaneInput {
  const T *x, *gate;
};
template <class T>
struct LaneResult {
  T* y;
  const T* factor;
};

// One tile of 16 rows of input as fragments.
template <Gate kGate, int kParts, class T, class E>
MONARCH_DEVICE void load_tile(const ToeplitzInput& input, const LaneInput<T>& rows, int tile,
                              const E& extent, uint32_t (&parts)[kParts][4]) {
  const bool gated = present<kGate>(input.gate.data);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const Quartet x = extent.template load<kParts == 1>(
        ToeplitzArray::moved(rows.x, half * input.x.half), half, tile);
    Quartet gate = {};
    if (gated) {
      gate = extent.template load<false>(ToeplitzArray::moved(rows.gate, half * input.gate.half),
                                         half, tile);
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      uint32_t part[kParts];
      split<T, kParts>(x.pair[e], gate.pair[e], gated, part);
#pragma unroll
      for (int i = 0; i < kParts; ++i) parts[i][2 * e + half] = part[i];
    }
  }
}

template <Gate kFactor, class T, class E>
MONARCH_DEVICE void store_tile(const LaneResult<T>& rows, int64_t y_half,
                               const ToeplitzArray& factor, int tile, const E& extent,
                               const float (&sums)[2][4]) {
  Quartet by[2] = {};
  if (present<kFactor>(factor.data)) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      by[half] = extent.template load<false>(ToeplitzArray::moved(rows.factor, half * factor.half),
                                             half, tile);
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    Quartet out;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float low = sums[e][2 * half], high = sums[e][2 * half + 1];
      if (present<kFactor>(factor.data)) {
        low *= low_of(T{}, by[half].pair[e]), high *= high_of(T{}, by[half].pair[e]);
      }
      out.pair[e] = device::pack<T>(low, high);
    }
    extent.store(ToeplitzArray::moved(rows.y, half * y_half), half, tile, out);
  }
}

// A warp's part of a task.
template <class Plan, class T, Gate kGate, Gate kFactor, bool kTransposed, int kResults>
struct ToeplitzRows {
  static constexpr int kParts = kPartsOf<T, kGate>;
  using Shape = ToeplitzShape<Plan, kParts>;
  static constexpr int kWay = kTransposed ? -1 : 1;

  const ToeplitzTask<kResults>& task;
  const ToeplitzWork& work;
  const uint32_t channel, slice, r, c;
  const int base;    // the warp's first row of tiles
  const int tiles;   // that the length takes
  const bool ahead;  // the matrix is not lower triangular
  ToeplitzFragments<Shape> matrix;

  // All turns of the team's share of the batch.
  MONARCH_DEVICE void run() const {
    const int in_column = 4 * c + (kTransposed ? kToeplitzTile * (tiles - 1) : 0);
    const int out_column = in_column + kWay * kToeplitzTile * base;
    int row = 16 * slice + r;
    LaneInput<T> input{task.input.x.template at<T>(channel, row, in_column),
                       task.input.gate.template at<T>(channel, row, in_column)};
    LaneResult<T> result[kResults];
#pragma unroll
    for (int k = 0; k < kResults; ++k) {
      const auto& to = task.result[k];
      result[k] = {const_cast<T*>(to.y.template at<T>(channel, row, out_column)),
                   to.factor.template at<T>(channel, row, out_column)};
    }
    for (; row - static_cast<int>(r) < work.batch; row += 16 * work.slices) {
      const auto turn = [&](auto whole, auto both_sides) {
        using E = Extent<decltype(whole)::value, kWay>;
        E in{work.aligned, {}, tiles}, out{work.aligned, {}, tiles - base};
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int length = row + 8 * half < work.batch ? work.length : 0;
          in.end[half] = length - in_column, out.end[half] = length - out_column;
        }
        multiply(input, in, both_sides, [&](int tile, const float (&sums)[2][4]) {
#pragma unroll
          for (int k = 0; k < kResults; ++k) {
            if (kResults > 1 && task.result[k].y.data == nullptr) continue;
            store_tile<kFactor>(result[k], task.result[k].y.half, task.result[k].factor, tile, out,
                                sums);
          }
        });
      };
      const std::true_type yes;
      const std::false_type no;
      if (work.whole && row - static_cast<int>(r) + 16 <= work.batch) {
        ahead ? turn(yes, yes) : turn(yes, no);
      } else {
        turn(no, ahead);
      }
      input.x = ToeplitzArray::moved(input.x, task.input.x.turn);
      input.gate = ToeplitzArray::moved(input.gate, task.input.gate.turn);
#pragma unroll
      for (int k = 0; k < kResults; ++k) {
        result[k].y = ToeplitzArray::moved(result[k].y, task.result[k].y.turn);
        result[k].factor = ToeplitzArray::moved(result[k].factor, task.result[k].factor.turn);
      }
    }
  }

 private:
  // store(i, sums) for each of the warp's rows of tiles.
  template <class E, class Ahead, class Store>
  MONARCH_DEVICE void multiply(const LaneInput<T>& input, const E& in, Ahead both_sides,
                               Store store) const {
    float sums[Shape::kOwn][2][4] = {};
#pragma unroll
    for (int first = 0; first < Shape::kTiles; first += Shape::kOwn) {
      // Squares of tiles are skipped above the diagonal and where there is no input.
      if (first > 0 && (first >= tiles || (first > base && !both_sides))) continue;
      if (both_sides || first < base) {
        multiply_square(input, in, first, std::false_type{}, sums);
      } else {
        multiply_square(input, in, first, std::true_type{}, sums);
      }
    }
#pragma unroll
    for (int i = 0; i < Shape::kOwn; ++i) store(i, sums[i]);
  }

  template <class E, class Triangle>
  MONARCH_DEVICE void multiply_square(const LaneInput<T>& input, const E& in, int first,
                                      Triangle triangle, float (&sums)[Shape::kOwn][2][4]) const {
#pragma unroll
    for (int some = 0; some < Shape::kOwn; some += Shape::kLoad) {
      uint32_t parts[Shape::kLoad][kParts][4];
#pragma unroll
      for (int j = 0; j < Shape::kLoad; ++j) {
        load_tile<kGate>(task.input, input, first + some + j, in, parts[j]);
      }
#pragma unroll
      for (int j = 0; j < Shape::kLoad; ++j) {
#pragma unroll
        for (int i = 0; i < Shape::kOwn; ++i) {
          if (triangle && some + j > i) continue;
          matrix.template multiply<kParts>(sums[i], parts[j],
                                           i - first - some - j + Shape::kTiles - 1);
        }
      }
    }
  }
};

template <class Plan, class T, Gate kGate, Gate kFactor, bool kTransposed, int kResults>
MONARCH_DEVICE void toeplitz_rows(const ToeplitzTask<kResults>& task, const ToeplitzWork& work,
                                  const uint32_t* words, uint32_t block) {
  using Part = ToeplitzRows<Plan, T, kGate, kFactor, kTransposed, kResults>;
  using Shape = typename Part::Shape;
  const uint32_t warp = threadIdx.x / 32, team = block * Shape::kTeams + warp / Shape::kWarps;
  const uint32_t channel = team / work.slices, r = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
  // Of a causal filter the last tiles cost most: they should not always be the same warp's.
  const int base = (warp + block) % Shape::kWarps * Shape::kOwn;
  if (channel >= work.channels || kToeplitzTile * base >= work.length) return;
  const uint32_t* own = words + int64_t{channel} * (2 * Plan::kSize);
  Part part{task,
            work,
            channel,
            team % work.slices,
            r,
            c,
            base,
            (work.length + kToeplitzTile - 1) / kToeplitzTile,
            device::load_readonly(own) != 0,
            {}};
  const uint32_t* diagonal = own + Plan::kSize + kToeplitzTile * (base - Shape::kTiles + 1);
  part.matrix.template load<Part::kWay>(diagonal, r, c);
  part.run();
}

// Grid: the teams of all channels and slices.
template <class Plan, class T, Gate kGate, Gate kFactor, bool kTransposed, int kResults>
__global__ void __launch_bounds__(ToeplitzShape<Plan, kPartsOf<T, kGate>>::kThreads,
                                  ToeplitzShape<Plan, kPartsOf<T, kGate>>::kBlocks)
    toeplitz_kernel(ToeplitzTask<kResults> task, ToeplitzWork work, const uint32_t* words) {
  toeplitz_rows<Plan, T, kGate, kFactor, kTransposed>(task, work, words, blockIdx.x);
}

}  // namespace monarch::cuda

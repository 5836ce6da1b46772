// The kernels of mixer_conv, forward (docs/math.md, section 7): how the rows of q come through the
// short filter into a transform, and how z comes out of two.
#pragma once
#include "core/mixer_conv.h"
#include "cuda/fft_conv.cuh"

namespace monarch::cuda {

// A number in memory: a float, or 16 bits of a format that is known at run time. That costs a
// branch for many points and saves a third of the kernels.
struct SixteenBits {
  uint16_t bits;
};
template <class T>
struct Format {
  Scalar scalar;

  template <int kCount>
  MONARCH_DEVICE void widen(const T (&in)[kCount], float (&out)[kCount]) const {
    if constexpr (std::is_same_v<T, float>) {
#pragma unroll
      for (int j = 0; j < kCount; ++j) out[j] = in[j];
    } else if (scalar == Scalar::kBFloat16) {
#pragma unroll
      for (int j = 0; j < kCount; ++j) out[j] = device::to_float(BFloat16{in[j].bits});
    } else {
#pragma unroll
      for (int j = 0; j < kCount; ++j) out[j] = device::to_float(Float16{in[j].bits});
    }
  }
  MONARCH_DEVICE static T load(const T* p) {
    if constexpr (std::is_same_v<T, float>) {
      return device::load_readonly(p);
    } else {
      return {device::load_readonly(&p->bits)};
    }
  }
  // Of points j * stride, those below `left`.
  template <int kCount>
  MONARCH_DEVICE void store(T* to, int stride, int left, const float (&value)[kCount]) const {
    if constexpr (std::is_same_v<T, float>) {
      store_as<float>(to, stride, left, value);
    } else if (scalar == Scalar::kBFloat16) {
      store_as<BFloat16>(reinterpret_cast<BFloat16*>(to), stride, left, value);
    } else {
      store_as<Float16>(reinterpret_cast<Float16*>(to), stride, left, value);
    }
  }

 private:
  template <class As, int kCount>
  MONARCH_DEVICE static void store_as(As* to, int stride, int left, const float (&value)[kCount]) {
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      if (j * stride < left) store_once(to + j * stride, value[j]);
    }
  }
};

// Points that are loaded at a time: all of a large radix would not fit the registers.
constexpr int at_once(int count) { return count == 24 ? 8 : count > 16 ? 16 : count; }

// H rows of q behind the short filter, or rows as they are (s == nullptr).
template <class T>
struct FilteredRows {
  const T* data;
  int64_t batch_stride, channel_stride, sample_stride;
  const float *s, *bias;
  int taps;
  Format<T> format;

  struct Row {
    const T* x;
    int64_t sample_stride;
    const float* s;
    float bias;
    int taps, length;
    Format<T> format;

    // out[j] = sample first + j * stride, zero from the length on.
    template <int kCount>
    MONARCH_DEVICE void load(int first, int stride, float (&out)[kCount]) const {
#pragma unroll
      for (int j = 0; j < kCount; ++j) out[j] = bias;
      // Each turn loads all points of a tap at once. What neighbours load again is in the L1 cache.
#pragma unroll 1
      for (int tap = 0; tap < taps; ++tap) {
        const int at = first - (taps - 1 - tap);
        T raw[kCount];
        if (sample_stride == 1 && at >= 0 && length - at > (kCount - 1) * stride) {
          const T* from = device::opaque(x + at);
#pragma unroll
          for (int j = 0; j < kCount; ++j) raw[j] = Format<T>::load(from + j * stride);
        } else {
          const T* from = x + at * sample_stride;
          const int64_t step = stride * sample_stride;
#pragma unroll
          for (int j = 0; j < kCount; ++j) {
            const int n = at + j * stride;
            raw[j] = 0 <= n && n < length ? Format<T>::load(from + j * step) : T{};
          }
        }
        float value[kCount];
        format.widen(raw, value);
        const float weight = s == nullptr ? 1.0f : device::load_readonly(s + tap);
#pragma unroll
        for (int j = 0; j < kCount; ++j) out[j] = device::fma(weight, value[j], out[j]);
      }
      // The filter reaches beyond the row, and a bias is everywhere.
      if (length - first > (kCount - 1) * stride) return;
#pragma unroll
      for (int j = 0; j < kCount; ++j) out[j] = j * stride < length - first ? out[j] : 0.0f;
    }
  };
  MONARCH_DEVICE Row at(int64_t channel, int64_t row, int64_t count) const {
    return {data + row * batch_stride + channel * channel_stride,
            sample_stride,
            s == nullptr ? nullptr : s + channel * taps,
            bias == nullptr ? 0.0f : bias[channel],
            taps,
            static_cast<int>(count),
            format};
  }
};

// The product of the rows x and v, or x alone.
template <class T>
struct MixerInput {
  using Value = float;
  FilteredRows<T> x, v;
  int64_t length;

  struct Row {
    typename FilteredRows<T>::Row x, v;

    template <int kCount>
    MONARCH_DEVICE void load(int first, int stride, float (&out)[kCount]) const {
      constexpr int kPart = at_once(kCount);
#pragma unroll
      for (int done = 0; done < kCount; done += kPart) {
        float part[kPart], by[kPart];
        x.load(first + done * stride, stride, part);
        if (v.x != nullptr) v.load(first + done * stride, stride, by);
#pragma unroll
        for (int j = 0; j < kPart; ++j) out[done + j] = v.x == nullptr ? part[j] : part[j] * by[j];
      }
    }
  };
  // An inactive row is all zeros.
  MONARCH_DEVICE Row at(int64_t channel, int64_t row, bool active = true) const {
    const int64_t count = active ? length : 0;
    Row found{x.at(channel, row, count), v.at(channel, row, count)};
    if (v.data == nullptr) found.v.x = nullptr;
    return found;
  }
};

// Of the residual branch (z == nullptr): to `held`, in float32. Of the other: z = gate * result +
// what is held, if anything is. A thread reads there only what it wrote.
template <class T>
struct MixerOutput {
  FilteredRows<T> gate;
  T* z;
  float* held;  // of long rows: row `row` of channel `channel` is the first, `rows` a channel
  int64_t channels, length, channel, row, rows;

  struct Row {
    typename FilteredRows<T>::Row gate;
    T* z;
    float* held;

    template <int kCount, class Untwist>
    MONARCH_DEVICE void store(int first, int stride, const float2 (&x)[kCount],
                              const Untwist& untwist) const {
      constexpr Residues<kCount> kResidues;
      float value[kCount];
#pragma unroll
      for (int slot = 0; slot < kCount; ++slot) {
        const float2 w = untwist[slot];
        value[kResidues.of[slot]] = x[slot].x * w.x + x[slot].y * w.y;
      }
      if (z == nullptr) {
        float* to = device::opaque(held + first);
#pragma unroll
        for (int j = 0; j < kCount; ++j) {
          if (j * stride < gate.length - first) to[j * stride] = value[j];
        }
        return;
      }
      constexpr int kPart = at_once(kCount);
#pragma unroll
      for (int done = 0; done < kCount; done += kPart) {
        const int begin = first + done * stride, left = gate.length - begin;
        float by[kPart];
        gate.load(begin, stride, by);
        const float* from = device::opaque(held + begin);
#pragma unroll
        for (int j = 0; j < kPart; ++j) {
          const float before = held != nullptr && j * stride < left ? from[j * stride] : 0.0f;
          by[j] = device::fma(value[done + j], by[j], before);
        }
        gate.format.store(device::opaque(z + begin), stride, left, by);
      }
    }
  };
  // With `held` of a row that is the caller's.
  MONARCH_DEVICE Row at(int64_t c, int64_t r, bool active, float* own) const {
    return {gate.at(c, r, active ? length : 0),
            z == nullptr ? nullptr : z + (r * channels + c) * length, own};
  }
  MONARCH_DEVICE Row at(int64_t c, int64_t r) const {
    float* own = held == nullptr ? nullptr : held + ((c - channel) * rows + (r - row)) * length;
    return at(c, r, true, own);
  }
};

// The arguments of a block that does both branches of its rows.
template <class T>
struct MixerRows {
  MixerInput<T> g, u;
  FilteredRows<T> gate;
  T* z;
  int64_t channels, length;
  const float4 *spectrum, *residual_spectrum;  // of u; nullptr: none
  float* held;                                 // a row of each team; nullptr: in shared memory
};

// Short rows, and rows of 24 points a thread, need a few registers more than those of fft_conv.
template <class Block>
constexpr int kMixerBlocks = BlockShape<Block>::kSize <= 256 || Block::Row::radix(0) == 24
                                 ? BlockShape<Block>::kBackwardBlocks
                                 : BlockShape<Block>::kBlocks;

// z = gate * F^-1(spectrum . F(g)) + F^-1(residual_spectrum . F(u)), the residual first: its result
// is held until the other is there. Grid: units * slices.
template <class Block, class T>
__global__ void __launch_bounds__(BlockShape<Block>::kThreads, kMixerBlocks<Block>)
    mixer_conv_kernel(MixerRows<T> p, Work work, const float4* table) {
  using Shape = BlockShape<Block>;
  MONARCH_DYNAMIC_SHARED(shared);
  const auto transform = make_transform<Shape>(shared, table);
  const Share share = Share::of<Shape>(work);
  const bool residual = p.residual_spectrum != nullptr;
  const int team = Shape::kTeams == 1 ? 0 : static_cast<int>(threadIdx.x) / Shape::kTeam;
  float* held = p.held != nullptr
                    ? p.held + share.number * Shape::kSize
                    : reinterpret_cast<float*>(shared + Shape::kSharedBytes) + team * Shape::kSize;
  for (int64_t first = share.first; first < work.rows; first += share.step) {
    const int64_t row = first + share.offset;
    const bool active = row < work.rows;
    // One text for both branches.
#pragma unroll 1
    for (bool last = !residual;; last = true) {
      const auto in = (last ? p.g : p.u).at(share.unit, row, active);
      const MixerOutput<T> output{p.gate, last ? p.z : nullptr, nullptr, p.channels, p.length, 0, 0,
                                  0};
      const auto out = output.at(share.unit, row, active, residual ? held : nullptr);
      const float4* spectrum =
          (last ? p.spectrum : p.residual_spectrum) + share.unit * (Shape::kSize / 2);
      const auto write = [&](auto butterfly, auto& x, const auto& untwist) {
        out.store(butterfly.low, butterfly.kStride, x, untwist);
      };
      transform.template forward<float>(
          [&](auto butterfly, auto& points) { in.load(butterfly.low, butterfly.kStride, points); },
          [&](auto butterfly, auto& x) {
            constexpr int kRadix = decltype(butterfly)::kRadix;
            float2 product[kRadix];
            each_entry<kRadix, Shape::kSize / kRadix>(
                butterfly.index, [&](int i) { return device::load_readonly(spectrum + i); },
                [&](int slot, int s, float2 k) { product[s] = multiply(x[slot], k); });
            transform.begin_inverse(butterfly, product, write);
          });
      transform.end_inverse(write);
      // No barrier: a thread's first stage of the next branch writes what its last stage of this
      // read.
      if (last) break;
    }
  }
}

}  // namespace monarch::cuda

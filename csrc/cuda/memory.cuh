// How a row comes from global memory and goes back: real activations with their gates, filters, and
// complex rows of scratch memory. `at(channel, row)` finds a row, its load and store move the
// points of one butterfly: first, first + stride, ... Whole rows are never padded: what lies beyond
// the length is zero on input and not written on output.
#pragma once
#include "core/fft_conv.h"
#include "core/twiddle.h"
#include "cuda/dft.cuh"

namespace monarch::cuda {

// Activations are read and written once: they should not push spectra and tables out of the caches.
MONARCH_DEVICE float load_once(const float* p) { return device::load_streaming(p); }
template <class T>
MONARCH_DEVICE float load_once(const T* p) {
  return device::to_float(T{device::load_streaming(reinterpret_cast<const uint16_t*>(p))});
}
MONARCH_DEVICE void store_once(float* p, float value) { device::store_streaming(p, value); }
template <class T>
MONARCH_DEVICE void store_once(T* p, float value) {
  device::store_streaming(reinterpret_cast<uint16_t*>(p), device::from_float<T>(value).bits);
}

// What neighbouring threads read again.
template <class T>
MONARCH_DEVICE float load_cached(const T* p) {
  if constexpr (sizeof(T) == 4) {
    return device::load_readonly(p);
  } else {
    return device::to_float(T{device::load_readonly(reinterpret_cast<const uint16_t*>(p))});
  }
}

template <class T>
MONARCH_DEVICE const T* row_of(const Rows& rows, int64_t channel, int64_t row) {
  return rows.data == nullptr ? nullptr
                              : static_cast<const T*>(rows.data) + row * rows.batch_stride +
                                    channel * rows.channel_stride;
}

// x, times gate where there is one.
template <class T>
struct RealInput {
  using Value = float;
  Rows x, gate;
  int64_t length;

  struct Row {
    const T *x, *gate;
    int length;

    template <int kCount>
    MONARCH_DEVICE void load(int first, int stride, float (&out)[kCount]) const {
      const int left = length - first;  // a point is there if j * stride < left
      read(device::opaque(x + first), stride, left, out);
      if (gate == nullptr) return;
      float by[kCount];
      read(device::opaque(gate + first), stride, left, by);
#pragma unroll
      for (int j = 0; j < kCount; ++j) out[j] *= by[j];
    }

   private:
    template <int kCount>
    MONARCH_DEVICE static void read(const T* from, int stride, int left, float (&out)[kCount]) {
      if (left > (kCount - 1) * stride) {
#pragma unroll
        for (int j = 0; j < kCount; ++j) out[j] = load_once(from + j * stride);
      } else {
#pragma unroll
        for (int j = 0; j < kCount; ++j) {
          out[j] = j * stride < left ? load_once(from + j * stride) : 0.0f;
        }
      }
    }
  };
  // An inactive row is all zeros.
  MONARCH_DEVICE Row at(int64_t channel, int64_t row, bool active = true) const {
    if (!active) return {nullptr, nullptr, 0};
    return {row_of<T>(x, channel, row), row_of<T>(gate, channel, row), static_cast<int>(length)};
  }
};

// The polynomial of a filter: k with skip at 0, minus i times k_rev backwards from the end.
struct FilterInput {
  using Value = float2;
  const float *k, *k_rev, *skip;
  int64_t taps, reverse_taps, length, size;
  bool circular;

  struct Row {
    const float *k, *reverse;  // reverse[n] is the imaginary part of point n, negated
    float skip;
    int64_t taps, reverse_begin, reverse_end;
    int reverse_step;

    template <int kCount>
    MONARCH_DEVICE void load(int first, int stride, float2 (&out)[kCount]) const {
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        const int64_t n = first + j * stride;
        const bool behind = n < taps, ahead = reverse_begin <= n && n < reverse_end;
        out[j].x = (behind ? k[n] : 0.0f) + (n == 0 ? skip : 0.0f);
        out[j].y = ahead ? -reverse[(n - reverse_begin) * reverse_step] : 0.0f;
      }
    }
  };
  MONARCH_DEVICE Row at(int64_t channel, int64_t, bool active = true) const {
    if (!active) return {nullptr, nullptr, 0.0f, 0, 0, 0, 0};
    const float* own = k + channel * taps;
    const float own_skip = skip == nullptr ? 0.0f : skip[channel];
    if (circular) {  // k_rev[m] = k[length - 1 - m]: forwards again from size - length
      return {own, own, own_skip, taps, size - length, size - length + taps, 1};
    }
    if (k_rev == nullptr) return {own, nullptr, own_skip, taps, 0, 0, 0};
    const float* last = k_rev + channel * reverse_taps + (reverse_taps - 1);
    return {own, last, own_skip, taps, size - reverse_taps, size, -1};
  }
};

// Complex rows of `stride` numbers: row r of channel c is number (c * rows + r) * blocks + block.
// kUntwist: rows are whole results; those of an inner plan need no untwist, since the outer inverse
// multiplies by all twiddles at once.
template <bool kUntwist>
struct ComplexRows {
  using Value = float2;
  float2* data;
  int64_t rows, size;
  int blocks;  // inner rows that one long row was split into; channels count (channel, block)

  struct Row {
    float2* data;
    bool active;

    template <int kCount>
    MONARCH_DEVICE void load(int first, int stride, float2 (&out)[kCount]) const {
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        out[j] = active ? data[first + j * stride] : make_float2(0.0f, 0.0f);
      }
    }
    template <int kCount, class Untwist>
    MONARCH_DEVICE void store(int first, int stride, const float2 (&x)[kCount],
                              const Untwist& twist) const {
      if (!active) return;
      constexpr Residues<kCount> kResidues;
#pragma unroll
      for (int slot = 0; slot < kCount; ++slot) {
        float2 value = x[slot];
        if constexpr (kUntwist) value = multiply_conjugate(value, twist[slot]);
        data[first + kResidues.of[slot] * stride] = value;
      }
    }
  };
  MONARCH_DEVICE Row at(int64_t channel, int64_t row, bool active = true) const {
    // Units are at most 2^31: divisions of 64 bits are calls of a function.
    const auto unit = static_cast<uint32_t>(channel), count = static_cast<uint32_t>(blocks);
    const int64_t index = (unit / count * rows + row) * blocks + unit % count;
    return {data + index * size, active};
  }
};

// The real part, times a factor where there is one, to each of kResults results that is there.
template <class T, int kResults>
struct RealOutput {
  struct Result {
    T* y;
    Rows factor;
  };
  Result result[kResults];
  int64_t channels, length;

  struct Row {
    T* y[kResults];
    const T* factor[kResults];
    int length;

    template <int kCount, class Untwist>
    MONARCH_DEVICE void store(int first, int stride, const float2 (&x)[kCount],
                              const Untwist& untwist) const {
      float value[kCount];
#pragma unroll
      for (int slot = 0; slot < kCount; ++slot) {
        const float2 w = untwist[slot];
        value[slot] = x[slot].x * w.x + x[slot].y * w.y;
      }
#pragma unroll
      for (int i = 0; i < kResults; ++i) {
        if (kResults > 1 && y[i] == nullptr) continue;
        if (factor[i] == nullptr) {
          write(device::opaque(y[i] + first), stride, length - first, value);
        } else {
          write(device::opaque(y[i] + first), device::opaque(factor[i] + first), stride,
                length - first, value);
        }
      }
    }

   private:
    template <int kCount>
    MONARCH_DEVICE static void write(T* to, int stride, int left, const float (&value)[kCount]) {
      constexpr Residues<kCount> kResidues;
      const bool whole = left > (kCount - 1) * stride;
#pragma unroll
      for (int slot = 0; slot < kCount; ++slot) {
        const int n = kResidues.of[slot] * stride;
        if (whole || n < left) store_once(to + n, value[slot]);
      }
    }
    template <int kCount>
    MONARCH_DEVICE static void write(T* to, const T* by, int stride, int left,
                                     const float (&value)[kCount]) {
      constexpr Residues<kCount> kResidues;
      const bool whole = left > (kCount - 1) * stride;
      float scaled[kCount];
#pragma unroll
      for (int slot = 0; slot < kCount; ++slot) {
        const int n = kResidues.of[slot] * stride;
        scaled[slot] = whole || n < left ? value[slot] * load_once(by + n) : 0.0f;
      }
      write(to, stride, left, scaled);
    }
  };
  MONARCH_DEVICE Row at(int64_t channel, int64_t row, bool active = true) const {
    const int64_t offset = (row * channels + channel) * length;
    Row found;
#pragma unroll
    for (int i = 0; i < kResults; ++i) {
      found.y[i] = result[i].y == nullptr ? nullptr : result[i].y + offset;
      found.factor[i] = active ? row_of<T>(result[i].factor, channel, row) : nullptr;
    }
    found.length = active ? static_cast<int>(length) : 0;
    return found;
  }
};

}  // namespace monarch::cuda

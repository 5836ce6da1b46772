// Storage types of activations. Arithmetic is always float32.
#pragma once
#include <cstdint>
#include <cstring>

namespace monarch {

enum class Scalar { kFloat32, kBFloat16, kFloat16 };

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// `static`, not `inline`: these are compiled once per instruction set, and a merged copy could hold
// instructions that the running CPU lacks.
static inline float bits_to_float(uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}
static inline uint32_t float_to_bits(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, sizeof bits);
  return bits;
}

static inline float to_float(BFloat16 x) { return bits_to_float(uint32_t{x.bits} << 16); }
static inline float to_float(float x) { return x; }
static inline float to_float(Float16 x) {
  const uint32_t sign = uint32_t{x.bits & 0x8000u} << 16, rest = x.bits & 0x7fffu;
  if (rest >= 0x7c00u) return bits_to_float(sign | 0x7f800000u | ((rest & 0x3ffu) << 13));
  // Below 2^-14 the value is a multiple of 2^-24; above, the exponent is re-biased by 112.
  if (rest < 0x0400u) {
    const float magnitude = static_cast<float>(rest) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  return bits_to_float(sign | ((rest << 13) + (112u << 23)));
}

// Round to nearest even; NaN stays NaN (and becomes quiet).
static inline BFloat16 to_bfloat16(float f) {
  const uint32_t bits = float_to_bits(f);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}
static inline Float16 to_float16(float f) {
  const uint32_t bits = float_to_bits(f), magnitude = bits & 0x7fffffffu;
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u)
    return {static_cast<uint16_t>(sign | 0x7c00u)};  // rounds to infinity
  if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 puts the half's last bit at the float's
    const float shifted = bits_to_float(magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (float_to_bits(shifted) - float_to_bits(0.5f)))};
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23);
  return {static_cast<uint16_t>(sign | (rounded >> 13))};
}

}  // namespace monarch

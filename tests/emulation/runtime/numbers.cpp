#include <bit>
#include <cmath>
#include <numbers>

#include "emulation/emulation.h"

namespace emulation {

uint32_t to_tf32(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  if (std::isnan(x) || std::isinf(x)) return bits;
  return (bits + 0x1000u) & 0xffffe000u;  // 13 bits go; a half is added to the magnitude
}

void sincospi(double x, double* sine, double* cosine) {
  // Both steps are exact: x modulo 2, then modulo 1/2, so libm sees an angle within pi / 4.
  const double turn = std::remainder(x, 2.0);
  const double quarters = std::nearbyint(2.0 * turn);
  const double angle = std::numbers::pi * (turn - 0.5 * quarters);
  const double s = std::sin(angle), c = std::cos(angle);
  switch (static_cast<int>(quarters) & 3) {
    case 0:
      *sine = s, *cosine = c;
      break;
    case 1:
      *sine = c, *cosine = -s;
      break;
    case 2:
      *sine = -s, *cosine = -c;
      break;
    default:
      *sine = -c, *cosine = s;
  }
}

}  // namespace emulation

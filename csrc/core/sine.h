// The sine of float32 numbers: what vectors of the CPU and threads of a GPU compute alike. Error:
// less than two units in the last place up to kSineReach.
#pragma once

namespace monarch {

// pi in four parts, the first three so short that their products with the number of half turns are
// exact, with or without fused multiply-adds: x - n pi then keeps its last bits where sin x is
// almost zero.
constexpr float kPiParts[4] = {3.140625f, 9.670257568359375e-4f, 6.277114152908325e-7f,
                               1.215420125655342e-10f};
constexpr float kInversePi = 0.31830987334251404f;
// Beyond this, n has more bits than there is room for.
constexpr float kSineReach = 3.0e4f;

// sin(x - n pi), where n, a whole or a half number, makes that at most pi / 2. The polynomial is
// odd, of degree 11 and relative error 2e-11 before rounding (minimax).
template <class V>
static constexpr V sine_reduced(V x, V n) {
  V r = x - n * kPiParts[0];
  r = r - n * kPiParts[1];
  r = r - n * kPiParts[2];
  r = r - n * kPiParts[3];
  const V square = r * r;
  V p = square * -2.3886586930643716e-8f + 2.752525460891775e-6f;
  p = p * square - 1.9840865570586175e-4f;
  p = p * square + 8.333330973982811e-3f;
  p = p * square - 0.1666666716337204f;
  return r + r * (square * p);
}

}  // namespace monarch

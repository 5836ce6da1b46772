// gelu(x) = x Phi(x), with Phi the distribution function of the normal distribution.
#pragma once
#include "cuda/device.cuh"

namespace monarch::cuda {

// Phi(x). log2 Phi(-u) is a polynomial, made by weighted least squares: in float32 Phi and gelu err
// by less than 6e-8 up to u = 6; beyond, Phi is less than 1e-9, and the polynomial falls on.
MONARCH_DEVICE float normal_cdf(float x) {
  const float u = x < 0 ? -x : x;
  float p = -2.096561327902417e-06f;
  p = device::fma(p, u, 3.066238772696588e-05f);
  p = device::fma(p, u, -0.00014549277455656312f);
  p = device::fma(p, u, -0.0002331352835935071f);
  p = device::fma(p, u, 0.007185827838217007f);
  p = device::fma(p, u, -0.05257822823583919f);
  p = device::fma(p, u, -0.45918204026079346f);
  p = device::fma(p, u, -1.151108292421886f);
  p = device::fma(p, u, -0.9999999341981459f);
  const float lower = device::exp2_approximate(p);
  return x < 0 ? lower : 1.0f - lower;
}

// The density phi(x) = exp(-x^2 / 2) / sqrt(2 pi).
MONARCH_DEVICE float normal_density(float x) {
  return device::exp2_approximate(x * x * -0.72134752f) * 0.39894228f;  // log2(e) / 2
}

}  // namespace monarch::cuda

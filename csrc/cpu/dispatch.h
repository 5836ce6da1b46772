// The kernels of every instruction set, and which of them runs.
#pragma once
#include <cstdint>

#include "core/fft_conv.h"
#include "core/mixer_conv.h"
#include "core/short_conv.h"
#include "cpu/plan.h"

namespace monarch::cpu {

// What a kernel needs beside its parameters.
struct Context {
  const Plan& plan;
  float* workspace;  // workspace_floats(plan), 64-byte aligned
};

struct KernelTable {
  const char* isa;
  int lanes;
  void (*filter_spectrum)(const FilterSpectrumParams&, const Context&, int64_t, int64_t);
  void (*fft_conv_fwd)(const FftConvParams&, const Context&, int64_t, int64_t);
  void (*fft_conv_bwd)(const FftConvBackwardParams&, const Context&, int64_t, int64_t);
  void (*mixer_conv_fwd)(const MixerConvParams&, const Context&, int64_t, int64_t);
  void (*mixer_conv_bwd)(const MixerConvBackwardParams&, const Context&, int64_t, int64_t);
  void (*short_conv_fwd)(const ShortConvParams&, float* workspace, int64_t, int64_t);
  void (*short_conv_bwd)(const ShortConvBackwardParams&, float* workspace, int64_t, int64_t);
};

extern const KernelTable kGenericKernels, kAvx2Kernels, kAvx512Kernels;

// The best table that this CPU supports, or the one named by MONARCH_KERNELS_CPU_ISA or select_isa.
const KernelTable& kernels();

const char* isa();
bool select_isa(const char* name);  // "generic" | "avx2" | "avx512" | "auto"; false if unsupported
const char* available_isas();       // comma separated, best last

}  // namespace monarch::cpu

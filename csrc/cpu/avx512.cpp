// The kernels for one instruction set; CMakeLists.txt gives this file its flags.
#include "cpu/fft_conv.inl"
#include "cpu/mixer_conv.inl"
#include "cpu/short_conv.inl"

namespace monarch::cpu {
const KernelTable kAvx512Kernels = {"avx512",
                                    kLanes,
                                    run_filter_spectrum,
                                    run_fft_conv_fwd,
                                    run_fft_conv_bwd,
                                    run_mixer_conv_fwd,
                                    run_mixer_conv_bwd,
                                    run_short_conv_fwd,
                                    run_short_conv_bwd};
}

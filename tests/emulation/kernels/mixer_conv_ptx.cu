// mixer_conv and short_conv with two plans, for test_mixer_conv_ptx.py; see fft_conv_ptx.cu.
#define ONE_OF_EACH
#include "fft_conv_ptx.cu"

#include "../../../csrc/cuda/mixer_conv.cu"
#include "../../../csrc/cuda/mixer_conv_backward.cu"
#include "../../../csrc/cuda/short_conv.cu"

// mixer_conv with every outer plan over inner rows of 128 points, as fft_conv_outer.cu has
// fft_conv; for test_mixer_conv.py.
#include "fft_conv_outer.cu"

#include "../../../csrc/cuda/mixer_conv.cu"

// fft_conv with every outer plan, for test_fft_conv.py.
#include "outer_plans.h"

#include "../../../csrc/cuda/fft_conv.cu"
#include "../../../csrc/cuda/fft_conv_backward.cu"
#include "../../../csrc/cuda/fft_conv_chain.cu"
#include "../../../csrc/cuda/fft_conv_toeplitz.cu"

// mixer_conv with every outer plan, for test_mixer_conv.py; goes with fft_conv_outer.cu.
#include "outer_plans.h"

#include "../../../csrc/cuda/mixer_conv.cu"

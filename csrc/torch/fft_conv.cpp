// torch operators of fft_conv on the CPU.
#include "torch/cpu_device.h"
#include "torch/fft_conv_operators.h"

namespace monarch {
namespace {

[[maybe_unused]] const bool registered = (FftConvOperators<CpuDevice>::register_for("CPU"), true);

}  // namespace
}  // namespace monarch

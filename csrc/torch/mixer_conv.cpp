// torch operators of mixer_conv on the CPU.
#include "torch/mixer_conv_operators.h"

#include "torch/cpu_device.h"

namespace monarch {
namespace {

class Cpu : public CpuDevice {
 public:
  static constexpr bool kMakesSpectra = true, kBackwardByRows = false;
  using CpuDevice::CpuDevice;

  void mixer_conv_fwd(const MixerConvParams& p) const {
    const int64_t items = cpu::mixer_conv_fwd_items(p);
    abi::parallel_for(0, items, grain(p, items),
                      [&](int64_t begin, int64_t end) { cpu::mixer_conv_fwd(p, begin, end); });
  }
  void mixer_conv_bwd(const MixerConvBackwardParams& p) const {
    abi::parallel_for(0, cpu::mixer_conv_bwd_items(p), 1,
                      [&](int64_t begin, int64_t end) { cpu::mixer_conv_bwd(p, begin, end); });
  }
};

[[maybe_unused]] const bool registered = (MixerConvOperators<Cpu>::register_for("CPU"), true);

}  // namespace
}  // namespace monarch

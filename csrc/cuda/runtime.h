// What the CUDA library was built for and what it finds; no kernel is launched.
#pragma once

#include "cuda/launch.h"

namespace monarch::cuda {

// CUDA versions as 1000 * major + 10 * minor; 0 for a driver that is not installed.
int runtime_version();
int driver_version();

// GPUs that the driver shows; 0 without a driver. Creates no context on any of them.
int device_count();

// The facts of GPU `index`, asked of the driver once. Throws std::runtime_error if there is none.
DeviceLimits device_limits(int index);

// The architectures compiled in, in CMake's spelling: "80-real 90-real 90-virtual".
const char* architectures();

}  // namespace monarch::cuda

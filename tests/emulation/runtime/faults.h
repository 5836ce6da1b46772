// Kernels that the processor stops: a wild address in the fast flavour, a division by zero.
#pragma once

namespace emulation {

// While one exists, such a fault in a thread is a finding that ends the launch, instead of the end
// of the process. Faults of the host go to whoever handled them before.
class FaultsAreFindings {
 public:
  FaultsAreFindings();
  ~FaultsAreFindings();
  FaultsAreFindings(const FaultsAreFindings&) = delete;
  FaultsAreFindings& operator=(const FaultsAreFindings&) = delete;
};

}  // namespace emulation

// Compiled with baseline flags only: it must run on every CPU of the platform.
#include "cpu/dispatch.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

namespace monarch::cpu {
namespace {

const KernelTable* supported(const char* name) {
  if (std::strcmp(name, "generic") == 0) return &kGenericKernels;
#if defined(MONARCH_HAVE_X86)
  __builtin_cpu_init();  // also asks whether the operating system saves the wide registers
  const bool avx2 = __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0 &&
                    __builtin_cpu_supports("f16c") != 0;
  if (std::strcmp(name, "avx2") == 0 && avx2) return &kAvx2Kernels;
  const bool avx512 =
      avx2 && __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
      __builtin_cpu_supports("avx512dq") != 0 && __builtin_cpu_supports("avx512vl") != 0;
  if (std::strcmp(name, "avx512") == 0 && avx512) return &kAvx512Kernels;
#endif
  return nullptr;
}

const KernelTable* best() {
  for (const char* name : {"avx512", "avx2"}) {
    if (const KernelTable* table = supported(name)) return table;
  }
  return &kGenericKernels;
}

std::atomic<const KernelTable*> g_kernels{nullptr};

}  // namespace

const KernelTable& kernels() {
  const KernelTable* table = g_kernels.load(std::memory_order_acquire);
  if (table == nullptr) {
    const char* name = std::getenv("MONARCH_KERNELS_CPU_ISA");
    if (name != nullptr) table = supported(name);
    if (table == nullptr) table = best();
    g_kernels.store(table, std::memory_order_release);
  }
  return *table;
}

const char* isa() { return kernels().isa; }

bool select_isa(const char* name) {
  const KernelTable* table = std::strcmp(name, "auto") == 0 ? best() : supported(name);
  if (table == nullptr) return false;
  g_kernels.store(table, std::memory_order_release);
  return true;
}

const char* available_isas() {
  if (supported("avx512") != nullptr) return "generic,avx2,avx512";
  return supported("avx2") != nullptr ? "generic,avx2" : "generic";
}

}  // namespace monarch::cpu

// Kernels on the CPU, one fiber for each GPU thread: what device.cuh calls under g++.
//
// A translation unit of kernels may be compiled with -fsanitize=thread,alignment,bounds,shift (at
// the compile step only). gcc then calls a function for every memory access, and those functions
// are the emulator's own (runtime/hooks.cpp): they check bounds, initialisation and races by CUDA's
// rules. The emulator itself must never be compiled with them.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <type_traits>

#include "emulation/vocabulary.h"

// What the emulator does on a thread's behalf is checked by the emulator, not by gcc's calls.
#define EMULATION_UNCHECKED __attribute__((no_sanitize("thread", "undefined"), noinline))

namespace emulation {

using Location = std::source_location;

// Runs the grid; nullptr, or why CUDA would not start it. Findings do not show here.
const char* launch_grid(dim3 grid, dim3 block, size_t shared_bytes, void (*invoke)(const void*),
                        const void* kernel_and_arguments);

template <class... Parameters>
EMULATION_UNCHECKED const char* launch(void (*kernel)(Parameters...), dim3 grid, dim3 block,
                                       size_t shared_bytes,
                                       std::type_identity_t<Parameters>... arguments) {
  // Arguments pass by value from here into the fiber's own stack, as they do into a GPU thread.
  auto call = [&]() EMULATION_UNCHECKED { kernel(arguments...); };
  return launch_grid(
      grid, block, shared_bytes,
      [](const void* context) { (*static_cast<const decltype(call)*>(context))(); }, &call);
}

// Memory of the block. A static array is found again by the place of its declaration.
unsigned char* dynamic_shared();
void* static_shared(size_t bytes, size_t alignment, Location location);
uint32_t shared_address(const void* pointer, Location location);

// Barriers
void sync_threads(Location location);
void sync_warp(uint32_t mask, Location location);
void sync_group(int barrier_id, int threads, Location location);

// Checked accesses
enum class Access { kRead, kWrite, kAtomic };
void check_access(const void* address, size_t bytes, Access access, Location location);

// Counts what an access of shared memory by all lanes of a warp costs (banks.cpp).
void count_banks(const void* address, size_t bytes, Location location);

template <class T>
EMULATION_UNCHECKED T load(const T* source, Location location) {
  check_access(source, sizeof(T), Access::kRead, location);
  T value;
  std::memcpy(&value, source, sizeof(T));
  return value;
}
template <class T>
EMULATION_UNCHECKED void store(T* destination, const T& value, Location location) {
  check_access(destination, sizeof(T), Access::kWrite, location);
  std::memcpy(destination, &value, sizeof(T));
}
template <class T, class Change>
EMULATION_UNCHECKED T atomic(T* target, Change change, Location location) {
  check_access(target, sizeof(T), Access::kAtomic, location);
  const T before = *target;
  *target = change(before);
  return before;
}

// Exchange within a warp
enum class Shuffle { kIndex, kUp, kDown, kXor };
uint32_t shuffle_bits(Shuffle kind, uint32_t value, int operand, int width, Location location);
uint32_t ballot(bool predicate, Location location);

template <class T>
T shuffle(Shuffle kind, T value, int operand, int width, Location location) {
  static_assert(sizeof(T) == 4 && std::is_trivially_copyable_v<T>);
  return __builtin_bit_cast(
      T, shuffle_bits(kind, __builtin_bit_cast(uint32_t, value), operand, width, location));
}

// Asynchronous copies into shared memory (cp.async)
void copy_async(uint32_t destination, const void* source, unsigned bytes, unsigned source_bytes,
                Location location);
void copy_async_commit();
void copy_async_wait(unsigned pending, Location location);

// Matrices in registers (ldmatrix, stmatrix, mma)
enum class Product { kFloat16, kBFloat16, kTFloat32 };
void load_matrix(int count, bool transposed, uint32_t* matrices, uint32_t address,
                 Location location);
void store_matrix(int count, bool transposed, const uint32_t* matrices, uint32_t address,
                  Location location);
void multiply_accumulate(Product kind, float* d, const uint32_t* a, const uint32_t* b,
                         Location location);

// Numbers
uint32_t to_tf32(float x);
void sincospi(double x, double* sine, double* cosine);

}  // namespace emulation

// The memory that a kernel may touch: its block's shared memory, the buffers registered for the
// call, its own stack, and constants of the program.
#pragma once
#include <cstddef>
#include <cstdint>

#include "emulation/emulation.h"
#include "emulation/runtime/report.h"

namespace emulation {

// Of an sm_90 block, opted in; of one that has not asked, and of any block's static arrays.
constexpr size_t kMaxSharedBytes = 227 << 10;
constexpr size_t kMaxStaticBytes = 48 << 10;

enum BufferFlags : int { kReadOnlyBuffer = 1, kUninitialisedBuffer = 2 };
void register_buffer(const void* address, size_t bytes, const char* name, int flags);
void forget_buffers();

// Before a block: all bytes 0xff, a NaN in every floating-point type, and none of them written.
void reset_shared();

struct AccessDetails {
  Access kind;
  Site site;
  bool aligned = true;  // must the address be a multiple of the size?
};

// Returns if the access is allowed. Without the sanitizers' calls there is no shadow, and only
// bounds, flags and alignment are checked.
void check(const void* address, size_t bytes, const AccessDetails& access);

// Bounds alone, of a row of a matrix in shared memory.
void check_shared_bounds(uint32_t address, size_t bytes, Site site);

// Of shared memory: marks what an asynchronous copy is still writing.
void mark_in_flight(const unsigned char* address, size_t bytes, bool in_flight);

unsigned char* shared_pointer(uint32_t address);

}  // namespace emulation

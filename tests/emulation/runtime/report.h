// Findings: what is wrong with a kernel, at which of its lines, and seen by which thread.
#pragma once
#include <cstddef>
#include <cstdint>
#include <source_location>

namespace emulation {

// A place in the program: a source location that a wrapper passed on, or the address of the
// instruction behind a plain load or store. Small, because every cell of the shadow holds four.
enum class Site : uint32_t { kNone = 0 };
Site site_of(const std::source_location& location);
Site site_of(const char* file, unsigned line);
Site site_of_instruction(const void* return_address);

// Is it code or data of the kernels (or of the emulator)?
bool inside_library(const void* address);

enum class Kind {
  kOutOfBounds,
  kMisaligned,
  kReadOnly,
  kUninitialised,
  kRace,
  kInFlight,
  kLostCopy,
  kDivergentBarrier,
  kDeadlock,
  kBadCollective,
  kForeignLocal,
  kLocalIndex,
  kShift,
  kFault,
};

// Two findings of one kind at the same places count as one, so a loop reports once.
__attribute__((format(printf, 4, 5))) void report(Kind kind, Site site, Site other,
                                                  const char* format, ...);

// For what makes it pointless or dangerous to go on: ends the launch. Inside a thread it does not
// return.
[[noreturn]] __attribute__((format(printf, 3, 4))) void fail(Kind kind, Site site,
                                                             const char* format, ...);

size_t findings_count();
void forget_findings();

// One finding a line, fields between tabs; see emulator.py, which turns addresses into lines.
size_t write_findings(char* text, size_t capacity);

}  // namespace emulation

// Threads of execution that hand over explicitly; all run on the one OS thread of the launch.
#pragma once
#include <cstddef>

// Any other processor has the C library's contexts; EMULATION_UCONTEXT tries them here.
#if !defined(__x86_64__) || defined(EMULATION_UCONTEXT)
#include <ucontext.h>
#endif

namespace emulation {

struct Fiber {
#if defined(__x86_64__) && !defined(EMULATION_UCONTEXT)
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
};

// `entry` starts at the first switch to the fiber and must not return.
void prepare(Fiber& fiber, unsigned char* stack, size_t stack_bytes, void (*entry)());

// Continues `to`; returns when something switches back to `from`.
void switch_fiber(Fiber& from, Fiber& to);

}  // namespace emulation

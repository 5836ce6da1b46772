#include "emulation/runtime/fibers.h"

#include <cstdint>

namespace emulation {

#if defined(__x86_64__) && !defined(EMULATION_UCONTEXT)

// Saves what the System V ABI calls callee-saved on the old stack, and takes the same from the new
// one. About 10 ns; swapcontext costs 160 ns, a system call for the signal mask among it.
extern "C" __attribute__((visibility("hidden"))) void emulation_switch(void** from, void* to);
asm(R"(
.text
.globl emulation_switch
.hidden emulation_switch
.type emulation_switch, @function
emulation_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulation_switch, . - emulation_switch
)");

void prepare(Fiber& fiber, unsigned char* stack, size_t stack_bytes, void (*entry)()) {
  constexpr int kSavedRegisters = 6;
  auto** top = reinterpret_cast<void**>(stack + stack_bytes);
  *--top = nullptr;  // entry's return address; also what aligns its frame as a call would
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < kSavedRegisters; ++i) *--top = nullptr;
  fiber.stack_pointer = top;
}

void switch_fiber(Fiber& from, Fiber& to) {
  emulation_switch(&from.stack_pointer, to.stack_pointer);
}

#else

void prepare(Fiber& fiber, unsigned char* stack, size_t stack_bytes, void (*entry)()) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stack;
  fiber.context.uc_stack.ss_size = stack_bytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
}

void switch_fiber(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }

#endif

}  // namespace emulation

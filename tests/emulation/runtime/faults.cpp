#include "emulation/runtime/faults.h"

#include <signal.h>
#include <ucontext.h>

#include "emulation/runtime/state.h"

namespace emulation {
namespace {

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE};
constexpr int kCount = sizeof kSignals / sizeof kSignals[0];

struct sigaction before[kCount];
stack_t stack_before;
alignas(16) unsigned char handler_stack[64 << 10];

const char* instruction_of(void* context) {
  auto* machine = &static_cast<ucontext_t*>(context)->uc_mcontext;
#if defined(__x86_64__)
  return reinterpret_cast<const char*>(machine->gregs[REG_RIP]);
#elif defined(__aarch64__)
  return reinterpret_cast<const char*>(machine->pc);
#else
  return nullptr;
#endif
}

// Leaves the handler by a switch to the scheduler; the thread never runs again.
void handle(int signal, siginfo_t* information, void* context) {
  if (current == nullptr) {
    for (int i = 0; i < kCount; ++i) {
      if (kSignals[i] == signal) sigaction(signal, &before[i], nullptr);
    }
    return;  // the instruction runs again, and faults again
  }
  const char* instruction = instruction_of(context);
  const Site site = instruction == nullptr ? Site::kNone : site_of_instruction(instruction + 1);
  if (signal == SIGFPE) fail(Kind::kFault, site, "division by zero");
  fail(Kind::kFault, site, "the address is %p; the checked flavour says more",
       information->si_addr);
}

}  // namespace

FaultsAreFindings::FaultsAreFindings() {
  const stack_t stack = {.ss_sp = handler_stack, .ss_flags = 0, .ss_size = sizeof handler_stack};
  sigaltstack(&stack, &stack_before);
  struct sigaction action = {};
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  for (int i = 0; i < kCount; ++i) sigaction(kSignals[i], &action, &before[i]);
}

FaultsAreFindings::~FaultsAreFindings() {
  for (int i = 0; i < kCount; ++i) sigaction(kSignals[i], &before[i], nullptr);
  sigaltstack(&stack_before, nullptr);
}

}  // namespace emulation

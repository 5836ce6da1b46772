// What emulator.py calls.
#include <cstring>

#include "emulation/runtime/memory.h"
#include "emulation/runtime/state.h"

extern "C" {

void emulation_begin_call() {
  emulation::forget_buffers();
  emulation::forget_findings();
  emulation::statistics = {};
  emulation::abandoned = false;
}
void emulation_set(int order, uint64_t seed, int late_copies) {
  emulation::options = {static_cast<emulation::Order>(order), seed, late_copies != 0};
}
void emulation_register_buffer(const void* address, size_t bytes, const char* name, int flags) {
  emulation::register_buffer(address, bytes, name, flags);
}
size_t emulation_findings(char* text, size_t capacity) {
  return emulation::write_findings(text, capacity);
}
void emulation_statistics(uint64_t* values) {
  std::memcpy(values, &emulation::statistics, sizeof emulation::statistics);
}
int emulation_checked() { return emulation::checked ? 1 : 0; }

}  // extern "C"

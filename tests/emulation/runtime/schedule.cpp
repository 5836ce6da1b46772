// Which thread runs next. A thread runs until it has to wait; its warp goes on as long as it can,
// so a warp gets as far ahead of the others as the barriers allow.
#include <bit>

#include "emulation/runtime/state.h"

namespace emulation {

Options options;
Statistics statistics;
Block block;
Thread* current = nullptr;
bool abandoned = false;

namespace {

Fiber* scheduler = nullptr;
unsigned current_warp = 0;
uint64_t random_state = 1;

unsigned pick_lane(uint32_t ready) {
  if (options.order == Order::kReverse) return 31 - std::countl_zero(ready);
  if (options.order == Order::kForward) return std::countr_zero(ready);
  const int turn = static_cast<int>(random_number() % kLanes);
  return (std::countr_zero(std::rotr(ready, turn)) + turn) % kLanes;
}

Thread* pick_thread() {
  const unsigned warps = launch_state.warps;
  const unsigned step = options.order == Order::kReverse ? warps - 1 : 1;
  // Now and then another warp overtakes.
  if (options.order == Order::kRandom && random_number() % 8 == 0)
    current_warp = static_cast<unsigned>(random_number() % warps);
  for (unsigned tried = 0; tried < warps; ++tried, current_warp = (current_warp + step) % warps) {
    const uint32_t ready = block.warps[current_warp].ready;
    if (ready != 0) return &block.threads[current_warp * kLanes + pick_lane(ready)];
  }
  return nullptr;
}

void hand_over() {
  Thread* from = current;
  Thread* to = abandoned ? nullptr : pick_thread();
  ++statistics.switches;
  if (to == from) return;
  current = to;
  switch_fiber(from->fiber, to != nullptr ? to->fiber : *scheduler);
}

}  // namespace

uint64_t random_number() {  // xorshift64
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}
void seed_random() { random_state = options.seed * 0x9e3779b97f4a7c15u | 1; }

void wait_here(Site site, const char* what) {
  current->site = site;
  current->waits_for = what;
  block.warps[current->warp].ready &= ~(1u << current->lane);
  hand_over();
}

void wake(Thread& thread) { block.warps[thread.warp].ready |= 1u << thread.lane; }

void run_until_stuck(Fiber& host) {
  scheduler = &host;
  current_warp = options.order == Order::kReverse ? launch_state.warps - 1 : 0;
  current = pick_thread();
  if (current != nullptr) switch_fiber(host, current->fiber);
  current = nullptr;
}

void exit_thread() {
  Warp& warp = block.warps[current->warp];
  warp.ready &= ~(1u << current->lane);
  warp.exited |= 1u << current->lane;
  current->exited = true;
  --block.live;
  for (;;) hand_over();
}

void abandon_launch() {
  abandoned = true;
  if (current == nullptr) __builtin_trap();  // nothing outside a thread calls this
  for (;;) hand_over();
}

}  // namespace emulation

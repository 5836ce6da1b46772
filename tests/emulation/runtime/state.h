// The state of the one launch that runs, and the scheduler that its parts share.
#pragma once
#include <cstdint>
#include <vector>

#include "emulation/emulation.h"
#include "emulation/runtime/fibers.h"
#include "emulation/runtime/report.h"

namespace emulation {

constexpr unsigned kLanes = 32;
constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kMaxWarps = kMaxThreads / kLanes;
constexpr unsigned kBarriers = 16;

enum class Order { kForward, kReverse, kRandom };
struct Options {
  Order order = Order::kForward;  // of blocks, warps and lanes
  uint64_t seed = 1;
  bool late_copies = true;  // asynchronous copies land at the wait, not at the issue
};
struct Statistics {
  uint64_t launches, blocks, threads, switches, barriers, collectives, products, copies, accesses;
  // A load or store of one 8 x 8 matrix takes one wavefront if its rows lie in different banks.
  uint64_t matrices, wavefronts;
  // The same of vectors of shared memory, of which one wavefront moves 128 bytes.
  uint64_t vector_accesses, vector_wavefronts;
};

struct Copy {
  unsigned char* destination;
  const unsigned char* source;
  unsigned bytes, source_bytes, group;
  Site site;
};

struct Thread {
  Fiber fiber;
  const unsigned char* stack;
  uint3 index;
  unsigned number, lane, warp;
  bool exited;
  // While it waits: where, and for what.
  Site site;
  const char* waits_for;
  std::vector<Copy> copies;
  unsigned copy_group;
};

struct Barrier {
  unsigned arrived = 0, expected = 0;
  Site site = Site::kNone;
  std::vector<Thread*> waiting;
};

// A collective operation of a warp that some of its lanes have reached.
struct Meeting {
  bool open = false;
  const char* what;
  uint32_t mask, arrived;
  Site site;
  const void* inputs[kLanes];
  void* outputs[kLanes];
};

struct Warp {
  uint32_t ready = 0, exited = 0;  // bit per lane
  Meeting meetings[kLanes];
};

struct Launch {
  dim3 grid, block;
  size_t shared_bytes;
  unsigned threads, warps;
  void (*invoke)(const void*);
  const void* context;
};

struct Block {
  uint3 index;
  unsigned live;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Barrier barriers[kBarriers];
};

extern Options options;
extern Statistics statistics;
extern Launch launch_state;
extern Block block;
extern Thread* current;  // nullptr while the host or the scheduler runs
extern bool checked;     // kernels were compiled with the sanitizers' calls
extern bool abandoned;   // a finding ended the launch; later ones of the same call do not start

constexpr size_t kStackBytes = 256 << 10;

// schedule.cpp
uint64_t random_number();
void seed_random();
void wait_here(Site site, const char* what);  // until another thread calls wake
void wake(Thread& thread);
void run_until_stuck(Fiber& scheduler);
[[noreturn]] void exit_thread();
[[noreturn]] void abandon_launch();

// barriers.cpp
void reset_barriers();
void leave_barriers(Thread& thread);  // at its exit

// warp.cpp. Runs `perform` once every lane of `mask` is here. `same_place`: PTX's .aligned, all
// lanes must execute the same instruction. Names are compared by address: one literal each.
void meet(const char* what, uint32_t mask, bool same_place, const void* input, void* output,
          void (*perform)(Meeting&), Site site);

// banks.cpp
void finish_counting_banks();  // after a block

// copies.cpp
void finish_copies(Thread& thread);

template <class Function>
void for_each_lane(uint32_t mask, Function function) {
  for (; mask != 0; mask &= mask - 1) function(static_cast<unsigned>(__builtin_ctz(mask)));
}

}  // namespace emulation

// Which accesses are ordered by barriers, and the shadow that remembers the last ones.
//
// An access precedes what a thread does now if it was in an earlier launch, or in the same block
// and before a barrier that both threads passed. Every thread has a clock that advances at its
// barriers; a barrier of the whole block, by far the most frequent, only raises a floor under all
// clocks, so it costs the same for 32 threads and for 1024. Barriers of fewer threads exchange
// what they know of each other's clocks, by warps.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "emulation/emulation.h"
#include "emulation/runtime/report.h"
#include "emulation/runtime/state.h"

namespace emulation {

constexpr size_t kGranule = 2;  // bytes in a cell: the smallest element that kernels here store

struct Stamp {
  uint32_t block : 30;  // serial number over all launches; 0: never
  uint32_t atomic : 1;
  uint32_t in_flight : 1;  // an asynchronous copy that has not been waited for
  uint32_t thread : 10;
  uint32_t clock : 22;
  Site site;
};

// The last write, and reads since: the first one's slot, then another lane of its warp, then
// another warp.
struct Cell {
  Stamp write;
  Stamp reads[3];
};

class Clocks {
 public:
  void begin_launch();
  void begin_block();
  void order_block();
  void order_group(const std::vector<Thread*>& threads);

  Stamp now(Access access, Site site) const;
  bool precedes(const Stamp& stamp) const;

 private:
  uint32_t own(unsigned thread) const { return own_[thread] < floor_ ? floor_ : own_[thread]; }
  bool knows(unsigned thread, unsigned warp) const {
    return row_floor_[thread] == floor_ && (warps_known_[thread] >> warp & 1) != 0;
  }

  uint32_t serial_ = 0, launch_serial_ = 1;
  uint32_t floor_ = 1;   // smaller clocks precede the last barrier of the whole block
  uint32_t latest_ = 1;  // no thread's clock is larger
  uint32_t own_[kMaxThreads];
  // Row t: the clocks of other threads that precede thread t. Valid if made since the last barrier
  // of the block, and there only for the warps of the bit mask.
  uint32_t row_floor_[kMaxThreads];
  uint32_t warps_known_[kMaxThreads];
  uint32_t known_[kMaxThreads][kMaxThreads];
};
extern Clocks clocks;

// The memory that cells shadow, for messages.
struct Place {
  const char* name;
  size_t offset;  // of the first cell's first byte
};
void record(Cell* begin, Cell* end, Access access, Site site, bool must_be_written, Place place);

}  // namespace emulation

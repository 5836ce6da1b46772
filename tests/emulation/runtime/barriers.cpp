#include "emulation/runtime/races.h"
#include "emulation/runtime/state.h"

namespace emulation {
namespace {

void release(Barrier& barrier) {
  ++statistics.barriers;
  if (checked) {
    if (barrier.expected == launch_state.threads) {
      clocks.order_block();
    } else {
      clocks.order_group(barrier.waiting);
    }
  }
  for (Thread* thread : barrier.waiting) wake(*thread);
  barrier.waiting.clear();
  barrier.arrived = 0;
}

[[noreturn]] void fail_divergent(const Barrier& barrier, Site site, const char* what) {
  report(Kind::kDivergentBarrier, site, barrier.site, "%s here, while thread %u waits there", what,
         barrier.waiting.front()->number);
  abandon_launch();
}

void arrive(Barrier& barrier, unsigned threads, Site site, const char* what) {
  if (barrier.arrived == 0) {
    barrier.expected = threads;
    barrier.site = site;
  } else if (barrier.expected != threads) {
    fail_divergent(barrier, site, "sync_group of another number of threads");
  }
  ++barrier.arrived;
  barrier.waiting.push_back(current);
  if (barrier.arrived == barrier.expected) {
    // The last one goes on; `wake` of a thread that never waited changes nothing.
    release(barrier);
  } else {
    wait_here(site, what);
  }
}

}  // namespace

void reset_barriers() {
  for (Barrier& barrier : block.barriers) {
    barrier.arrived = 0;
    barrier.waiting.clear();
  }
}

void sync_threads(Location location) {
  const Site site = site_of(location);
  Barrier& barrier = block.barriers[0];
  // Some GPUs would let two barriers of different lines meet; CUDA does not allow it.
  if (barrier.arrived > 0 && barrier.site != site) fail_divergent(barrier, site, "sync_threads");
  if (block.live != launch_state.threads)
    fail(Kind::kDivergentBarrier, site, "sync_threads, but %u threads have exited",
         launch_state.threads - block.live);
  arrive(barrier, launch_state.threads, site, "sync_threads");
}

void sync_group(int barrier_id, int threads, Location location) {
  const Site site = site_of(location);
  if (barrier_id < 1 || barrier_id >= static_cast<int>(kBarriers))
    fail(Kind::kBadCollective, site, "sync_group: barrier %d; there are 1 to 15", barrier_id);
  if (threads <= 0 || threads % kLanes != 0 || threads > static_cast<int>(launch_state.threads))
    fail(Kind::kBadCollective, site, "sync_group of %d threads in a block of %u", threads,
         launch_state.threads);
  arrive(block.barriers[barrier_id], static_cast<unsigned>(threads), site, "sync_group");
}

void leave_barriers(Thread& thread) {
  const Barrier& barrier = block.barriers[0];
  if (barrier.arrived > 0)
    fail(Kind::kDivergentBarrier, barrier.site, "thread %u exits while others wait here",
         thread.number);
}

}  // namespace emulation

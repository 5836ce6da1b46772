// A launch: its blocks one after the other, each with one fiber for every thread.
#include <sys/mman.h>

#include <cstdio>
#include <mutex>
#include <numeric>
#include <string>

#include "emulation/runtime/faults.h"
#include "emulation/runtime/memory.h"
#include "emulation/runtime/races.h"
#include "emulation/runtime/state.h"

namespace emulation {

Launch launch_state;

uint3 thread_index() { return current->index; }
uint3 block_index() { return block.index; }
dim3 block_extent() { return launch_state.block; }
dim3 grid_extent() { return launch_state.grid; }

namespace {

std::mutex one_launch;

unsigned char* stacks() {
  // Pages that no thread touches cost nothing.
  static auto* const memory =
      static_cast<unsigned char*>(mmap(nullptr, kMaxThreads * kStackBytes, PROT_READ | PROT_WRITE,
                                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  return memory;
}

void run_thread() {
  launch_state.invoke(launch_state.context);
  finish_copies(*current);
  leave_barriers(*current);
  exit_thread();
}

void prepare_thread(unsigned number) {
  const dim3& extent = launch_state.block;
  Thread& thread = block.threads[number];
  thread.stack = stacks() + number * kStackBytes;
  thread.index = {number % extent.x, number / extent.x % extent.y, number / extent.x / extent.y};
  thread.number = number;
  thread.lane = number % kLanes;
  thread.warp = number / kLanes;
  thread.exited = false;
  thread.waits_for = "";
  thread.copies.clear();
  thread.copy_group = 0;
  prepare(thread.fiber, stacks() + number * kStackBytes, kStackBytes, run_thread);
  wake(thread);
}

// Whether two threads are stuck in the same way.
bool alike(const Thread& a, const Thread& b) {
  return a.exited == b.exited && (a.exited || a.site == b.site);
}

void report_deadlock() {
  std::string message;
  Site site = Site::kNone, other = Site::kNone;
  const std::vector<Thread>& threads = block.threads;
  for (size_t first = 0, end = 0, groups = 0; first < threads.size(); first = end, ++groups) {
    while (end < threads.size() && alike(threads[first], threads[end])) ++end;
    const Thread& thread = threads[first];
    if (!thread.exited && site == Site::kNone) site = thread.site;
    if (!thread.exited && thread.site != site && other == Site::kNone) other = thread.site;
    if (groups >= 8) continue;
    message += ", threads " + std::to_string(first) + "-" + std::to_string(end - 1) +
               (thread.exited ? " exited" : std::string(" wait in ") + thread.waits_for);
  }
  report(Kind::kDeadlock, site, other, "block (%u, %u, %u) is stuck%s", block.index.x,
         block.index.y, block.index.z, message.c_str());
  abandoned = true;
}

void run_block(unsigned number) {
  const dim3& grid = launch_state.grid;
  block.index = {number % grid.x, number / grid.x % grid.y, number / grid.x / grid.y};
  block.live = launch_state.threads;
  for (Warp& warp : block.warps) {
    warp.ready = warp.exited = 0;
    for (Meeting& meeting : warp.meetings) meeting.open = false;
  }
  reset_barriers();
  reset_shared();
  if (checked) clocks.begin_block();
  for (unsigned i = 0; i < launch_state.threads; ++i) prepare_thread(i);
  ++statistics.blocks;
  statistics.threads += launch_state.threads;
  Fiber scheduler;
  run_until_stuck(scheduler);
  finish_counting_banks();
  if (block.live > 0 && !abandoned) report_deadlock();
}

std::vector<unsigned> order_of_blocks(unsigned count) {
  std::vector<unsigned> numbers(count);
  std::iota(numbers.begin(), numbers.end(), 0u);
  for (unsigned i = 0; i < count; ++i) {
    if (options.order == Order::kReverse) numbers[i] = count - 1 - i;
    if (options.order == Order::kRandom)
      std::swap(numbers[i], numbers[i + random_number() % (count - i)]);
  }
  return numbers;
}

// What CUDA refuses, in its words.
const char* refuse(dim3 grid, dim3 block, size_t shared_bytes) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > kMaxThreads || block.z > 64 || grid.x == 0 || grid.y == 0 ||
      grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    return "invalid configuration argument";
  return shared_bytes > kMaxSharedBytes ? "invalid argument" : nullptr;
}

}  // namespace

const char* launch_grid(dim3 grid, dim3 extent, size_t shared_bytes, void (*invoke)(const void*),
                        const void* kernel_and_arguments) {
  const std::lock_guard lock(one_launch);
  if (const char* error = refuse(grid, extent, shared_bytes)) return error;
  if (abandoned) return nullptr;  // what would follow a failure is not worth reading
  const unsigned threads = extent.x * extent.y * extent.z;
  launch_state = {grid,
                  extent,
                  shared_bytes,
                  threads,
                  (threads + kLanes - 1) / kLanes,
                  invoke,
                  kernel_and_arguments};
  block.threads.resize(threads);
  block.warps.resize(launch_state.warps);
  ++statistics.launches;
  if (checked) clocks.begin_launch();
  seed_random();
  const FaultsAreFindings guard;
  for (const unsigned number : order_of_blocks(grid.x * grid.y * grid.z)) {
    if (!abandoned) run_block(number);
  }
  return nullptr;
}

}  // namespace emulation

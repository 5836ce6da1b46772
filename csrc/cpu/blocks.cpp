#include "cpu/blocks.h"

#include <algorithm>
#include <cstdlib>
#include <list>
#include <mutex>
#include <new>

#include "core/fft_conv.h"

#if defined(__linux__)
#include <pthread.h>
#include <sys/mman.h>
#endif

namespace monarch::cpu {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;

int64_t rounded(int64_t bytes) { return (bytes + kHugePage - 1) / kHugePage * kHugePage; }

int64_t limit_from_environment() {
  const char* text = std::getenv("MONARCH_KERNELS_CPU_KEEP_MB");
  const long long megabytes = text == nullptr ? 512 : std::atoll(text);
  return std::clamp<int64_t>(megabytes, 0, int64_t{1} << 20) << 20;
}

class Blocks {
 public:
  void* take(int64_t bytes) {
    const int64_t size = rounded(bytes);
    {
      const std::lock_guard lock(mutex_);
      if (limit_ == 0) return nullptr;
      // The latest first: some of it may still be in a cache.
      const auto found = std::find_if(free_.rbegin(), free_.rend(),
                                      [size](const Block& block) { return block.bytes == size; });
      if (found != free_.rend()) {
        void* data = found->data;
        kept_ -= size;
        free_.erase(std::next(found).base());
        return data;
      }
    }
    void* data = std::aligned_alloc(kHugePage, static_cast<size_t>(size));
    if (data != nullptr) advise_huge_pages(data, size);
    return data;
  }

  void give(void* data, int64_t bytes) {
    const Block block{data, rounded(bytes)};
    if (block.bytes > limit()) return std::free(data);
#if defined(__linux__)
    madvise(data, static_cast<size_t>(block.bytes), MADV_FREE);
#endif
    std::list<Block> one;
    try {
      one.push_back(block);
    } catch (const std::bad_alloc&) {
      return std::free(data);
    }
    const std::lock_guard lock(mutex_);
    free_.splice(free_.end(), one);
    kept_ += block.bytes;
    shrink();
  }

  void set_limit(int64_t bytes) {
    const std::lock_guard lock(mutex_);
    limit_ = bytes;
    shrink();
  }
  int64_t limit() {
    const std::lock_guard lock(mutex_);
    return limit_;
  }
  std::mutex& mutex() { return mutex_; }
  int64_t kept() {
    const std::lock_guard lock(mutex_);
    return kept_;
  }

 private:
  struct Block {
    void* data;
    int64_t bytes;
  };

  void shrink() {
    while (kept_ > limit_) {
      kept_ -= free_.front().bytes;
      std::free(free_.front().data);
      free_.pop_front();
    }
  }

  std::mutex mutex_;
  std::list<Block> free_;  // the one given first is in front
  int64_t kept_ = 0;
  int64_t limit_ = limit_from_environment();
};

// Never destroyed: tensors may outlive every static object.
Blocks& blocks() {
  static Blocks& all = [&]() -> Blocks& {
    auto& made = *new Blocks;
#if defined(__linux__)
    // A child must not inherit the lock of a thread that it does not have.
    pthread_atfork([] { blocks().mutex().lock(); }, [] { blocks().mutex().unlock(); },
                   [] { blocks().mutex().unlock(); });
#endif
    return made;
  }();
  return all;
}

}  // namespace

void* take_block(int64_t bytes) { return blocks().take(bytes); }
void give_block(void* data, int64_t bytes) noexcept { blocks().give(data, bytes); }
void set_kept_limit(int64_t bytes) { blocks().set_limit(bytes); }
int64_t kept_limit() { return blocks().limit(); }
int64_t kept_bytes() { return blocks().kept(); }

}  // namespace monarch::cpu

// Scratch memory of one thread. Compiled with baseline flags only.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <new>

#include "core/fft_conv.h"

namespace monarch::cpu {

// Kept between calls while it is small.
class Workspace {
 public:
  explicit Workspace(int64_t floats) {
    const size_t bytes = (static_cast<size_t>(floats) * sizeof(float) + 4095) / 4096 * 4096;
    Cache& cache = thread_cache();
    if (bytes <= cache.bytes) {
      data_ = cache.data;
      return;
    }
    data_ = static_cast<float*>(std::aligned_alloc(4096, bytes));
    if (data_ == nullptr) throw std::bad_alloc();
    advise_huge_pages(data_, static_cast<int64_t>(bytes));
    if (bytes <= kKeptBytes) {
      std::free(cache.data);
      cache = {data_, bytes};
    } else {
      owned_ = true;
    }
  }
  ~Workspace() {
    if (owned_) std::free(data_);
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  float* data() const { return data_; }

 private:
  static constexpr size_t kKeptBytes = size_t{8} << 20;

  struct Cache {
    float* data = nullptr;
    size_t bytes = 0;
  };
  struct CacheOwner {
    Cache cache;
    ~CacheOwner() { std::free(cache.data); }
  };
  static Cache& thread_cache() {
    thread_local CacheOwner owner;
    return owner.cache;
  }

  float* data_ = nullptr;
  bool owned_ = false;
};

}  // namespace monarch::cpu

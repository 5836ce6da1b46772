// Entry points of fft_conv: plan, workspace, the chosen instruction set's kernels.
#include "core/fft_conv.h"

#include <cstdlib>
#include <memory>
#include <new>

#include "cpu/dispatch.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace monarch::cpu {
namespace {

// Scratch of one thread, kept between calls while it is small.
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
  static constexpr size_t kKeptBytes = size_t{4} << 20;

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

// Rows held at once: the transform's, and for the backward those of u and of the filter's gradient.
int64_t workspace_floats(const Plan& plan, int rows) {
  const int64_t real = plan.interleaved ? plan.size * plan.lanes : plan.size;
  return rows * row_floats(plan) + real;
}

int64_t units(int64_t channels, const Plan& plan) {
  return plan.interleaved ? (channels + plan.lanes - 1) / plan.lanes : channels;
}

template <class Params, class Kernel>
void run(const Params& params, Kernel KernelTable::* kernel, int rows, int64_t begin, int64_t end) {
  const KernelTable& table = kernels();
  const Plan& plan = plan_for(params.length, table.lanes);
  const Workspace workspace(workspace_floats(plan, rows));
  (table.*kernel)(params, Context{plan, workspace.data()}, begin, end);
}

template <class Params>
int64_t channel_units(const Params& params) {
  return units(params.channels, plan_for(params.length, kernels().lanes));
}

}  // namespace

int64_t spectrum_floats(int64_t channels, int64_t length) {
  const Plan& plan = plan_for(length, kernels().lanes);
  return units(channels, plan) * plan.columns * 2 * plan.lanes;
}
int kernel_lanes() { return kernels().lanes; }

int64_t filter_spectrum_items(const FilterSpectrumParams& params) { return channel_units(params); }
void filter_spectrum(const FilterSpectrumParams& params, int64_t begin, int64_t end) {
  run(params, &KernelTable::filter_spectrum, 1, begin, end);
}

int64_t fft_conv_fwd_items(const FftConvParams& params) {
  return channel_units(params) * params.batch;
}
void fft_conv_fwd(const FftConvParams& params, int64_t begin, int64_t end) {
  run(params, &KernelTable::fft_conv_fwd, 1, begin, end);
}

int64_t fft_conv_bwd_items(const FftConvBackwardParams& params) { return channel_units(params); }
void fft_conv_bwd(const FftConvBackwardParams& params, int64_t begin, int64_t end) {
  run(params, &KernelTable::fft_conv_bwd, 3, begin, end);
}

void advise_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__)
  constexpr int64_t kHugePage = int64_t{2} << 20, kPage = 4096;
  if (bytes < 2 * kHugePage) return;
  const auto first = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const auto last =
      (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) / kPage * kPage;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

}  // namespace monarch::cpu

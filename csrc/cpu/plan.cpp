#include "cpu/plan.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace monarch::cpu {
namespace {

// Walks the tree of moduli x^n - e^(2 pi i theta) in the order of the kernels. A node of radix R
// needs e^(2 pi i theta j / R) for j = 1 .. R-1, and its child s has the root (theta + s) / R.
class TableBuilder {
 public:
  explicit TableBuilder(const Plan& plan) : plan_(plan) {}

  void walk(int level, double theta) {
    if (level == plan_.passes.count) {
      put_leaf(theta);
      return;
    }
    const int radix = plan_.passes.radix[level];
    put_scalars(radix, theta);
    for (int s = 0; s < radix; ++s) walk(level + 1, (theta + s) / radix);
  }

  std::vector<float> scalars, vectors;
  std::vector<double> double_scalars;

 private:
  static std::pair<double, double> root_of_unity(double theta) {
    const double angle = 2 * M_PI * (theta - std::floor(theta));
    return {std::cos(angle), std::sin(angle)};
  }

  // 16 columns as 4 x 4. In a row, whose lanes hold consecutive samples, these are transformed too:
  // after a transposition, each lane with the root of the column that it came from.
  void put_leaf(double theta) {
    std::vector<double> roots;
    put_scalars(4, theta);
    for (int s = 0; s < 4; ++s) {
      const double inner = (theta + s) / 4;
      put_scalars(4, inner);
      for (int t = 0; t < 4; ++t) roots.push_back((inner + t) / 4);
    }
    if (!plan_.interleaved) put_lane_stages(roots);
  }

  void put_scalars(int radix, double theta) {
    for (int j = 1; j < radix; ++j) {
      const auto [re, im] = root_of_unity(theta * j / radix);
      for (const double part : {re, im}) {
        scalars.push_back(static_cast<float>(part));
        if (plan_.interleaved) double_scalars.push_back(part);
      }
    }
  }

  // A stage of radix lanes/4 and one of radix 4, for each `lanes` columns.
  void put_lane_stages(const std::vector<double>& roots) {
    const int quads = plan_.lanes / 4;
    for (const double* first = roots.data(); first < roots.data() + roots.size();
         first += plan_.lanes) {
      for (int j = 1; j < quads; ++j) put_vector(first, 0, quads, j);
      for (int k = 0; k < quads; ++k) {
        for (int c = 1; c < 4; ++c) put_vector(first, k, 4 * quads, c);
      }
    }
  }

  // e^(2 pi i (theta + k) power / radix) for the columns from `first`, one a lane.
  void put_vector(const double* first, int k, int radix, int power) {
    const size_t at = vectors.size();
    vectors.resize(at + 2 * plan_.lanes);
    for (int lane = 0; lane < plan_.lanes; ++lane) {
      const auto [re, im] = root_of_unity((first[lane] + k) * power / radix);
      vectors[at + lane] = static_cast<float>(re);
      vectors[at + plan_.lanes + lane] = static_cast<float>(im);
    }
  }

  const Plan& plan_;
};

struct Free {
  void operator()(float* p) const { std::free(p); }
};

struct Entry {
  Plan plan;
  std::vector<float> scalars;
  std::vector<double> double_scalars;
  std::unique_ptr<float, Free> vectors;
};

std::unique_ptr<Entry> build(int64_t size, int lanes) {
  auto entry = std::make_unique<Entry>();
  Plan& plan = entry->plan;
  plan.size = size;
  plan.lanes = lanes;
  plan.interleaved = size <= kInterleavedMax;
  plan.columns = plan.interleaved ? size : size / lanes;
  plan.passes = factor(plan.columns);
  TableBuilder tables(plan);
  tables.walk(0, 0.25);  // modulo x^S - i
  entry->scalars = std::move(tables.scalars);
  plan.scalars = entry->scalars.data();
  entry->double_scalars = std::move(tables.double_scalars);
  plan.double_scalars = entry->double_scalars.data();
  const size_t bytes = (tables.vectors.size() * sizeof(float) + 63) / 64 * 64;
  entry->vectors.reset(static_cast<float*>(std::aligned_alloc(64, bytes + 64)));
  if (!entry->vectors) throw std::bad_alloc();
  if (bytes > 0) {
    std::memcpy(entry->vectors.get(), tables.vectors.data(), tables.vectors.size() * sizeof(float));
  }
  plan.vectors = entry->vectors.get();
  return entry;
}

}  // namespace

const Plan& plan_for(int64_t length, int lanes) {
  static std::mutex mutex;
  static std::map<std::pair<int64_t, int>, std::unique_ptr<Entry>> cache;
  const std::pair<int64_t, int> key{transform_size(length), lanes};
  const std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<Entry>& entry = cache[key];
  if (!entry) entry = build(key.first, lanes);
  return entry->plan;
}

}  // namespace monarch::cpu

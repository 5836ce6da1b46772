#include "emulation/runtime/report.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <string>
#include <vector>

#include "emulation/runtime/state.h"

// Of the linker: where this library begins and ends in memory.
extern "C" __attribute__((visibility("hidden"))) const char __ehdr_start, _end;

namespace emulation {
namespace {

constexpr uint32_t kIsLocation = 1u << 31;
constexpr size_t kMostFindings = 32;
// In the order of Kind.
constexpr const char* kNames[] = {"out of bounds",
                                  "misaligned",
                                  "read-only buffer",
                                  "uninitialised read",
                                  "race",
                                  "in flight",
                                  "lost copy",
                                  "divergent barrier",
                                  "deadlock",
                                  "bad collective",
                                  "another's local memory",
                                  "local index",
                                  "shift",
                                  "fault"};
static_assert(std::size(kNames) == static_cast<size_t>(Kind::kFault) + 1);

struct SourceLine {
  const char* file;
  unsigned line;
};
struct Finding {
  Kind kind;
  Site site, other;
  std::string message, thread;
  unsigned count;
};

std::vector<SourceLine> source_lines;
std::vector<Finding> findings;

std::string text_of(Site site) {
  const auto value = static_cast<uint32_t>(site);
  if (site == Site::kNone) return "";
  if ((value & kIsLocation) == 0) return "+" + std::to_string(value);
  const SourceLine& place = source_lines[value & ~kIsLocation];
  return std::string(place.file) + ":" + std::to_string(place.line);
}

std::string name_of_current_thread() {
  if (current == nullptr) return "";
  char text[128];
  std::snprintf(text, sizeof text, "block (%u, %u, %u) thread %u (warp %u, lane %u)", block.index.x,
                block.index.y, block.index.z, current->number, current->warp, current->lane);
  return text;
}

void add(Kind kind, Site site, Site other, const char* format, va_list arguments) {
  for (Finding& finding : findings) {
    if (finding.kind == kind && finding.site == site && finding.other == other) {
      ++finding.count;
      return;
    }
  }
  char message[512];
  std::vsnprintf(message, sizeof message, format, arguments);
  findings.push_back({kind, site, other, message, name_of_current_thread(), 1});
}

}  // namespace

Site site_of(const char* file, unsigned line) {
  for (size_t i = 0; i < source_lines.size(); ++i) {
    if (source_lines[i].line == line && std::strcmp(source_lines[i].file, file) == 0)
      return static_cast<Site>(kIsLocation | i);
  }
  source_lines.push_back({file, line});
  return static_cast<Site>(kIsLocation | (source_lines.size() - 1));
}
Site site_of(const std::source_location& location) {
  // Every instruction of every thread asks. The text of a file's name has few addresses.
  struct Known {
    const char* file = nullptr;
    unsigned line = 0;
    Site site = Site::kNone;
  };
  static Known table[1024];
  const char* file = location.file_name();
  Known& known = table[(reinterpret_cast<uintptr_t>(file) / 8 + location.line()) % 1024];
  if (known.file != file || known.line != location.line())
    known = {file, location.line(), site_of(file, location.line())};
  return known.site;
}

bool inside_library(const void* address) { return address >= &__ehdr_start && address < &_end; }

Site site_of_instruction(const void* return_address) {
  // The call is the instruction before the one it returns to.
  const char* instruction = static_cast<const char*>(return_address) - 1;
  if (!inside_library(instruction)) return Site::kNone;
  return static_cast<Site>(instruction - &__ehdr_start);
}

void report(Kind kind, Site site, Site other, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  add(kind, site, other, format, arguments);
  va_end(arguments);
  if (findings.size() >= kMostFindings && current != nullptr) abandon_launch();
}

void fail(Kind kind, Site site, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  add(kind, site, Site::kNone, format, arguments);
  va_end(arguments);
  abandon_launch();
}

size_t findings_count() { return findings.size(); }
void forget_findings() { findings.clear(); }

size_t write_findings(char* text, size_t capacity) {
  std::string all;
  for (const Finding& finding : findings) {
    all += std::string(kNames[static_cast<int>(finding.kind)]) + '\t' + text_of(finding.site) +
           '\t' + text_of(finding.other) + '\t' + finding.message + '\t' + finding.thread + '\t' +
           std::to_string(finding.count) + '\n';
  }
  if (capacity > 0) {
    const size_t length = std::min(all.size(), capacity - 1);
    std::memcpy(text, all.data(), length);
    text[length] = '\0';
  }
  return all.size();
}

}  // namespace emulation

#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "class_balanced.hpp"
#include "memory.hpp"
#include "quota.hpp"
#include "reservoir.hpp"
#include "ring.hpp"

namespace pawl {
inline namespace v0 {

/// A memory that can be chosen by name.
struct MemoryEntry {
  char const* name;
  char const* about;
  AnyMemory (*make)();
};

template <class M>
constexpr MemoryEntry memory_entry() {
  return {M::name, M::about, [] { return AnyMemory(M{}); }};
}

/// Every memory of pawl, with its defaults.
inline c10::ArrayRef<MemoryEntry> memory_catalogue() {
  static constexpr MemoryEntry all[] = {
      memory_entry<Reservoir>(),      memory_entry<Ring>(),
      memory_entry<ClassBalanced>(),  memory_entry<PerClassReservoir>(),
      memory_entry<GreedyBalanced>(), memory_entry<Quota>(),
      memory_entry<SlidingWindow>()};
  return all;
}

inline std::vector<std::string> memory_names() {
  std::vector<std::string> names;
  for (auto const& entry : memory_catalogue()) names.push_back(entry.name);
  return names;
}

/// The memory of that name with its defaults; throws `Error` with the nearest name when there is
/// none.
inline AnyMemory make_memory(std::string_view name) {
  for (auto const& entry : memory_catalogue()) {
    if (entry.name == name) return entry.make();
  }
  fail({"there is no memory '", name, "'", suggestion(name, memory_names())});
}

/// Describes a memory inside a strategy: the choice by name, then the options of the present one.
inline void describe_memory(Options& o, AnyMemory& memory, std::string help) {
  o.component(
      "memory", memory_names(), std::move(help), [&memory] { return memory.name(); },
      [&memory](std::string const& name) { memory = make_memory(name); });
  memory.describe(o);
}

}  // namespace v0
}  // namespace pawl

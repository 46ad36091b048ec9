#pragma once

#include <cstdint>
#include <vector>

#include "../core/options.hpp"
#include "storage.hpp"

namespace pawl {
inline namespace v0 {

/// A uniform sample of everything seen so far, without knowing how much will come: algorithm R
/// (Vitter, ACM Transactions on Mathematical Software 1985).
///
/// With n rows seen before a row:  n < M: slot n;  else j uniform in [0, n], slot j if j < M, else
/// rejected. After N rows each is held with probability min(1, M/N).
struct Reservoir {
  static constexpr char const* name = "reservoir";
  static constexpr char const* about =
      "a uniform sample of all rows seen (algorithm R; Vitter, TOMS 1985)";

  std::int64_t capacity = 500;  ///< rows in all, >= 0

  // State: written by insert.
  Slots slots{};

  void describe(Options& o) { o("capacity", capacity, at_least(0), "rows in all"); }

  /// Destinations in [0, capacity] for rows in stream order; slot `capacity` rejects.
  std::vector<std::int64_t> place(at::IntArrayRef labels, Generator generator,
                                  at::IntArrayRef tasks = {}) {
    slots.open(name, capacity);
    auto n = slots.seen();
    return slots.plan(labels, tasks, generator, [&](auto, auto, Generator row) {
      if (n++ < capacity) return slots.acquire();
      auto const j = row.below(n);
      return j < capacity ? j : -1;
    });
  }

  void insert(Rows const& rows, Generator generator) { insert_planned(*this, rows, generator); }
  Rows draw(std::int64_t n, Generator generator) const { return slots.draw(n, generator); }
  Rows contents() const { return slots.contents(); }
  bool empty() const { return slots.empty(); }
  std::int64_t size() const { return slots.size(); }
  void state(Archive& a) { a.part("slots", slots); }
};

}  // namespace v0
}  // namespace pawl

#pragma once

#include <cstdint>
#include <vector>

#include "../core/options.hpp"
#include "groups.hpp"
#include "storage.hpp"

namespace pawl {
inline namespace v0 {

/// The newest rows of every class (or task, or class of every task): first in, first out inside a
/// group (the ring buffer of GEM, Lopez-Paz and Ranzato, NeurIPS 2017, and of A-GEM, ICLR 2019).
///
/// When a group appears, the capacity is divided anew, M / groups rows each and the remainder to
/// the earliest, and every group keeps its newest. With `per_group` each group owns that many slots
/// and the memory grows with the number of groups.
struct Ring {
  static constexpr char const* name = "ring";
  static constexpr char const* about =
      "the newest rows of every class or task (Lopez-Paz and Ranzato, NeurIPS 2017)";

  std::int64_t capacity = 500;    ///< rows in all, >= 0; not used when per_group is set
  GroupBy by = GroupBy::classes;  ///< what owns a ring: class | task | task_and_class
  std::int64_t per_group = 0;     ///< rows of each group, >= 0; 0: the capacity is shared

  // State: written by insert.
  Slots slots{};
  Groups groups{};

  void describe(Options& o) {
    o("capacity", capacity, at_least(0), "rows in all; setting it sets per_group to 0");
    o.instead_of(per_group);
    o.only_if(per_group == 0, "per_group = 0");
    o("by", by, group_by_names, "what owns a ring");
    o("per_group", per_group, at_least(0),
      "rows of each group, instead of a capacity; 0: the capacity is shared");
  }

  /// Destinations in [0, slots.capacity()] for rows in stream order; the last slot rejects.
  std::vector<std::int64_t> place(at::IntArrayRef labels, Generator generator,
                                  at::IntArrayRef tasks = {}) {
    require(per_group >= 0, {name, ": per_group is ", per_group, " but must be >= 0"});
    require_tasks(name, by, labels, tasks);
    slots.open(name, per_group > 0 ? groups.count() * per_group : capacity);
    return slots.plan(labels, tasks, generator, [this](auto label, auto task, Generator) {
      auto const [g, added] = groups.find(by, label, task);
      if (added) regroup();
      auto& ring = groups[g].slots;
      auto slot = std::int64_t{-1};
      if (groups[g].size() < quota(g)) {
        slot = slots.acquire();
      } else if (!ring.empty()) {
        slot = ring.front();
        ring.erase(ring.begin());
      }
      if (slot >= 0) ring.push_back(slot);  // oldest first
      return slot;
    });
  }

  void insert(Rows const& rows, Generator generator) { insert_planned(*this, rows, generator); }
  Rows draw(std::int64_t n, Generator generator) const { return slots.draw(n, generator); }
  Rows contents() const { return slots.contents(); }
  bool empty() const { return slots.empty(); }
  std::int64_t size() const { return slots.size(); }
  void state(Archive& a) {
    a.part("slots", slots);
    a.part("groups", groups);
  }

  std::int64_t quota(std::int64_t g) const {
    return per_group > 0 ? per_group : shared_quota(capacity, groups.count(), g);
  }

 private:
  void regroup() {
    if (per_group > 0) return slots.grow(per_group);
    for (std::int64_t g = 0; g < groups.count(); ++g) {
      auto& ring = groups[g].slots;
      while (groups[g].size() > quota(g)) {
        slots.release(ring.front());
        ring.erase(ring.begin());
      }
    }
  }
};

/// The last M rows of the stream.
struct SlidingWindow {
  static constexpr char const* name = "sliding_window";
  static constexpr char const* about = "the last rows of the stream, whatever their class";

  std::int64_t capacity = 500;  ///< rows in all, >= 0

  // State: written by insert.
  Slots slots{};

  void describe(Options& o) { o("capacity", capacity, at_least(0), "rows in all"); }

  /// Destinations in [0, capacity] for rows in stream order: row number modulo capacity.
  std::vector<std::int64_t> place(at::IntArrayRef labels, Generator generator,
                                  at::IntArrayRef tasks = {}) {
    slots.open(name, capacity);
    auto n = slots.seen();
    return slots.plan(labels, tasks, generator, [&](auto, auto, Generator) {
      if (n++ < capacity) return slots.acquire();
      return capacity > 0 ? (n - 1) % capacity : -1;
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

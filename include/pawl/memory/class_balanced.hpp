#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../core/options.hpp"
#include "groups.hpp"
#include "storage.hpp"

namespace pawl {
inline namespace v0 {

/// A memory that keeps the classes as equal in number as the stream allows and is a uniform sample
/// inside each class (CBRS; Chrysakis and Moens, ICML 2020).
///
/// Memory not full: store. Full, with y the class of the row: if y was never a largest class of the
/// full memory, replace a random row of a largest class; else, with m_y rows held and n_y seen
/// (this one included), replace a random row of y with probability m_y / n_y.
struct ClassBalanced {
  static constexpr char const* name = "class_balanced";
  static constexpr char const* about =
      "classes as equal as the stream allows, uniform inside a class (CBRS; Chrysakis and Moens, "
      "ICML "
      "2020)";

  std::int64_t capacity = 500;  ///< rows in all, >= 0

  // State: written by insert.
  Slots slots{};
  Groups groups{};

  void describe(Options& o) { o("capacity", capacity, at_least(0), "rows in all"); }

  /// Destinations in [0, capacity] for rows in stream order; slot `capacity` rejects.
  std::vector<std::int64_t> place(at::IntArrayRef labels, Generator generator,
                                  at::IntArrayRef tasks = {}) {
    slots.open(name, capacity);
    return slots.plan(labels, tasks, generator, [this](auto label, auto task, Generator row) {
      auto& y = groups[groups.find(GroupBy::classes, label, task).group];
      ++y.seen;
      if (capacity == 0) return std::int64_t{-1};
      if (slots.size() < capacity) {
        y.slots.push_back(slots.acquire());
        return y.slots.back();
      }
      mark_full();
      return y.full == 1 ? replace_own(y, row) : replace_largest(y, row);
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

 private:
  void mark_full() {
    std::int64_t most = 0;
    for (std::int64_t g = 0; g < groups.count(); ++g) most = std::max(most, groups[g].size());
    for (std::int64_t g = 0; g < groups.count(); ++g) {
      if (groups[g].size() == most) groups[g].full = 1;
    }
  }

  static std::int64_t replace_own(Group const& y, Generator row) {
    auto const j = row.below(y.seen);  // j < m_y has probability m_y / n_y, and j is then uniform
    return j < y.size() ? y.slots[static_cast<std::size_t>(j)] : -1;
  }

  std::int64_t replace_largest(Group& y, Generator row) {
    auto& largest = groups[groups.largest(row)];
    auto const at = largest.slots.begin() + row.below(largest.size());
    y.slots.push_back(*at);
    largest.slots.erase(at);
    return y.slots.back();
  }
};

/// One reservoir per class, of M / (classes seen) rows each, the remainder to the earliest classes;
/// when a class appears the others lose random rows (the simpler class-balanced memory of most
/// libraries).
struct PerClassReservoir {
  static constexpr char const* name = "per_class_reservoir";
  static constexpr char const* about =
      "one reservoir per class, with equal shares of the capacity (algorithm R; Vitter, TOMS 1985)";

  std::int64_t capacity = 500;  ///< rows in all, >= 0

  // State: written by insert.
  Slots slots{};
  Groups groups{};

  void describe(Options& o) { o("capacity", capacity, at_least(0), "rows in all"); }

  /// Destinations in [0, capacity] for rows in stream order; slot `capacity` rejects.
  std::vector<std::int64_t> place(at::IntArrayRef labels, Generator generator,
                                  at::IntArrayRef tasks = {}) {
    slots.open(name, capacity);
    return slots.plan(labels, tasks, generator, [this](auto label, auto task, Generator row) {
      auto const [g, added] = groups.find(GroupBy::classes, label, task);
      if (added) shrink(row);
      auto& y = groups[g];
      auto const quota = shared_quota(capacity, groups.count(), g);
      if (y.seen++ < quota) {
        y.slots.push_back(slots.acquire());
        return y.slots.back();
      }
      auto const j = row.below(y.seen);
      return j < quota ? y.slots[static_cast<std::size_t>(j)] : -1;
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

 private:
  void shrink(Generator& row) {
    for (std::int64_t g = 0; g < groups.count(); ++g) {
      auto& held = groups[g].slots;
      while (groups[g].size() > shared_quota(capacity, groups.count(), g)) {
        auto const at = held.begin() + row.below(groups[g].size());
        slots.release(*at);
        held.erase(at);
      }
    }
  }
};

/// The memory of GDumb (Prabhu, Torr, Dokania, ECCV 2020): with k_c the share of class c of the
/// capacity (M / classes seen, the remainder to the earliest classes), a row is stored while its
/// class has fewer than k_c, and when the memory is full a random row of a largest class makes
/// room. Nothing is replaced inside a class, so the earliest rows stay.
struct GreedyBalanced {
  static constexpr char const* name = "greedy_balanced";
  static constexpr char const* about =
      "the first rows of every class, in equal numbers (GDumb; Prabhu, Torr and Dokania, ECCV "
      "2020)";

  std::int64_t capacity = 500;  ///< rows in all, >= 0

  // State: written by insert.
  Slots slots{};
  Groups groups{};

  void describe(Options& o) { o("capacity", capacity, at_least(0), "rows in all"); }

  /// Destinations in [0, capacity] for rows in stream order; slot `capacity` rejects.
  std::vector<std::int64_t> place(at::IntArrayRef labels, Generator generator,
                                  at::IntArrayRef tasks = {}) {
    slots.open(name, capacity);
    return slots.plan(labels, tasks, generator, [this](auto label, auto task, Generator row) {
      auto const g = groups.find(GroupBy::classes, label, task).group;
      auto& y = groups[g];
      if (y.size() >= shared_quota(capacity, groups.count(), g)) return std::int64_t{-1};
      if (slots.size() == capacity) evict(row);
      y.slots.push_back(slots.acquire());
      return y.slots.back();
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

 private:
  void evict(Generator& row) {
    auto& held = groups[groups.largest(row)].slots;
    auto const at = held.begin() + row.below(static_cast<std::int64_t>(held.size()));
    slots.release(*at);
    held.erase(at);
  }
};

}  // namespace v0
}  // namespace pawl

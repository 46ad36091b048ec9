#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../core/options.hpp"
#include "groups.hpp"
#include "storage.hpp"

namespace pawl {
inline namespace v0 {

/// Randomly chosen rows of every class or task, a quota each, usually inserted when an experience
/// ends (experience replay of van de Ven et al., Nature Machine Intelligence 2022: 100 per class;
/// naive rehearsal of Hsu et al., 2018: floor(M / tasks) per task).
///
/// Every row gets a random rank when it is offered, and a group keeps the rows with the lowest:
/// that is a uniform choice without replacement among all rows of the group, however they were cut
/// into batches, and a quota that shrinks keeps a prefix of the random order.
struct Quota {
  static constexpr char const* name = "quota";
  static constexpr char const* about =
      "a fixed number of random rows per class or task (van de Ven et al., Nature Machine "
      "Intelligence 2022; Hsu et al., 2018)";

  std::int64_t capacity = 500;    ///< rows in all, >= 0; not used when per_group is set
  GroupBy by = GroupBy::classes;  ///< what has a quota: class | task | task_and_class
  std::int64_t per_group = 0;     ///< rows of each group, >= 0; 0: the capacity is shared
  Remainder remainder = Remainder::earliest;  ///< of capacity / groups: earliest | drop

  // State: written by insert.
  Slots slots{};
  Groups groups{};

  void describe(Options& o) {
    o("capacity", capacity, at_least(0), "rows in all; setting it sets per_group to 0");
    o.instead_of(per_group);
    o.only_if(per_group == 0, "per_group = 0");
    o("by", by, group_by_names, "what has a quota");
    o("per_group", per_group, at_least(0),
      "rows of each group, instead of a capacity; 0: the capacity is shared");
    o("remainder", remainder, remainder_names, "who gets the rest of capacity / groups");
  }

  /// Destinations in [0, slots.capacity()] for rows in stream order; the last slot rejects.
  std::vector<std::int64_t> place(at::IntArrayRef labels, Generator generator,
                                  at::IntArrayRef tasks = {}) {
    require(per_group >= 0, {name, ": per_group is ", per_group, " but must be >= 0"});
    require_tasks(name, by, labels, tasks);
    slots.open(name, per_group > 0 ? groups.count() * per_group : capacity);
    return slots.plan(labels, tasks, generator, [this](auto label, auto task, Generator row) {
      auto const [g, added] = groups.find(by, label, task);
      if (added) regroup();
      return offer(groups[g], quota(g), static_cast<std::int64_t>(row.bits() >> 1));
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
    return per_group > 0 ? per_group : shared_quota(capacity, groups.count(), g, remainder);
  }

 private:
  /// Slots and ranks of a group lie in ascending order of rank.
  std::int64_t offer(Group& group, std::int64_t quota, std::int64_t rank) {
    auto slot = std::int64_t{-1};
    if (group.size() < quota) {
      slot = slots.acquire();
    } else if (quota > 0 && rank < group.ranks.back()) {
      slot = group.slots.back();
      group.slots.pop_back();
      group.ranks.pop_back();
    } else {
      return slot;
    }
    auto const at = std::upper_bound(group.ranks.begin(), group.ranks.end(), rank);
    group.slots.insert(group.slots.begin() + (at - group.ranks.begin()), slot);
    group.ranks.insert(at, rank);
    return slot;
  }

  void regroup() {
    if (per_group > 0) return slots.grow(per_group);
    for (std::int64_t g = 0; g < groups.count(); ++g) {
      while (groups[g].size() > quota(g)) {
        slots.release(groups[g].slots.back());
        groups[g].slots.pop_back();
        groups[g].ranks.pop_back();
      }
    }
  }
};

}  // namespace v0
}  // namespace pawl

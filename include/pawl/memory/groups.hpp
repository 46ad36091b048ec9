#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "../core/archive.hpp"
#include "../core/error.hpp"
#include "../core/random.hpp"

namespace pawl {
inline namespace v0 {

/// What a memory is divided by.
enum class GroupBy {
  classes,        ///< the label ("class" on the command line)
  task,           ///< the task id of the rows
  task_and_class  ///< every class of every task apart
};
inline constexpr char const* group_by_names[] = {"class", "task", "task_and_class"};

/// What becomes of M mod groups when M rows are divided among groups.
enum class Remainder {
  earliest,  ///< the earliest groups get one row more
  drop       ///< every group gets floor(M / groups)
};
inline constexpr char const* remainder_names[] = {"earliest", "drop"};

/// Share of group g (in order of appearance) of M rows among `groups`; never grows with `groups`.
inline std::int64_t shared_quota(std::int64_t M, std::int64_t groups, std::int64_t g,
                                 Remainder remainder = Remainder::earliest) {
  return M / groups + (remainder == Remainder::earliest && g < M % groups ? 1 : 0);
}

/// Throws when rows are to be divided by task and one has no task id.
inline void require_tasks(char const* owner, GroupBy by, at::IntArrayRef labels,
                          at::IntArrayRef tasks) {
  if (by == GroupBy::classes || labels.empty()) return;
  auto const known = !tasks.empty() && std::all_of(tasks.begin(), tasks.end(),
                                                   [](std::int64_t task) { return task >= 0; });
  require(known, {owner,
                  ": is divided by task and was given a row without task id; set `task` of the "
                  "rows, or divide by class"});
}

/// One group of a memory, on the host.
struct Group {
  std::int64_t key = 0;
  std::int64_t seen = 0;              ///< rows of the group that were offered
  std::int64_t full = 0;              ///< 1 once it was a largest group of a full memory
  std::vector<std::int64_t> slots{};  ///< slots that hold its rows, in the order of the policy
  std::vector<std::int64_t> ranks{};  ///< a number per slot, where the policy needs one

  std::int64_t size() const { return static_cast<std::int64_t>(slots.size()); }
};

/// The groups of a memory in order of appearance.
class Groups {
 public:
  std::int64_t count() const { return static_cast<std::int64_t>(all_.size()); }
  Group& operator[](std::int64_t g) { return all_[static_cast<std::size_t>(g)]; }
  Group const& operator[](std::int64_t g) const { return all_[static_cast<std::size_t>(g)]; }

  /// The group of a row, and whether it is new.
  struct Found {
    std::int64_t group;
    bool added;
  };
  Found find(GroupBy by, std::int64_t label, std::int64_t task) {
    auto const key = by == GroupBy::classes ? label
                     : by == GroupBy::task  ? task
                                            : (task << 32) | label;
    return find(key);
  }
  Found find(std::int64_t key) {
    auto const at = std::lower_bound(keys_.begin(), keys_.end(), key) - keys_.begin();
    auto const place = static_cast<std::size_t>(at);
    if (place < keys_.size() && keys_[place] == key) return {numbers_[place], false};
    keys_.insert(keys_.begin() + at, key);
    numbers_.insert(numbers_.begin() + at, count());
    all_.emplace_back().key = key;
    return {count() - 1, true};
  }

  /// A group with the most rows, one of them uniformly.
  std::int64_t largest(Generator& generator) const {
    std::int64_t size = -1, ties = 0, chosen = 0;
    for (std::int64_t g = 0; g < count(); ++g) {
      if ((*this)[g].size() > size) {
        size = (*this)[g].size();
        ties = 0;
      }
      if ((*this)[g].size() == size) ++ties;
    }
    auto pick = ties > 1 ? generator.below(ties) : 0;
    for (std::int64_t g = 0; g < count(); ++g) {
      if ((*this)[g].size() == size && pick-- == 0) chosen = g;
    }
    return chosen;
  }

  void state(Archive& a) {
    std::vector<std::int64_t> keys, seen, full, sizes, ranked, slots, ranks;
    for (auto const& group : all_) {
      keys.push_back(group.key);
      seen.push_back(group.seen);
      full.push_back(group.full);
      sizes.push_back(group.size());
      ranked.push_back(static_cast<std::int64_t>(group.ranks.size()));
      slots.insert(slots.end(), group.slots.begin(), group.slots.end());
      ranks.insert(ranks.end(), group.ranks.begin(), group.ranks.end());
    }
    a("keys", keys);
    a("seen", seen);
    a("full", full);
    a("sizes", sizes);
    a("ranked", ranked);
    a("slots", slots);
    a("ranks", ranks);
    if (!a.loading()) return;
    *this = {};
    auto slot = slots.begin(), rank = ranks.begin();
    for (std::size_t g = 0; g < keys.size(); ++g) {
      auto& group = (*this)[find(keys[g]).group];
      group.seen = seen[g];
      group.full = full[g];
      group.slots.assign(slot, slot + sizes[g]);
      group.ranks.assign(rank, rank + ranked[g]);
      slot += sizes[g];
      rank += ranked[g];
    }
  }

 private:
  c10::SmallVector<Group, 4> all_;
  std::vector<std::int64_t> keys_, numbers_;  // of the groups, by ascending key
};

}  // namespace v0
}  // namespace pawl

#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "../core/options.hpp"
#include "memory.hpp"

namespace pawl {
inline namespace v0 {

/// How rows are chosen from a memory for replay. All choose without replacement.
enum class Draw {
  uniform,         ///< every row alike
  class_balanced,  ///< first a class, then one of its rows
  task_balanced,   ///< ceil(n / tasks) rows of every task, cut to n
  cycle            ///< one pass after the other over all rows, each pass in a new random order
};
inline constexpr char const* draw_names[] = {"uniform", "class_balanced", "task_balanced", "cycle"};

/// Says of a label and a task id (-1: none) whether such rows may be drawn; empty: all may.
using Eligible = c10::function_ref<bool(std::int64_t label, std::int64_t task)>;

/// Rows of every task but this one (A-GEM, `exclude_current`).
inline auto other_tasks(std::int64_t current) {
  return [current](std::int64_t, std::int64_t task) { return task != current; };
}

/// The filled slots whose rows may be drawn, ascending.
inline std::vector<std::int64_t> eligible_slots(Slots const& slots, Eligible eligible) {
  auto const held = slots.held();
  if (!eligible) return held;
  auto const labels = host_column(slots.columns().labels),
             tasks = host_column(slots.columns().task);
  std::vector<std::int64_t> chosen;
  for (auto const slot : held) {
    auto const at = static_cast<std::size_t>(slot);
    if (eligible(labels[at], tasks.empty() ? -1 : tasks[at])) chosen.push_back(slot);
  }
  return chosen;
}

/// n of the slots, uniformly; all, as given, when there are no more.
inline std::vector<std::int64_t> choose_uniform(std::vector<std::int64_t> const& slots,
                                                std::int64_t n, Generator generator) {
  auto const held = static_cast<std::int64_t>(slots.size());
  if (n >= held) return slots;
  auto chosen = generator.sample(n, held);
  for (auto& position : chosen) position = slots[static_cast<std::size_t>(position)];
  return chosen;
}

/// The slots apart by their value in a column, in ascending order of the value.
inline std::vector<std::vector<std::int64_t>> slots_by(std::vector<std::int64_t> const& slots,
                                                       Tensor const& column) {
  auto const values = host_column(column);
  std::vector<std::int64_t> own, distinct;
  for (auto const slot : slots) own.push_back(values[static_cast<std::size_t>(slot)]);
  insert_sorted(distinct, own);
  std::vector<std::vector<std::int64_t>> lists(distinct.size());
  for (std::size_t i = 0; i < slots.size(); ++i) {
    auto const place = std::lower_bound(distinct.begin(), distinct.end(), own[i]);
    lists[static_cast<std::size_t>(place - distinct.begin())].push_back(slots[i]);
  }
  return lists;
}

/// n slots: each time a class uniformly among those with rows left, then one of its rows uniformly.
inline std::vector<std::int64_t> choose_class_balanced(
    std::vector<std::vector<std::int64_t>> classes, std::int64_t n, Generator generator) {
  std::vector<std::int64_t> chosen;
  while (static_cast<std::int64_t>(chosen.size()) < n && !classes.empty()) {
    auto const c = generator.below(static_cast<std::int64_t>(classes.size()));
    auto& rows = classes[static_cast<std::size_t>(c)];
    auto const r = generator.below(static_cast<std::int64_t>(rows.size()));
    chosen.push_back(rows[static_cast<std::size_t>(r)]);
    rows.erase(rows.begin() + r);
    if (rows.empty()) classes.erase(classes.begin() + c);
  }
  return chosen;
}

/// ceil(n / tasks) slots of every task (all, where it has fewer), cut to n; the order of the tasks
/// is random, so that the cut favours none.
inline std::vector<std::int64_t> choose_task_balanced(
    std::vector<std::vector<std::int64_t>> const& tasks, std::int64_t n, Generator generator) {
  std::vector<std::int64_t> chosen;
  auto const count = static_cast<std::int64_t>(tasks.size());
  if (count == 0) return chosen;
  for (auto const t : generator.permutation(count)) {
    auto const& rows = tasks[static_cast<std::size_t>(t)];
    auto const part = choose_uniform(rows, (n + count - 1) / count, generator.fork(t));
    chosen.insert(chosen.end(), part.begin(), part.end());
  }
  if (static_cast<std::int64_t>(chosen.size()) > n) chosen.resize(static_cast<std::size_t>(n));
  return chosen;
}

/// A loader over a memory: every row once per pass, in a new order each pass (the replay of van de
/// Ven et al., 2022). A pass starts again when the set of slots changes.
struct Cycle {
  bool drop_last =
      false;  ///< leave out a last short batch of a pass, as published; else it is drawn

  // State: written by next.
  std::vector<std::int64_t> slots{};  ///< what the present pass runs over
  std::vector<std::int64_t> order{};  ///< the same, shuffled
  std::int64_t position = 0;          ///< in order
  std::int64_t passes = 0;            ///< passes begun

  /// The next n slots; fewer at the end of a pass, all when there are no more than n.
  std::vector<std::int64_t> next(std::vector<std::int64_t> const& among, std::int64_t n,
                                 Generator generator) {
    auto const total = static_cast<std::int64_t>(among.size());
    if (n <= 0 || total == 0) return {};
    n = std::min(n, total);
    auto const left = static_cast<std::int64_t>(order.size()) - position;
    auto const least = drop_last || n == total ? n : 1;
    if (among != slots || left < least) shuffle(among, generator.fork(passes++));
    auto const begin = order.begin() + position;
    auto const end = order.begin() + std::min(position + n, total);
    position = end - order.begin();
    return {begin, end};
  }

  void state(Archive& a) {
    a("slots", slots);
    a("order", order);
    a("position", position);
    a("passes", passes);
  }

 private:
  void shuffle(std::vector<std::int64_t> const& among, Generator generator) {
    slots = among;
    order.clear();
    for (auto const i : generator.permutation(static_cast<std::int64_t>(among.size()))) {
      order.push_back(among[static_cast<std::size_t>(i)]);
    }
    position = 0;
  }
};

/// Draws from a memory by a named policy: the part of a replay strategy that decides what to
/// replay.
struct Sampler {
  Draw policy = Draw::uniform;  ///< uniform | class_balanced | task_balanced | cycle

  // State: written by operator().
  Cycle cycle{};

  void describe(Options& o) { o("draw", policy, draw_names, "how replayed rows are chosen"); }
  void state(Archive& a) { a.part("cycle", cycle); }

  /// n rows, or all that may be drawn when there are fewer. A memory without `Slots` can only be
  /// drawn from uniformly and as a whole; otherwise throws.
  Rows operator()(AnyMemory& memory, std::int64_t n, Generator generator, Eligible eligible = {}) {
    Phase const phase("memory.draw");
    require(n >= 0, {"a memory was asked for ", n, " rows; ask for 0 or more"});
    if (policy == Draw::uniform && !eligible) return memory.draw(n, generator);
    auto const& stored = memory.stored();
    return stored.take(choose(stored, n, generator, eligible));
  }

 private:
  std::vector<std::int64_t> choose(Slots const& stored, std::int64_t n, Generator generator,
                                   Eligible eligible) {
    auto const among = eligible_slots(stored, eligible);
    if (policy == Draw::cycle) return cycle.next(among, n, generator);
    if (policy == Draw::uniform || static_cast<std::int64_t>(among.size()) <= n) {
      return choose_uniform(among, n, generator);
    }
    if (policy == Draw::class_balanced) {
      return choose_class_balanced(slots_by(among, stored.columns().labels), n, generator);
    }
    require(stored.columns().task.defined(),
            "a task-balanced draw needs task ids; set `task` of the rows that are inserted");
    return choose_task_balanced(slots_by(among, stored.columns().task), n, generator);
  }
};

}  // namespace v0
}  // namespace pawl

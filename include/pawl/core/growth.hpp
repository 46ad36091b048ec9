#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "archive.hpp"
#include "context.hpp"
#include "task_labels.hpp"

namespace pawl {
inline namespace v0 {

/// How a learner keeps up with its model: labels are announced to the heads, which make room for
/// them, and when parameters grow, move or are replaced, all that is stored per parameter goes
/// along.
template <class Strategies, class Opt>
class Growth {
 public:
  Growth(Context& context, Strategies& strategies, Opt& optimizer)
      : c(context), strategies_(strategies), optimizer_(optimizer) {}

  // ---- labels ----

  /// Announces every task of an experience (a union of experiences has several) with its labels.
  void announce(Experience const& experience) {
    auto& tasks = c.task_classes;
    if (!experience.train.tasks.defined()) return announce(experience.classes, experience.task);
    auto const found = labels_by_task(experience.train);
    for (auto const task : found.tasks()) {
      for (auto const label : found.of(task)) tasks.add(task, label);
      announce(tasks.of(task), task);
    }
  }

  /// Notes labels that occur for the first time; heads that were never told of them make room.
  /// Returns whether there were any.
  bool meet(Tensor const& labels) {
    auto const* data = labels.data_ptr<std::int64_t>();
    std::vector<std::int64_t> first;
    for (std::int64_t i = 0; i < labels.numel(); ++i) {
      if (!std::binary_search(c.met.begin(), c.met.end(), data[i])) first.push_back(data[i]);
    }
    if (first.empty()) return false;
    insert_sorted(c.met, first);
    std::vector<std::int64_t> surprising;
    for (auto const label : first) {
      if (!std::binary_search(c.seen.begin(), c.seen.end(), label)) surprising.push_back(label);
    }
    if (surprising.empty()) return true;
    announce(surprising, c.experience->task);
    insert_sorted(c.seen, surprising);
    return true;
  }

  /// Lets heads make room for all that is known after loading; their new rows are loaded next.
  void make_room() {
    c.logits.reset();
    for (auto* head : c.model.heads) {
      head->announce(c.seen, -1, c.seed);
      for (auto const task : c.task_classes.tasks()) {
        head->announce(c.task_classes.of(task), task, c.seed);
      }
    }
    c.arena.ensure(*c.model.module);
  }

  // ---- what is stored per parameter ----

  /// Binds parameters that lost their place in the arena: those of a head that grew, a layer that
  /// was replaced, a module moved to another type or device.
  void rebind() {
    auto const layout = c.arena.layout();
    if (!c.arena.ensure(*c.model.module)) return;
    c.fast = {};
    c.model.find_heads();
    follow(layout);
    if (c.experience != nullptr) look_for_fast_paths();
  }

  /// Moves all that is stored per parameter from another layout to that of the arena.
  void follow(Layout const& layout) {
    Archive archive(Archive::Mode::grow);
    archive.from = layout;
    archive.to = c.arena.layout();
    archive.weights = c.arena.weights();
    optimizer_.state(archive);
    strategies_.state(archive);
    c.ever_active = matched(c.ever_active, archive.from, archive.to);
  }

  /// Looks for ways to run the model faster, as it is now.
  void look_for_fast_paths() {
    if (c.training.reference()) {
      c.fast = {};
    } else {
      c.fast.look(*c.model.module, c.arena);
    }
  }

 private:
  void announce(std::vector<std::int64_t> const& labels, std::int64_t task) {
    c.logits.reset();  // the graph of the last step would keep expecting the old shapes
    bool grew = false;
    for (auto* head : c.model.heads) grew = head->announce(labels, task, c.seed) || grew;
    if (grew) rebind();
  }

  /// Marks per parameter, carried over to another layout by name.
  static std::vector<bool> matched(std::vector<bool> const& marks, Layout const& from,
                                   Layout const& to) {
    std::vector<bool> result(marks.empty() ? 0 : to.size(), false);
    for (std::size_t i = 0; i < result.size(); ++i) {
      for (std::size_t k = 0; k < from.size(); ++k) {
        if (from[k].name == to[i].name) result[i] = marks[k];
      }
    }
    return result;
  }

  Context& c;
  Strategies& strategies_;
  Opt& optimizer_;
};

}  // namespace v0
}  // namespace pawl

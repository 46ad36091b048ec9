#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "archive.hpp"
#include "data.hpp"

namespace pawl {
inline namespace v0 {

/// Which labels each task id has.
class TaskLabels {
 public:
  void add(std::int64_t task, std::int64_t label) {
    auto const [begin, end] = range(task);
    auto const place = std::lower_bound(labels_.begin() + begin, labels_.begin() + end, label);
    if (place != labels_.begin() + end && *place == label) return;
    tasks_.insert(tasks_.begin() + (place - labels_.begin()), task);
    labels_.insert(place, label);
  }

  bool empty() const { return tasks_.empty(); }

  /// The task ids, ascending.
  std::vector<std::int64_t> tasks() const {
    auto ids = tasks_;
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
    return ids;
  }
  /// The labels of a task, ascending; none where it is not known.
  std::vector<std::int64_t> of(std::int64_t task) const {
    auto const [begin, end] = range(task);
    return {labels_.begin() + begin, labels_.begin() + end};
  }

  void state(Archive& a) {
    a("tasks", tasks_);
    a("labels", labels_);
    require(tasks_.size() == labels_.size(),
            {"the checkpoint has ", tasks_.size(), " task ids for ", labels_.size(),
             " labels; use another copy"});
  }

  bool operator==(TaskLabels const&) const = default;

 private:
  struct Range {
    std::ptrdiff_t begin, end;
  };
  /// Where the pairs of a task lie.
  Range range(std::int64_t task) const {
    return {std::lower_bound(tasks_.begin(), tasks_.end(), task) - tasks_.begin(),
            std::upper_bound(tasks_.begin(), tasks_.end(), task) - tasks_.begin()};
  }

  std::vector<std::int64_t> tasks_, labels_;  // pairs, ascending
};

/// The labels that occur in each task of a data set with task ids.
inline TaskLabels labels_by_task(Dataset const& data) {
  TaskLabels found;
  auto const tasks = data.tasks.contiguous(), labels = data.labels.contiguous();
  auto const* task = tasks.data_ptr<std::int64_t>();
  auto const* label = labels.data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < data.size(); ++i) found.add(task[i], label[i]);
  return found;
}

}  // namespace v0
}  // namespace pawl

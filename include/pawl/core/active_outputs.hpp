#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "../device/step_table.hpp"
#include "error.hpp"
#include "task_labels.hpp"
#include "training.hpp"

namespace pawl {
inline namespace v0 {

inline bool is_prefix(std::vector<std::int64_t> const& ascending) {
  return !ascending.empty() && ascending.back() + 1 == static_cast<std::int64_t>(ascending.size());
}

/// A row [C] of booleans that is true at the given columns.
inline Tensor column_mask(std::vector<std::int64_t> const& columns, std::int64_t count) {
  auto mask = torch::zeros({count}, torch::kBool);
  auto* data = mask.data_ptr<bool>();
  for (auto const c : columns) {
    if (c < count) data[c] = true;
  }
  return mask;
}

/// The outputs that compete in the loss (see `Active`). Looks at lists that belong to others.
struct ActiveOutputs {
  Active active;
  std::vector<std::int64_t> const& seen;     ///< labels announced so far, ascending
  std::vector<std::int64_t> const& current;  ///< those of the present experience
  TaskLabels const& of_tasks;                ///< labels announced so far for each task id
  std::int64_t experience;                   ///< for messages

  /// Logits [N, C] with all other outputs at -inf, or narrowed away. `labels` (host): of the batch,
  /// for active = batch; `tasks` [N] (host) or undefined; `fresh_rows` of the rows are fresh.
  Tensor of(Tensor const& z, Tensor const& labels, Tensor const& tasks,
            std::int64_t fresh_rows) const {
    if (active == Active::all) return z;
    auto const count = z.size(1);
    if (active == Active::batch) {
      auto mask = torch::zeros({count}, torch::kBool);
      mask.index_fill_(0, labels, true);
      return only(mask, z);
    }
    if (active == Active::seen) {
      if (is_prefix(seen)) return z.narrow(1, 0, std::min<std::int64_t>(count, seen.back() + 1));
      return only(column_mask(seen, count), z);
    }
    if (fresh_rows == z.size(0)) return only(column_mask(current, count), z);
    auto mask = column_mask(seen, count).repeat({z.size(0), 1});
    mask.narrow(0, 0, fresh_rows).copy_(column_mask(current, count));
    if (tasks.defined()) {
      for (auto i = fresh_rows; i < z.size(0); ++i) {
        auto const own = of_tasks.of(tasks[i].item<std::int64_t>());
        if (!own.empty()) mask[i].copy_(column_mask(own, count));
      }
    }
    return only(mask, z);
  }

  /// Refuses labels that have no output among so many, or compete with no other.
  void check(at::IntArrayRef labels, std::int64_t outputs) const {
    std::int64_t highest = 0;
    for (auto const label : labels) {
      highest = std::max(highest, label);
      auto const competes = active != Active::seen || label >= outputs ||
                            std::binary_search(seen.begin(), seen.end(), label);
      require(competes, {"experience ", experience, " has a row with label ", label,
                         ", which is no class seen so far, so active = seen gives it no chance; "
                         "list it among the classes of an experience, or use active = all"});
    }
    require(highest < outputs,
            {"experience ", experience, " has label ", highest, " but the model has ", outputs,
             " outputs; give it more, or a head that grows"});
  }

 private:
  static Tensor only(Tensor const& mask, Tensor const& z) {
    return z.masked_fill(constant(mask.logical_not(), z.device()),
                         -std::numeric_limits<double>::infinity());
  }
};

}  // namespace v0
}  // namespace pawl

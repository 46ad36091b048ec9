#pragma once

#include <vector>

#include "../core/context.hpp"

namespace pawl {
inline namespace v0 {

/// Task ids of the rows of a batch, where all have one.
inline Tensor tasks_of(Batch const& batch) {
  std::vector<Tensor> tasks;
  for (auto const& part : batch.parts) {
    if (!part.rows.task.defined()) return {};
    tasks.push_back(part.rows.task);
  }
  return tasks.size() == 1 ? tasks.front() : torch::cat(tasks);
}

/// Puts the parts of a batch together: stored rows first, then one conversion to network inputs.
inline void join(Context const& c, Batch& batch) {
  batch.task = tasks_of(batch);
  if (batch.parts.size() == 1) {
    auto const& rows = batch.parts.front().rows;
    batch.x = c.inputs(rows.stored);
    batch.y = rows.y;
    return;
  }
  std::vector<Tensor> stored, y;
  auto const row = batch.parts.front().rows.stored.sizes().slice(1);
  for (auto const& part : batch.parts) {
    auto const sizes = part.rows.stored.sizes();
    require(sizes.slice(1) == row,
            {"a strategy adds rows ", sizes.slice(1), " to a batch whose rows are ", row,
             "; fill memories with rows of one shape"});
    stored.push_back(part.rows.stored);
    y.push_back(part.rows.y);
  }
  batch.x = c.inputs(torch::cat(stored));
  batch.y = torch::cat(y);
}

}  // namespace v0
}  // namespace pawl

#pragma once

#include <cstdint>
#include <utility>

#include "../core/context.hpp"

namespace pawl {
inline namespace v0 {

/// The number by which memories tell this experience from others: its task id, else the experience
/// that it is a part of, else its index.
inline std::int64_t memory_task(Context const& c) {
  if (c.experience == nullptr) return c.index;
  auto const& experience = *c.experience;
  if (experience.task >= 0) return experience.task;
  return experience.part_of >= 0 ? experience.part_of : c.index;
}

/// Rows as a memory keeps them: where the scenario gives no task ids, the experience stands in for
/// them, so that a memory can be divided by task in every scenario.
inline Rows with_tasks(Context const& c, Rows rows) {
  if (!rows.task.defined()) rows.task = torch::full_like(rows.labels, memory_task(c));
  return rows;
}

/// Drawn rows as a batch takes them: task ids only where the scenario gives them.
inline Rows without_own_tasks(Context const& c, Rows rows) {
  if (!c.train.tasks.defined()) rows.task.reset();
  return rows;
}

}  // namespace v0
}  // namespace pawl

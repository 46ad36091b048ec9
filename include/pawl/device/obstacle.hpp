#pragma once

#include <string>

#include "../core/context.hpp"
#include "../optimizers/optimizer.hpp"
#include "device_graph.hpp"
#include "loss_watch.hpp"

namespace pawl {
inline namespace v0 {

/// Why the steps of an experience cannot be recorded as graphs; empty, where they can.
template <class Strategies, class Opt>
std::string capture_obstacle(Context const& c, Strategies const& strategies, Opt const& optimizer) {
  auto const& source = *c.train.source;
  auto const device = c.arena.device();
  if (c.training.engine != Engine::compiled) return "engine = eager or reference";
  if (!DeviceGraph::available(device)) return text_of({"LibTorch records nothing on ", device});
  if (!LossWatch::works()) return "LibTorch has no pinned memory here";
  if (!source.reads_on_device || source.device != device) {
    return "'" + source.name + "' does not lie on the device";
  }
  auto const own_masks = c.training.active == Active::batch ||
                         (c.training.active == Active::current && c.train.tasks.defined());
  if (own_masks) return "each batch has its own active classes";
  auto const& tasks = c.train.tasks;
  auto const one_task = !tasks.defined() || tasks.eq(tasks[0]).all().item<bool>();
  if (c.model.per_task() && (strategies.plans_ahead || !one_task)) {
    return "rows have heads of their own";
  }
  if (!is_planned(optimizer)) return "the optimizer has no  count  and  apply";
  for (auto const& name : strategies.not_capturable()) {
    return "the strategy '" + name + "' does not say that it is capturable";
  }
  return {};
}

}  // namespace v0
}  // namespace pawl

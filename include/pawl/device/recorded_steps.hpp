#pragma once

#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "../core/context.hpp"
#include "../engine/arena.hpp"
#include "../engine/inputs.hpp"
#include "shared_graph.hpp"

namespace pawl {
inline namespace v0 {

/// What a step leaves in the context for every observer to find.
struct StepLosses {
  Tensor task_loss{};
  Named<Tensor> penalties{};

  static StepLosses of(Context const& c) { return {c.task_loss, c.penalties}; }
  void put_back(Context& c) const { c.task_loss = task_loss, c.penalties = penalties; }
};

/// What else it leaves, for observers that look at every step and for the next step to find.
struct StepResults {
  Rows fresh{};
  Batch batch{};
  Tensor logits{}, task_gradient{};
  std::vector<Tensor> shard_logits{};
  Arena::Gradients gradients{};

  static StepResults of(Context const& c) {
    return {c.fresh, c.batch, c.logits, c.task_gradient, c.shard_logits, c.arena.gradients()};
  }
  void put_back(Context& c) const {
    c.logits = logits, c.task_gradient = task_gradient, c.shard_logits = shard_logits;
    c.arena.restore(gradients);
  }
  /// The same rows as in the step that was recorded lie on the device; others are planned.
  void put_rows_back(Context& c, Batch const& planned) const {
    put_host_columns(c.fresh, std::exchange(c.fresh, fresh));
    c.batch = batch;
    for (std::size_t i = 0; i < planned.parts.size(); ++i) {
      put_host_columns(c.batch.parts[i].rows, planned.parts[i].rows);
    }
    c.batch.task = tasks_of(c.batch);
  }

 private:
  static void put_host_columns(Rows& rows, Rows const& planned) {
    rows.labels = planned.labels, rows.task = planned.task, rows.id = planned.id;
  }
};

/// Steps of an experience as one graph for a device.
struct RecordedSteps {
  std::unique_ptr<SharedGraph> graph{};
  std::vector<StepLosses> losses{};  ///< of each step
  StepResults results{};             ///< of the last one
};

}  // namespace v0
}  // namespace pawl

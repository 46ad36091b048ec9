#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "../core/active_outputs.hpp"
#include "../core/context.hpp"
#include "../core/options.hpp"
#include "accuracy_matrix.hpp"

namespace pawl {
inline namespace v0 {

/// How accuracy is measured after an experience.
struct Evaluation {
  /// Which outputs compete: those of the classes seen so far, all, or those of the sample's own
  /// task. `automatic` is `task` in the task scenario, else `seen`.
  enum class Outputs { automatic, seen, all, task };

  Outputs outputs = Outputs::automatic;
  std::int64_t batch_size = 0;  ///< test rows per forward pass; 0: as many as suit the machine
  std::int64_t limit = 0;

  void describe(Options& o) {
    o("outputs", outputs, {"automatic", "seen", "all", "task"},
      "outputs that compete at test; automatic: task in the task scenario, else seen");
    o("batch_size", batch_size, at_least(0),
      "test rows per forward pass; 0: 1000, of a convolutional network on the host 64");
    o("limit", limit, at_least(0), "test rows per experience, the first ones; 0: all");
  }
};

/// Test rows per forward pass, unless told: 1000, but 64 of a convolutional network on the host,
/// where what its layers give is to stay in the caches, and not to be taken from the system anew.
inline std::int64_t evaluation_rows(Context const& context) {
  auto const parts = context.model.module->modules();
  auto const convolves = std::any_of(parts.begin(), parts.end(), [](auto const& part) {
    return part->template as<nn::Conv2dImpl>() != nullptr;
  });
  return convolves && context.arena.device().is_cpu() ? 64 : 1000;
}

/// Measures a learner on the test sets of all experiences of a stream. Training is not touched.
template <class AnyLearnerType>
AccuracyRow evaluate(AnyLearnerType& learner, Stream const& stream, Evaluation options = {}) {
  check_options(options, "evaluation");
  torch::NoGradGuard no_grad;
  auto& context = learner.context();
  auto outputs = options.outputs;
  if (outputs == Evaluation::Outputs::automatic) {
    outputs =
        stream.scenario == Scenario::task ? Evaluation::Outputs::task : Evaluation::Outputs::seen;
  }
  AccuracyRow result;
  result.prediction = context.model.per_task()               ? "task_head"
                      : outputs == Evaluation::Outputs::task ? "task_masked"
                                                             : "class";
  result.active = context.model.per_task() || outputs == Evaluation::Outputs::task ? "task"
                  : outputs == Evaluation::Outputs::seen                           ? "seen"
                                                                                   : "all";
  auto const device = context.arena.device();
  // Hits per experience, on the device until all are counted.
  auto const right =
      torch::zeros({stream.size()}, torch::TensorOptions(torch::kInt64).device(device));
  auto const at_once = options.batch_size > 0 ? options.batch_size : evaluation_rows(context);
  std::int64_t next = 0;
  for (auto const& experience : stream) {
    auto const& test = experience.test;
    auto const size = options.limit > 0 ? std::min(options.limit, test.size()) : test.size();
    require(size > 0, {"experience ", experience.index, " has no test rows; give it some"});
    result.size.push_back(size);
    result.accuracy.push_back(0);
    auto const hits = right.select(0, next++);
    if (!context.model.ready(experience.task)) {  // a head that has not grown that far
      result.accuracy.back() = std::numeric_limits<double>::quiet_NaN();
      continue;
    }
    Tensor shut;
    for (std::int64_t begin = 0; begin < size; begin += at_once) {
      auto const end = std::min(begin + at_once, size);
      auto const rows = test.read(torch::arange(begin, end, torch::kInt64), device);
      auto const x = test.normalise(rows.stored, context.arena.dtype());
      auto scores = learner.scores(x, rows.task);
      if (outputs != Evaluation::Outputs::all && !context.model.per_task()) {
        auto const& open = outputs == Evaluation::Outputs::task ? experience.classes : context.seen;
        if (!open.empty()) {
          if (!shut.defined()) {
            shut = column_mask(open, scores.size(1)).logical_not().to(scores.device());
          }
          scores = scores.masked_fill(shut, -std::numeric_limits<double>::infinity());
        }
      }
      hits.add_(scores.argmax(1).eq(rows.y).sum());
    }
  }
  Tensor const counts = right.cpu();
  for (std::size_t j = 0; j < result.size.size(); ++j) {
    auto const count = static_cast<double>(counts.data_ptr<std::int64_t>()[j]);
    result.accuracy[j] += count / static_cast<double>(result.size[j]);  // NaN stays
  }
  return result;
}

}  // namespace v0
}  // namespace pawl

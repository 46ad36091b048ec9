#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "../core/model.hpp"
#include "rows.hpp"

namespace pawl {
inline namespace v0 {

/// One last linear layer per task over shared features: z = W_k phi + b_k for a row of task k.
///
/// A batch may mix tasks. Heads of tasks that have no row in it take no part: their gradient is
/// undefined, so no optimizer moves them, neither by momentum nor by weight decay. All heads have
/// the same number of outputs; labels count within a task. Row r of head k starts as `init` says,
/// by default as a fresh `nn::Linear` would have it, drawn from the sub-seed (init.head, k, r).
/// @code
///   nn::Sequential net(nn::Linear(784, 256), nn::ReLU(), MultiHead(256, 2));  // 2 per task
/// @endcode
class MultiHeadImpl : public Head {
 public:
  /// `tasks` heads drawn from `seed`; 0: heads are added as tasks are announced, from the learner's
  /// seed.
  explicit MultiHeadImpl(std::int64_t inputs, std::int64_t outputs_per_task, std::int64_t tasks = 0,
                         Seed seed = {}, Init init = {})
      : Head("multi_head"),
        inputs_(inputs),
        outputs_(outputs_per_task),
        fixed_(tasks > 0),
        init_(init) {
    require(inputs >= 1 && outputs_per_task >= 1 && tasks >= 0,
            {"MultiHead: ", inputs, " inputs, ", outputs_per_task, " outputs and ", tasks,
             " tasks were asked for; give at least one input and one output"});
    kind_ = register_buffer("kind", torch::zeros({0}));
    grow(tasks, seed);
  }

  bool announce(std::vector<std::int64_t> const& labels, std::int64_t task, Seed seed) override {
    if (task < 0) return false;  // forward says what is missing, should a row come without a task
    require(rows_for(labels) <= outputs_,
            {"MultiHead: task ", task, " has label ", rows_for(labels) - 1, " but every head has ",
             outputs_, " outputs; count labels within each task, or give more outputs"});
    if (fixed_) check_task(task);
    return grow(task + 1, seed);
  }

  void route(Tensor const& ids) override {
    task_ids_ = ids.defined() ? ids.to(torch::kCPU, torch::kInt64).contiguous() : Tensor();
  }

  bool per_task() const override { return true; }
  bool ready(std::int64_t task) const override { return task < tasks(); }

  /// Logits [N, outputs_per_task] of features [N, d] whose tasks were given to `route`.
  Tensor forward(Tensor const& x) {
    check_features(x, inputs_, "MultiHead");
    require(
        task_ids_.defined(),
        "MultiHead: the rows have no task ids; use the task scenario, and give predict, scores and "
        "Context::forward the tasks [N] of their rows");
    require(task_ids_.numel() == x.size(0),
            {"MultiHead: ", task_ids_.numel(), " task ids for ", x.size(0),
             " rows; route the tasks of these rows first"});
    auto const* ids = task_ids_.data_ptr<std::int64_t>();
    auto const n = task_ids_.numel();
    if (n == 0) return x.new_zeros({0, outputs_});
    if (std::all_of(ids, ids + n, [&](auto id) { return id == ids[0]; })) return logits(ids[0], x);
    return gathered(x);
  }

  /// Logits [N, outputs_per_task] of one task's head.
  Tensor logits(std::int64_t task, Tensor const& x) const {
    check_task(task);
    auto const k = static_cast<std::size_t>(task);
    return at::linear(x, weights[k], biases[k]);
  }

  /// Adds heads until there are `tasks`; returns whether any was added.
  bool grow(std::int64_t tasks, Seed seed) {
    auto const old = this->tasks();
    for (auto task = old; task < tasks; ++task) {
      auto const number = std::to_string(task);
      auto const options = kind_.options();  // follows the module to another type or device
      weights.push_back(
          register_parameter("weight" + number, torch::zeros({outputs_, inputs_}, options)));
      biases.push_back(register_parameter("bias" + number, torch::zeros({outputs_}, options)));
      for (std::int64_t row = 0; row < outputs_; ++row) {
        fill_row(weights.back().detach()[row], biases.back().detach()[row],
                 seed.generator("init.head", task, row), init_, outputs_);
      }
    }
    return tasks > old;
  }

  std::int64_t tasks() const { return static_cast<std::int64_t>(weights.size()); }

  std::vector<Tensor> weights;  ///< of each task, [outputs_per_task, d]
  std::vector<Tensor> biases;   ///< of each task, [outputs_per_task]

 private:
  void check_task(std::int64_t task) const {
    require(task >= 0 && task < tasks(),
            {"MultiHead: there is no head for task ", task, " among ", tasks(), "; ",
             fixed_ ? "give the head more tasks" : "train on the task first"});
  }

  /// Rows sorted by task, one product per task, and back into their order.
  Tensor gathered(Tensor const& x) const {
    auto const* ids = task_ids_.data_ptr<std::int64_t>();
    std::vector<std::vector<std::int64_t>> rows(weights.size());  // of each task
    for (std::int64_t i = 0; i < task_ids_.numel(); ++i) {
      check_task(ids[i]);
      rows[static_cast<std::size_t>(ids[i])].push_back(i);
    }
    std::vector<Tensor> parts;
    std::vector<std::int64_t> place(static_cast<std::size_t>(task_ids_.numel()));
    std::int64_t next = 0;
    for (std::int64_t task = 0; task < tasks(); ++task) {
      auto const& own = rows[static_cast<std::size_t>(task)];
      if (own.empty()) continue;
      parts.push_back(logits(task, x.index_select(0, torch::tensor(own).to(x.device()))));
      for (auto const row : own) place[static_cast<std::size_t>(row)] = next++;
    }
    return torch::cat(parts).index_select(0, torch::tensor(place).to(x.device()));
  }

  std::int64_t inputs_, outputs_;
  bool fixed_;
  Init init_;
  Tensor kind_;      ///< empty; carries dtype and device before the first head is there
  Tensor task_ids_;  ///< [N] of the next forward
};
TORCH_MODULE(MultiHead);

}  // namespace v0
}  // namespace pawl

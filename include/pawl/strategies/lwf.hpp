#pragma once

#include <cstdint>
#include <vector>

#include "../core/snapshot.hpp"

namespace pawl {
inline namespace v0 {

/// Learning without forgetting: keep the old answers on new inputs, with no stored data (Li and
/// Hoiem, ECCV 2016).
///   teacher = the whole model at the start of the experience, in eval mode
///   L = CE + a T^2 KL( softmax(z_old / T) || softmax(z / T) ),  over the classes the teacher knew,
///   mean over rows
/// In a multi-head network the KL is summed over the old heads, on the present inputs.
struct Lwf {
  enum class Weighting { fixed, one_over_t, count };
  enum class RowsUsed { all, fresh };
  enum class TaskWeight { one, one_over_t };

  double strength = 1;
  double temperature = 2;
  bool t_squared = true;
  Weighting weighting = Weighting::fixed;
  TaskWeight task_weight = TaskWeight::one;
  RowsUsed rows = RowsUsed::all;
  std::vector<double> strengths = {};

  static constexpr char const* name = "lwf";
  static constexpr char const* about =
      "learning without forgetting: distillation from the previous model (Li and Hoiem, ECCV 2016)";

  void describe(Options& o) {
    o("strength", strength, at_least(0), "weight of the distillation; 0 is naive");
    o("temperature", temperature, above(0), "softens both distributions");
    o("t_squared", t_squared, "multiply by temperature^2");
    o("weighting", weighting, {"fixed", "one_over_t", "count"},
      "in experience t: CE + a KD; CE / t + (1 - 1/t) a KD; or CE + (t - 1) a KD");
    o("task_weight", task_weight, {"one", "one_over_t"},
      "factor of the supervised loss alone, with weighting = fixed");
    o("rows", rows, {"all", "fresh"}, "distil on every row of the step, or on the fresh ones");
    o("strengths", strengths, at_least(0),
      "strength per experience instead of one for all (the last one goes on)");
  }

  void begin(Context& c, Experience const&) {
    teacher = c.index > 0 && factor(c) > 0 ? Snapshot::of(c) : Snapshot{};
    known = c.old_classes;
    known_tasks.clear();
    for (auto const& task : c.task_classes) {
      if (task.first != c.experience->task) known_tasks.push_back(task.first);
    }
  }

  Batch extend(Context& c, Batch b) {
    auto const t = static_cast<double>(c.index + 1);
    auto const scaled = (weighting == Weighting::one_over_t && !teacher.empty()) ||
                        task_weight == TaskWeight::one_over_t;
    if (scaled) c.task_factor = 1 / t;
    return b;
  }

  Tensor penalty(Context& c) {
    if (teacher.empty()) return {};
    auto const n = rows == RowsUsed::all ? c.batch.size() : c.batch.fresh;
    auto const count = static_cast<double>(rows == RowsUsed::all ? c.step_rows : c.fresh.size());
    auto const value = c.model.per_task() ? over_old_heads(c, n)
                                          : divergence(c.logits.narrow(0, 0, n), answers(c, n, {}));
    return value * (factor(c) / count);
  }

  void state(Archive& a) {
    a.part("teacher", teacher);
    a("known", known);
    a("known_tasks", known_tasks);
  }

  // State: written by the hooks.
  Snapshot teacher;
  std::vector<std::int64_t> known;        ///< classes the teacher was taught, ascending
  std::vector<std::int64_t> known_tasks;  ///< tasks the teacher was taught

 private:
  double factor(Context const& c) const {
    auto const t = static_cast<double>(c.index + 1);
    auto a = strength;
    if (!strengths.empty()) {
      a = strengths[std::min(strengths.size() - 1, static_cast<std::size_t>(c.index))];
    }
    if (weighting == Weighting::one_over_t) a *= 1 - 1 / t;
    if (weighting == Weighting::count) a *= t - 1;
    return t_squared ? a * temperature * temperature : a;
  }

  /// The teacher's logits of the first n rows.
  Tensor answers(Context& c, std::int64_t n, Tensor const& tasks) {
    torch::NoGradGuard no_grad;
    WithWeights weights(c, teacher);
    ModeScope mode(*c.model.module, false);
    return c.forward(c.batch.x.narrow(0, 0, n), tasks);
  }

  /// Sum over rows of KL(teacher || student) over the teacher's classes, at the temperature.
  Tensor divergence(Tensor const& student, Tensor const& old) const {
    auto const z = at::log_softmax(columns(student) / temperature, 1);
    auto const q = at::log_softmax(columns(old) / temperature, 1);
    return (q.exp() * (q - z)).sum();
  }

  Tensor columns(Tensor const& z) const {
    if (known.empty() || known.back() + 1 == static_cast<std::int64_t>(known.size())) {
      return known.empty() ? z : z.narrow(1, 0, known.back() + 1);
    }
    return z.index_select(1, torch::tensor(known).to(z.device()));
  }

  Tensor over_old_heads(Context& c, std::int64_t n) {
    auto sum = torch::zeros({}, c.logits.options());
    auto const x = c.batch.x.narrow(0, 0, n);
    for (auto const task : known_tasks) {
      auto const tasks = torch::full({n}, task, torch::kInt64);
      auto const old = at::log_softmax(answers(c, n, tasks) / temperature, 1);
      auto const z = at::log_softmax(c.forward(x, tasks) / temperature, 1);
      sum = sum + (old.exp() * (old - z)).sum();
    }
    c.model.route(c.batch.task);
    return sum;
  }
};

}  // namespace v0
}  // namespace pawl

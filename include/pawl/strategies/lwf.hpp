#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "../core/snapshot.hpp"
#include "../heads/multi_head.hpp"

namespace pawl {
inline namespace v0 {

/// Learning without forgetting: keeps the old answers on new inputs, with no stored data (Li and
/// Hoiem, ECCV 2016, TPAMI 2018).
///   teacher = the whole model at the start of the experience, in eval mode
///   L = CE + a T^2 KL( softmax(z_old / T) || softmax(z / T) )
/// over the classes O that the teacher was taught, mean over rows. Others let new classes take part
/// (van de Ven and Tolias 2019, van de Ven et al., Nature Machine Intelligence 2022):
///   taught:  both over O
///   seen:    softmax(z / T) over all classes seen so far; the teacher gives new ones nothing
///   all:     both over all outputs
/// With a head per task the KL is summed over the old heads, each over its own classes, on the
/// present inputs, and moves them. In experience t = 1, 2, ...:
///   fixed:       CE + a KD          one_over_t:  CE / t + (1 - 1/t) a KD
///   count:       CE + (t - 1) a KD
/// State: one copy of weights and buffers. Cost: one more forward pass; with a head per task also
/// one more pass through the student's features.
struct Lwf {
  enum class Weighting { fixed, one_over_t, count };
  enum class TaskWeight { one, one_over_t };
  enum class RowsUsed { all, fresh };
  enum class Over { taught, seen, all };

  double strength = 1;                       ///< a, >= 0; 0 is naive training
  double temperature = 2;                    ///< T, > 0
  bool t_squared = true;                     ///< multiply the KL by T^2
  Weighting weighting = Weighting::fixed;    ///< how the two terms depend on t
  TaskWeight task_weight = TaskWeight::one;  ///< factor of the CE alone: 1, or 1/t
  RowsUsed rows = RowsUsed::all;             ///< every row of the step, replayed ones too, or fresh
  Over classes = Over::taught;               ///< of the two distributions, with one head for all
  std::vector<double> strengths = {};        ///< a of experience 0, 1, ...; the last one goes on

  static constexpr char const* name = "lwf";
  static constexpr char const* about =
      "learning without forgetting: distillation from the previous model (Li and Hoiem, ECCV 2016)";

  void describe(Options& o) {
    o("strength", strength, at_least(0), "weight of the distillation; 0 is naive");
    o.only_if(strengths.empty(), "strengths is empty");
    o("temperature", temperature, above(0), "softens both distributions");
    o("t_squared", t_squared, "multiply by temperature^2");
    o("weighting", weighting, {"fixed", "one_over_t", "count"},
      "in experience t: CE + a KD; CE / t + (1 - 1/t) a KD; or CE + (t - 1) a KD");
    o("task_weight", task_weight, {"one", "one_over_t"},
      "factor of the supervised loss alone, whatever the weighting");
    o("rows", rows, {"all", "fresh"}, "distil on every row of the step, or on the fresh ones");
    o("classes", classes, {"taught", "seen", "all"},
      "compare the two models over the classes that the teacher was taught; over all classes seen, "
      "of which it gives new ones nothing; or over all outputs");
    o("strengths", strengths, at_least(0),
      "strength per experience instead of one for all (the last one goes on)");
  }

  bool capturable() const { return true; }

  void begin(Context& c, Experience const&) {
    known = c.old_classes;
    teacher = !known.empty() && factor(c) > 0 ? Snapshot::of(c) : Snapshot{};
    heads_alone.reset();
  }

  /// The factor of the supervised loss; no rows are added.
  Batch extend(Context& c, Batch b) {
    auto const shared = weighting == Weighting::one_over_t && !teacher.empty();
    if (shared || task_weight == TaskWeight::one_over_t) c.task_factor = 1 / t(c);
    return b;
  }

  Tensor penalty(Context& c) {
    auto const heads = c.model.per_task();
    if (teacher.empty() || (heads && known_tasks.empty())) return {};
    auto const all = rows == RowsUsed::all;
    auto const n = all ? c.batch.size() : c.batch.fresh;
    auto const sum = heads ? over_old_heads(c, n) : over_known_classes(c, n);
    return sum * (factor(c) / static_cast<double>(all ? c.step_rows : c.fresh.size()));
  }

  void end(Context& c, Experience const&) { known_tasks = c.task_classes; }

  void state(Archive& a) {
    a.part("teacher", teacher);
    a("known", known);
    a.part("known_tasks", known_tasks);
  }

  /// Sum over the rows of KL(softmax(old / T) || softmax(z / T)) over the given columns, ascending
  /// (empty: all); z, old [n, C]. The student's softmax may be over more of them, `among`.
  Tensor divergence(Tensor const& z, Tensor const& old, std::vector<std::int64_t> const& over = {},
                    std::vector<std::int64_t> const& among = {}) const {
    auto const target = at::log_softmax(columns(old, over) / temperature, 1);
    auto student = at::log_softmax(columns(z, among.empty() ? over : among) / temperature, 1);
    if (!among.empty()) student = columns(student, positions(over, among));
    return (target.exp() * (target - student)).sum();
  }

  // State: written by the hooks.
  Snapshot teacher{};                 ///< empty: nothing to keep yet
  std::vector<std::int64_t> known{};  ///< classes the teacher was taught, ascending
  TaskLabels known_tasks{};           ///< labels of each task taught in finished experiences
  std::optional<bool> heads_alone{};  ///< whether one pass serves all heads; tried out when needed

 private:
  static double t(Context const& c) { return static_cast<double>(c.index + 1); }

  /// What multiplies the mean KL.
  double factor(Context const& c) const {
    auto a = strength;
    if (!strengths.empty()) {
      a = strengths[std::min(strengths.size() - 1, static_cast<std::size_t>(c.index))];
    }
    if (weighting == Weighting::one_over_t) a *= 1 - 1 / t(c);
    if (weighting == Weighting::count) a *= t(c) - 1;
    return t_squared ? a * temperature * temperature : a;
  }

  /// Where the numbers of one ascending list are in another that has them all.
  static std::vector<std::int64_t> positions(std::vector<std::int64_t> const& of,
                                             std::vector<std::int64_t> const& in) {
    std::vector<std::int64_t> found;
    for (auto const each : of) {
      found.push_back(std::lower_bound(in.begin(), in.end(), each) - in.begin());
    }
    return found;
  }

  static Tensor columns(Tensor const& z, std::vector<std::int64_t> const& over) {
    if (over.empty()) return z;
    if (is_prefix(over)) return z.narrow(1, 0, over.back() + 1);
    return z.index_select(1, constant(torch::tensor(over), z.device()));
  }

  Tensor over_known_classes(Context& c, std::int64_t n) const {
    Tensor old;
    {
      torch::NoGradGuard no_grad;
      WithWeights weights(c, teacher);
      ModeScope mode(*c.model.module, false);
      NoiseScope noise(noise_of_step(c), c.arena.device());
      auto const& task = c.batch.task;
      old = c.forward(c.batch.x.narrow(0, 0, n), task.defined() ? task.narrow(0, 0, n) : task);
    }
    c.model.route(c.batch.task);
    auto const now = c.logits.narrow(0, 0, n);
    if (classes == Over::all) return divergence(now, old);
    return classes == Over::seen ? divergence(now, old, known, c.seen)
                                 : divergence(now, old, known);
  }

  Tensor over_old_heads(Context& c, std::int64_t n) {
    std::vector<Tensor> old;
    {
      torch::NoGradGuard no_grad;
      WithWeights weights(c, teacher);
      ModeScope mode(*c.model.module, false);
      auto const x = c.batch.x.narrow(0, 0, n);
      if (!heads_alone) heads_alone = serves_all_heads(c, x);
      old = each_head(c, x);
    }
    // The student once more, on all rows and with the noise of the training pass, so that BatchNorm
    // and dropout do the same; statistics move in a copy, because this pass is not the step's.
    Snapshot aside;
    for (auto const& buffer : c.model.module->buffers()) aside.buffers.push_back(buffer.clone());
    WithWeights buffers(c, aside);
    auto const now = each_head(c, c.batch.x);
    auto sum = torch::zeros({}, c.logits.options());
    std::size_t k = 0;
    for (auto const task : known_tasks.tasks()) {
      sum = sum + divergence(now[k].narrow(0, 0, n), old[k], known_tasks.of(task));
      ++k;
    }
    return sum;
  }

  /// Logits of x under the head of every known task: features once and the heads alone where that
  /// is all that the model does, else a pass per head.
  std::vector<Tensor> each_head(Context& c, Tensor const& x) const {
    std::vector<Tensor> all;
    if (*heads_alone) {
      auto const by = c.fast_layers();
      NoiseScope noise(noise_of_step(c), c.arena.device());
      auto const phi = c.model.features(x);
      for (auto const task : known_tasks.tasks()) all.push_back(only_head(c)->logits(task, phi));
    } else {
      for (auto const task : known_tasks.tasks()) {
        NoiseScope noise(noise_of_step(c), c.arena.device());
        all.push_back(c.forward(x, all_of(task, x)));
      }
    }
    c.model.route(c.batch.task);
    return all;
  }

  /// Whether logits are the head's product with the features and nothing else. Tried out in eval
  /// mode, because a module may do more around its head than it tells.
  bool serves_all_heads(Context& c, Tensor const& x) const {
    auto const* head = only_head(c);
    if (!head || !c.model.features) return false;
    auto const by = c.fast_layers();
    NoiseScope noise(noise_of_step(c), c.arena.device());
    auto const phi = c.model.features(x);
    if (phi.dim() != 2 || phi.size(1) != head->weights.front().size(1)) return false;
    auto const task = known_tasks.tasks().front();
    return head->logits(task, phi).equal(c.forward(x, all_of(task, x)));
  }

  static MultiHeadImpl const* only_head(Context const& c) {
    if (c.model.heads.size() != 1) return nullptr;
    return dynamic_cast<MultiHeadImpl const*>(c.model.heads.front());
  }

  /// The key of the noise that the training pass of this step and shard has.
  static Generator noise_of_step(Context const& c) {
    return c.seed.generator("model", c.index, c.step * c.training.shards + c.shard);
  }

  static Tensor all_of(std::int64_t task, Tensor const& x) {
    return torch::full({x.size(0)}, task, torch::kInt64);
  }
};

}  // namespace v0
}  // namespace pawl

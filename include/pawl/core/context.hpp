#pragma once

#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../device/step_table.hpp"
#include "../engine/arena.hpp"
#include "../engine/block_view.hpp"
#include "../engine/fast_paths.hpp"
#include "../engine/phase.hpp"
#include "../engine/shards.hpp"
#include "../engine/side_gradient.hpp"
#include "active_outputs.hpp"
#include "archive.hpp"
#include "data.hpp"
#include "model.hpp"
#include "random.hpp"
#include "scopes.hpp"
#include "task_labels.hpp"
#include "training.hpp"

namespace pawl {
inline namespace v0 {

/// All that a strategy or an observer may see or touch. Owned by the learner, passed to every hook,
/// never copied.
class Context {
 public:
  Context() = default;
  Context(Context&&) = default;
  Context& operator=(Context&&) = default;

  // ---- what is trained ----
  Model model;
  Arena arena;
  Training training;
  Seed seed;
  FastPaths fast;  ///< ways around the model's own forward and backward

  /// Learning rate of the present step. Where a device replays recorded steps, one whose hooks ask
  /// for it is recorded anew for another rate.
  double learning_rate() const {
    rate_is_baked_ = rate_is_baked_ || StepTable::current() != nullptr;
    return learning_rate_;
  }
  /// The same for who computes nothing from it.
  double peek_learning_rate() const { return learning_rate_; }
  /// For the engine: the optimizer's rate times the schedule's factor.
  void note_learning_rate(double rate) { learning_rate_ = rate; }
  /// Whether the work of a step depends on the rate as a number.
  bool rate_is_baked() const { return rate_is_baked_; }

  /// [P]; in hooks of strategies that are `Elementwise`, of the present block
  Tensor const& weights() const { return block_ ? block_->weights() : arena.weights(); }
  /// The same of the gradient; edits reach the optimizer.
  Tensor const& gradient() { return block_ ? block_->gradient() : arena.gradient(); }
  /// The same for observers, to be looked at.
  Tensor const& gradient() const { return const_cast<Context*>(this)->gradient(); }
  /// The same of any flat tensor [P].
  Tensor here(Tensor const& flat) const { return block_ ? block_->where().of(flat) : flat; }

  // ---- where we are ----
  Experience const* experience = nullptr;  ///< valid inside fit
  std::int64_t index = -1;                 ///< of the experience
  std::int64_t step = 0;                   ///< within the experience, from 0; observers see how
                                           ///< many are done
  std::int64_t epoch = 0;                  ///< within the experience, from 0
  std::int64_t pass = 0;                   ///< on the same fresh rows, from 0
  std::int64_t steps = 0;                  ///< of the experience in all
  std::int64_t total_steps = 0;            ///< since the learner was made
  std::int64_t shard = 0;
  std::int64_t planned_until = 0;  ///< first step whose host decisions (draws, insertions) are not
                                   ///< made yet; above `step` while a device replays recorded
                                   ///< steps, and `save` is refused then
  Dataset train;                   ///< what this experience trains on, after `enlarge`
  std::vector<std::int64_t> old_classes;  ///< labels announced before this experience, ascending
  std::vector<std::int64_t> seen;  ///< labels announced so far, this experience included, ascending
  std::vector<std::int64_t> met;   ///< labels that occurred in a batch so far, ascending
  TaskLabels task_classes;         ///< labels announced so far for each task id

  std::vector<bool>
      ever_active;  ///< parameters that ever had a gradient (idle_heads = zero_gradient)

  // ---- the step ----
  Rows fresh;                        ///< fresh rows of the whole step, as stored
  Batch batch;                       ///< of the present shard: in extend, loss, penalty
  Tensor logits;                     ///< [N, C] of the present shard's batch
  std::vector<Tensor> shard_logits;  ///< with shards: detached logits of each one's fresh rows
  std::int64_t step_rows = 0;        ///< rows of the whole step, over all shards and parts
  std::int64_t default_rows = 0;     ///< those of them with the default weight: R
  std::vector<Tensor> labels_apart;  ///< labels (host) of rows that `extend`, in shard 0, leaves to
                                     ///< passes of their own for the supervised loss
  Tensor step_labels;       ///< [n] int64 (host) of the step's rows of any weight but 0, over all
                            ///< shards, and of those apart; set for active = batch
  double task_factor = 1;   ///< multiplies the supervised loss of this step; `extend` may set it
  Tensor task_loss;         ///< [] supervised loss of the step, detached
  Tensor task_gradient;     ///< [P] gradient of the supervised loss alone, of the present block as
                            ///< `weights`; set for hooks of strategies that need it
  Named<Tensor> penalties;  ///< strategy and value [] of this step

  /// Logits [B, C] (detached) that the training forward gave the fresh rows of the step.
  Tensor fresh_logits() const {
    return shard_logits.empty() ? logits.detach().narrow(0, 0, fresh.size())
                                : torch::cat(shard_logits);
  }

  /// How steps are computed: "compiled", "reference", or "reference: " and why not compiled; in its
  /// place "layers: " where linear layers go by pawl's products, "channels_last: " where images
  /// have them so in convolutions, "channels_last, layers: ".
  std::string engine() const { return training.reference() ? "reference" : fast.text(); }

  /// The slice of n rows (of a draw for the whole step) that belongs to the present shard.
  Slice slice(std::int64_t n) const { return shard_slice(n, shard, training.shards); }

  /// A generator of the present step: depends on (seed, name, experience, step) alone.
  Generator generator(std::string_view name) const { return seed.generator(name, index, step); }
  /// A generator of the whole run, for memories that count their own rows.
  Generator run_generator(std::string_view name) const { return seed.generator(name); }

  /// What the rest of training depends on, apart from the weights.
  void state(Archive& a);

  // ---- tools ----

  /// Network inputs [n, ...] of stored rows.
  Tensor inputs(Tensor const& stored) const {
    return train.normalise(stored.to(arena.device()), arena.dtype());
  }

  /// Rows as the present step shows them to the network (see `Augment`); `generator` draws how.
  Rows varied(Rows rows, Generator generator) const {
    if (!training.augment.any() || rows.size() == 0) return rows;
    auto const views = upload(training.augment.draw(rows.size(), generator), arena.device());
    if (!planning()) rows.stored = augmented(rows.stored.to(arena.device()), views);
    return rows;
  }

  /// Logits of inputs; `tasks` [n] int64 (host) where rows have task ids. Without a graph they are
  /// formed as those of a step are, to the last bit.
  Tensor forward(Tensor const& x, Tensor const& tasks = {}) const {
    model.route(tasks);
    auto const as_in_steps = !c10::GradMode::is_enabled() && fast.chain.verified();
    if (as_in_steps && fast.side_chain.takes(x)) return fast.side_chain.logits(x);
    return own_forward(x);
  }
  /// Those that the module's own forward gives, routed as it is.
  Tensor own_forward(Tensor const& x) const {
    auto const by = fast_layers();
    return model.forward(x);
  }
  /// While it lives, layers of modules go in faster ways, but with engine = reference.
  FastPaths::Layers fast_layers() const { return fast.layers(!training.reference()); }

  /// Logits with the outputs outside the active set at -inf, or narrowed away. `labels` (host): of
  /// the batch, for active = batch; `tasks` [N] (host) or undefined; `fresh_rows` of the rows are
  /// fresh.
  Tensor active_logits(Tensor const& z, Tensor const& labels, Tensor const& tasks,
                       std::int64_t fresh_rows) const {
    if (model.per_task()) return z;
    return active_outputs().of(z, labels, tasks, fresh_rows);
  }
  /// Refuses labels that have no output among so many, or compete with no other.
  void check_labels(at::IntArrayRef labels, std::int64_t outputs) const {
    active_outputs().check(labels, outputs);
  }

  /// Adds the gradient of a quadratic penalty, strength importance (weights - anchor), to that of
  /// the step: flat tensors [P], of the present block as `weights`. Both are left as they are until
  /// the optimizer has made its step: no buffers that another block uses again.
  void pull(Tensor const& anchor, Tensor const& importance, double strength);

  /// The default supervised loss of the present shard: sum_i w_i CE(z_i, y_i).
  Tensor weighted_cross_entropy() const;

  /// Gradient [P] of the mean cross-entropy over `rows` at the present weights, on the side:
  /// buffers, `.grad`, mode and generators stay as found. The forward runs in eval mode unless
  /// `train_mode`.
  Tensor gradient_on(Rows const& rows, bool train_mode = false, std::vector<bool>* used = nullptr);

  /// Restricts `weights`, `gradient` and `here` to one block while it lives.
  class LookAt : public BlockView {
   public:
    LookAt(Context& c, Block const& where, bool additions = false)
        : BlockView(c.arena, where, c.spare_, additions), c_(c) {
      c_.block_ = this;
    }
    ~LookAt() { c_.block_ = nullptr; }

   private:
    Context& c_;
  };

 private:
  // Of the present experience, and of what was seen.
  ActiveOutputs active_outputs() const {
    return {training.active, seen, experience != nullptr ? experience->classes : seen, task_classes,
            index};
  }

  double learning_rate_ = 0;
  mutable bool rate_is_baked_ = false;
  BlockView* block_ = nullptr;
  Tensor spare_, way_;  // buffers
};

inline void Context::state(Archive& a) {
  a("seen", seen);
  a("met", met);
  a("old_classes", old_classes);
  a.part("tasks", task_classes);
  a("index", index);
  a("step", step);
  a("total_steps", total_steps);
  auto text = std::to_string(seed.value);
  a("seed", text);
  seed.value = std::stoull(text);
  std::vector<std::int64_t> ever(ever_active.begin(), ever_active.end());
  a("ever_active", ever);
  ever_active.assign(ever.begin(), ever.end());
  a.part("images", fast.images);
}

inline void Context::pull(Tensor const& anchor, Tensor const& importance, double strength) {
  QuadraticPull const pull{anchor, importance, strength};
  auto const& w = weights();
  auto const in_one_pass = !arena.by_operations() && pull.suits(w);
  if (in_one_pass && block_ != nullptr && block_->keep(pull)) return;
  auto const& g = gradient();
  in_one_pass ? pull.add_to(g, w) : pull.add_by_operations(g, w, buffer_like(w, way_));
}

inline Tensor Context::weighted_cross_entropy() const {
  auto const n = batch.size();
  std::vector<double> weights;  // filled only when rows differ
  for (auto const& part : batch.parts) {
    if (!std::isnan(part.weight)) weights.resize(static_cast<std::size_t>(n));
  }
  auto const z = active_logits(logits, step_labels, batch.task, batch.fresh);
  if (weights.empty()) {
    if (default_rows == n) return at::cross_entropy_loss(z, batch.y);
    return at::cross_entropy_loss(z, batch.y, {}, at::Reduction::Sum) /
           static_cast<double>(default_rows);
  }
  for (auto const& part : batch.parts) {
    auto const w = std::isnan(part.weight) ? 1.0 / static_cast<double>(default_rows) : part.weight;
    std::fill_n(weights.begin() + part.begin, part.size, w);
  }
  auto const each = at::cross_entropy_loss(z, batch.y, {}, at::Reduction::None);
  auto const w =
      constant(torch::tensor(weights, torch::kFloat64).to(each.scalar_type()), each.device());
  if (training.active == Active::all) return (each * w).sum();
  // A row of weight 0 may carry a label outside the active set: its infinite loss must not become
  // NaN.
  return torch::where(w == 0, torch::zeros_like(each), each * w).sum();
}

inline Tensor Context::gradient_on(Rows const& rows, bool train_mode, std::vector<bool>* used) {
  Phase const phase("gradient on the side");
  ModeScope mode(*model.module, train_mode);
  std::optional<BufferScope> buffers;
  if (train_mode) buffers.emplace(*model.module);
  auto const x = inputs(rows.stored);
  auto& chain = fast.side_chain;
  auto const compiled = chain.takes(x);
  std::optional<NoiseScope> noise;  // a chain draws nothing
  if (!compiled) noise.emplace(generator("model.aux"), arena.device());
  torch::AutoGradMode grad(true);
  auto const logits = compiled ? chain.forward(x) : forward(x, rows.task);
  check_labels(host_column(rows.labels.contiguous()), logits.size(1));
  auto const z = active_logits(logits, rows.labels, rows.task, 0);
  auto const loss = at::cross_entropy_loss(z, rows.y);
  SideGradient gradient(arena, fast.side_gradient(arena));
  auto const take = [&](std::size_t i, LayerGradient const& part) { gradient.add(i, part); };
  if (compiled) {
    chain.backward(torch::autograd::grad({loss}, {chain.leaf()}).front(), take);
  } else {
    LinearLayers::Collecting const layers(arena, loss, take);
    gradient.add(torch::autograd::grad({loss}, arena.parameters(), {}, false, false, true));
  }
  if (used) *used = gradient.formed();
  return gradient.whole();
}

}  // namespace v0
}  // namespace pawl

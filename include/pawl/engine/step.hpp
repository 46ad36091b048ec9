#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "../core/context.hpp"
#include "checks.hpp"
#include "inputs.hpp"
#include "phase.hpp"
#include "shards.hpp"
#include "side_gradient.hpp"
#include "update.hpp"

namespace pawl {
inline namespace v0 {

/// One optimizer step: per shard extend, forward, loss, penalty and backward; once per step the sum
/// over the shards, edit_gradient, the optimizer and after_step.
template <class Strategies, class Opt>
class Step {
 public:
  Step(Context& context, Strategies& strategies, Opt& optimizer)
      : c(context),
        strategies(strategies),
        optimizer(optimizer),
        update_(context, strategies, optimizer) {}

  /// What observers wish to see of a step.
  struct Shown {
    bool penalties = false;  ///< the values of those in closed form
    bool gradient = false;
  };

  /// `fresh` are the rows of the step; `draws` says (and learns) whether the module draws random
  /// numbers in its forward.
  void run(Rows fresh, Shown shown, bool& draws) {
    // A step that broke off may have left some.
    losses_.forget(), gradients_.forget(), task_gradients_.forget();
    update_.prepare(shown.gradient);  // some optimizers have no learning rate before
    start(std::move(fresh));
    auto shards = extend([&](Batch batch) { return strategies.extend(c, std::move(batch)); });
    BufferMean buffers(*c.model.module, c.training.shards);
    c.penalties.clear();
    c.shard_logits.clear();
    c.arena.clear_gradients();
    for (c.shard = 0; c.shard < c.training.shards; ++c.shard) {
      c.batch = std::move(shards[static_cast<std::size_t>(c.shard)]);
      buffers.begin_shard();
      forward(draws);
      differentiate();
      buffers.end_shard();
    }
    c.shard = 0;
    buffers.finish();
    if (c.training.shards > 1) sum_up();
    if (c.training.idle_heads == IdleHeads::zero_gradient) move_idle_heads();
    strategies.wake(c);
    if (shown.penalties) strategies.closed_form_values(c);
    update_.run();
  }

  /// What the host decides of a step that a device may replay: the batches of its shards, as far as
  /// they lie on the host. Changes nothing, so it may be done again.
  std::vector<Batch> plan(Rows fresh) {
    start(std::move(fresh));
    auto shards = extend([&](Batch batch) { return strategies.plan_batch(c, std::move(batch)); });
    depends_on(static_cast<std::int64_t>(c.met.size()));
    if (c.rate_is_baked() || !uploads_rate(optimizer)) depends_on(c.peek_learning_rate());
    depends_on(c.task_factor);
    depends_on(std::int64_t{c.pass == 0} + 2 * std::int64_t{c.pass + 1 == c.training.passes});
    for (auto const& batch : shards) {
      for (auto const& part : batch.parts) {
        depends_on(part.size);
        depends_on(part.step_size);
        depends_on(part.weight);
      }
    }
    c.shard = 0;
    return shards;
  }

  /// Notes the learning rate of the present epoch in the context.
  void note_rate() { c.note_learning_rate(optimizer.learning_rate() * c.training.rate(c.epoch)); }

  /// The host's part of the rest of a planned step.
  void finish_plan() { update_.plan(); }

  /// Whether the last step came as far as the optimizer.
  bool updated() const { return update_.done(); }

 private:
  void start(Rows fresh) {
    update_.start();
    note_rate();
    c.fresh = std::move(fresh);
  }

  /// The batches of the shards with the rows that strategies append. All of them before the first
  /// forward, because a default weight is 1 over the number of rows of the whole step.
  template <class F>
  std::vector<Batch> extend(F&& by_strategies) {
    std::vector<Batch> shards;
    c.step_rows = c.default_rows = 0;
    c.task_factor = 1;
    c.labels_apart.clear();
    auto const shown = c.varied(c.fresh, c.generator("model.augment"));
    for (c.shard = 0; c.shard < c.training.shards; ++c.shard) {
      auto const slice = c.slice(shown.size());
      Batch batch;
      batch.fresh = slice.size();
      batch.append(nullptr, shown.slice(slice.begin, slice.end), shown.size());
      batch = by_strategies(std::move(batch));
      c.step_rows += batch.size();
      for (auto const& part : batch.parts) {
        if (std::isnan(part.weight)) c.default_rows += part.size;
      }
      shards.push_back(std::move(batch));
    }
    if (c.training.active == Active::batch) c.step_labels = supervised_labels(shards);
    return shards;
  }

  Tensor supervised_labels(std::vector<Batch> const& shards) const {
    auto all = c.labels_apart;
    for (auto const& batch : shards) {
      for (auto const& part : batch.parts) {
        if (part.weight != 0) all.push_back(part.rows.labels);
      }
    }
    return torch::cat(all);
  }

  /// Noise (dropout) is keyed by seed, step and shard. Whether a module draws at all is seen in the
  /// first step of an experience; one that does not is spared the seeding.
  void forward(bool& draws) {
    Phase joining("inputs");
    join(c, c.batch);
    joining.end();
    Phase const phase("forward");
    std::optional<NoiseScope> noise;
    if (draws || c.step == 0) {
      noise.emplace(c.seed.generator("model", c.index, c.step * c.training.shards + c.shard),
                    c.arena.device());
    }
    if (c.step == 0 && c.shard == 0 && !c.training.reference()) {
      c.fast.try_out(c.model, c.batch.x, c.batch.task, c.total_steps);
    }
    c.model.route(c.batch.task);
    compiled_ = c.fast.compiled(c.model, c.batch.x);
    c.logits = compiled_ ? c.fast.chain.forward(c.batch.x) : c.own_forward(c.batch.x);
    draws = draws || (noise && noise->drawn());
    // Without heads that grow, labels of the whole experience can be told from its first step.
    auto const first = !std::exchange(looked_, true) && c.model.heads.empty();
    check_logits(c);
    auto const outputs = c.logits.size(1);
    if (first) {
      c.check_labels(host_column(c.train.labels.contiguous()), outputs);
      c.check_labels(c.experience->classes, outputs);
    }
    for (auto const& part : c.batch.parts) {
      if (part.weight != 0) c.check_labels(host_column(part.rows.labels.contiguous()), outputs);
    }
    if (c.training.shards > 1) {
      c.shard_logits.push_back(c.logits.detach().narrow(0, 0, c.batch.fresh));
    }
  }

  /// Leaves the gradient of loss + penalties with the parameters.
  void differentiate() {
    auto loss = strategies.has_loss ? strategies.loss(c) : own_loss();
    if (c.task_factor != 1) loss = loss * c.task_factor;
    auto const penalties = strategies.penalties(c);
    check_finite_loss(c, loss, penalties);
    Phase const phase("backward");
    auto total = loss;
    for (auto const& penalty : penalties) total = total + penalty.second;
    if (strategies.wants_task_gradient && !penalties.empty()) {
      c.task_gradient = gradient_of(loss);
    }
    backward(total);
    if (compiled_ && c.fast.chain.leaf().grad().defined()) {
      auto const& at_logits = c.fast.chain.leaf().grad();
      if (!c.fast.chain.backward_together(at_logits, c.arena)) {
        c.fast.chain.backward(at_logits, [&](std::size_t i, auto&& gradient) {
          c.arena.take_gradient(i, std::move(gradient), update_.by_additions());
        });
      }
      c.arena.seal();
    }
    if (strategies.wants_task_gradient && penalties.empty()) {
      auto const is_copied_later = update_.by_blocks() && c.training.shards == 1;
      c.task_gradient = is_copied_later ? Tensor() : c.arena.gradient().clone();
    }
    record(loss.detach(), penalties);
    if (c.training.shards > 1) collect();
  }

  Tensor own_loss() const {
    Phase const phase("loss");
    return c.weighted_cross_entropy();
  }

  void backward(Tensor const& total) {
    auto const take = [this](std::size_t i, LayerGradient const& gradient) {
      c.arena.take_gradient(i, gradient, update_.by_additions());
      c.fast.note_layers();
    };
    LinearLayers::Collecting const layers(c.arena, total, take);
    total.backward();
    c.arena.note_active();
  }

  /// The gradient [P] of one loss; its graph is kept.
  Tensor gradient_of(Tensor const& loss) const {
    auto sources = c.arena.parameters();
    if (compiled_) sources.push_back(c.fast.chain.leaf());
    auto gradients = torch::autograd::grad({loss}, sources, {}, true, false, true);
    auto const at_logits = gradients.back();
    gradients.resize(c.arena.parameters().size());
    SideGradient gradient(c.arena, torch::zeros_like(c.arena.weights()));
    gradient.add(gradients);
    if (compiled_ && at_logits.defined()) {
      c.fast.chain.backward(at_logits,
                            [&](std::size_t i, auto const& part) { gradient.add(i, part); });
    }
    return gradient.whole();
  }

  /// Adds the penalties of a shard to those of the shards before, where they are the same ones: a
  /// shard may lack some.
  void record(Tensor const& loss, Named<Tensor> const& penalties) {
    c.task_loss = loss;
    auto next = c.penalties.begin();
    for (auto const& [name, value] : penalties) {
      auto const same = [&name = name](auto const& known) { return known.first == name; };
      auto const found = std::find_if(next, c.penalties.end(), same);
      if (found == c.penalties.end()) {
        next = c.penalties.insert(next, {name, value.detach()}) + 1;
      } else {
        found->second = found->second + value.detach();
        next = found + 1;
      }
    }
  }

  /// Adds the gradient of one shard to the sum over the step, and makes room for the next.
  void collect() {
    losses_.add(c.task_loss);
    gradients_.add(c.arena.gradient().clone());
    if (strategies.wants_task_gradient) task_gradients_.add(c.task_gradient);
    auto const active = c.arena.active();
    c.arena.clear_gradients();
    c.arena.activate(active);
  }

  void sum_up() {
    c.task_loss = losses_.take();
    c.arena.set_gradient(gradients_.take());
    if (strategies.wants_task_gradient) c.task_gradient = task_gradients_.take();
  }

  /// Parameters that ever had a gradient and have none in this step get a zero one.
  void move_idle_heads() {
    c.arena.gradient();
    c.ever_active.resize(c.arena.active().size(), false);
    for (std::size_t i = 0; i < c.ever_active.size(); ++i) {
      c.ever_active[i] = c.ever_active[i] || c.arena.active()[i];
    }
    c.arena.activate(c.ever_active);
  }

  Context& c;
  Strategies& strategies;
  Opt& optimizer;
  Update<Strategies, Opt> update_;
  TreeSum losses_, gradients_, task_gradients_;
  bool looked_ = false;    ///< at the labels of the experience
  bool compiled_ = false;  ///< the present shard's logits come from the compiled chain
};

}  // namespace v0
}  // namespace pawl

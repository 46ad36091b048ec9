#pragma once

#include <cstdint>
#include <utility>

#include "../core/context.hpp"
#include "../core/hooks.hpp"
#include "../optimizers/optimizer.hpp"
#include "phase.hpp"

namespace pawl {
inline namespace v0 {

/// The end of a step, which turns its gradient into new weights: edit_gradient, the optimizer and
/// after_step. For all weights at once, or, with the same bits,
///   by blocks     where all of that changes every weight by itself: one block of the weights after
///                 another, which stays in the cache meanwhile;
///   by additions  where the gradient is only added to the weights: products of linear layers add
///                 it to them, and it is never stored.
template <class Strategies, class Opt>
class Update {
 public:
  Update(Context& context, Strategies& strategies, Opt& optimizer)
      : c(context), strategies(strategies), optimizer(optimizer) {}

  /// Another step begins.
  void start() { done_ = false; }
  /// Chooses the way, before the gradient is formed. `shown`: observers wish to see it.
  void prepare(bool shown) {
    shown_ = shown;
    pawl::prepare(optimizer, c.arena);
    // Where strategies add to it, the order of additions shows in the last bits of the weights.
    by_additions_ = (!shown || strategies.reads_gradient) && gradient_is_only_added();
    by_blocks_ = !shown && all_is_elementwise();
  }
  /// Whether the gradient need not be formed.
  bool by_additions() const { return by_additions_; }
  bool by_blocks() const { return by_blocks_; }

  void run() {
    if (by_additions_ && c.arena.has_unformed()) return run_by_additions();
    if (by_blocks_) return run_by_blocks();
    strategies.edit_gradient(c);
    Phase optimizing("optimizer");
    if (c.training.clip_norm > 0) clip(c.gradient());
    done_ = true;
    at_rate([&] { optimizer.step(c.arena); });
    optimizing.end();
    strategies.after_step(c);
  }

  /// The host's part of it, of a step that a device replays.
  void plan() {
    if constexpr (requires { optimizer.count(c.arena); }) {
      at_rate([&] { optimizer.count(c.arena); });
    }
    strategies.plan_end_of_step(c);
  }

  /// Whether the present step has come as far as the optimizer.
  bool done() const { return done_; }

 private:
  /// Whether plain SGD is the only reader of the step's gradient, so that it can be added to the
  /// weights without being stored. Never in the last step: its gradient is there after training.
  bool gradient_is_only_added() const {
    if constexpr (requires { optimizer.only_adds_gradient(); }) {
      return optimizer.only_adds_gradient() && strategies.only_adds && c.step + 1 < c.steps &&
             c.arena.device().is_cpu() && c.training.shards == 1 && c.training.clip_norm == 0 &&
             c.training.idle_heads != IdleHeads::zero_gradient;
    }
    return false;
  }

  /// Whether strategies and the optimizer change every weight by itself, and there are so many of
  /// them that it is worth going by blocks. The task gradient of the last step is there after
  /// training.
  bool all_is_elementwise() const {
    auto const& weights = c.arena.weights();
    auto const last = c.step + 1 == c.steps;
    return strategies.elementwise && strategies.reads_gradient && works_in_blocks(optimizer) &&
           c.training.engine != Engine::reference && c.training.clip_norm == 0 &&
           !(strategies.wants_task_gradient && last) && weights.is_cpu() &&
           weights.numel() > block_size();
  }

  /// To the active weights is added what strategies would add to the gradient, block by block, and
  /// then the gradient. Where that is shown, it is formed after all.
  void run_by_additions() {
    done_ = true;
    Tensor additions;
    auto const add = [&](Block const& block) {
      Context::LookAt look(c, block, true);
      strategies.edit_gradient(c);
      if (!look.asked() || (!shown_ && look.subtract_only_pull(c.learning_rate()))) return;
      c.weights().add_(c.gradient(), -c.learning_rate());
      if (!shown_) return;
      if (!additions.defined()) additions = torch::zeros_like(c.arena.weights());
      block.of(additions).copy_(c.gradient());
    };
    if (strategies.reads_gradient) {
      for (auto const& run : active_runs(c.arena)) each_block(c.arena.weights(), run.all(), add);
    }
    Phase optimizing("optimizer");
    at_rate([&] { optimizer.step(c.arena); });
    optimizing.end();
    strategies.after_step(c);
    if (additions.defined()) c.arena.gradient().add_(additions);
  }

  void run_by_blocks() {
    if constexpr (BlockOptimizer<Opt>) {
      auto const task_gradient = std::exchange(c.task_gradient, Tensor());
      c.arena.gradient();  // packs it
      at_rate([&] { optimizer.count(c.arena); });
      done_ = true;
      each_block(c.arena.weights(), [&](Block const& block) {
        Context::LookAt look(c, block);
        if (strategies.wants_task_gradient) {
          c.task_gradient =
              task_gradient.defined() ? block.of(task_gradient) : look.copy_of_gradient();
        }
        strategies.edit_gradient(c);
        Phase optimizing("optimizer");
        at_rate([&] { optimizer.apply(c.arena, block); });
        optimizing.end();
        strategies.after_step(c, Of::elementwise);
      });
      c.task_gradient = Tensor();
      strategies.after_step(c, Of::others);
    }
  }

  /// Calls f while the optimizer has the learning rate of the epoch.
  template <class F>
  void at_rate(F&& f) {
    auto const rate = optimizer.learning_rate();
    auto const other = c.training.rate(c.epoch) != 1;
    if (other) set_learning_rate(optimizer, c.peek_learning_rate());
    f();
    if (other) set_learning_rate(optimizer, rate);
  }

  /// Scales the gradient [P] down to the norm allowed; stays on the device.
  void clip(Tensor const& gradient) const {
    auto const share = c.training.clip_norm / (gradient.norm() + 1e-6);
    gradient.mul_(share.clamp_max(1));
  }

  Context& c;
  Strategies& strategies;
  Opt& optimizer;
  bool done_ = false;
  bool shown_ = false;
  bool by_additions_ = false;
  bool by_blocks_ = false;
};

}  // namespace v0
}  // namespace pawl

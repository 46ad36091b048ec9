#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
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
///                 it to them, with the pull of a penalty if there is one, and it is never stored.
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
           !c.training.reference() && c.training.clip_norm == 0 &&
           !(strategies.wants_task_gradient && last) && weights.is_cpu() &&
           weights.numel() > block_size();
  }

  /// To the active weights is added what strategies would add to the gradient, and then the
  /// gradient: where the former is a pull and the latter a product, both at once. Where it is
  /// shown, the gradient is formed after all.
  void run_by_additions() {
    done_ = true;
    Tensor additions;
    bool only_pulls = true;
    auto const add = [&](Block const& block, std::optional<std::size_t> waiting = {}) {
      Context::LookAt look(c, block, true);
      strategies.edit_gradient(c);
      if (!look.asked()) return;
      auto const* const pull = shown_ ? nullptr : look.only_pull();
      only_pulls = only_pulls && pull != nullptr;
      if (pull == nullptr) {
        c.weights().add_(c.gradient(), -c.learning_rate());
      } else if (waiting && c.arena.waits(*waiting)) {
        c.arena.pull_first(*waiting, *pull, c.learning_rate());
      } else {
        pull->subtract_from(c.weights(), c.learning_rate());
      }
      if (!shown_) return;
      if (!additions.defined()) additions = torch::zeros_like(c.arena.weights());
      block.of(additions).copy_(c.gradient());
    };
    if (strategies.reads_gradient) each_active(add);
    only_pulls_ = only_pulls;
    Phase optimizing("optimizer");
    at_rate([&] { optimizer.step(c.arena); });
    optimizing.end();
    strategies.after_step(c);
    if (additions.defined()) c.arena.gradient().add_(additions);
  }

  /// Calls f(block) for one block of the active weights after another, and f(slice, i) for the
  /// slice of a large parameter i whose gradient waits, where a pull on it may wait, too.
  template <class F>
  void each_active(F const& f) {
    auto const& arena = c.arena;
    Block rest;
    auto const finish = [&] {
      each_block(arena.weights(), std::exchange(rest, {}), [&](Block const& block) { f(block); });
    };
    for (std::size_t i = 0; i < arena.active().size(); ++i) {
      if (!arena.active()[i]) continue;
      Block const slice{arena.layout()[i].offset, arena.slice_end(i)};
      auto const large = slice.end - slice.begin > block_size();
      auto const alone = large && only_pulls_ && !shown_ && arena.waits(i);
      if (alone || rest.end != slice.begin) finish();
      if (alone) {
        f(slice, i);
      } else {
        rest = {rest.empty() ? slice.begin : rest.begin, slice.end};
      }
    }
    finish();
  }

  void run_by_blocks() {
    if constexpr (BlockOptimizer<Opt>) {
      auto const task_gradient = std::exchange(c.task_gradient, Tensor());
      at_rate([&] { optimizer.count(c.arena); });
      done_ = true;
      auto const one = [&](Block const& block) {
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
      };
      auto const large =
          block_size() / 4;  // smaller ones cost less to pack than a block of their own
      c.arena.each_range(large, [&](std::int64_t begin, std::int64_t end) {
        each_block(c.arena.weights(), {begin, end}, one);
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
  bool only_pulls_ = false;  ///< whether they added at most one pull per block in the last step
};

}  // namespace v0
}  // namespace pawl

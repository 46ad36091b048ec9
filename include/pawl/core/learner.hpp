#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "../device/captured_steps.hpp"
#include "../engine/first_use.hpp"
#include "../engine/pages.hpp"
#include "../engine/phase.hpp"
#include "../engine/step.hpp"
#include "../optimizers/adam.hpp"  // for whoever makes a learner
#include "../optimizers/optimizer.hpp"
#include "../optimizers/sgd.hpp"
#include "checkpoint.hpp"
#include "context.hpp"
#include "growth.hpp"
#include "model_state.hpp"
#include "observer.hpp"
#include "snapshot.hpp"
#include "strategy_set.hpp"

namespace pawl {
inline namespace v0 {

/// A model that learns experience after experience: a module, an optimizer and any number of
/// strategies.
/// @code
///   Learner learner{net, Sgd{.lr = 0.05}, Replay{Reservoir{.capacity = 500}}, Lwf{.strength = 1}};
///   for (auto const& experience : stream) learner.fit(experience, {.batch_size = 64});
/// @endcode
template <class M, class Opt, class Strategies>
class Learner {
 public:
  template <class... S>
  requires std::same_as<Strategies, StrategySet<S...>> Learner(M model, Opt optimizer,
                                                               S... strategies)
      : Learner(std::move(model), std::move(optimizer),
                Strategies{std::tuple<S...>(std::move(strategies)...)}) {}

  /// Not for deduction: `Strategies` is a set of strategies, not the one strategy of a call above.
  Learner(M model, Opt optimizer, std::type_identity_t<Strategies> strategies)
      : module_(model), optimizer_(std::move(optimizer)), strategies_(std::move(strategies)) {
    static_assert(
        Trainable<M>,
        "pawl: a model must be a module holder (nn::Sequential, a TORCH_MODULE) or a shared_ptr "
        "to a module whose  forward  takes one tensor and returns logits [N, C]");
    static_assert(
        Optimizer<Opt>,
        "pawl: an optimizer needs  void step(Arena&), void reset(), void state(Archive&) and "
        "double learning_rate() const");
    settle_first_use();
    keep_freed_memory();
    strategies_.check();
    strategies_.check_values();
    if constexpr (requires(Options & o) { optimizer_.describe(o); }) {
      check_options(optimizer_, "optimizer");
    }
    context_.model = Model(std::move(model));
    context_.arena.bind(*context_.model.module);
  }

  /// The seed of everything random in training. Set it before the first `fit`.
  Learner& seed(Seed seed) {
    context_.seed = seed;
    return *this;
  }

  /// Learns one experience, in the mode (train or eval) that the module is in. Continues in its
  /// middle when the learner was loaded from a checkpoint written there. Throws Error on bad input,
  /// Diverged when the loss is not finite; an experience that broke off may be given again.
  template <class... Observers>
  void fit(Experience const& experience, Training training = {}, Observers&&... observers) {
    Watch<std::remove_reference_t<Observers>...> watch(observers...);
    enter(experience, training);
    Inside const inside{context_};
    auto& c = context_;
    if (!resuming_) start(experience);
    c.train = strategies_.enlarge(c, std::move(c.train));
    growth().look_for_fast_paths();
    auto plan = plan_for(c.train.size());
    c.steps = plan.steps();
    watch.begin(c);
    Step step(c, strategies_, optimizer_);
    CapturedSteps captured(c, strategies_, optimizer_, step, plan, watch.steps_at_once);
    auto const one = [&] {
      Phase gathering("gather");
      auto fresh = c.train.read(plan.positions(c.step), c.arena.device());
      if (growth().meet(fresh.labels)) captured.forget();
      gathering.end();
      step.run(std::move(fresh), {watch.wants_penalties, !watch.only_losses}, draws_);
      ++c.step, ++c.total_steps;
    };
    auto const shown = [&] {
      Phase const watching("observers");
      watch.step(c);
    };
    while (c.step < c.steps) {
      Phase const phase("step");
      if (!c.arena.bound()) rebind(), captured.forget();
      if (captured.replay(shown)) continue;
      if (captured.run_series(one, shown)) continue;
      plan.locate(c);
      captured.run(one);
      if (draws_) captured.give_up("the model draws random numbers");
      shown();
    }
    captured.finish();
    strategies_.end(c, experience);
    in_experience_ = false;
    watch.end(c);
  }

  /// Scores [N, C] of network inputs x [N, ...] in eval mode: those of the strategy that owns
  /// `scores`, else logits. `tasks` [N] int64 (host) where the scenario gives task ids.
  Tensor scores(Tensor const& x, Tensor const& tasks = {}) {
    torch::NoGradGuard no_grad;
    auto& c = context_;
    rebind();
    require(x.defined() && x.dim() >= 1 && x.size(0) > 0,
            "scores: give inputs [N, ...] with at least one row");
    ModeScope mode(*c.model.module, false);
    auto const inputs = x.to(c.arena.device(), c.arena.dtype());
    c.model.route(tasks);
    if (strategies_.has_scores) return strategies_.scores(c, inputs);
    return c.fast.scores(c.model, inputs, !c.training.reference());
  }

  /// Labels [N] int64: the best of the classes seen so far, or of all outputs before the first
  /// experience.
  Tensor predict(Tensor const& x, Tensor const& tasks = {}) {
    auto const z = scores(x, tasks);
    if (context_.seen.empty() || context_.model.per_task()) return z.argmax(1);
    auto const mask = column_mask(context_.seen, z.size(1)).logical_not().to(z.device());
    return z.masked_fill(mask, -std::numeric_limits<double>::infinity()).argmax(1);
  }

  /// Writes everything that training depends on; may be called by an observer in the middle of an
  /// experience.
  void save(std::string const& path) {
    require(context_.step >= context_.planned_until,
            {"save was called by an observer in step ", context_.step, " while steps up to ",
             context_.planned_until,
             " are planned already; an observer that saves must not say only_losses"});
    rebind();
    Archive archive(Archive::Mode::save);
    state(archive);
    visit_model(archive, *context_.model.module);
    write_checkpoint(path, archive);
  }

  /// Reads what `save` wrote into a learner of the same composition. Throws Error, and leaves the
  /// learner as it was, when the file is damaged or is that of another one.
  void load(std::string const& path) {
    rebind();
    auto& module = *context_.model.module;
    auto archive = read_checkpoint(path);
    archive.device = context_.arena.device();
    Archive now(Archive::Mode::save);
    state(now);
    auto before = now.to_load();
    before.device = archive.device;
    auto const layout = context_.arena.layout();
    try {
      state(archive);
      check_model(archive, module, Heads::will_grow);
      archive.require_all_loaded("model.");
      growth().make_room();
      check_model(archive, module, Heads::are_grown);
      Archive sizes(Archive::Mode::count);
      sizes.flat_size = context_.arena.weights().numel();
      sizes.part("optimizer", optimizer_);
      sizes.part("strategies", strategies_);
    } catch (...) {
      state(before);
      if (context_.arena.layout() != layout)
        growth().follow(layout);  // heads keep the room they made
      throw;
    }
    visit_model(archive, module);
    resuming_ = in_experience_;
  }

  Snapshot snapshot() {
    rebind();
    return Snapshot::of(context_);
  }

  /// Puts weights and buffers back to a snapshot of this learner, taken since its last growth.
  void roll_back(Snapshot const& snapshot) {
    rebind();
    auto& c = context_;
    require(
        snapshot.layout == c.arena.layout(),
        {"roll_back: the snapshot is of another model, or was taken before this one grew; load ",
         "a checkpoint instead"});
    torch::NoGradGuard no_grad;
    c.arena.weights().copy_(snapshot.weights);
    auto const buffers = c.model.module->buffers();
    for (std::size_t i = 0; i < buffers.size(); ++i) buffers[i].copy_(snapshot.buffers[i]);
  }

  /// "mlp + sgd + replay {extend, after_step}": what this learner was found to be.
  std::string text() const {
    auto text = text_of({context_.model.module->name(), " + ", component_name(optimizer_)});
    for (auto const& record : records()) {
      text += " + " + record.name + " {";
      for (auto const& hook : record.hooks) {
        text += (text.back() == '{' ? "" : ", ") + hook;
      }
      text += "}";
    }
    return text;
  }
  std::vector<StrategyRecord> records() const { return strategies_.records(); }

  /// Bytes of strategy state, as allocated.
  std::int64_t state_bytes() {
    Archive archive(Archive::Mode::count);
    strategies_.state(archive);
    return archive.bytes;
  }

  M& model() { return module_; }
  Opt& optimizer() { return optimizer_; }
  Strategies& strategies() { return strategies_; }
  Context& context() { return context_; }

  /// The strategy of type S.
  template <class S>
  S& strategy() {
    return std::get<S>(strategies_.strategies);
  }

 private:
  /// While an experience is learned, the context points at it.
  struct Inside {
    Context& context;
    ~Inside() { context.experience = nullptr; }
  };

  // ---- before the first step ----

  /// Refuses what cannot be learned before anything changes.
  void enter(Experience const& experience, Training& training) {
    auto& c = context_;
    check_options(training, "training");
    check_experience(experience);
    check_training(training, experience.train);
    require(!resuming_ || c.index == experience.index,
            {"the checkpoint was written in experience ", c.index,
             " but fit was called with experience ", experience.index,
             "; continue with experience ", c.index});
    rebind();
    Plan const plan(experience.train.size(), training, c.seed, experience.index);
    check_batches(c, experience.train, plan, training.shards, experience.index);
    c.experience = &experience;
    c.training = training;
    c.train = experience.train;
    c.arena.by_operations(training.reference());
  }

  void start(Experience const& experience) {
    auto& c = context_;
    auto const again = in_experience_ && c.index == experience.index;
    if (!again) c.old_classes = c.seen;
    c.index = experience.index;
    c.step = 0;
    growth().announce(experience);
    insert_sorted(c.seen, experience.classes);
    if (c.training.optimizer_at_boundary == AtBoundary::reset) optimizer_.reset();
    try {
      strategies_.begin(c, experience);
    } catch (...) {
      if (!again) c.seen = c.old_classes;  // it has not begun
      throw;
    }
    in_experience_ = true;
  }

  /// The plan of this experience once strategies have enlarged it to `rows`: the one it was started
  /// with, when it is continued.
  Plan plan_for(std::int64_t rows) {
    auto const& c = context_;
    Plan plan(rows, c.training, c.seed, c.index);
    if (rows != c.experience->train.size()) {  // else they were checked
      check_batches(c, c.train, plan, c.training.shards, c.index);
    }
    require(!resuming_ || plan_ == plan.text(),
            {"experience ", c.index, " was started with ", plan_, " and cannot be continued with ",
             plan.text(), "; give the same Training and data"});
    plan_ = plan.text();
    resuming_ = false;
    return plan;
  }

  Growth<Strategies, Opt> growth() { return {context_, strategies_, optimizer_}; }
  void rebind() { growth().rebind(); }

  /// Everything that the rest of training depends on, apart from the model's own tensors.
  void state(Archive& a) {
    auto composition = text();
    auto const mine = composition;
    a("composition", composition);
    require(composition == mine,
            {"the checkpoint was written by '", composition, "' but this learner is '", mine,
             "'; build the same composition first"});
    context_.state(a);
    a("in_experience", in_experience_);
    a("plan", plan_);
    a("draws", draws_);
    a.part("optimizer", optimizer_);
    a.part("strategies", strategies_);
  }

  M module_;
  Opt optimizer_;
  Strategies strategies_;
  Context context_;
  bool draws_ = false;          ///< the module draws random numbers in its forward
  bool in_experience_ = false;  ///< between the first step of an experience and its end
  bool resuming_ = false;       ///< loaded in the middle of an experience
  std::string plan_{};          ///< under which the present experience was started
};

template <class M, class Opt, class... S>
Learner(M, Opt, S...) -> Learner<M, Opt, StrategySet<S...>>;

}  // namespace v0
}  // namespace pawl

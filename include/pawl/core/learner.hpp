#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "../engine/step.hpp"
#include "checkpoint.hpp"
#include "context.hpp"
#include "hooks.hpp"
#include "optimizer.hpp"
#include "snapshot.hpp"

namespace pawl {
inline namespace v0 {

/// Watches training; never changes it. Each member is optional:
///   void begin(Context const&)    before the first step of an experience
///   void step(Context const&)     after every step: losses, penalties, logits, gradient, weights
///   void end(Context const&)      after the last step of an experience
/// One that says `static constexpr bool wants_penalties = true` also sees the values of closed-form
/// penalties.
template <class O>
concept Observer = requires(O o, Context const& c) {
  o.begin(c);
}
|| requires(O o, Context const& c) { o.step(c); }
|| requires(O o, Context const& c) { o.end(c); };

/// A model that learns experience after experience: a module, an optimizer and any number of
/// strategies.
/// @code
///   Learner learner{net, Sgd{.lr = 0.05}, Replay{Reservoir{.capacity = 500}}, Lwf{.strength =
///   0.5}}; for (auto const& experience : stream) learner.fit(experience, {.epochs = 1, .batch_size
///   = 64});
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

  /// Learns one experience. Continues in its middle when the learner was loaded from a checkpoint
  /// written there. Throws Error on bad input, Diverged when the loss is not finite.
  template <class... Observers>
  void fit(Experience const& experience, Training training = {}, Observers&&... observers) {
    static_assert((Observer<std::remove_cvref_t<Observers>> && ...),
                  "pawl: an observer needs at least one of  begin, step, end (Context const&)");
    constexpr bool traced = (false || ... || wants_penalties<std::remove_cvref_t<Observers>>);
    auto& c = context_;
    check_options(training, "training");
    check_experience(experience);
    c.arena.ensure(*c.model.module);
    c.experience = &experience;
    c.training = training;
    c.train = experience.train;
    auto const resumed = std::exchange(resuming_, false);
    require(!resumed || c.index == experience.index, "the checkpoint was written in experience ",
            c.index, " but fit was called with experience ", experience.index,
            "; continue with experience ", c.index);
    if (!resumed) start(experience);
    c.train = strategies_.enlarge(c, std::move(c.train));
    Plan plan(c.train.size(), c.training, c.seed, experience.index);
    check_batches(c, plan);
    c.steps = plan.steps();
    (notify_begin(observers), ...);
    Step step(c, strategies_, optimizer_);
    while (c.step < c.steps) {
      c.epoch = plan.epoch_of(c.step);
      c.pass = plan.pass_of(c.step);
      if (!c.arena.bound()) c.arena.ensure(*c.model.module);
      auto fresh = c.train.read(plan.positions(c.step), c.arena.device());
      meet(fresh.labels);
      step.run(std::move(fresh), traced, draws_);
      ++c.step, ++c.total_steps;
      (notify_step(observers), ...);
    }
    strategies_.end(c, experience);
    in_experience_ = false;
    (notify_end(observers), ...);
    c.experience = nullptr;
  }

  /// Scores [N, C] of network inputs x [N, ...] in eval mode: those of the strategy that owns
  /// `scores`, else logits. `tasks` [N] int64 (host) where the scenario gives task ids.
  Tensor scores(Tensor const& x, Tensor const& tasks = {}) {
    torch::NoGradGuard no_grad;
    auto& c = context_;
    c.arena.ensure(*c.model.module);
    require(x.defined() && x.dim() >= 1 && x.size(0) > 0,
            "scores: give inputs [N, ...] with at least one row");
    ModeScope mode(*c.model.module, false);
    auto const inputs = x.to(c.arena.device(), c.arena.dtype());
    c.model.route(tasks);
    if (strategies_.has_scores) return strategies_.scores(c, inputs);
    return c.model.forward(inputs);
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
  void save(std::filesystem::path const& path) {
    Archive archive(Archive::Mode::save);
    state(archive);
    write_checkpoint(path, archive);
  }

  /// Reads what `save` wrote into a learner of the same composition.
  void load(std::filesystem::path const& path) {
    Archive archive = read_checkpoint(path);
    archive.device = context_.arena.device();
    state(archive);
    resuming_ = in_experience_;
  }

  Snapshot snapshot() const { return Snapshot::of(context_); }

  /// Puts weights and buffers back to a snapshot of this learner, taken since its last growth.
  void roll_back(Snapshot const& snapshot) {
    auto& c = context_;
    require(snapshot.weights.sizes() == c.arena.weights().sizes(),
            "roll_back: the snapshot was taken before the model grew; load a checkpoint instead");
    torch::NoGradGuard no_grad;
    c.arena.weights().copy_(snapshot.weights);
    auto const buffers = c.model.module->buffers();
    for (std::size_t i = 0; i < buffers.size(); ++i) buffers[i].copy_(snapshot.buffers[i]);
  }

  /// "mlp + sgd + replay {extend, after_step}": what this learner was found to be.
  std::string text() const {
    auto text = c10::str(context_.model.module->name(), " + ", component_name(optimizer_));
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
  template <class O>
  static constexpr bool wants_penalties = requires {
    requires O::wants_penalties;
  };

  // ---- before the first step ----

  void start(Experience const& experience) {
    auto& c = context_;
    c.index = experience.index;
    c.step = 0;
    c.old_classes = c.seen;
    announce_tasks(experience);
    insert_sorted(c.seen, experience.classes);
    if (c.training.optimizer_at_boundary == AtBoundary::reset) optimizer_.reset();
    strategies_.begin(c, experience);
    in_experience_ = true;
  }

  /// Announces every task of an experience (a union of experiences has several) with its labels.
  void announce_tasks(Experience const& experience) {
    auto& tasks = context_.task_classes;
    auto const& train = experience.train;
    if (!train.tasks.defined()) return announce(experience.classes, experience.task);
    std::map<std::int64_t, std::vector<std::int64_t>> found;
    auto const* task = train.tasks.template data_ptr<std::int64_t>();
    auto const* label = train.labels.template data_ptr<std::int64_t>();
    for (std::int64_t i = 0; i < train.size(); ++i) {
      auto& labels = found[task[i]];
      if (std::find(labels.begin(), labels.end(), label[i]) == labels.end()) {
        labels.push_back(label[i]);
      }
    }
    for (auto& [id, labels] : found) {
      insert_sorted(tasks[id], labels);
      announce(tasks[id], id);
    }
  }

  /// Lets heads make room; everything that is stored per parameter follows them.
  void announce(std::vector<std::int64_t> const& labels, std::int64_t task) {
    auto& c = context_;
    c.logits.reset();  // the graph of the last step would keep expecting the old shapes
    bool grew = false;
    for (auto* head : c.model.heads) grew = head->announce(labels, task, c.seed) || grew;
    if (!grew) return;
    Archive archive(Archive::Mode::grow);
    archive.from = c.arena.layout();
    c.arena.bind(*c.model.module);
    archive.to = c.arena.layout();
    archive.weights = c.arena.weights();
    optimizer_.state(archive);
    strategies_.state(archive);
    c.ever_active = matched(c.ever_active, archive.from, archive.to);
  }

  /// Notes labels that occur for the first time; heads that were never told of them make room.
  void meet(Tensor const& labels) {
    auto& c = context_;
    auto const* data = labels.data_ptr<std::int64_t>();
    std::vector<std::int64_t> first;
    for (std::int64_t i = 0; i < labels.numel(); ++i) {
      if (!std::binary_search(c.met.begin(), c.met.end(), data[i])) first.push_back(data[i]);
    }
    if (first.empty()) return;
    insert_sorted(c.met, first);
    std::vector<std::int64_t> surprising;
    for (auto const label : first) {
      if (!std::binary_search(c.seen.begin(), c.seen.end(), label)) surprising.push_back(label);
    }
    if (surprising.empty()) return;
    announce(surprising, c.experience->task);
    insert_sorted(c.seen, surprising);
  }

  static void insert_sorted(std::vector<std::int64_t>& all, std::vector<std::int64_t> const& more) {
    all.insert(all.end(), more.begin(), more.end());
    std::sort(all.begin(), all.end());
    all.erase(std::unique(all.begin(), all.end()), all.end());
  }

  // ---- observers ----

  template <class O>
  void notify_begin(O& observer) {
    if constexpr (requires(Context const& c) { observer.begin(c); }) observer.begin(context_);
  }
  template <class O>
  void notify_step(O& observer) {
    if constexpr (requires(Context const& c) { observer.step(c); }) observer.step(context_);
  }
  template <class O>
  void notify_end(O& observer) {
    if constexpr (requires(Context const& c) { observer.end(c); }) observer.end(context_);
  }

  // ---- state ----

  /// Everything that the rest of training depends on.
  void state(Archive& a) {
    auto& c = context_;
    auto composition = text();
    auto const mine = composition;
    a("composition", composition);
    require(composition == mine, "the checkpoint was written by '", composition,
            "' but this learner is '", mine, "'; build the same composition first");
    a("seen", c.seen);
    a("met", c.met);
    task_classes_state(a);
    if (a.loading() && c.task_classes.empty()) announce(c.seen, -1);
    if (a.loading()) {
      for (auto const& [task, labels] : c.task_classes) announce(labels, task);
    }
    model_state(a);
    a("index", c.index);
    a("step", c.step);
    a("total_steps", c.total_steps);
    a("old_classes", c.old_classes);
    a("in_experience", in_experience_);
    a("draws", draws_);
    auto seed = std::to_string(c.seed.value);
    a("seed", seed);
    c.seed.value = std::stoull(seed);
    std::vector<std::int64_t> ever(c.ever_active.begin(), c.ever_active.end());
    a("ever_active", ever);
    c.ever_active.assign(ever.begin(), ever.end());
    a.part("optimizer", optimizer_);
    a.part("strategies", strategies_);
  }

  /// Marks per parameter, carried over to a grown layout by name.
  static std::vector<bool> matched(std::vector<bool> const& marks, Layout const& from,
                                   Layout const& to) {
    std::vector<bool> result(marks.empty() ? 0 : to.size(), false);
    for (std::size_t i = 0; i < result.size(); ++i) {
      for (std::size_t k = 0; k < from.size(); ++k) {
        if (from[k].name == to[i].name) result[i] = marks[k];
      }
    }
    return result;
  }

  void model_state(Archive& a) {
    torch::NoGradGuard no_grad;
    auto const visit = [&](std::string const& name, Tensor& live) {
      Tensor stored = live;
      a(name, stored);
      if (!a.loading()) return;
      require(stored.defined() && stored.sizes() == live.sizes() && stored.dtype() == live.dtype(),
              "the checkpoint's '", name, "' does not fit this model; build the same model first");
      live.copy_(stored);
    };
    for (auto& item : context_.model.module->named_parameters()) {
      visit("model." + item.key(), item.value());
    }
    for (auto& item : context_.model.module->named_buffers()) {
      visit("model." + item.key(), item.value());
    }
  }

  void task_classes_state(Archive& a) {
    auto& tasks = context_.task_classes;
    std::vector<std::int64_t> ids;
    for (auto const& [id, labels] : tasks) ids.push_back(id);
    a("tasks", ids);
    if (a.loading()) tasks.clear();
    for (auto const id : ids) a("task" + std::to_string(id), tasks[id]);
  }

  M module_;
  Opt optimizer_;
  Strategies strategies_;
  Context context_;
  bool draws_ = false;          ///< the module draws random numbers in its forward
  bool in_experience_ = false;  ///< between the first step of an experience and its end
  bool resuming_ = false;       ///< loaded in the middle of an experience
};

template <class M, class Opt, class... S>
Learner(M, Opt, S...) -> Learner<M, Opt, StrategySet<S...>>;

}  // namespace v0
}  // namespace pawl

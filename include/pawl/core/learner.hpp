#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

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
/// One that says `static constexpr bool wants_penalties = true` also sees the values of closed-form penalties.
template <class O>
concept Observer = requires(O o, Context const& c) { o.begin(c); } ||
                   requires(O o, Context const& c) { o.step(c); } ||
                   requires(O o, Context const& c) { o.end(c); };

/// A model that learns experience after experience: a module, an optimizer and any number of strategies.
/// @code
///   Learner learner{net, Sgd{.lr = 0.05}, Replay{Reservoir{.capacity = 500}}, Lwf{.strength = 0.5}};
///   for (auto const& experience : stream) learner.fit(experience, {.epochs = 1, .batch_size = 64});
/// @endcode
template <class M, class Opt, class Strategies>
class Learner {
 public:
  template <class... S>
    requires std::same_as<Strategies, StrategySet<S...>>
  Learner(M model, Opt optimizer, S... strategies)
      : Learner(std::move(model), std::move(optimizer),
                Strategies{std::tuple<S...>(std::move(strategies)...)}) {}

  /// Not for deduction: `Strategies` is a set of strategies, not the one strategy of a call above.
  Learner(M model, Opt optimizer, std::type_identity_t<Strategies> strategies)
      : module_(model), optimizer_(std::move(optimizer)), strategies_(std::move(strategies)) {
    static_assert(Trainable<M>,
                  "pawl: a model must be a module holder (nn::Sequential, a TORCH_MODULE) or a shared_ptr "
                  "to a module whose  forward  takes one tensor and returns logits [N, C]");
    static_assert(Optimizer<Opt>,
                  "pawl: an optimizer needs  void step(Arena&), void reset(), void state(Archive&) and "
                  "double learning_rate() const");
    strategies_.check();
    strategies_.check_values();
    if constexpr (requires(Options& o) { optimizer_.describe(o); }) {
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
    prepare(experience, training);
    auto const resumed = resume_at_ >= 0;
    require(!resumed || c.index == experience.index, "the checkpoint was written in experience ",
            c.index, " but fit was called with experience ", experience.index,
            "; continue with experience ", c.index);
    if (!resumed) start(experience);
    c.train = strategies_.enlarge(c, std::move(c.train));
    Plan plan(c.train.size(), c.training, c.seed, experience.index);
    check_batches(plan);
    c.steps = plan.steps();
    (notify_begin(observers), ...);
    for (c.step = std::exchange(resume_at_, -1) < 0 ? 0 : c.step; c.step < c.steps;) {
      c.epoch = plan.epoch_of(c.step);
      c.pass = plan.pass_of(c.step);
      run_step(plan.positions(c.step), traced);
      ++c.step, ++c.total_steps;
      (notify_step(observers), ...);
    }
    strategies_.end(c, experience);
    in_experience_ = false;
    (notify_end(observers), ...);
    c.experience = nullptr;
  }

  /// Scores [N, C] of network inputs x [N, ...] in eval mode: those of the strategy that owns `scores`, else
  /// logits. `tasks` [N] int64 (host) where the scenario gives task ids.
  Tensor scores(Tensor const& x, Tensor const& tasks = {}) {
    torch::NoGradGuard no_grad;
    auto& c = context_;
    c.arena.ensure(*c.model.module);
    check_input(x);
    ModeScope mode(*c.model.module, false);
    auto const inputs = x.to(c.arena.device(), c.arena.dtype());
    c.model.route(tasks);
    if (strategies_.has_scores) return strategies_.scores(c, inputs);
    return c.model.forward(inputs);
  }

  /// Labels [N] int64: the best of the classes seen so far, or of all outputs before the first experience.
  Tensor predict(Tensor const& x, Tensor const& tasks = {}) {
    auto const z = scores(x, tasks);
    if (context_.seen.empty() || context_.model.per_task()) return z.argmax(1);
    auto const mask = column_mask(context_.seen, z.size(1)).logical_not().to(z.device());
    return z.masked_fill(mask, -std::numeric_limits<double>::infinity()).argmax(1);
  }

  /// Writes everything that training depends on; may be called by an observer in the middle of an experience.
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
    resume_at_ = in_experience_ ? context_.step : -1;
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
  static constexpr bool wants_penalties = requires { requires O::wants_penalties; };

  // ---- before the first step ----

  void prepare(Experience const& experience, Training& training) {
    check_options(training, "training");
    auto& c = context_;
    require(experience.train.size() > 0, "experience ", experience.index,
            " has no training rows; give it some");
    auto const lowest = experience.train.labels.min().template item<std::int64_t>();
    require(lowest >= 0, "experience ", experience.index, " has label ", lowest,
            "; labels must be outputs of the network, 0 or above");
    c.arena.ensure(*c.model.module);
    c.experience = &experience;
    c.training = training;
    c.train = experience.train;
    if (c.train.source->dtype != torch::kUInt8) check_finite(c.train);
  }

  void start(Experience const& experience) {
    auto& c = context_;
    c.index = experience.index;
    c.step = 0;
    c.old_classes = c.seen;
    announce(experience.classes, experience.task);
    insert_sorted(c.seen, experience.classes);
    if (experience.task >= 0) c.task_classes[experience.task] = experience.classes;
    if (c.training.optimizer_at_boundary == AtBoundary::reset) optimizer_.reset();
    strategies_.begin(c, experience);
    in_experience_ = true;
  }

  /// Lets heads make room; everything that is stored per parameter follows them.
  void announce(std::vector<std::int64_t> const& labels, std::int64_t task) {
    auto& c = context_;
    bool grew = false;
    for (auto* head : c.model.heads) grew = head->announce(labels, task, c.seed) || grew;
    if (!grew) return;
    Archive archive(Archive::Mode::grow);
    archive.from = c.arena.layout();
    auto const before = archive.from;
    c.arena.bind(*c.model.module);
    archive.to = c.arena.layout();
    archive.weights = c.arena.weights();
    optimizer_.state(archive);
    strategies_.state(archive);
    remap_ever_active(before);
  }

  void check_batches(Plan const& plan) {
    auto const shards = context_.training.shards;
    require(shards <= plan.smallest_batch(), "shards is ", shards, " but the smallest batch has ",
            plan.smallest_batch(), " rows; choose fewer shards or set drop_last");
    if (plan.smallest_batch() / shards > 1) return;
    for (auto const& part : context_.model.module->modules()) {
      require(part->name().find("BatchNorm") == std::string::npos || !part->is_training(),
              "experience ", context_.index, " has a batch (or shard) of one row, but '",
              part->name(), "' needs two to estimate a variance; set drop_last or another batch_size");
    }
  }

  // ---- one step ----

  void run_step(Tensor const& positions, bool traced) {
    auto& c = context_;
    if (!c.arena.bound()) c.arena.ensure(*c.model.module);
    c.learning_rate = optimizer_.learning_rate();
    c.fresh = c.train.read(positions, c.arena.device());
    meet(c.fresh.labels);
    auto shards = extended_shards();
    TreeSum gradients, losses;
    BufferMean buffers(*c.model.module, c.training.shards);
    c.penalties.clear();
    c.shard_logits.clear();
    c.arena.clear_gradients();
    for (c.shard = 0; c.shard < c.training.shards; ++c.shard) {
      buffers.begin_shard();
      run_shard(shards[static_cast<std::size_t>(c.shard)], losses);
      buffers.end_shard();
      if (c.training.shards > 1) collect(gradients);
    }
    buffers.finish();
    c.shard = 0;
    if (c.training.shards > 1) {
      c.task_loss = losses.total();
      c.arena.set_gradient(gradients.total());
      if (strategies_.wants_task_gradient) c.task_gradient = task_gradients_.total();
      task_gradients_ = {};
    }
    if (c.training.idle_heads == IdleHeads::zero_gradient) move_idle_heads();
    if (traced) strategies_.closed_form_values(c);
    strategies_.edit_gradient(c);
    optimizer_.step(c.arena);
    strategies_.after_step(c);
  }

  /// The batches of the shards, with the rows that strategies appended, as network inputs.
  std::vector<Batch> extended_shards() {
    auto& c = context_;
    std::vector<Batch> shards;
    c.step_rows = c.default_rows = 0;
    for (c.shard = 0; c.shard < c.training.shards; ++c.shard) {
      auto const slice = c.slice(c.fresh.size());
      Batch batch;
      batch.fresh = slice.size();
      batch.append(nullptr, c.fresh.slice(slice.begin, slice.end), c.fresh.size());
      batch = strategies_.extend(c, std::move(batch));
      c.step_rows += batch.size();
      for (auto const& part : batch.parts) {
        if (std::isnan(part.weight)) c.default_rows += part.size;
      }
      shards.push_back(std::move(batch));
    }
    return shards;
  }

  void run_shard(Batch& batch, TreeSum& losses) {
    auto& c = context_;
    join(batch);
    c.batch = std::move(batch);
    {
      std::optional<NoiseScope> noise;
      if (draws_ || c.step == 0) {
        noise.emplace(c.seed.generator("model", c.index, c.step * c.training.shards + c.shard));
      }
      c.model.route(c.batch.task);
      c.logits = c.model.forward(c.batch.x);
      draws_ = draws_ || (noise && noise->drawn());
    }
    check_logits();
    c.shard_logits.push_back(c.logits.detach().narrow(0, 0, c.batch.fresh));
    auto const loss = strategies_.has_loss ? strategies_.loss(c) : c.weighted_cross_entropy();
    auto const penalties = strategies_.penalties(c);
    check_finite_loss(loss, penalties);
    backward(loss, penalties);
    c.arena.note_active();
    record(loss, penalties, losses);
  }

  /// Leaves the gradient of loss + penalties in `.grad`, and that of the loss alone where a strategy needs it.
  void backward(Tensor const& loss, std::vector<std::pair<std::string, Tensor>> const& penalties) {
    auto& c = context_;
    auto total = loss;
    for (auto const& [name, value] : penalties) total = total + value;
    if (!strategies_.wants_task_gradient) return total.backward();
    if (penalties.empty()) {
      loss.backward();
      c.task_gradient = c.arena.gradient().clone();
      return;
    }
    auto const own = torch::autograd::grad({loss}, c.arena.parameters(), {}, true, false, true);
    torch::NoGradGuard no_grad;
    c.task_gradient = c.arena.pack(own);
    torch::AutoGradMode grad(true);
    total.backward();
  }

  void record(Tensor const& loss, std::vector<std::pair<std::string, Tensor>> const& penalties,
              TreeSum& losses) {
    auto& c = context_;
    if (c.training.shards == 1) {
      c.task_loss = loss.detach();
    } else {
      losses.add(loss.detach());
      if (strategies_.wants_task_gradient) task_gradients_.add(c.task_gradient);
    }
    for (std::size_t i = 0; i < penalties.size(); ++i) {
      auto const value = penalties[i].second.detach();
      if (i < c.penalties.size()) {
        c.penalties[i].second = c.penalties[i].second + value;
      } else {
        c.penalties.emplace_back(penalties[i].first, value);
      }
    }
  }

  /// Adds the gradient of one shard to the sum over the step, and makes room for the next.
  void collect(TreeSum& gradients) {
    auto& c = context_;
    gradients.add(c.arena.gradient().clone());
    auto const active = c.arena.active();
    c.arena.clear_gradients();
    c.arena.activate(active);
  }

  /// Joins the parts of a batch: stored rows first, then one conversion to network inputs.
  void join(Batch& batch) {
    auto& c = context_;
    if (batch.parts.size() == 1) {
      auto const& rows = batch.parts.front().rows;
      batch.x = c.inputs(rows.stored);
      batch.y = rows.y;
      batch.task = rows.task;
      return;
    }
    std::vector<Tensor> stored, y, task;
    for (auto const& part : batch.parts) {
      stored.push_back(part.rows.stored);
      y.push_back(part.rows.y);
      if (part.rows.task.defined()) task.push_back(part.rows.task);
    }
    batch.x = c.inputs(torch::cat(stored));
    batch.y = torch::cat(y);
    if (task.size() == batch.parts.size()) batch.task = torch::cat(task);
  }

  /// Notes labels that occur for the first time; heads that were never told of them make room.
  void meet(Tensor const& labels) {
    auto& c = context_;
    auto const* data = labels.data_ptr<std::int64_t>();
    std::vector<std::int64_t> fresh;
    for (std::int64_t i = 0; i < labels.numel(); ++i) {
      if (!std::binary_search(c.met.begin(), c.met.end(), data[i])) fresh.push_back(data[i]);
    }
    if (fresh.empty()) return;
    insert_sorted(c.met, fresh);
    std::vector<std::int64_t> surprising;
    for (auto const label : fresh) {
      if (!std::binary_search(c.seen.begin(), c.seen.end(), label)) surprising.push_back(label);
    }
    if (surprising.empty()) return;
    announce(surprising, c.experience->task);
    insert_sorted(c.seen, surprising);
  }

  /// Parameters that ever had a gradient and have none now get a zero one.
  void move_idle_heads() {
    auto& c = context_;
    ever_active_.resize(c.arena.active().size(), false);
    c.arena.gradient();
    for (std::size_t i = 0; i < ever_active_.size(); ++i) {
      ever_active_[i] = ever_active_[i] || c.arena.active()[i];
    }
    c.arena.activate(ever_active_);
  }

  void remap_ever_active(Layout const& before) {
    auto const old = std::exchange(ever_active_, {});
    if (old.empty()) return;
    for (auto const& span : context_.arena.layout()) {
      bool was = false;
      for (std::size_t k = 0; k < before.size() && k < old.size(); ++k) {
        if (before[k].name == span.name) was = old[k];
      }
      ever_active_.push_back(was);
    }
  }

  // ---- checks ----

  void check_logits() {
    auto const& c = context_;
    require(c.logits.dim() == 2 && c.logits.size(0) == c.batch.size(), "the model returned ",
            c.logits.sizes(), " for ", c.batch.size(), " rows; it must return logits [N, C]");
    auto const& labels = c.batch.parts.front().rows.labels;
    auto const highest = labels.max().template item<std::int64_t>();
    require(highest < c.logits.size(1), "experience ", c.index, " has label ", highest,
            " but the model has ", c.logits.size(1),
            " outputs; give it more, or a head that grows");
  }

  static void check_finite(Dataset const& data) {
    auto constexpr chunk = 4096;
    for (std::int64_t begin = 0; begin < data.size(); begin += chunk) {
      auto const end = std::min<std::int64_t>(begin + chunk, data.size());
      auto const rows = data.read(torch::arange(begin, end, torch::kInt64)).stored;
      if (!rows.is_floating_point()) return;
      require(rows.isfinite().all().template item<bool>(), "'", data.source->name, "' holds NaN or infinity in rows ",
              begin, " to ", end - 1, " of the experience; clean the data");
    }
  }

  /// On the host the loss costs nothing to read; on a device every 100th step is looked at.
  void check_finite_loss(Tensor const& loss,
                         std::vector<std::pair<std::string, Tensor>> const& penalties) {
    auto const& c = context_;
    if (!c.arena.device().is_cpu() && c.step % 100 != 0) return;
    bool finite = std::isfinite(loss.template item<double>());
    for (auto const& [name, value] : penalties) {
      finite = finite && std::isfinite(value.template item<double>());
    }
    if (finite) return;
    std::vector<std::pair<std::string, double>> values;
    auto text = c10::str("pawl: the loss is ", loss.template item<double>());
    for (auto const& [name, value] : penalties) {
      values.emplace_back(name, value.template item<double>());
      text += c10::str(", the penalty of ", name, " is ", value.template item<double>());
    }
    text += c10::str(" in experience ", c.index, ", step ", c.step,
                     "; lower the learning rate or the strength, and look for outliers in the data");
    throw Diverged(text, c.index, c.step, loss.template item<double>(), values);
  }

  void check_input(Tensor const& x) const {
    require(x.defined() && x.dim() >= 1 && x.size(0) > 0,
            "scores: give inputs [N, ...] with at least one row");
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
    if (a.loading()) announce(c.seen, -1);
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
    std::vector<std::int64_t> ever(ever_active_.begin(), ever_active_.end());
    a("ever_active", ever);
    ever_active_.assign(ever.begin(), ever.end());
    task_classes_state(a);
    a.part("optimizer", optimizer_);
    a.part("strategies", strategies_);
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
  TreeSum task_gradients_;
  std::vector<bool> ever_active_;
  bool draws_ = false;          ///< the module draws random numbers in its forward
  bool in_experience_ = false;  ///< between the first step of an experience and its end
  std::int64_t resume_at_ = -1;
};

template <class M, class Opt, class... S>
Learner(M, Opt, S...) -> Learner<M, Opt, StrategySet<S...>>;

}  // namespace v0
}  // namespace pawl

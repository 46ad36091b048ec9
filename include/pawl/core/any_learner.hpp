#pragma once

#include <concepts>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../optimizers/any_optimizer.hpp"
#include "learner.hpp"

namespace pawl {
inline namespace v0 {

/// A strategy of any type behind one interface, for compositions that are chosen at run time.
class AnyStrategy {
 public:
  template <class S>
  requires(!std::same_as<S, AnyStrategy>)
      AnyStrategy(S strategy)  // NOLINT(google-explicit-constructor): any strategy is one
      : self_(new Held<S>(std::move(strategy))) {}

  AnyStrategy(AnyStrategy const& other) : self_(other.self_->copy()) {}
  AnyStrategy(AnyStrategy&&) = default;
  AnyStrategy& operator=(AnyStrategy other) {
    self_ = std::move(other.self_);
    return *this;
  }

  std::string type_name() const { return record().name; }
  StrategyRecord record() const { return self_->records().front(); }
  void describe(Options& o) { self_->describe(o); }

  /// The strategy as its own type, or nullptr.
  template <class S>
  S* get() {
    auto* held = dynamic_cast<Held<S>*>(self_.get());
    return held ? &std::get<0>(held->strategies) : nullptr;
  }

 private:
  friend struct StrategyList;

  struct Interface {
    virtual ~Interface() = default;
    virtual std::unique_ptr<Interface> copy() const = 0;
    virtual bool owns_loss() const = 0;
    virtual bool owns_scores() const = 0;
    virtual bool needs_own_gradient() const = 0;
    virtual bool decides_on_host() const = 0;
    virtual bool may_read_gradient() const = 0;
    virtual bool is_elementwise() const = 0;
    virtual bool adds_no_more() const = 0;
    virtual void describe(Options&) = 0;
    virtual void check_values() = 0;
    virtual void begin(Context&, Experience const&) = 0;
    virtual Dataset enlarge(Context&, Dataset) = 0;
    virtual Batch extend(Context&, Batch) = 0;
    virtual Batch plan_batch(Context&, Batch) = 0;
    virtual void plan_end_of_step(Context&) = 0;
    virtual std::vector<std::string> not_capturable() const = 0;
    virtual Tensor loss(Context&) = 0;
    virtual Named<Tensor> penalties(Context&) = 0;
    virtual void closed_form_values(Context&) = 0;
    virtual void wake(Context&) = 0;
    virtual void edit_gradient(Context&) = 0;
    virtual void after_step(Context&, Of) = 0;
    virtual void end(Context&, Experience const&) = 0;
    virtual Tensor scores(Context&, Tensor const&) = 0;
    virtual void state(Archive&, std::int64_t position) = 0;
    virtual std::vector<StrategyRecord> records() const = 0;
  };

  /// The set of one strategy already knows which hooks to call; this only makes its calls virtual.
  template <class S>
  struct Held final : Interface, StrategySet<S> {
    using Set = StrategySet<S>;
    explicit Held(S s) : Set{std::tuple<S>(std::move(s))} { Set::check(); }
    std::unique_ptr<Interface> copy() const override {
      return std::unique_ptr<Interface>(new Held(std::get<0>(this->strategies)));
    }
    bool owns_loss() const override { return Set::has_loss; }
    bool owns_scores() const override { return Set::has_scores; }
    bool needs_own_gradient() const override { return Set::wants_task_gradient; }
    bool decides_on_host() const override { return Set::plans_ahead; }
    bool may_read_gradient() const override { return Set::reads_gradient; }
    bool is_elementwise() const override { return Set::elementwise; }
    bool adds_no_more() const override { return Set::only_adds; }
    void describe(Options& o) override { Set::describe(o); }
    void check_values() override { Set::check_values(); }
    void begin(Context& c, Experience const& e) override { Set::begin(c, e); }
    Dataset enlarge(Context& c, Dataset d) override { return Set::enlarge(c, std::move(d)); }
    Batch extend(Context& c, Batch b) override { return Set::extend(c, std::move(b)); }
    Batch plan_batch(Context& c, Batch b) override { return Set::plan_batch(c, std::move(b)); }
    void plan_end_of_step(Context& c) override { Set::plan_end_of_step(c); }
    std::vector<std::string> not_capturable() const override { return Set::not_capturable(); }
    Tensor loss(Context& c) override { return Set::loss(c); }
    Named<Tensor> penalties(Context& c) override { return Set::penalties(c); }
    void closed_form_values(Context& c) override { Set::closed_form_values(c); }
    void wake(Context& c) override { Set::wake(c); }
    void edit_gradient(Context& c) override { Set::edit_gradient(c); }
    void after_step(Context& c, Of which) override { Set::after_step(c, which); }
    void end(Context& c, Experience const& e) override { Set::end(c, e); }
    Tensor scores(Context& c, Tensor const& x) override { return Set::scores(c, x); }
    void state(Archive& a, std::int64_t position) override { Set::state(a, position); }
    std::vector<StrategyRecord> records() const override { return Set::records(); }
  };

  std::unique_ptr<Interface> self_;
};

/// Strategies chosen at run time, called in listing order: what `StrategySet` is for types known
/// when compiling.
struct StrategyList {
  std::vector<AnyStrategy> strategies;
  bool has_loss = false;
  bool has_scores = false;
  bool wants_task_gradient = false;
  bool plans_ahead = false;
  bool reads_gradient = false;
  bool elementwise = true;
  bool only_adds = true;

  StrategyList() = default;
  StrategyList(std::vector<AnyStrategy> list)  // NOLINT(google-explicit-constructor)
      : strategies(std::move(list)) {}

  /// The rules on exclusive hooks, in the same words as at compile time.
  void check() {
    std::string loss_owner, scores_owner;
    *this = StrategyList(std::move(strategies));  // as never checked before
    for (auto const& s : strategies) {
      auto const name = s.type_name();
      if (s.self_->owns_loss()) {
        require(!has_loss, {"the strategies '", loss_owner, "' and '", name,
                            "' both own  loss(Context&); keep one of them"});
        has_loss = true, loss_owner = name;
      }
      if (s.self_->owns_scores()) {
        require(!has_scores, {"the strategies '", scores_owner, "' and '", name,
                              "' both own  scores(Context&, Tensor); keep one of them"});
        has_scores = true, scores_owner = name;
      }
      wants_task_gradient = wants_task_gradient || s.self_->needs_own_gradient();
      plans_ahead = plans_ahead || s.self_->decides_on_host();
      reads_gradient = reads_gradient || s.self_->may_read_gradient();
      elementwise = elementwise && s.self_->is_elementwise();
      only_adds = only_adds && s.self_->adds_no_more();
    }
  }
  void check_values() {
    for (auto& s : strategies) s.self_->check_values();
  }
  void begin(Context& c, Experience const& e) {
    for (auto& s : strategies) s.self_->begin(c, e);
  }
  Dataset enlarge(Context& c, Dataset d) {
    for (auto& s : strategies) d = s.self_->enlarge(c, std::move(d));
    return d;
  }
  Batch extend(Context& c, Batch b) {
    for (auto& s : strategies) b = s.self_->extend(c, std::move(b));
    return b;
  }
  Batch plan_batch(Context& c, Batch b) {
    for (auto& s : strategies) b = s.self_->plan_batch(c, std::move(b));
    return b;
  }
  void plan_end_of_step(Context& c) {
    for (auto& s : strategies) s.self_->plan_end_of_step(c);
  }
  std::vector<std::string> not_capturable() const {
    std::vector<std::string> names;
    for (auto const& s : strategies) {
      for (auto const& name : s.self_->not_capturable()) names.push_back(name);
    }
    return names;
  }
  Tensor loss(Context& c) {
    for (auto& s : strategies) {
      if (s.self_->owns_loss()) return s.self_->loss(c);
    }
    return {};
  }
  Named<Tensor> penalties(Context& c) {
    Named<Tensor> all;
    for (auto& s : strategies) {
      for (auto& value : s.self_->penalties(c)) all.push_back(std::move(value));
    }
    return all;
  }
  void closed_form_values(Context& c) {
    for (auto& s : strategies) s.self_->closed_form_values(c);
  }
  void wake(Context& c) {
    for (auto& s : strategies) s.self_->wake(c);
  }
  void edit_gradient(Context& c) {
    for (auto& s : strategies) s.self_->edit_gradient(c);
  }
  void after_step(Context& c, Of which = Of::all) {
    for (auto& s : strategies) s.self_->after_step(c, which);
  }
  void end(Context& c, Experience const& e) {
    for (auto& s : strategies) s.self_->end(c, e);
  }
  Tensor scores(Context& c, Tensor const& x) {
    for (auto& s : strategies) {
      if (s.self_->owns_scores()) return s.self_->scores(c, x);
    }
    return {};
  }
  void state(Archive& a) {
    std::int64_t position = 0;
    for (auto& s : strategies) s.self_->state(a, position++);
  }
  std::vector<StrategyRecord> records() const {
    std::vector<StrategyRecord> all;
    for (auto const& s : strategies) all.push_back(s.record());
    return all;
  }
};

/// A learner whose model, optimizer and strategies are chosen at run time. The training loop is the
/// same.
using AnyLearner = Learner<Model, AnyOptimizer, StrategyList>;

}  // namespace v0
}  // namespace pawl

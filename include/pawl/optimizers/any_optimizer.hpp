#pragma once

#include <memory>
#include <string>
#include <type_traits>
#include <utility>

#include "optimizer.hpp"
#include "sgd.hpp"

namespace pawl {
inline namespace v0 {

/// An optimizer of any type behind one interface.
class AnyOptimizer {
 public:
  AnyOptimizer() : AnyOptimizer(Sgd{}) {}

  template <Optimizer O>
  requires(!std::is_same_v<O, AnyOptimizer>)
      AnyOptimizer(O optimizer)  // NOLINT(google-explicit-constructor): any optimizer is one
      : self_(new Held<O>(std::move(optimizer))) {}

  AnyOptimizer(AnyOptimizer const& other) : self_(other.self_->copy()) {}
  AnyOptimizer(AnyOptimizer&&) = default;
  AnyOptimizer& operator=(AnyOptimizer other) {
    self_ = std::move(other.self_);
    return *this;
  }

  void step(Arena& arena) { self_->step(arena); }
  bool planned() const { return self_->planned(); }  ///< whether `count` and `apply` may be called
  void count(Arena& arena) { self_->count(arena); }
  void apply(Arena& arena) { self_->apply(arena); }
  bool uploads_rate() const { return self_->uploads_rate(); }
  bool works_in_blocks() const { return self_->works_in_blocks(); }  ///< so that this may be called
  void apply(Arena& arena, Block const& block) { self_->apply(arena, block); }
  void reset() { self_->reset(); }
  void state(Archive& a) { self_->state(a); }
  void describe(Options& o) { self_->describe(o); }
  bool only_adds_gradient() const { return self_->only_adds_gradient(); }
  double learning_rate() const { return self_->learning_rate(); }
  void set_learning_rate(double rate) { self_->set_learning_rate(rate); }
  void prepare(Arena& arena) { self_->prepare(arena); }
  std::string type_name() const { return self_->type_name(); }

 private:
  struct Interface {
    virtual ~Interface() = default;
    virtual std::unique_ptr<Interface> copy() const = 0;
    virtual void step(Arena&) = 0;
    virtual bool planned() const = 0;
    virtual void count(Arena&) = 0;
    virtual void apply(Arena&) = 0;
    virtual bool uploads_rate() const = 0;
    virtual bool works_in_blocks() const = 0;
    virtual void apply(Arena&, Block const&) = 0;
    virtual void reset() = 0;
    virtual void state(Archive&) = 0;
    virtual void describe(Options&) = 0;
    virtual bool only_adds_gradient() const = 0;
    virtual double learning_rate() const = 0;
    virtual void set_learning_rate(double) = 0;
    virtual void prepare(Arena&) = 0;
    virtual std::string type_name() const = 0;
  };
  template <class O>
  struct Held final : Interface {
    explicit Held(O o) : optimizer(std::move(o)) {}
    std::unique_ptr<Interface> copy() const override {
      return std::unique_ptr<Interface>(new Held(optimizer));
    }
    void step(Arena& arena) override { optimizer.step(arena); }
    bool planned() const override { return PlannedOptimizer<O>; }
    void count(Arena& arena) override {
      if constexpr (PlannedOptimizer<O>) optimizer.count(arena);
    }
    void apply(Arena& arena) override {
      if constexpr (PlannedOptimizer<O>) optimizer.apply(arena);
    }
    bool uploads_rate() const override { return pawl::uploads_rate(optimizer); }
    bool works_in_blocks() const override { return BlockOptimizer<O>; }
    void apply(Arena& arena, Block const& block) override {
      if constexpr (BlockOptimizer<O>) optimizer.apply(arena, block);
    }
    void reset() override { optimizer.reset(); }
    void state(Archive& a) override { optimizer.state(a); }
    void describe(Options& o) override {
      if constexpr (requires { optimizer.describe(o); }) optimizer.describe(o);
    }
    bool only_adds_gradient() const override {
      if constexpr (requires { optimizer.only_adds_gradient(); }) {
        return optimizer.only_adds_gradient();
      } else {
        return false;
      }
    }
    double learning_rate() const override { return optimizer.learning_rate(); }
    void set_learning_rate(double rate) override { pawl::set_learning_rate(optimizer, rate); }
    void prepare(Arena& arena) override { pawl::prepare(optimizer, arena); }
    std::string type_name() const override {
      if constexpr (requires { O::name; }) {
        return O::name;
      } else {
        return "custom";
      }
    }
    O optimizer;
  };
  std::unique_ptr<Interface> self_;
};

}  // namespace v0
}  // namespace pawl

#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "adam.hpp"
#include "any_optimizer.hpp"
#include "sgd.hpp"
#include "torch_optimizer.hpp"

#include <torch/optim/adagrad.h>
#include <torch/optim/rmsprop.h>

namespace pawl {
inline namespace v0 {

/// RMSprop (Hinton, Coursera lecture 6e, 2012), computed by `torch::optim::RMSprop`:
///   s <- alpha s + (1 - alpha) g^2;   w <- w - lr g / (sqrt(s) + eps)
struct RmsProp {
  double lr = 0.01;
  double alpha = 0.99;
  double eps = 1e-8;
  double momentum = 0;
  double weight_decay = 0;
  bool centered = false;

  static constexpr char const* name = "rmsprop";
  static constexpr char const* about = "RMSprop (Hinton, lecture 6e, 2012)";

  void describe(Options& o) {
    Range const fraction{.low = 0, .high = 1, .open_high = true};
    o("lr", lr, at_least(0), "learning rate");
    o("alpha", alpha, fraction, "decay of the mean square");
    o("eps", eps, at_least(0), "added to the root of the mean square");
    o("momentum", momentum, fraction, "momentum factor");
    o("weight_decay", weight_decay, at_least(0), "L2 decay added to the gradient");
    o("centered", centered, "subtract the squared mean gradient from the mean square");
  }

  void prepare(Arena& arena) {
    if (!inner.make) {
      auto const options = torch::optim::RMSpropOptions(lr)
                               .alpha(alpha)
                               .eps(eps)
                               .momentum(momentum)
                               .weight_decay(weight_decay)
                               .centered(centered);
      inner.make = [options](std::vector<Tensor> parameters) {
        return std::make_unique<torch::optim::RMSprop>(std::move(parameters), options);
      };
    }
    inner.prepare(arena);
    inner.set_learning_rate(lr);
  }
  void step(Arena& arena) {
    prepare(arena);
    inner.step(arena);
  }
  double learning_rate() const { return lr; }
  void set_learning_rate(double rate) { lr = rate; }
  void reset() { inner = {}; }
  void state(Archive& a) { inner.state(a); }

  // State: written by `step`.
  TorchOptimizer inner{};
};

/// Adagrad (Duchi, Hazan, Singer, JMLR 2011), computed by `torch::optim::Adagrad`:
///   s <- s + g^2;   w <- w - lr / (1 + t lr_decay) g / (sqrt(s) + eps)
struct Adagrad {
  double lr = 0.01;
  double lr_decay = 0;
  double eps = 1e-10;
  double weight_decay = 0;

  static constexpr char const* name = "adagrad";
  static constexpr char const* about = "Adagrad (Duchi, Hazan, Singer, JMLR 2011)";

  void describe(Options& o) {
    o("lr", lr, at_least(0), "learning rate");
    o("lr_decay", lr_decay, at_least(0), "the learning rate is divided by 1 + steps times this");
    o("eps", eps, at_least(0), "added to the root of the sum of squares");
    o("weight_decay", weight_decay, at_least(0), "L2 decay added to the gradient");
  }

  void prepare(Arena& arena) {
    if (!inner.make) {
      auto const options =
          torch::optim::AdagradOptions(lr).lr_decay(lr_decay).eps(eps).weight_decay(weight_decay);
      inner.make = [options](std::vector<Tensor> parameters) {
        return std::make_unique<torch::optim::Adagrad>(std::move(parameters), options);
      };
    }
    inner.prepare(arena);
    inner.set_learning_rate(lr);
  }
  void step(Arena& arena) {
    prepare(arena);
    inner.step(arena);
  }
  double learning_rate() const { return lr; }
  void set_learning_rate(double rate) { lr = rate; }
  void reset() { inner = {}; }
  void state(Archive& a) { inner.state(a); }

  // State: written by `step`.
  TorchOptimizer inner{};
};

/// An optimizer that can be chosen by name.
struct OptimizerEntry {
  std::string name;
  std::string about;
  AnyOptimizer (*make)();
};

template <class O>
OptimizerEntry optimizer_entry() {
  return {O::name, O::about, [] { return AnyOptimizer(O{}); }};
}

/// Every optimizer that has a name, with its defaults. Any other of `torch::optim` works through
/// `TorchOptimizer`.
inline std::vector<OptimizerEntry> const& optimizer_catalogue() {
  static std::vector<OptimizerEntry> const all{optimizer_entry<Sgd>(), optimizer_entry<Adam>(),
                                               optimizer_entry<AdamW>(), optimizer_entry<RmsProp>(),
                                               optimizer_entry<Adagrad>()};
  return all;
}

inline std::vector<std::string> optimizer_names() {
  std::vector<std::string> names;
  for (auto const& entry : optimizer_catalogue()) names.push_back(entry.name);
  return names;
}

/// The optimizer of that name with its defaults; throws `Error` with the nearest name when there is
/// none.
inline AnyOptimizer make_optimizer(std::string_view name) {
  for (auto const& entry : optimizer_catalogue()) {
    if (entry.name == name) return entry.make();
  }
  fail({"there is no optimizer '", name, "'", suggestion(name, optimizer_names())});
}

}  // namespace v0
}  // namespace pawl

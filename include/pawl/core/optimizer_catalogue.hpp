#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "optimizer.hpp"

#include <torch/optim/adagrad.h>
#include <torch/optim/rmsprop.h>

namespace pawl {
inline namespace v0 {

/// RMSprop of `torch::optim` with options (Tieleman and Hinton, 2012).
struct RmsProp : TorchOptimizer {
  double lr = 0.01;
  double alpha = 0.99;
  double eps = 1e-8;
  double weight_decay = 0;
  double momentum = 0;
  bool centered = false;

  static constexpr char const* name = "rmsprop";
  static constexpr char const* about = "RMSprop of torch::optim (Tieleman and Hinton, 2012)";

  void describe(Options& o) {
    o("lr", lr, at_least(0), "learning rate");
    o("alpha", alpha, {.low = 0, .high = 1, .open_high = true}, "decay of the mean square");
    o("eps", eps, at_least(0), "added to the root of the mean square");
    o("weight_decay", weight_decay, at_least(0), "L2 decay added to the gradient");
    o("momentum", momentum, {.low = 0, .high = 1, .open_high = true}, "momentum factor");
    o("centered", centered, "normalise by the variance instead of the mean square");
  }
  void step(Arena& arena) {
    make = [this](std::vector<Tensor> parameters) {
      return std::make_unique<torch::optim::RMSprop>(parameters, torch::optim::RMSpropOptions(lr)
                                                                     .alpha(alpha)
                                                                     .eps(eps)
                                                                     .weight_decay(weight_decay)
                                                                     .momentum(momentum)
                                                                     .centered(centered));
    };
    TorchOptimizer::step(arena);
  }
  double learning_rate() const { return lr; }
};

/// Adagrad of `torch::optim` with options (Duchi, Hazan, Singer, JMLR 2011).
struct Adagrad : TorchOptimizer {
  double lr = 0.01;
  double lr_decay = 0;
  double weight_decay = 0;
  double eps = 1e-10;

  static constexpr char const* name = "adagrad";
  static constexpr char const* about = "Adagrad of torch::optim (Duchi, Hazan, Singer, JMLR 2011)";

  void describe(Options& o) {
    o("lr", lr, at_least(0), "learning rate");
    o("lr_decay", lr_decay, at_least(0), "decay of the learning rate per step");
    o("weight_decay", weight_decay, at_least(0), "L2 decay added to the gradient");
    o("eps", eps, at_least(0), "added to the root of the sum of squares");
  }
  void step(Arena& arena) {
    make = [this](std::vector<Tensor> parameters) {
      return std::make_unique<torch::optim::Adagrad>(
          parameters,
          torch::optim::AdagradOptions(lr).lr_decay(lr_decay).weight_decay(weight_decay).eps(eps));
    };
    TorchOptimizer::step(arena);
  }
  double learning_rate() const { return lr; }
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

/// The optimizer of that name with its defaults; throws `Error` with the nearest name when there is none.
inline AnyOptimizer make_optimizer(std::string_view name) {
  for (auto const& entry : optimizer_catalogue()) {
    if (entry.name == name) return entry.make();
  }
  fail("there is no optimizer '", name, "'", suggestion(name, optimizer_names()));
}

inline std::string optimizer_about(std::string_view name) {
  for (auto const& entry : optimizer_catalogue()) {
    if (entry.name == name) return entry.about;
  }
  return "";
}

}  // namespace v0
}  // namespace pawl

#pragma once

// Rows of several classes, small networks that learn them, memories of a user's own, and observers:
// for tests of one strategy in a learner.

#include <cstdint>
#include <functional>
#include <vector>

#include "../core/filled.hpp"
#include "../core/with.hpp"

#include <torch/nn/modules/activation.h>
#include <pawl/core/learner.hpp>
#include <pawl/heads/multi_head.hpp>

namespace toys {

using namespace pawl;

inline auto const float64 = torch::TensorOptions(torch::kFloat64);

// ---- rows ----

/// n rows [n, 4]; labels go round the given classes.
inline Experience blobs(std::int64_t index, std::vector<std::int64_t> const& classes,
                        std::int64_t n = 24, std::int64_t task = -1) {
  auto const position = torch::arange(n) % static_cast<std::int64_t>(classes.size());
  auto const y = torch::tensor(classes).index_select(0, position);
  auto x = torch::empty({n, 4}, float64);
  fill_normal(x, 0, 1, Seed{5}.generator("blobs", index));
  return make_experience(x + y.unsqueeze(1), y, classes, index, task);
}

// ---- networks ----

inline nn::Sequential network(std::int64_t outputs = 6) {
  return filled(nn::Sequential(nn::Linear(4, 8), nn::Tanh(), nn::Linear(8, outputs)));
}
inline nn::Sequential normed() {
  return filled(nn::Sequential(nn::Linear(4, 8), nn::BatchNorm1d(8), nn::Tanh(), nn::Linear(8, 6)));
}
inline nn::Sequential headed() {
  return filled(nn::Sequential(nn::Linear(4, 8), nn::Tanh(), MultiHead(8, 2, 3, Seed{2})));
}

template <class Net>
Tensor weights_of(Net const& net) {
  std::vector<Tensor> all;
  for (auto const& p : net->parameters()) all.push_back(p.detach().reshape({-1}).clone());
  return torch::cat(all);
}

inline double distance(Tensor const& a, Tensor const& b) {
  return (a - b).abs().max().item<double>();
}

/// For `trained`: with all that an update may depend on.
inline Sgd const usual{.lr = 0.05, .momentum = 0.9, .weight_decay = 0.01};

/// The weights of a learner after three experiences of two classes each.
template <class L>
Tensor trained(L learner) {
  for (std::int64_t e = 0; e < 3; ++e) {
    learner.fit(blobs(e, {2 * e, 2 * e + 1}), {.epochs = 2, .batch_size = 7});
  }
  return learner.context().weights().clone();
}

// ---- memories ----

/// A memory that is offered rows and keeps none.
struct Rejects {
  void insert(Rows const&, Generator) {}
  Rows draw(std::int64_t, Generator) { return {}; }
  bool empty() const { return false; }
};

/// A memory without `Slots`, that gives all it was ever given.
struct Hoard {
  std::vector<Rows> all;
  void insert(Rows const& rows, Generator) { all.push_back(rows); }
  Rows draw(std::int64_t, Generator) {
    Rows joined;
    for (auto const column : {&Rows::stored, &Rows::y, &Rows::task}) {
      std::vector<Tensor> parts;
      for (auto const& rows : all) parts.push_back(rows.*column);
      joined.*column = torch::cat(parts);
    }
    return joined;
  }
  bool empty() const { return all.empty(); }
};

// ---- observers ----

/// Calls a function after every step.
struct Watches {
  std::function<void(Context const&)> look;
  void step(Context const& c) { look(c); }
};

/// Keeps what every step came to, and the gradient of the last.
struct Recorder {
  static constexpr bool wants_penalties = true;
  std::vector<double> loss{}, penalty{};
  Tensor gradient{};
  void step(Context const& c) {
    loss.push_back(c.task_loss.item<double>());
    for (auto const& p : c.penalties) penalty.push_back(p.second.item<double>());
    gradient = c.gradient().clone();
  }
};

}  // namespace toys

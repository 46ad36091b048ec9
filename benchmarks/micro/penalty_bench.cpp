// The quadratic penalty of EWC: pawl's gradient in closed form on the flat parameters against the
// penalty written down per tensor and differentiated by autograd. Both add to gradients that are
// there already, and must end with the same ones. Bytes: gradient, importance, weights and anchor
// are read, the gradient is written. Floor: a copy of as many bytes in as much memory.
//
// `penalty_and_optimizer` is the end of a step: the gradients of its loss lie where autograd puts
// them (zeros, which both sides have to write anew), the penalty's are added and the optimizer
// moves the weights.
//
//   pawl-micro --benchmark_filter=penalty

#include <limits>
#include <utility>
#include <vector>

#include "pawl/core/strategy_set.hpp"
#include "pawl/engine/update.hpp"
#include "pawl/optimizers/adam.hpp"
#include "pawl/optimizers/sgd.hpp"
#include "pawl/strategies/quadratic_anchor.hpp"
#include "sides.hpp"
#include "subjects.hpp"

#include <torch/optim/adam.h>
#include <torch/optim/sgd.h>

namespace {

using torch::Tensor;

constexpr double strength = 10;

/// The penalty as its formula reads.
struct ByHand {
  explicit ByHand(std::vector<Tensor> all) : parameters(std::move(all)) {
    for (auto& p : parameters) {
      anchor.push_back(p.detach() - 0.01);
      importance.push_back(p.detach().square());
      p.mutable_grad() = p.detach().clone();
    }
  }
  void pull() {
    auto penalty = torch::zeros({});
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      penalty = penalty + (importance[i] * (parameters[i] - anchor[i]).pow(2)).sum();
    }
    (strength / 2 * penalty).backward();
  }
  std::vector<Tensor> gradients() const {
    std::vector<Tensor> all;
    for (auto const& p : parameters) all.push_back(p.grad());
    return all;
  }
  std::vector<Tensor> parameters, anchor, importance;
};

/// The same in pawl, as EWC has it.
struct Keeps {
  static constexpr char const* name = "keeps";
  static constexpr bool elementwise = true, only_adds = true;
  pawl::QuadraticAnchor anchor{};

  void edit_gradient(pawl::Context& c) { anchor.pull(c, strength); }
  void take(pawl::Context& c) {
    anchor.move(c, c.weights().square(), name);
    anchor.weights -= 0.01;
  }
};

/// A model between the steps of an experience.
pawl::Context context_of(pawl::Model const& model) {
  pawl::Context c;
  c.model = model;
  c.arena.bind(*model.module);
  c.arena.by_operations(false);
  c.steps = std::numeric_limits<std::int64_t>::max();
  return c;
}

void penalty(benchmark::State& state, pawl::Model const& ours, pawl::Model const& theirs) {
  ByHand by_hand(theirs.parameters());
  auto c = context_of(ours);
  for (auto p : c.arena.parameters()) p.mutable_grad() = p.detach().clone();
  c.arena.note_active();
  Keeps keeps;
  keeps.take(c);
  auto const size = static_cast<double>(c.weights().nbytes()), bytes = 5 * size;
  micro::compare(
      state, {.bytes = bytes}, [&] { keeps.edit_gradient(c); }, [&] { by_hand.pull(); },
      micro::Copy(bytes, 4 * size));
  std::vector<Tensor> gradients;
  for (auto const& p : c.arena.parameters()) gradients.push_back(p.grad());
  micro::expect_same(state, gradients, by_hand.gradients(), 1e-3);
}

struct Sgd {
  pawl::Sgd ours{.lr = 0.01};
  using Theirs = torch::optim::SGD;
  torch::optim::SGDOptions options = torch::optim::SGDOptions(0.01);
  static constexpr double moments = 0;
};
struct Momentum {
  pawl::Sgd ours{.lr = 0.01, .momentum = 0.9};
  using Theirs = torch::optim::SGD;
  torch::optim::SGDOptions options = torch::optim::SGDOptions(0.01).momentum(0.9);
  static constexpr double moments = 1;
};
struct Adam {
  pawl::Adam ours{.lr = 0.001};
  using Theirs = torch::optim::Adam;
  torch::optim::AdamOptions options{0.001};
  static constexpr double moments = 2;
};

pawl::Model mlp() { return micro::perceptron(); }
pawl::Model slim_resnet18() { return micro::slim_resnet18(); }

template <class Kind, pawl::Model (*network)()>
void penalty_and_optimizer(benchmark::State& state) {
  auto const ours = network(), theirs = network();
  ByHand by_hand(theirs.parameters());
  Kind kind;
  typename Kind::Theirs optimizer(by_hand.parameters, kind.options);
  auto c = context_of(ours);
  c.note_learning_rate(kind.ours.learning_rate());
  pawl::StrategySet<Keeps> strategies;
  std::get<Keeps>(strategies.strategies).take(c);
  pawl::Update update(c, strategies, kind.ours);
  // As after a backward pass: nobody else holds them.
  auto const give_zeros = [&] {
    auto const& parameters = c.arena.parameters();
    std::vector<Tensor> kept;
    for (auto const& p : parameters) {
      auto const& g = p.grad();
      auto const apart = g.defined() && g.storage().nbytes() == g.nbytes();
      kept.push_back(apart ? g : torch::empty_like(p));
    }
    c.arena.clear_gradients();
    for (std::size_t i = 0; i < kept.size(); ++i) {
      auto p = parameters[i];
      p.mutable_grad() = kept[i].zero_();
    }
    c.arena.note_active();
  };
  // Gradient, importance and anchor are read, weights and moments are read and written.
  auto const size = static_cast<double>(c.weights().nbytes());
  auto const bytes = (5 + 2 * Kind::moments) * size;
  micro::compare(
      state, {.bytes = bytes},
      [&] {
        update.start(), update.prepare(false);
        give_zeros();
        update.run();
      },
      [&] {
        for (auto const& p : by_hand.parameters) p.grad().zero_();
        by_hand.pull();
        optimizer.step();
      },
      micro::Copy(bytes, (4 + Kind::moments) * size));
  micro::expect_same(state, ours.parameters(), theirs.parameters(), 1e-3);
}

BENCHMARK_CAPTURE(penalty, mlp, micro::perceptron(), micro::perceptron())->Apply(micro::turns<41>);
BENCHMARK_CAPTURE(penalty, slim_resnet18, micro::slim_resnet18(), micro::slim_resnet18())
    ->Apply(micro::turns<41>);
BENCHMARK_TEMPLATE(penalty_and_optimizer, Sgd, mlp)->Apply(micro::turns<41>);
BENCHMARK_TEMPLATE(penalty_and_optimizer, Momentum, mlp)->Apply(micro::turns<41>);
BENCHMARK_TEMPLATE(penalty_and_optimizer, Adam, mlp)->Apply(micro::turns<41>);
BENCHMARK_TEMPLATE(penalty_and_optimizer, Sgd, slim_resnet18)->Apply(micro::turns<41>);
BENCHMARK_TEMPLATE(penalty_and_optimizer, Momentum, slim_resnet18)->Apply(micro::turns<41>);
BENCHMARK_TEMPLATE(penalty_and_optimizer, Adam, slim_resnet18)->Apply(micro::turns<41>);

}  // namespace

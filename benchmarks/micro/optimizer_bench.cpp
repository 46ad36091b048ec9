// One step of an optimizer: pawl's on the flat parameters against `torch::optim` on each tensor.
// Gradients `in_arena` lie there already, as a chain of layers leaves them; gradients `apart` lie
// where autograd puts them. `Plain` ones are those of engine = reference, operation by operation.
// Both sides must end with the same weights, SGD and the plain ones to the last bit. Bytes:
// gradient, weights and moments are read, weights and moments written. Floor: a copy of as many
// bytes in as much memory.
//
//   pawl-micro --benchmark_filter=optimizer

#include <vector>

#include "pawl/optimizers/adam.hpp"
#include "pawl/optimizers/sgd.hpp"
#include "sides.hpp"
#include "subjects.hpp"

#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>

namespace {

using torch::Tensor;

struct Momentum {
  pawl::Sgd ours{.lr = 0.01, .momentum = 0.9};
  using Theirs = torch::optim::SGD;
  torch::optim::SGDOptions options = torch::optim::SGDOptions(0.01).momentum(0.9);
  static constexpr double moved = 5, held = 3, tolerance = 0;
  static constexpr bool plain = false;
};
struct Adam {
  pawl::Adam ours{.lr = 0.001};
  using Theirs = torch::optim::Adam;
  torch::optim::AdamOptions options{0.001};
  static constexpr double moved = 7, held = 4, tolerance = 1e-5;
  static constexpr bool plain = false;
};
struct AdamW {
  pawl::AdamW ours{.lr = 0.001};
  using Theirs = torch::optim::AdamW;
  torch::optim::AdamWOptions options{0.001};
  static constexpr double moved = 7, held = 4, tolerance = 1e-5;
  static constexpr bool plain = false;
};
struct PlainAdam : Adam {
  static constexpr double tolerance = 0;
  static constexpr bool plain = true;
};
struct PlainAdamW : AdamW {
  static constexpr double tolerance = 0;
  static constexpr bool plain = true;
};

pawl::Model mlp() { return micro::perceptron(); }
pawl::Model slim_resnet18() { return micro::slim_resnet18(); }

enum Gradients { in_arena, apart };

/// As after a backward pass that left them with the parameters.
void give(pawl::Arena& arena, std::vector<Tensor> const& gradients) {
  arena.clear_gradients();
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    auto p = arena.parameters()[i];
    p.mutable_grad() = gradients[i];
  }
  arena.note_active();
}

template <class Kind, pawl::Model (*network)(), Gradients where>
void optimizer(benchmark::State& state) {
  auto const ours = network(), theirs = network();
  pawl::Arena arena(*ours.module);
  arena.by_operations(Kind::plain);
  std::vector<Tensor> gradients;
  for (auto p : theirs.parameters()) {
    gradients.push_back(p.detach() * 0.01);
    p.mutable_grad() = gradients.back().clone();
  }
  give(arena, gradients);
  if (where == in_arena) arena.gradient();
  Kind kind;
  typename Kind::Theirs by_hand(theirs.parameters(), kind.options);
  auto const size = static_cast<double>(arena.weights().nbytes()), bytes = Kind::moved * size;
  micro::compare(
      state, {.bytes = bytes},
      [&] {
        if (where == apart) give(arena, gradients);
        kind.ours.step(arena);
      },
      [&] { by_hand.step(); }, micro::Copy(bytes, Kind::held * size));
  micro::expect_same(state, ours.parameters(), theirs.parameters(), Kind::tolerance);
}

BENCHMARK_TEMPLATE(optimizer, Momentum, mlp, in_arena)->Apply(micro::turns<41>);
BENCHMARK_TEMPLATE(optimizer, Adam, mlp, in_arena)->Apply(micro::turns<41>);
BENCHMARK_TEMPLATE(optimizer, AdamW, mlp, in_arena)->Apply(micro::turns<41>);
BENCHMARK_TEMPLATE(optimizer, PlainAdam, mlp, in_arena)->Apply(micro::turns<41>);
BENCHMARK_TEMPLATE(optimizer, PlainAdamW, mlp, in_arena)->Apply(micro::turns<41>);
BENCHMARK_TEMPLATE(optimizer, Momentum, slim_resnet18, in_arena)->Apply(micro::turns<41>);
BENCHMARK_TEMPLATE(optimizer, Adam, slim_resnet18, in_arena)->Apply(micro::turns<41>);
BENCHMARK_TEMPLATE(optimizer, AdamW, slim_resnet18, in_arena)->Apply(micro::turns<41>);
BENCHMARK_TEMPLATE(optimizer, PlainAdam, slim_resnet18, in_arena)->Apply(micro::turns<41>);
BENCHMARK_TEMPLATE(optimizer, PlainAdamW, slim_resnet18, in_arena)->Apply(micro::turns<41>);
BENCHMARK_TEMPLATE(optimizer, Momentum, slim_resnet18, apart)->Apply(micro::turns<41>);
BENCHMARK_TEMPLATE(optimizer, Adam, slim_resnet18, apart)->Apply(micro::turns<41>);
BENCHMARK_TEMPLATE(optimizer, AdamW, slim_resnet18, apart)->Apply(micro::turns<41>);
BENCHMARK_TEMPLATE(optimizer, PlainAdam, slim_resnet18, apart)->Apply(micro::turns<41>);
BENCHMARK_TEMPLATE(optimizer, PlainAdamW, slim_resnet18, apart)->Apply(micro::turns<41>);

}  // namespace

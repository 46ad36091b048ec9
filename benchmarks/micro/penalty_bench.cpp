// The quadratic penalty of EWC: pawl's gradient in closed form on the flat parameters against the
// penalty written down per tensor and differentiated by autograd. Both add to gradients that are
// there already, and must end with the same ones. Bytes: gradient, importance, weights and anchor
// are read, the gradient is written. Floor: a copy of as many bytes in as much memory.
//
//   pawl-micro --benchmark_filter=penalty

#include <utility>
#include <vector>

#include "pawl/strategies/quadratic_anchor.hpp"
#include "sides.hpp"
#include "subjects.hpp"

namespace {

using torch::Tensor;

constexpr double strength = 100;

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

void penalty(benchmark::State& state, pawl::Model const& ours, pawl::Model const& theirs) {
  ByHand by_hand(theirs.parameters());
  pawl::Context c;
  c.model = ours;
  c.arena.bind(*ours.module);
  c.arena.by_operations(false);
  for (auto p : c.arena.parameters()) p.mutable_grad() = p.detach().clone();
  c.arena.note_active();
  pawl::QuadraticAnchor anchor;
  anchor.move(c, c.weights().square(), "penalty");
  anchor.weights -= 0.01;
  auto const size = static_cast<double>(c.weights().nbytes()), bytes = 5 * size;
  micro::compare(
      state, {.bytes = bytes}, [&] { anchor.pull(c, strength); }, [&] { by_hand.pull(); },
      micro::Copy(bytes, 4 * size));
  std::vector<Tensor> gradients;
  for (auto const& p : c.arena.parameters()) gradients.push_back(p.grad());
  micro::expect_same(state, gradients, by_hand.gradients(), 1e-3);
}

BENCHMARK_CAPTURE(penalty, mlp, micro::perceptron(), micro::perceptron())->Apply(micro::turns<41>);
BENCHMARK_CAPTURE(penalty, slim_resnet18, micro::slim_resnet18(), micro::slim_resnet18())
    ->Apply(micro::turns<41>);

}  // namespace

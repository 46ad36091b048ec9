// A strategy of your own: pull the weights back towards those of the last experience (L2).
//
//   strength    0: average 0.834, forgetting 0.197, learning 0.991
//   strength  0.1: average 0.840, forgetting 0.190, learning 0.991
//   strength    1: average 0.861, forgetting 0.011, learning 0.864
//
// Run from the root of the project:  build/release/examples/02_your_own_strategy

#include <pawl/pawl.hpp>

#include <fmt/core.h>
#include <torch/nn/modules/activation.h>

namespace nn = torch::nn;

/// penalty = (strength/2) ||w - anchor||^2, its gradient written down.
struct L2 {
  double strength = 1;

  void edit_gradient(pawl::Context& context) {
    if (anchor.defined()) context.gradient().add_(context.weights() - anchor, strength);
  }
  void end(pawl::Context& context, pawl::Experience const&) { anchor = context.weights().clone(); }

  void describe(pawl::Options& o) { o("strength", strength, pawl::at_least(0), "0 is naive"); }
  void state(pawl::Archive& a) { a.flat("anchor", anchor, pawl::Archive::Fill::weights); }

  torch::Tensor anchor{};  ///< [P] weights at the end of the last experience
};

int main() {
  auto const digits = pawl::load_digits("data");
  auto const stream =
      pawl::split_classes(digits, {.experiences = 5, .scenario = pawl::Scenario::domain});
  for (double const strength : {0.0, 0.1, 1.0}) {
    torch::manual_seed(0);  // of the initial weights, drawn by LibTorch's own layers
    pawl::Learner learner{
        nn::Sequential{nn::Flatten{}, nn::Linear{64, 100}, nn::ReLU{}, nn::Linear{100, 2}},
        pawl::Sgd{.lr = 0.1}, L2{.strength = strength}};
    pawl::AccuracyMatrix accuracy;
    for (auto const& experience : stream) {
      learner.fit(experience, {.epochs = 10, .batch_size = 16});
      accuracy.append(pawl::evaluate(learner, stream));
    }
    fmt::print("strength {:4}: average {:.3f}, forgetting {:.3f}, learning {:.3f}\n", strength,
               accuracy.average(), accuracy.forgetting(), accuracy.learning_accuracy());
  }
}

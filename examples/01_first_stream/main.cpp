// Class-incremental handwritten digits with replay and distillation.
//
//   average 0.924, forgetting 0.081
//
// Run from the root of the project:  build/release/examples/01_first_stream

#include <pawl/pawl.hpp>

#include <fmt/core.h>
#include <torch/nn/modules/activation.h>

namespace nn = torch::nn;

int main() {
  torch::manual_seed(0);  // of the initial weights, which LibTorch's own layers draw
  auto const stream = pawl::split_classes(pawl::load_digits("data"), {.experiences = 5});

  pawl::Learner learner{
      nn::Sequential{nn::Flatten{}, nn::Linear{64, 100}, nn::ReLU{}, nn::Linear{100, 10}},
      pawl::Sgd{.lr = 0.1},
      pawl::Replay{pawl::Reservoir{.capacity = 200}},
      pawl::Lwf{.strength = 0.1},
  };

  pawl::AccuracyMatrix accuracy;
  for (auto const& experience : stream) {
    learner.fit(experience, {.epochs = 10, .batch_size = 16}, pawl::Progress{});
    accuracy.append(pawl::evaluate(learner, stream));
  }
  fmt::print("average {:.3f}, forgetting {:.3f}\n", accuracy.average(), accuracy.forgetting());
}

#include <cstdio>

#include <pawl/pawl.hpp>

namespace {

/// Pulls the weights to where the last experience left them.
struct Anchor {
  double strength = 1;

  void edit_gradient(pawl::Context& context) const {
    if (weights.defined()) context.gradient().add_(context.weights() - weights, strength);
  }
  void end(pawl::Context& context, pawl::Experience const&) { weights = context.weights().clone(); }
  void state(pawl::Archive& archive) { archive("weights", weights); }

  // State: written by the hooks.
  torch::Tensor weights{};
};

}  // namespace

int main() {
  torch::manual_seed(1);
  auto const x = torch::randn({64, 8});
  auto const y = torch::randint(0, 4, {64}, torch::kInt64);

  pawl::Learner learner{torch::nn::Sequential(torch::nn::Linear(8, 4)), pawl::Sgd{.lr = 0.1},
                        Anchor{.strength = 0.5}};
  learner.fit(pawl::make_experience(x, y), {.epochs = 2, .batch_size = 16});
  learner.fit(pawl::make_experience(x, y, {}, 1), {.epochs = 2, .batch_size = 16});

  std::printf("pawl %s: %s\n", PAWL_VERSION, learner.text().c_str());
  return learner.predict(x).size(0) == 64 && learner.strategy<Anchor>().weights.defined() ? 0 : 1;
}

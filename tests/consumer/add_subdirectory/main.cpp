#include <cstdio>

#include <pawl/pawl.hpp>

namespace {

struct SmallNetImpl : torch::nn::Module {
  torch::nn::Conv2d convolution{torch::nn::Conv2dOptions(1, 4, 3).padding(1)};
  torch::nn::BatchNorm2d normalisation{4};
  torch::nn::Linear output{4 * 6 * 6, 3};

  SmallNetImpl() {
    register_module("convolution", convolution);
    register_module("normalisation", normalisation);
    register_module("output", output);
  }
  torch::Tensor forward(torch::Tensor const& x) {
    return output(torch::relu(normalisation(convolution(x))).flatten(1));
  }
};
TORCH_MODULE(SmallNet);

}  // namespace

int main() {
  torch::manual_seed(1);
  auto const x = torch::randn({48, 1, 6, 6});
  auto const y = torch::randint(0, 3, {48}, torch::kInt64);

  pawl::Learner learner{SmallNet{}, pawl::Sgd{.lr = 0.05}};
  learner.fit(pawl::make_experience(x, y), {.epochs = 20, .batch_size = 16});

  auto const correct = learner.predict(x).eq(y).sum().item<int>();
  std::printf("%d of 48 random labels are learned by heart\n", correct);
  return correct > 30 ? 0 : 1;
}

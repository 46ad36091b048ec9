#pragma once

// What the benchmarks of single operations work on.

#include <array>
#include <vector>

#include "pawl/core/context.hpp"
#include "pawl/models/mlp.hpp"
#include "pawl/models/slim_resnet18.hpp"

namespace micro {

inline pawl::Mlp perceptron() {
  return pawl::Mlp(784, 10, pawl::MlpOptions{.hidden = {400, 400}}, pawl::Seed{1});
}

/// The same with a forward of its own.
struct Perceptron : torch::nn::Module {
  torch::nn::Linear first{register_module("first", torch::nn::Linear(784, 400))};
  torch::nn::Linear second{register_module("second", torch::nn::Linear(400, 400))};
  torch::nn::Linear last{register_module("last", torch::nn::Linear(400, 10))};
  torch::Tensor forward(torch::Tensor const& x) {
    return last(second(first(x.flatten(1)).relu()).relu());
  }
};

inline pawl::SlimResNet18 slim_resnet18() {
  return pawl::SlimResNet18(3, 10, pawl::SlimResNet18Options{}, pawl::Seed{1});
}

/// After LeNet-5 (LeCun et al., Proc. IEEE 1998).
struct LeNet : torch::nn::Module {
  torch::nn::Conv2d first{
      register_module("first", torch::nn::Conv2d(torch::nn::Conv2dOptions(1, 6, 5).padding(2)))};
  torch::nn::Conv2d second{
      register_module("second", torch::nn::Conv2d(torch::nn::Conv2dOptions(6, 16, 5)))};
  torch::nn::Linear third{register_module("third", torch::nn::Linear(400, 120))};
  torch::nn::Linear fourth{register_module("fourth", torch::nn::Linear(120, 84))};
  torch::nn::Linear last{register_module("last", torch::nn::Linear(84, 10))};
  static torch::Tensor halved(torch::Tensor const& x) { return at::max_pool2d(x, 2); }
  torch::Tensor forward(torch::Tensor const& x) {
    auto const h = halved(second(halved(first(x).relu())).relu()).flatten(1);
    return last(fourth(third(h).relu()).relu());
  }
};

/// The share of MNIST's pixels that are not black.
constexpr double on_black = 0.19;

/// Random images with random labels, as bytes that are scaled to [0, 1]; a share of the pixels is
/// `filled`, the rest is 0. Of 784 pixels in a row, or of another shape.
inline pawl::Experience random_images(std::int64_t rows, double filled = 1,
                                      std::vector<std::int64_t> const& shape = {784}) {
  pawl::NoiseScope noise(pawl::Generator(1));
  auto const x = torch::randint(256, {rows, 784}, torch::kUInt8);
  if (filled < 1) x.mul_(torch::rand(x.sizes()).lt(filled));
  auto sizes = shape;
  sizes.insert(sizes.begin(), rows);
  auto experience = pawl::make_experience(x.view(sizes), torch::randint(10, {rows}));
  experience.train.normalise.scale = experience.test.normalise.scale = 1 / 255.;
  return experience;
}

/// A floor: the matrix products of the MLP 784-400-400-10 alone, into buffers that are kept.
class Products {
 public:
  static constexpr std::array<std::int64_t, 4> widths{784, 400, 400, 10};

  explicit Products(std::int64_t rows, torch::Device device = torch::kCPU) {
    pawl::NoiseScope noise(pawl::Generator(2), device);
    for (auto const width : widths) {
      h_.push_back(torch::randn({rows, width}, device));
      d_.push_back(torch::randn({rows, width}, device));
    }
    for (std::size_t l = 0; l < 3; ++l) {
      w_.push_back(torch::randn({widths[l + 1], widths[l]}, device)), g_.push_back(w_[l].clone());
      flops_ += 2. * static_cast<double>(rows * w_[l].numel());
    }
    first_ = 2. * static_cast<double>(rows * w_[0].numel());
  }
  void forward() {
    for (std::size_t l = 0; l < 3; ++l) at::mm_out(h_[l + 1], h_[l], w_[l].t());
  }
  void backward() {
    for (std::size_t l = 3; l-- > 0;) {
      at::mm_out(g_[l], d_[l + 1].t(), h_[l]);
      if (l > 0) at::mm_out(d_[l], d_[l + 1], w_[l]);
    }
  }
  double forward_flops() const { return flops_; }
  double backward_flops() const { return 2 * flops_ - first_; }

 private:
  std::vector<torch::Tensor> h_, d_, w_, g_;
  double flops_ = 0, first_ = 0;
};

}  // namespace micro

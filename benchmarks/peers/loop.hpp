#pragma once

// Continual learning written by hand with LibTorch, as a careful user would for one network and one
// method: autograd, an optimizer of torch::optim, rows kept as bytes and gathered per batch. What
// pawl is compared with. Here: what the loops share.

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include <torch/csrc/autograd/autograd.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adam.h>
#include <torch/optim/sgd.h>

namespace peers {

using torch::Tensor;
using Network = torch::nn::Sequential;

/// One experience: x [N, ...] uint8, y [N] int64.
struct Rows {
  Tensor x, y;
};

/// How weights are updated, on both sides. Momentum is 0.9.
struct Rule {
  enum class Kind { sgd, momentum, adam } kind = Kind::sgd;
  double lr = 0.01;
};

inline std::unique_ptr<torch::optim::Optimizer> make_optimizer(Rule const& rule,
                                                               std::vector<Tensor> parameters) {
  namespace optim = torch::optim;
  if (rule.kind == Rule::Kind::adam) {
    return std::make_unique<optim::Adam>(std::move(parameters), optim::AdamOptions(rule.lr));
  }
  auto const momentum = rule.kind == Rule::Kind::momentum ? 0.9 : 0.0;
  return std::make_unique<optim::SGD>(std::move(parameters),
                                      optim::SGDOptions(rule.lr).momentum(momentum));
}

inline Network mlp() {
  return Network(torch::nn::Flatten(), torch::nn::Linear(784, 400), torch::nn::ReLU(),
                 torch::nn::Linear(400, 400), torch::nn::ReLU(), torch::nn::Linear(400, 10));
}

/// A pass over the experiences, one after another.
struct Loop {
  /// `network` makes the network, and more of its kind.
  Loop(std::function<Network()> network, Rule const& rule)
      : another(std::move(network)),
        net(another()),
        optimizer(make_optimizer(rule, net->parameters())) {}
  virtual ~Loop() = default;

  static Tensor inputs(Tensor const& bytes) { return bytes.to(torch::kFloat32).mul_(1 / 255.); }

  virtual void begin() {}
  virtual void step(Tensor const& bytes, Tensor const& y) = 0;
  virtual void end(Rows const&) {}

  void backward_and_step(Tensor const& loss) {
    optimizer->zero_grad();
    loss.backward();
    (void)loss.item<float>();  // a divergence would be noticed
    optimizer->step();
  }

  /// One epoch in a shuffled order.
  void steps(Rows const& rows, std::int64_t batch) {
    begin();
    auto const order = torch::randperm(rows.x.size(0));
    for (std::int64_t i = 0; i < rows.x.size(0); i += batch) {
      auto const positions = order.slice(0, i, std::min(i + batch, rows.x.size(0)));
      step(rows.x.index_select(0, positions), rows.y.index_select(0, positions));
    }
  }

  /// What is left to do when an experience ends.
  void finish(Rows const& rows) {
    end(rows);
    ++experience;
  }

  std::vector<Tensor> parameters() const { return net->parameters(); }

  std::function<Network()> another;
  Network net;
  std::unique_ptr<torch::optim::Optimizer> optimizer;
  std::int64_t experience = 0;
};

struct Naive : Loop {
  using Loop::Loop;
  void step(Tensor const& bytes, Tensor const& y) override {
    backward_and_step(at::cross_entropy_loss(net->forward(inputs(bytes)), y));
  }
};

}  // namespace peers

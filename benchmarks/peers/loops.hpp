#pragma once

// Continual learning written by hand with LibTorch, as a careful user would for one network and one
// method: autograd, torch::optim::SGD, rows kept as bytes and gathered per batch. What pawl is
// compared with.

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <torch/csrc/autograd/autograd.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

namespace peers {

using torch::Tensor;

/// One experience: x [N, ...] uint8, y [N] int64.
struct Rows {
  Tensor x, y;
};

/// What all the loops share: MLP 784-400-400-10 and plain SGD.
struct Loop {
  explicit Loop(double lr)
      : net(torch::nn::Linear(784, 400), torch::nn::ReLU(), torch::nn::Linear(400, 400),
            torch::nn::ReLU(), torch::nn::Linear(400, 10)),
        sgd(net->parameters(), torch::optim::SGDOptions(lr)) {}
  virtual ~Loop() = default;

  static Tensor inputs(Tensor const& bytes) {
    return bytes.to(torch::kFloat32).mul_(1 / 255.).flatten(1);
  }

  virtual void begin() {}
  virtual void step(Tensor const& bytes, Tensor const& y) = 0;
  virtual void end(Rows const&) {}

  void backward_and_step(Tensor const& loss) {
    sgd.zero_grad();
    loss.backward();
    (void)loss.item<float>();  // a divergence would be noticed
    sgd.step();
  }

  /// One epoch in a shuffled order.
  void learn(Rows const& rows, std::int64_t batch) {
    begin();
    auto const order = torch::randperm(rows.x.size(0));
    for (std::int64_t i = 0; i < rows.x.size(0); i += batch) {
      auto const positions = order.slice(0, i, std::min(i + batch, rows.x.size(0)));
      step(rows.x.index_select(0, positions), rows.y.index_select(0, positions));
    }
    end(rows);
    ++experience;
  }

  std::vector<Tensor> parameters() const { return net->parameters(); }

  torch::nn::Sequential net;
  torch::optim::SGD sgd;
  std::int64_t experience = 0;
};

struct Naive : Loop {
  using Loop::Loop;
  void step(Tensor const& bytes, Tensor const& y) override {
    backward_and_step(at::cross_entropy_loss(net->forward(inputs(bytes)), y));
  }
};

/// A reservoir of rows (Vitter, 1985), with the logits they were stored with where asked for.
struct Memory {
  void insert(Tensor const& bytes, Tensor const& y, Tensor const& z = {}) {
    if (!x.defined()) {
      auto shape = bytes.sizes().vec();
      shape[0] = capacity;
      x = torch::zeros(shape, torch::kUInt8), labels = torch::zeros({capacity}, torch::kInt64);
      if (z.defined()) logits = torch::zeros({capacity, z.size(1)});
    }
    std::vector<std::int64_t> from, to;
    for (std::int64_t i = 0; i < y.size(0); ++i, ++seen) {
      auto const slot =
          seen < capacity ? seen : std::uniform_int_distribution<std::int64_t>(0, seen)(random);
      if (slot >= capacity) continue;
      from.push_back(i), to.push_back(slot);
    }
    if (from.empty()) return;
    auto const source = torch::tensor(from), target = torch::tensor(to);
    x.index_copy_(0, target, bytes.index_select(0, source));
    labels.index_copy_(0, target, y.index_select(0, source));
    if (z.defined()) logits.index_copy_(0, target, z.index_select(0, source));
  }
  Tensor draw(std::int64_t n) {
    auto const held = std::min(seen, capacity);
    return torch::randperm(held).slice(0, 0, std::min(n, held));
  }
  bool empty() const { return seen == 0; }

  std::int64_t capacity = 500, seen = 0;
  Tensor x, labels, logits;
  std::mt19937_64 random{1};
};

/// Experience replay: fresh and replayed rows in one forward pass.
struct Er : Loop {
  using Loop::Loop;
  void step(Tensor const& bytes, Tensor const& y) override {
    auto x = bytes, labels = y;
    if (!memory.empty()) {
      auto const rows = memory.draw(bytes.size(0));
      x = torch::cat({x, memory.x.index_select(0, rows)});
      labels = torch::cat({y, memory.labels.index_select(0, rows)});
    }
    backward_and_step(at::cross_entropy_loss(net->forward(inputs(x)), labels));
    memory.insert(bytes, y);
  }
  Memory memory;
};

/// Dark experience replay ++ (Buzzega et al., NeurIPS 2020), in three forward passes as published.
struct DerPlusPlus : Loop {
  using Loop::Loop;
  void step(Tensor const& bytes, Tensor const& y) override {
    auto const z = net->forward(inputs(bytes));
    auto loss = at::cross_entropy_loss(z, y);
    if (!memory.empty()) {
      auto const first = memory.draw(bytes.size(0)), second = memory.draw(bytes.size(0));
      loss = loss + 0.5 * at::mse_loss(net->forward(inputs(memory.x.index_select(0, first))),
                                       memory.logits.index_select(0, first));
      loss = loss +
             0.5 * at::cross_entropy_loss(net->forward(inputs(memory.x.index_select(0, second))),
                                          memory.labels.index_select(0, second));
    }
    backward_and_step(loss);
    memory.insert(bytes, y, z.detach());
  }
  Memory memory;
};

/// Averaged gradient episodic memory (Chaudhry et al., ICLR 2019).
struct AGem : Loop {
  using Loop::Loop;
  void step(Tensor const& bytes, Tensor const& y) override {
    std::vector<Tensor> reference;
    if (!memory.empty() && experience > 0) {
      auto const rows = memory.draw(bytes.size(0));
      auto const z = net->forward(inputs(memory.x.index_select(0, rows)));
      reference = torch::autograd::grad(
          {at::cross_entropy_loss(z, memory.labels.index_select(0, rows))}, parameters());
    }
    auto const loss = at::cross_entropy_loss(net->forward(inputs(bytes)), y);
    sgd.zero_grad();
    loss.backward();
    (void)loss.item<float>();
    if (!reference.empty()) project(reference);
    sgd.step();
    memory.insert(bytes, y);
  }
  void project(std::vector<Tensor> const& reference) {
    std::vector<Tensor> g, r;
    for (auto const& p : parameters()) g.push_back(p.grad().flatten());
    for (auto const& each : reference) r.push_back(each.flatten());
    auto const own = torch::cat(g), other = torch::cat(r);
    auto const product = own.dot(other).item<float>();
    if (product >= 0) return;
    auto const projected = own - product / other.dot(other) * other;
    std::int64_t offset = 0;
    for (auto const& p : parameters()) {
      p.grad().copy_(projected.narrow(0, offset, p.numel()).view_as(p));
      offset += p.numel();
    }
  }
  Memory memory;
};

/// Elastic weight consolidation (Kirkpatrick et al., PNAS 2017), online, its penalty through
/// autograd. The importances do not enter the time of a step and are squares of batch gradients.
struct Ewc : Loop {
  using Loop::Loop;
  void step(Tensor const& bytes, Tensor const& y) override {
    auto loss = at::cross_entropy_loss(net->forward(inputs(bytes)), y);
    auto const all = parameters();
    if (!anchor.empty()) {
      auto penalty = torch::zeros({});
      for (std::size_t i = 0; i < all.size(); ++i) {
        penalty = penalty + (fisher[i] * (all[i] - anchor[i]).pow(2)).sum();
      }
      loss = loss + strength / 2 * penalty;
    }
    backward_and_step(loss);
  }
  void end(Rows const& rows) override {
    auto const z = net->forward(inputs(rows.x.slice(0, 0, 1000)));
    auto const g =
        torch::autograd::grad({at::cross_entropy_loss(z, rows.y.slice(0, 0, 1000))}, parameters());
    auto const first = anchor.empty();
    for (std::size_t i = 0; i < g.size(); ++i) {
      first ? fisher.push_back(g[i].square()) : (void)fisher[i].add_(g[i].square());
      first ? anchor.push_back(parameters()[i].detach().clone())
            : (void)anchor[i].copy_(parameters()[i].detach());
    }
  }
  double strength = 100;
  std::vector<Tensor> fisher, anchor;
};

/// Synaptic intelligence (Zenke et al., ICML 2017), its penalty through autograd.
struct Si : Loop {
  explicit Si(double lr) : Loop(lr) {
    for (auto const& p : parameters()) {
      omega.push_back(torch::zeros_like(p)), path.push_back(torch::zeros_like(p));
      anchor.push_back(p.detach().clone());
    }
  }
  void step(Tensor const& bytes, Tensor const& y) override {
    auto const own = at::cross_entropy_loss(net->forward(inputs(bytes)), y);
    auto const all = parameters();
    sgd.zero_grad();
    own.backward();
    (void)own.item<float>();
    std::vector<Tensor> before, gradient;
    for (auto const& p : all) {
      before.push_back(p.detach().clone()), gradient.push_back(p.grad().clone());
    }
    if (experience > 0) {
      auto penalty = torch::zeros({});
      for (std::size_t i = 0; i < all.size(); ++i) {
        penalty = penalty + (omega[i] * (all[i] - anchor[i]).pow(2)).sum();
      }
      (0.1 * penalty).backward();
    }
    sgd.step();
    for (std::size_t i = 0; i < all.size(); ++i) {
      path[i].sub_(gradient[i] * (all[i].detach() - before[i]));
    }
  }
  void end(Rows const&) override {
    auto const all = parameters();
    for (std::size_t i = 0; i < all.size(); ++i) {
      auto const moved = all[i].detach() - anchor[i];
      omega[i].add_(path[i].clamp_min(0) / (moved.square() + 0.1));
      path[i].zero_(), anchor[i].copy_(all[i].detach());
    }
  }
  std::vector<Tensor> omega, path, anchor;
};

/// Learning without forgetting (Li and Hoiem, ECCV 2016): distillation at temperature 2.
struct Lwf : Loop {
  using Loop::Loop;
  void begin() override {
    if (experience == 0) return;
    if (!teacher) {
      teacher = torch::nn::Sequential(torch::nn::Linear(784, 400), torch::nn::ReLU(),
                                      torch::nn::Linear(400, 400), torch::nn::ReLU(),
                                      torch::nn::Linear(400, 10));
    }
    torch::NoGradGuard no_grad;
    auto const target = teacher->parameters();
    for (std::size_t i = 0; i < target.size(); ++i) target[i].copy_(parameters()[i]);
  }
  void step(Tensor const& bytes, Tensor const& y) override {
    auto const x = inputs(bytes);
    auto const z = net->forward(x);
    auto loss = at::cross_entropy_loss(z, y);
    if (experience > 0) {
      auto const known = 2 * experience;  // classes of the experiences before
      Tensor old;
      {
        torch::NoGradGuard no_grad;
        old = torch::log_softmax(teacher->forward(x).narrow(1, 0, known) / 2, 1);
      }
      auto const now = torch::log_softmax(z.narrow(1, 0, known) / 2, 1);
      loss = loss +
             4 * at::kl_div(now, old, at::Reduction::Sum, true) / static_cast<double>(x.size(0));
    }
    backward_and_step(loss);
  }
  torch::nn::Sequential teacher{nullptr};
};

}  // namespace peers

#pragma once

// Loops by hand that add a penalty to the loss: EWC, SI and LwF.

#include <algorithm>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "loop.hpp"

namespace peers {

/// Elastic weight consolidation (Kirkpatrick et al., PNAS 2017; online: Schwarz et al., ICML 2018),
/// its penalty through autograd. The Fisher is empirical, one sample after another.
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
    auto const all = parameters();
    if (anchor.empty()) {
      for (auto const& p : all) {
        fisher.push_back(torch::zeros_like(p)), anchor.push_back(torch::zeros_like(p));
      }
    }
    auto const n = std::min(fisher_samples, rows.x.size(0));
    auto const chosen = torch::randperm(rows.x.size(0)).slice(0, 0, n);
    auto const x = inputs(rows.x.index_select(0, chosen)), y = rows.y.index_select(0, chosen);
    net->eval();
    for (std::int64_t i = 0; i < n; ++i) {
      auto const z = net->forward(x.slice(0, i, i + 1));
      auto const g = torch::autograd::grad({at::cross_entropy_loss(z, y.slice(0, i, i + 1))}, all);
      for (std::size_t k = 0; k < g.size(); ++k) {
        fisher[k].addcmul_(g[k], g[k], 1. / static_cast<double>(n));
      }
    }
    net->train();
    for (std::size_t k = 0; k < all.size(); ++k) anchor[k].copy_(all[k].detach());
  }
  std::int64_t fisher_samples = 200;
  double strength = 20;
  std::vector<Tensor> fisher, anchor;
};

/// Synaptic intelligence (Zenke et al., ICML 2017), its penalty through autograd.
struct Si : Loop {
  Si(std::function<Network()> network, Rule const& rule) : Loop(std::move(network), rule) {
    for (auto const& p : parameters()) {
      omega.push_back(torch::zeros_like(p)), path.push_back(torch::zeros_like(p));
      anchor.push_back(p.detach().clone());
    }
  }
  void step(Tensor const& bytes, Tensor const& y) override {
    auto const own = at::cross_entropy_loss(net->forward(inputs(bytes)), y);
    auto const all = parameters();
    optimizer->zero_grad();
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
    optimizer->step();
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
    if (!teacher) teacher = another();
    teacher->eval();
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
  Network teacher{nullptr};
};

}  // namespace peers

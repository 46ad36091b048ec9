#pragma once

// Small networks for tests, rows for them, and the loop that one would write.

#include <cstddef>
#include <cstdint>
#include <vector>

#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/optimizer.h>
#include <pawl/core/learner.hpp>
#include <pawl/heads/growing.hpp>
#include <pawl/heads/multi_head.hpp>

namespace networks {

using namespace pawl;

/// Rows [n, 5] of three classes; every 8 of them belong to one of three tasks, in turn.
inline Experience rows(std::int64_t n, torch::Dtype dtype, std::uint64_t seed = 1,
                       bool tasks = false, std::int64_t index = 0) {
  auto x = torch::empty({n, 5}, dtype);
  fill_normal(x, 0, 1, Seed{seed}.generator("x"));
  auto const y = torch::arange(n, torch::kInt64) % 3;
  auto experience = make_experience(x + y.to(dtype).unsqueeze(1), y, {}, index);
  if (tasks) {
    experience.train.tasks = torch::arange(n, torch::kInt64).div(8, "floor").remainder(3);
  }
  return experience;
}

inline void draw_weights(nn::Module const& module) {
  std::int64_t i = 0;
  for (auto& p : module.parameters()) fill_normal(p, 0, 0.5, Seed{7}.generator("net", i++));
}

/// Odd sizes, so that no parameter fills the slices of the arena or the lanes of the processor.
inline nn::Sequential plain_network(torch::Dtype dtype) {
  nn::Sequential net(nn::Linear(5, 7), nn::Tanh(), nn::Linear(7, 3));
  net->to(dtype);
  draw_weights(*net);
  return net;
}

inline nn::Sequential network_of_tasks(torch::Dtype dtype) {
  nn::Sequential net(nn::Linear(5, 7), nn::Tanh(), MultiHead(7, 3, 3));
  net->to(dtype);
  draw_weights(*net);
  return net;
}

inline nn::Sequential growing_network(torch::Dtype dtype, std::int64_t classes = 3) {
  nn::Sequential net(nn::Linear(5, 7), nn::Tanh(), GrowingHead(7, classes));
  net->to(dtype);
  draw_weights(*net);
  return net;
}

inline std::vector<Tensor> copies(nn::Module const& module) {
  std::vector<Tensor> all;
  for (auto const& p : module.parameters()) all.push_back(p.detach().clone());
  return all;
}

inline bool same_bits(std::vector<Tensor> const& a, std::vector<Tensor> const& b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (a[i].sizes() != b[i].sizes() || !a[i].equal(b[i])) return false;
  }
  return true;
}

/// The loop one would write: batches of 8 in the given order, rows of one task at a time.
inline void train_by_hand(nn::Sequential& net, torch::optim::Optimizer& optimizer,
                          Experience const& experience, std::int64_t steps) {
  Model const model(net);
  for (std::int64_t step = 0; step < steps; ++step) {
    auto const begin = step * 8 % experience.train.size();
    auto const batch = experience.train.read(torch::arange(begin, begin + 8));
    optimizer.zero_grad();
    model.route(batch.task);
    at::cross_entropy_loss(net->forward(batch.stored), batch.y).backward();
    optimizer.step();
  }
}

}  // namespace networks

#pragma once

// Loops by hand that keep a memory of rows: replay, DER++ and A-GEM.

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "loop.hpp"

namespace peers {

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
  /// Of the rows whose label is below `classes`.
  Tensor draw_below(std::int64_t classes, std::int64_t n) {
    auto const held = labels.slice(0, 0, std::min(seen, capacity));
    auto const rows = held.lt(classes).nonzero().squeeze(1);
    return rows.index_select(0, torch::randperm(rows.size(0)).slice(0, 0, n));
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
    if (experience > 0) {
      auto const rows = memory.draw_below(2 * experience, reference_rows);  // of the past
      auto const z = net->forward(inputs(memory.x.index_select(0, rows)));
      reference = torch::autograd::grad(
          {at::cross_entropy_loss(z, memory.labels.index_select(0, rows))}, parameters());
    }
    auto const loss = at::cross_entropy_loss(net->forward(inputs(bytes)), y);
    optimizer->zero_grad();
    loss.backward();
    (void)loss.item<float>();
    if (!reference.empty()) project(reference);
    optimizer->step();
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
  std::int64_t reference_rows = 128;
  Memory memory;
};

}  // namespace peers

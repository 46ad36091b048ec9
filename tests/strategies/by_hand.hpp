#pragma once

// Networks and memories for values that are worked out by hand.

#include <cmath>
#include <cstdint>
#include <vector>

#include <pawl/core/learner.hpp>

namespace by_hand {

using namespace pawl;

/// z = W x without bias, W [C, d] as given.
inline nn::Sequential linear(Tensor const& w) {
  nn::Sequential net(nn::Linear(nn::LinearOptions(w.size(1), w.size(0)).bias(false)));
  net->to(torch::kFloat64);
  torch::NoGradGuard no_grad;
  net->parameters()[0].copy_(w);
  return net;
}

inline Tensor integers(std::vector<std::int64_t> const& values) { return torch::tensor(values); }

/// Two-class logits (a, 0) whose cross-entropy for label 0 is `ce`.
inline double logit_of(double ce) { return -std::log(std::exp(ce) - 1); }

inline Rows rows_of(Tensor const& x, Tensor const& y, Tensor const& logits = {}) {
  Rows rows;
  rows.stored = x;
  rows.y = rows.labels = y;
  rows.id = torch::arange(y.numel());
  rows.logits = logits;
  return rows;
}

/// A memory that answers every draw with the same rows.
struct Answers {
  Rows rows;
  void insert(Rows const&, Generator) {}
  Rows draw(std::int64_t, Generator) { return rows; }
  bool empty() const { return rows.size() == 0; }
};

}  // namespace by_hand

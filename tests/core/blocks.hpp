#pragma once

// Rows, networks and comparisons for tests of steps that go over the weights in blocks.

#include <cstdint>
#include <utility>
#include <vector>

#include <torch/nn/modules/activation.h>
#include <pawl/core/learner.hpp>
#include <pawl/heads/multi_head.hpp>

#include <doctest/doctest.h>  // after LibTorch, whose own CHECK must not win

namespace blocks {

using namespace pawl;

/// Rows [30, 70] of two classes, in a task of their own.
inline Experience rows(std::int64_t index, torch::Dtype dtype) {
  std::int64_t const n = 30;
  auto x = torch::empty({n, 70}, dtype);
  fill_normal(x, 0, 1, Seed{3}.generator("x", index));
  auto const y = torch::arange(n, torch::kInt64) % 2;
  auto experience = make_experience(x + y.to(dtype).unsqueeze(1) / 4, y, {}, index);
  experience.train.tasks = torch::full({n}, index, torch::kInt64);
  return experience;
}

/// More weights than a block has; the first block ends within a layer.
inline nn::Sequential network(torch::Dtype dtype, bool heads) {
  auto const width = block_size() / 70 + 22;
  nn::Sequential net(nn::Linear(70, width), nn::ReLU());
  if (heads) {
    net->push_back(MultiHead(width, 2, 3));
  } else {
    net->push_back(nn::Linear(width, 6));
  }
  net->to(dtype);
  std::int64_t i = 0;
  for (auto& p : net->parameters()) fill_normal(p, 0, 0.05, Seed{7}.generator("net", i++));
  return net;
}

/// Does nothing, but might to all weights at once, so that no step goes by blocks.
struct AtOnce {
  static constexpr char const* name = "at_once";
  void after_step(Context& c) {
    CHECK(c.weights().numel() == c.arena.weights().numel());
    ++steps;
  }
  std::int64_t steps = 0;
};

/// Does nothing to every weight by itself, after the step: what others add to the gradient cannot
/// be added to the weights instead.
struct Follows {
  static constexpr char const* name = "follows";
  static constexpr bool elementwise = true;
  void after_step(Context&) {}
};

/// Sees the sizes of what it is called for.
struct InBlocks {
  static constexpr char const* name = "in_blocks";
  static constexpr bool elementwise = true;
  void edit_gradient(Context& c) {
    CHECK(c.weights().numel() == c.gradient().numel());
    CHECK(c.here(c.arena.weights()).is_alias_of(c.weights()));
    sizes.push_back(c.weights().numel());
  }
  std::vector<std::int64_t> sizes{};
};

/// What three experiences leave of weights, and of what strategies remember of them.
template <class Opt, class... S>
std::vector<Tensor> learned(nn::Sequential net, Opt optimizer, Training how, S... strategies) {
  auto const dtype = net->parameters().front().scalar_type();
  Learner learner{net, std::move(optimizer), std::move(strategies)...};
  how.batch_size = 7;
  for (std::int64_t e = 0; e < 3; ++e) learner.fit(rows(e, dtype), how);
  std::vector<Tensor> all{learner.context().weights().clone()};
  auto const add = [&](auto const& strategy) {
    if constexpr (requires { strategy.anchor; }) {
      all.push_back(strategy.anchor.importance), all.push_back(strategy.anchor.weights);
    }
  };
  (add(learner.template strategy<S>()), ...);
  return all;
}

inline void check_same(std::vector<Tensor> const& a, std::vector<Tensor> const& b) {
  REQUIRE(a.size() == b.size());
  for (std::size_t i = 0; i < a.size(); ++i) CHECK(a[i].equal(b[i]));
}

inline double distance(Tensor const& a, Tensor const& b) {
  return (a - b).abs().max().item<double>();
}

/// Compares steps by blocks with steps at once, to the last bit, and with the default; heads and
/// autograd included. `run(net, how, more...)` trains with some strategies more and tells what is
/// left of weights, first, and of what strategies remember.
template <class Run>
void compare_runs(Run&& run) {
  for (auto const dtype : {torch::kFloat32, torch::kFloat64}) {
    for (auto const heads : {false, true}) {
      for (auto const shards : {1, 2}) {
        CAPTURE(dtype);
        CAPTURE(heads);
        CAPTURE(shards);
        Training const how{.shards = shards};
        auto const at_once = run(network(dtype, heads), how, AtOnce{});
        check_same(run(network(dtype, heads), how, Follows{}), at_once);
        auto const fast = run(network(dtype, heads), how);
        auto const last_bits = dtype == torch::kFloat32 ? 1e-6 : 1e-14;
        CHECK(distance(fast.front(), at_once.front()) < last_bits);
        auto reference = how;
        reference.engine = Engine::reference;
        auto const slow = run(network(dtype, heads), reference);
        CHECK(distance(fast.front(), slow.front()) < last_bits);
      }
    }
  }
}

template <class Opt, class... S>
void compare(Opt const& optimizer, S const&... strategies) {
  compare_runs([&](nn::Sequential const& net, Training const& how, auto... more) {
    return learned(net, optimizer, how, strategies..., more...);
  });
}

}  // namespace blocks

// Steps that go over the weights in blocks: the same bits as going over all of them at once.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "messages.hpp"

#include <torch/nn/modules/activation.h>
#include <pawl/core/any_learner.hpp>
#include <pawl/heads/multi_head.hpp>
#include <pawl/strategies/ewc.hpp>
#include <pawl/strategies/mas.hpp>
#include <pawl/strategies/replay.hpp>
#include <pawl/strategies/si.hpp>

#include <doctest/doctest.h>  // after LibTorch, whose own CHECK must not win

using namespace pawl;

namespace {

/// Rows [30, 70] of two classes, in a task of their own.
Experience rows(std::int64_t index, torch::Dtype dtype) {
  std::int64_t const n = 30;
  auto x = torch::empty({n, 70}, dtype);
  fill_normal(x, 0, 1, Seed{3}.generator("x", index));
  auto const y = torch::arange(n, torch::kInt64) % 2;
  auto experience = make_experience(x + y.to(dtype).unsqueeze(1) / 4, y, {}, index);
  experience.train.tasks = torch::full({n}, index, torch::kInt64);
  return experience;
}

/// More weights than a block has; the first block ends within a layer.
nn::Sequential network(torch::Dtype dtype, bool heads) {
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

/// Adds a tenth of the weights to the gradient, and remembers whether it saw one.
struct Shrinks {
  static constexpr char const* name = "shrinks";
  static constexpr bool elementwise = true;
  static constexpr bool only_adds = true;
  void edit_gradient(Context& c) {
    if (c.gradient().count_nonzero().item<std::int64_t>() > 0) ++gradients;
    c.gradient().add_(c.weights(), 0.1);
  }
  std::int64_t gradients = 0;
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

void check_same(std::vector<Tensor> const& a, std::vector<Tensor> const& b) {
  REQUIRE(a.size() == b.size());
  for (std::size_t i = 0; i < a.size(); ++i) CHECK(a[i].equal(b[i]));
}

/// Compares steps by blocks with steps at once, to the last bit, and with the default; heads and
/// autograd included.
template <class Opt, class... S>
void compare(Opt const& optimizer, S const&... strategies) {
  for (auto const dtype : {torch::kFloat32, torch::kFloat64}) {
    for (auto const heads : {false, true}) {
      for (auto const shards : {1, 2}) {
        CAPTURE(dtype);
        CAPTURE(heads);
        CAPTURE(shards);
        Training const how{.shards = shards};
        auto const at_once =
            learned(network(dtype, heads), optimizer, how, strategies..., AtOnce{});
        check_same(learned(network(dtype, heads), optimizer, how, strategies..., Follows{}),
                   at_once);
        auto const fast = learned(network(dtype, heads), optimizer, how, strategies...);
        auto const last_bits = dtype == torch::kFloat32 ? 1e-6 : 1e-14;
        CHECK(fast.front().allclose(at_once.front(), 0, last_bits));
        auto reference = how;
        reference.engine = Engine::reference;
        auto const slow = learned(network(dtype, heads), optimizer, reference, strategies...);
        CHECK(fast.front().allclose(slow.front(), 0, last_bits));
      }
    }
  }
}

}  // namespace

TEST_CASE("elementwise hooks and the optimizer go over the weights block by block") {
  for (auto const dtype : {torch::kFloat32, torch::kFloat64}) {
    auto const whole = [&] {
      auto net = network(dtype, false);
      Arena const arena(*net);
      return arena.weights().clone();
    }();
    auto const size = block_size();
    REQUIRE(whole.numel() > size);
    Learner learner{network(dtype, false), Sgd{.lr = 0.1}, InBlocks{}};
    learner.fit(rows(0, dtype), {.batch_size = 10});
    std::vector<std::int64_t> expected;
    for (auto step = 0; step < 3; ++step) {
      auto left = whole.numel();
      for (; left > size; left -= size) expected.push_back(size);
      expected.push_back(left);
    }
    CHECK(learner.strategy<InBlocks>().sizes == expected);
  }
}

TEST_CASE("what looks at all weights gets them all") {
  std::vector<std::int64_t> const all(3, Arena(*network(torch::kFloat32, false)).weights().numel());
  auto const sizes = [](auto optimizer, Training how, auto... others) {
    Learner learner{network(torch::kFloat32, false), optimizer, InBlocks{}, others...};
    how.batch_size = 10;
    learner.fit(rows(0, torch::kFloat32), how);
    return learner.template strategy<InBlocks>().sizes;
  };
  CHECK(sizes(Sgd{}, {.engine = Engine::reference}) == all);
  CHECK(sizes(Sgd{}, {.clip_norm = 1}) == all);
  CHECK(sizes(Sgd{}, {}, AtOnce{}) == all);
  struct Own {  // an optimizer that knows nothing of blocks
    void step(Arena& arena) { sgd.step(arena); }
    void reset() {}
    void state(Archive&) {}
    double learning_rate() const { return sgd.lr; }
    Sgd sgd{};
  };
  CHECK(sizes(Own{}, {}) == all);
}

TEST_CASE("what strategies only add to a gradient is added to the weights without forming it") {
  auto const gradients = [](Training how, auto... others) {
    Learner learner{network(torch::kFloat32, false), Sgd{.lr = 0.1}, Shrinks{}, others...};
    how.batch_size = 10;
    learner.fit(rows(0, torch::kFloat32), how);
    return learner.template strategy<Shrinks>().gradients;
  };
  // Pawl's own products can do so, on one thread; two blocks are of the last step, whose gradient
  // remains.
  auto const own = products::uses_own_products();
  CHECK(gradients({}) == (own ? 2 : 6));
  CHECK(gradients({}, Replay{.memory = Reservoir{.capacity = 40}}) == (own ? 2 : 6));
  CHECK(gradients({}, Follows{}) == 6);
  CHECK(gradients({.engine = Engine::reference}) == 3);
  CHECK(gradients({.shards = 2}) == 6);
  compare(Sgd{.lr = 0.05}, Shrinks{});
  compare(Sgd{.lr = 0.05}, Shrinks{}, Replay{.memory = Reservoir{.capacity = 20}});
}

TEST_CASE("hooks that are not of weights are called once a step, after all blocks") {
  Learner learner{network(torch::kFloat32, false), Sgd{.lr = 0.05}, InBlocks{},
                  Replay{.memory = Reservoir{.capacity = 40}}};
  learner.fit(rows(0, torch::kFloat32), {.batch_size = 10});
  CHECK(learner.strategy<InBlocks>().sizes.size() > 3);
  CHECK(learner.strategy<Replay>().memory.size() == 30);
}

TEST_CASE("blocks change no bit of what EWC, MAS and SI learn") {
  Sgd const sgd{.lr = 0.05};
  compare(sgd, Ewc{.strength = 20});
  compare(sgd, Ewc{.strength = 1e6, .anchor = {.clip_step = true}});
  compare(sgd, Mas{.strength = 0.5});
  compare(sgd, Si{.strength = 1});
  compare(sgd, Si{.strength = 1, .gradient = Si::Gradient::total});
}

TEST_CASE("blocks change no bit of what several strategies learn together, with any optimizer") {
  compare(Sgd{.lr = 0.05, .momentum = 0.9, .weight_decay = 1e-3}, Si{.strength = 1},
          Ewc{.strength = 20});
  compare(Sgd{.lr = 0.05, .weight_decay = 1e-2}, Mas{.strength = 1},
          Replay{.memory = Reservoir{.capacity = 20}});
  compare(Adam{.lr = 0.002}, Ewc{.strength = 20}, Si{.strength = 1});
  compare(Adam{.lr = 0.002, .fused = true}, Si{.strength = 1});
  compare(AdamW{.lr = 0.002}, Si{.strength = 1});
}

TEST_CASE("the task gradient of the last step is there after training, of all weights") {
  Learner learner{network(torch::kFloat32, false), Sgd{.lr = 0.05}, Si{}};
  learner.fit(rows(0, torch::kFloat32), {.batch_size = 10});
  CHECK(learner.context().task_gradient.equal(learner.context().arena.gradient()));
}

TEST_CASE("strategies and an optimizer chosen at run time go by blocks too") {
  auto const dtype = torch::kFloat32;
  AnyLearner learner{Model(network(dtype, false)), AnyOptimizer(Sgd{.lr = 0.05}),
                     StrategyList({AnyStrategy(InBlocks{}), AnyStrategy(Si{.strength = 1})})};
  for (std::int64_t e = 0; e < 3; ++e) learner.fit(rows(e, dtype), {.batch_size = 7});
  auto const typed = learned(network(dtype, false), Sgd{.lr = 0.05}, {}, Si{.strength = 1});
  CHECK(learner.context().weights().equal(typed.front()));
}

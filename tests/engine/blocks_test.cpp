// Steps that go over the weights in blocks: the same bits as going over all of them at once.

#include <cstdint>
#include <vector>

#include "../core/blocks.hpp"
#include "../core/named.hpp"
#include "../core/rehearses.hpp"

#include <pawl/core/any_learner.hpp>

#include <doctest/doctest.h>  // after LibTorch, whose own CHECK must not win

using namespace pawl;
using namespace blocks;

namespace {

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

/// As `compare`, of strategies chosen at run time and of all their state.
void compare_any(AnyOptimizer const& optimizer, std::vector<AnyStrategy> const& strategies) {
  compare_runs([&](nn::Sequential const& net, Training how, auto... more) {
    auto all = strategies;
    (all.push_back(more), ...);
    auto learner = learner_of(net, optimizer, all);
    how.batch_size = 7;
    auto const dtype = net->parameters().front().scalar_type();
    for (std::int64_t e = 0; e < 3; ++e) learner.fit(rows(e, dtype), how);
    Archive state(Archive::Mode::save);
    learner.strategies().state(state);
    std::vector<Tensor> left{learner.context().weights().clone()};
    for (auto const& item : state.tensors) left.push_back(item.value());
    return left;
  });
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
  CHECK(gradients({}, Rehearses{.memory = Reservoir{.capacity = 40}}) == (own ? 2 : 6));
  CHECK(gradients({}, Follows{}) == 6);
  CHECK(gradients({.engine = Engine::reference}) == 3);
  CHECK(gradients({.shards = 2}) == 6);
  compare(Sgd{.lr = 0.05}, Shrinks{});
  compare(Sgd{.lr = 0.05}, Shrinks{}, Rehearses{.memory = Reservoir{.capacity = 20}});
}

TEST_CASE("hooks that are not of weights are called once a step, after all blocks") {
  Learner learner{network(torch::kFloat32, false), Sgd{.lr = 0.05}, InBlocks{},
                  Rehearses{.memory = Reservoir{.capacity = 40}}};
  learner.fit(rows(0, torch::kFloat32), {.batch_size = 10});
  CHECK(learner.strategy<InBlocks>().sizes.size() > 3);
  CHECK(learner.strategy<Rehearses>().memory.size() == 30);
}

TEST_CASE("blocks change no bit of what several strategies learn together") {
  compare_any(Sgd{.lr = 0.05, .weight_decay = 1e-2},
              {named("mas", {{"strength", "1"}}), named("replay", {{"capacity", "20"}})});
}

TEST_CASE("blocks change no bit of what SI and EWC learn together, with any optimizer") {
  auto const si = named("si", {{"strength", "1"}}), ewc = named("ewc", {{"strength", "20"}});
  compare_any(Sgd{.lr = 0.05, .momentum = 0.9, .weight_decay = 1e-3}, {si, ewc});
  compare_any(Adam{.lr = 0.002}, {ewc, si});
}

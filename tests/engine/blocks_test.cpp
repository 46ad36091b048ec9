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

/// A network whose products are no linear layers, so that autograd leaves their gradients where it
/// likes. Some sizes leave gaps in the arena, and one matrix is not used.
struct MatricesImpl : nn::Module {
  MatricesImpl() {
    std::int64_t i = 0;
    for (auto& p : parameters()) fill_normal(p, 0, 0.05, Seed{7}.generator("net", i++));
  }
  Tensor forward(Tensor const& x) {
    return ((x.mm(first) + shift).relu().mm(second).tanh().mm(odd) + last).narrow(1, 0, 6);
  }
  Tensor matrix(char const* name, at::IntArrayRef sizes) {
    return register_parameter(name, torch::zeros(sizes));
  }
  std::int64_t width = (block_size() / 70 / 16 + 2) * 16;
  Tensor first = matrix("first", {70, width}), shift = matrix("shift", {width});
  Tensor idle = matrix("idle", {90, 100}), second = matrix("second", {width, 18});
  Tensor odd = matrix("odd", {18, 601}), last = matrix("last", {601});
};
TORCH_MODULE(Matrices);

/// Adds to the gradient, and asks the arena for all of it in between.
struct Asks {
  static constexpr char const* name = "asks";
  static constexpr bool elementwise = true;
  void edit_gradient(Context& c) {
    c.gradient().add_(c.weights(), 0.01);
    if (c.step % 2 == 1) c.arena.gradient();
    c.gradient().add_(c.weights(), 0.1);
  }
};

}  // namespace

TEST_CASE("large gradients that autograd left elsewhere stay there") {
  Learner learner{Matrices(), Sgd{.lr = 0.05}, InBlocks{}};
  learner.fit(rows(0, torch::kFloat32), {.batch_size = 30});
  auto const& net = *learner.model();
  auto const size = block_size(), first = net.first.numel(), second = net.second.numel();
  REQUIRE(first % 16 == 0);
  REQUIRE(first > size);
  REQUIRE(second > size / 4);
  REQUIRE(net.odd.numel() > size / 4);
  CHECK(learner.strategy<InBlocks>().sizes ==
        std::vector<std::int64_t>{size, first - size, net.width + 9008, second, 10832 + 608});
  auto const gradient = net.first.grad(), odd = net.odd.grad();
  CHECK_FALSE(gradient.is_alias_of(learner.context().gradient()));
  CHECK(odd.is_alias_of(learner.context().gradient()));
  CHECK(net.first.grad().is_alias_of(learner.context().gradient()));
}

TEST_CASE("those change no bit, nor what is found in them afterwards") {
  auto const left = [](AnyOptimizer const& optimizer, auto... strategies) {
    Matrices net;
    auto learner = learner_of(net, optimizer, {AnyStrategy(strategies)...});
    for (std::int64_t e = 0; e < 3; ++e) learner.fit(rows(e, torch::kFloat32), {.batch_size = 7});
    Archive state(Archive::Mode::save);
    learner.strategies().state(state);
    std::vector<Tensor> found{learner.context().weights().clone()};
    for (auto const& item : state.tensors) found.push_back(item.value());
    for (auto const& p : net->parameters()) {
      if (p.grad().defined()) found.push_back(p.grad().clone());
    }
    found.push_back(learner.context().gradient().clone());
    return found;
  };
  auto const si = named("si", {{"strength", "1"}}), ewc = named("ewc", {{"strength", "20"}});
  for (auto const& optimizer :
       {AnyOptimizer(Sgd{.lr = 0.05}), AnyOptimizer(Sgd{.lr = 0.05, .momentum = 0.9}),
        AnyOptimizer(Adam{.lr = 0.002}), AnyOptimizer(AdamW{.lr = 0.002})}) {
    check_same(left(optimizer, si, ewc), left(optimizer, si, ewc, AtOnce{}));
    check_same(left(optimizer, Asks{}, ewc), left(optimizer, Asks{}, ewc, AtOnce{}));
  }
}

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
  // Pawl's own products can do so; two blocks are of the last step, whose gradient
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

// What strategies with a past have in common, by their names: replay, distillation, projections and
// class means.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "../core/named.hpp"
#include "toys.hpp"

#include <torch/nn/modules/activation.h>
#include <pawl/core/any_learner.hpp>

#include <doctest/doctest.h>  // after LibTorch, whose own CHECK must not win

using namespace pawl;
using namespace toys;

namespace {

/// Calls `f` with every strategy here, in each form of its forward pass.
template <class F>
void each_strategy(F&& f) {
  f("replay", named("replay", {{"capacity", "20"}}));
  f("replay one_over_t", named("replay", {{"weighting", "one_over_t"}}));
  f("replay sum", named("replay", {{"weighting", "sum"}}));
  f("lwf", named("lwf"));
  for (std::string const forward : {"joint", "separate"}) {
    f("der " + forward, named("der", {{"forward", forward}}));
    f("derpp " + forward, named("derpp", {{"forward", forward}}));
    f("derpp one draw " + forward, named("derpp", {{"forward", forward}, {"draws", "one"}}));
    f("er_ace " + forward, named("er_ace", {{"forward", forward}}));
  }
  f("a_gem", named("a_gem"));
  f("ncm", named("ncm"));
}

}  // namespace

// ---- equal to naive training ----

TEST_CASE("nothing to replay is naive training bit for bit") {
  auto const train = [](std::vector<AnyStrategy> const& strategies) {
    return trained(learner_of(network(), usual, strategies));
  };
  auto const naive = train({});
  CHECK(train({named("replay", {{"capacity", "0"}})}).equal(naive));
  CHECK(train({named("replay", {{"weighting", "fixed"}, {"new_weight", "1"}})}).equal(naive));
  CHECK(train({named("der", {{"alpha", "0"}})}).equal(naive));
  CHECK(train({named("derpp", {{"alpha", "0"}, {"beta", "0"}})}).equal(naive));
  CHECK(train({named("a_gem", {{"memory", "reservoir"}, {"capacity", "0"}})}).equal(naive));
  CHECK(train({named("ncm")}).equal(naive));
  CHECK_FALSE(train({named("replay")}).equal(naive));
  CHECK_FALSE(train({named("a_gem")}).equal(naive));
}

TEST_CASE("a stream of one experience is naive for every strategy that asks for the past") {
  auto const train = [](std::vector<AnyStrategy> const& strategies) {
    auto learner = learner_of(network(), Sgd{.lr = 0.1, .momentum = 0.9}, strategies);
    learner.fit(blobs(0, {0, 1, 2}), {.epochs = 2, .batch_size = 7});
    return learner.context().weights().clone();
  };
  auto const naive = train({});
  CHECK(train({named("replay", {{"exclude_current", "true"}})}).equal(naive));
  CHECK(train({named("replay", {{"insert", "at_end"}})}).equal(naive));
  CHECK(train({named("replay", {{"weighting", "one_over_t"}})}).equal(naive));
  CHECK(train({named("replay", {{"insert", "at_end"}, {"mix", "dataset"}})}).equal(naive));
  CHECK(train({named("er_ace", {{"from_second", "true"}})}).equal(naive));
  CHECK(train({named("a_gem")}).equal(naive));
  CHECK_FALSE(train({named("replay")}).equal(naive));
}

// ---- names of classes, and shards ----

TEST_CASE("property 49: permuted class ids with permuted head rows give permuted scores") {
  each_strategy([](std::string const& name, AnyStrategy const& strategy) {
    INFO("strategy: ", name);
    auto const order = torch::tensor({3, 0, 5, 1, 4, 2});  // the new id of each class
    auto const run = [&](bool renamed) {
      auto net = network();
      if (renamed) {
        torch::NoGradGuard no_grad;
        for (auto& p : {net->parameters()[2], net->parameters()[3]}) {
          p.copy_(p.clone().index_select(0, order.argsort()));
        }
      }
      auto learner = learner_of(net, Sgd{.lr = 0.1}, {strategy});
      for (std::int64_t e = 0; e < 3; ++e) {
        auto const rows = blobs(e, {2 * e, 2 * e + 1}).train.read(torch::arange(24));
        auto const y = renamed ? order.index_select(0, rows.y) : rows.y;
        learner.fit(make_experience(rows.stored, y, {}, e), {.batch_size = 8});
      }
      auto const x = blobs(0, {0, 1}).train.read(torch::arange(24)).stored;
      return learner.scores(x);
    };
    CHECK(distance(run(true).index_select(1, order), run(false)) < 1e-6);
  });
}

TEST_CASE("a step cut into three shards is the whole step to 1e-12, for every strategy here") {
  each_strategy([](std::string const& name, AnyStrategy const& strategy) {
    for (bool const heads : {false, true}) {
      if (heads && name == "ncm") continue;
      auto const run = [&](std::int64_t shards) {
        auto net = heads ? headed() : network();
        auto learner = learner_of(net, Sgd{.lr = 0.1}, {strategy});
        learner.fit(heads ? blobs(0, {0, 1}, 24, 0) : blobs(0, {0, 1}), {.batch_size = 8});
        learner.fit(heads ? blobs(1, {0, 1}, 23, 1) : blobs(1, {2, 3}, 23),
                    {.batch_size = 23, .shards = shards});
        return weights_of(net);
      };
      INFO("strategy: ", name, ", heads per task: ", heads);
      CHECK(distance(run(1), run(3)) < 1e-12);
    }
  });
}

// ---- separate forwards ----

TEST_CASE("without BatchNorm a separate forward is the joint one") {
  auto const check = [](std::string const& name, Settings const& options) {
    INFO("strategy: ", name);
    auto const train = [&](std::string const& forward) {
      auto const strategy = with(named(name, options), {{"forward", forward}});
      return trained(learner_of(network(), usual, {strategy}));
    };
    CHECK(distance(train("joint"), train("separate")) < 1e-12);
  };
  check("der", {});
  check("derpp", {});
  check("derpp", {{"draws", "one"}});
  check("er_ace", {});
}

TEST_CASE("with BatchNorm a separate forward shows fresh rows to themselves alone") {
  auto const record = [](std::vector<AnyStrategy> const& strategies) {
    auto net = normed();
    auto learner = learner_of(net, Sgd{.lr = 0}, strategies);
    Tensor logits;
    std::int64_t batches = 0;
    Watches step{[&](Context const& c) { logits = c.fresh_logits().clone(); }};
    learner.fit(blobs(0, {0, 1}), {.batch_size = 8, .shuffle = false}, step);
    batches = net->named_buffers()["1.num_batches_tracked"].item<std::int64_t>();
    return std::pair(logits, batches);
  };
  auto const naive = record({});
  CHECK(naive.second == 3);  // the memory is empty in the first of three steps
  auto const check = [&](AnyStrategy const& strategy, std::int64_t more) {
    auto const joint = record({with(strategy, {{"forward", "joint"}})});
    CHECK_FALSE(joint.first.equal(naive.first));
    CHECK(joint.second == 3);
    auto const separate = record({with(strategy, {{"forward", "separate"}})});
    CHECK(separate.first.equal(naive.first));
    CHECK(separate.second == 3 + 2 * more);
  };
  check(named("der"), 1);
  check(named("derpp"), 2);
  check(named("derpp", {{"draws", "one"}}), 1);
  check(named("er_ace"), 1);
}

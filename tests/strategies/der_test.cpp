// Dark replay: DER and DER++, with values worked out by hand.

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "../core/named.hpp"
#include "../core/rehearses.hpp"
#include "by_hand.hpp"
#include "toys.hpp"

#include <torch/nn/modules/activation.h>
#include <pawl/core/any_learner.hpp>
#include <pawl/heads/growing.hpp>
#include <pawl/memory/reservoir.hpp>
#include <pawl/strategies/der.hpp>

#include <doctest/doctest.h>  // after LibTorch, whose own CHECK must not win

using namespace pawl;
using namespace by_hand;
using namespace toys;

TEST_CASE(
    "dark replay: the error in stored logits by hand, over rows and logits of the whole step") {
  // z = (1, 0) against stored (0, 0), alpha .5: .5 (1 + 0) / 2 = .25; a second row without error
  // halves it.
  auto const w = torch::tensor({{1.0}, {0.0}}, float64);
  auto const x = torch::ones({2, 1}, float64);
  auto const value = [&](Tensor const& stored, std::int64_t n, std::int64_t shards) {
    Der der{
        Answers{rows_of(torch::ones({n, 1}, float64), torch::zeros({n}, torch::kInt64), stored)}};
    Learner learner{linear(w), Sgd{.lr = 0}, der};
    Recorder seen;
    learner.fit(make_experience(x, integers({0, 1})),
                {.batch_size = 2, .shards = shards, .shuffle = false}, seen);
    CHECK(seen.loss[0] ==
          doctest::Approx((std::log1p(std::exp(-1)) + std::log1p(std::exp(1))) / 2));
    return seen.penalty.at(0);
  };
  CHECK(value(torch::zeros({1, 2}, float64), 1, 1) == doctest::Approx(0.25).epsilon(1e-12));
  auto const one_right = torch::tensor({{0.0, 0.0}, {1.0, 0.0}}, float64);
  CHECK(value(one_right, 2, 1) == doctest::Approx(0.125).epsilon(1e-12));
  CHECK(value(one_right, 2, 2) == doctest::Approx(0.125).epsilon(1e-12));
  // Stored with one column only: one logit is compared for that row, and three in all.
  auto const narrow = torch::tensor({{0.0, std::nan("")}, {0.0, 0.0}}, float64);
  CHECK(value(narrow, 2, 1) == doctest::Approx(0.5 * 2 / 3).epsilon(1e-12));
  CHECK(value(torch::zeros({1, 1}, float64), 1, 1) == doctest::Approx(0.5).epsilon(1e-12));
  // Stored with more columns than the head has: those that both have.
  CHECK(value(torch::zeros({1, 5}, float64), 1, 1) == doctest::Approx(0.25).epsilon(1e-12));
}

TEST_CASE("DER++ adds the mean cross-entropy of its second draw, and is DER without it") {
  auto const w = torch::tensor({{1.0}, {0.0}}, float64);
  auto const held = rows_of(torch::full({1, 1}, logit_of(3), float64), integers({0}),
                            torch::tensor({{logit_of(3), 0.0}}, float64));
  DerPlusPlus derpp{Answers{held}};
  derpp.beta = 0.5;
  Learner learner{linear(w), Sgd{.lr = 0}, derpp};
  Recorder seen;
  learner.fit(make_experience(torch::full({2, 1}, logit_of(1), float64), integers({0, 0}), {0, 1}),
              {.batch_size = 2}, seen);
  CHECK(seen.loss[0] == doctest::Approx(1 + 0.5 * 3).epsilon(1e-9));
  CHECK(seen.penalty.at(0) == doctest::Approx(0).epsilon(1e-12));

  auto const train = [](AnyStrategy const& strategy) {
    auto trained = learner_of(network(4), Sgd{.lr = 0.1}, {strategy});
    for (std::int64_t e = 0; e < 2; ++e) {
      trained.fit(blobs(e, {2 * e, 2 * e + 1}, 40), {.epochs = 2, .batch_size = 8});
    }
    return trained.context().weights().clone();
  };
  auto const der = train(Der{Reservoir{.capacity = 20}});
  DerPlusPlus without{Reservoir{.capacity = 20}};
  without.beta = 0;
  CHECK(train(without).equal(der));
  Der off{Reservoir{.capacity = 20}};
  off.alpha = 0;
  auto const nothing = named("replay", {{"capacity", "0"}});
  CHECK(train(off).equal(train(nothing)));
}

TEST_CASE("DER++ without its first term is replay with another normaliser") {
  // CE_f + (m/B) CE_r = ((B + m)/B) L_ER, so the learning rate makes up for it.
  auto const past =
      rows_of(torch::ones({4, 4}, float64), integers({0, 1, 0, 1}), torch::zeros({4, 4}, float64));
  auto a = network(4), b = network(4);
  DerPlusPlus derpp{Answers{past}};
  derpp.alpha = 0;
  derpp.beta = 4.0 / 10;
  Learner dark{a, Sgd{.lr = 0.1 * 10 / 14}, derpp};
  Learner replay{b, Sgd{.lr = 0.1}, Rehearses{Answers{past}}};
  dark.fit(blobs(1, {2, 3}, 40), {.batch_size = 10});
  replay.fit(blobs(1, {2, 3}, 40), {.batch_size = 10});
  CHECK(weights_of(a).allclose(weights_of(b), 1e-6, 1e-9));
}

TEST_CASE("rows are stored with the logits of the training forward that saw them") {
  auto net = network(4);
  Learner learner{net, Sgd{.lr = 0}, Der{Reservoir{.capacity = 100}}};
  learner.fit(blobs(0, {0, 1}, 40), {.batch_size = 10, .shards = 3});
  auto const held = learner.strategy<Der>().memory.contents();
  CHECK(held.size() == 40);
  CHECK(held.logits.allclose(net->forward(held.stored).detach(), 1e-12));
}

TEST_CASE("without alpha the memory of DER still fills, logits included") {
  Learner learner{network(), Sgd{.lr = 0.1}, with(Der{}, {{"alpha", "0"}})};
  learner.fit(blobs(0, {0, 1}), {.batch_size = 8});
  auto const held = learner.strategy<Der>().memory.contents();
  CHECK(held.size() == 24);
  CHECK(held.logits.sizes() == std::vector<std::int64_t>{24, 6});
  CHECK(held.logits.isfinite().all().item<bool>());
}

TEST_CASE("right after insertion, without an update, the error in stored logits is 0") {
  Learner learner{network(), Sgd{.lr = 0}, Der{}};
  Recorder seen;
  learner.fit(blobs(0, {0, 1}), {.epochs = 2, .batch_size = 8}, seen);
  REQUIRE(seen.penalty.size() == 5);
  for (auto const value : seen.penalty) CHECK(value < 1e-25);
}

TEST_CASE("one draw serves logits and labels, two are independent") {
  for (bool const one : {true, false}) {
    Learner learner{network(), Sgd{.lr = 0.1},
                    with(DerPlusPlus{}, {{"batch", "5"}, {"draws", one ? "one" : "two"}})};
    std::int64_t different = 0;
    Watches draws{[&](Context const& c) {
      auto const& s = learner.strategy<DerPlusPlus>();
      if (c.index == 0 && c.step == 1) return;  // the memory was empty
      CHECK(s.dark.drawn.size() == 5);
      CHECK(s.labelled.size() == (one ? 0 : 5));
      CHECK(c.step_rows == c.fresh.size() + (one ? 5 : 10));
      if (!one) different += !s.labelled.id.equal(s.dark.drawn.id);
    }};
    learner.fit(blobs(0, {0, 1}), {.batch_size = 8}, draws);
    learner.fit(blobs(1, {2, 3}), {.batch_size = 8}, draws);
    CHECK(different == (one ? 0 : 5));
  }
}

TEST_CASE("DER++ without beta is DER bit for bit, in both forms of the forward pass") {
  for (std::string const forward : {"joint", "separate"}) {
    auto const der = trained(Learner{normed(), usual, with(Der{}, {{"forward", forward}})});
    auto const run = [](DerPlusPlus const& strategy) {
      return trained(Learner{normed(), usual, strategy});
    };
    auto const derpp = with(DerPlusPlus{}, {{"forward", forward}});
    CHECK(run(with(derpp, {{"beta", "0"}})).equal(der));
    CHECK(run(with(derpp, {{"beta", "0"}, {"draws", "one"}})).equal(der));
    CHECK_FALSE(run(derpp).equal(der));
  }
}

TEST_CASE("the draws of DER++ pass one after the other: BatchNorm sees x, x' and x''") {
  auto net = normed(), by_hand = normed();
  Learner learner{net, Sgd{.lr = 0}, with(DerPlusPlus{}, {{"forward", "separate"}})};
  Watches steps{[&](Context const& c) {
    auto const& s = learner.strategy<DerPlusPlus>();
    by_hand->forward(c.fresh.stored);
    if (s.dark.drawn.size() == 0) return;
    by_hand->forward(s.dark.drawn.stored);
    by_hand->forward(s.labelled.stored);
  }};
  learner.fit(blobs(0, {0, 1}), {.batch_size = 8}, steps);
  for (std::size_t i = 0; i < net->buffers().size(); ++i) {
    CHECK(net->buffers()[i].equal(by_hand->buffers()[i]));
  }
}

TEST_CASE("with a growing head only the logits that a row was stored with are compared") {
  auto net = filled(nn::Sequential(nn::Linear(4, 8), nn::Tanh(), GrowingHead(8, 2, Seed{4})));
  Learner learner{net, Sgd{.lr = 0.1}, Der{Reservoir{.capacity = 100}}};
  learner.fit(blobs(0, {0, 1}), {.batch_size = 8});
  Tensor logits;  // of the whole batch, before the update
  Watches errors{[&](Context const& c) {
    auto const& part = *c.batch.part(&learner.strategy<Der>());
    auto const z = c.logits.detach().narrow(0, part.begin, part.size);
    double sum = 0, compared = 0;
    for (std::int64_t i = 0; i < part.size; ++i) {
      auto const columns = part.rows.labels[i].item<std::int64_t>() < 2 ? 2 : 4;
      auto const stored = part.rows.logits[i].narrow(0, 0, columns);
      CHECK(stored.isfinite().all().item<bool>());
      sum += (z[i].narrow(0, 0, columns) - stored).square().sum().item<double>();
      compared += columns;
    }
    CHECK(c.penalties.at(0).second.item<double>() ==
          doctest::Approx(0.5 * sum / compared).epsilon(1e-12));
  }};
  learner.fit(blobs(1, {2, 3}), {.epochs = 2, .batch_size = 8}, errors);
  auto const held = learner.strategy<Der>().memory.contents();
  CHECK(held.logits.size(1) == 4);
  CHECK(held.logits.isnan().sum().item<std::int64_t>() == 24 * 2);
  CHECK(net->parameters().back().isfinite().all().item<bool>());
}

TEST_CASE("with several passes the logits of the first are stored, also over a kill and a resume") {
  auto const path = std::filesystem::temp_directory_path() / "pawl_der_passes.safetensors";
  auto const train = [&](bool resumed) {
    auto net = network();
    Learner learner{net, Sgd{.lr = 0.1}, Der{}};
    std::vector<Tensor> first;
    Watches steps{[&](Context const& c) {
      if (c.pass == 0) first.push_back(c.fresh_logits().clone());
      if (!resumed && c.step == 3) learner.save(path);  // between two passes on the second batch
    }};
    if (resumed) learner.load(path);
    learner.fit(blobs(0, {0, 1}), {.batch_size = 8, .passes = 2, .shuffle = false}, steps);
    auto const held = learner.strategy<Der>().memory.contents();
    if (!resumed) {
      CHECK(held.logits.equal(torch::cat(first)));
    }
    return torch::cat({weights_of(net), held.logits.flatten()});
  };
  auto const whole = train(false);
  CHECK(train(true).equal(whole));
  std::filesystem::remove(path);
}

TEST_CASE("what is kept between passes follows the model to another precision") {
  auto net = network();
  Learner learner{net, Sgd{.lr = 0.1}, Der{}};
  std::int64_t kept = 0;
  Watches steps{[&](Context const& c) {
    if (c.pass == 0) kept += learner.strategy<Der>().dark.first_pass.equal(c.fresh_logits());
  }};
  for (auto const type : {torch::kFloat32, torch::kFloat64}) {
    net->to(type);
    learner.fit(blobs(0, {0, 1}), {.batch_size = 8, .passes = 2}, steps);
  }
  CHECK(kept == learner.context().total_steps / 2);
}

TEST_CASE("a user's memory whose rows have no logits is refused in a sentence") {
  struct Dull {
    void insert(Rows const&, Generator) {}
    Rows draw(std::int64_t, Generator) {
      return rows_of(torch::ones({2, 4}, float64), integers({0, 1}));
    }
    bool empty() const { return false; }
  };
  Learner learner{network(), Sgd{}, Der{Dull{}}};
  CHECK_THROWS_WITH_AS(learner.fit(blobs(0, {0, 1}), {.batch_size = 8}),
                       doctest::Contains("rows without logits"), Error);
}

// ---- beside other strategies ----

TEST_CASE("rows of DER leave the weights of supervised rows alone, in either order") {
  auto const losses = [](std::vector<AnyStrategy> const& strategies) {
    auto learner = learner_of(network(), Sgd{.lr = 0}, strategies);
    Recorder seen;
    learner.fit(blobs(1, {0, 1}), {.batch_size = 8}, seen);
    return seen.loss;
  };
  for (std::string const weighting : {"joint", "fixed", "one_over_t", "sum"}) {
    INFO("weighting: ", weighting);
    auto const replay = named("replay", {{"weighting", weighting}, {"new_weight", "0.2"}});
    auto const alone = losses({replay}), before = losses({Der{}, replay}),
               after = losses({replay, Der{}});
    for (std::size_t i = 0; i < alone.size(); ++i) {
      CHECK(before[i] == doctest::Approx(alone[i]).epsilon(1e-12));
      CHECK(after[i] == doctest::Approx(alone[i]).epsilon(1e-12));
    }
  }
}

TEST_CASE("a draw with fewer rows than shards still adds up, beside another penalty") {
  for (std::string const forward : {"joint", "separate"}) {
    auto const run = [&](std::int64_t shards) {
      auto learner =
          learner_of(network(), Sgd{.lr = 0.1},
                     {with(DerPlusPlus{}, {{"batch", "1"}, {"forward", forward}}), named("lwf")});
      learner.fit(blobs(0, {0, 1}), {.batch_size = 8});
      std::vector<std::pair<std::string, double>> values;
      Watches step{[&](Context const& c) {
        for (auto const& p : c.penalties) values.emplace_back(p.first, p.second.item<double>());
      }};
      learner.fit(blobs(1, {2, 3}), {.iterations = 1, .batch_size = 9, .shards = shards}, step);
      return values;
    };
    auto const whole = run(1), cut = run(3);
    REQUIRE(whole.size() == 2);
    REQUIRE(cut.size() == 2);
    for (std::size_t i = 0; i < 2; ++i) {
      CHECK(whole[i].first == cut[i].first);
      CHECK(whole[i].second == doctest::Approx(cut[i].second).epsilon(1e-12));
    }
  }
}

TEST_CASE("under active = batch the classes of a draw that passes apart compete, shards or not") {
  auto const losses = [](Forward forward, std::int64_t shards) {
    Learner learner{
        network(), Sgd{.lr = 0.05},
        DerPlusPlus{.memory = Reservoir{.capacity = 30}, .batch = 4, .forward = forward}};
    Recorder seen;
    for (std::int64_t e = 0; e < 3; ++e) {
      learner.fit(blobs(e, {2 * e, 2 * e + 1}),
                  {.batch_size = 6, .shards = shards, .active = Active::batch}, seen);
    }
    return seen.loss;
  };
  auto const joint = losses(Forward::joint, 1);
  for (std::int64_t const shards : {1, 2}) {
    auto const apart = losses(Forward::separate, shards);
    REQUIRE(apart.size() == joint.size());
    for (std::size_t i = 0; i < joint.size(); ++i) {
      CHECK(apart[i] == doctest::Approx(joint[i]).epsilon(1e-10));
    }
  }
}

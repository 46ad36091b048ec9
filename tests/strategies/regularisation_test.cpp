// The quadratic anchor, and EWC and MAS in a learner. SI is in si_test.cpp.

#include <cmath>
#include <cstdint>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "anchored.hpp"

#include <torch/nn/modules/activation.h>
#include <pawl/core/learner.hpp>
#include <pawl/heads/growing.hpp>
#include <pawl/strategies/ewc.hpp>
#include <pawl/strategies/mas.hpp>

#include <doctest/doctest.h>  // after LibTorch, whose own CHECK must not win

using namespace pawl;
using namespace anchored;

namespace {

/// A context over a weight vector of n values, outside of any training.
struct Bare {
  explicit Bare(std::vector<double> const& w) {
    auto const n = static_cast<std::int64_t>(w.size());
    nn::Linear layer(nn::LinearOptions(n, 1).bias(false));
    layer->to(torch::kFloat64);
    context.model = Model(nn::Sequential(layer));
    context.arena.bind(*context.model.module);
    context.learning_rate = 0.01;
    context.arena.clear_gradients();
    move(w);
  }
  void move(std::vector<double> const& w) { part(context.weights()).copy_(values(w)); }

  /// The part of a flat tensor that is not padding.
  Tensor part(Tensor const& flat) const {
    return flat.narrow(0, 0, context.arena.layout()[0].size);
  }
  Tensor flat(std::vector<double> const& v) const {
    auto const all = torch::zeros_like(context.weights());
    part(all).copy_(values(v));
    return all;
  }
  Tensor gradient() {
    context.arena.clear_gradients();
    return part(context.gradient());
  }

  Context context;
};

}  // namespace

// ---- the quadratic anchor ----

TEST_CASE("the anchor's value and gradient are those computed by hand") {
  Bare bare({0, 0});
  QuadraticAnchor anchor;
  anchor.move(bare.context, bare.flat({.25, 1}), "test");
  bare.move({2, -1});
  CHECK(anchor.value(bare.context, 4).item<double>() == doctest::Approx(4));
  auto const g = bare.gradient();
  anchor.pull(bare.context, 4);
  CHECK(close(g, values({2, -4})));
}

TEST_CASE("the closed-form gradient is that of the value") {
  Bare bare({.3, -.2, 1.4, 0});
  QuadraticAnchor anchor;
  anchor.move(bare.context, bare.flat({.5, 2, 0, 1}), "test");
  bare.move({-1, .4, 1, .7});
  anchor.add(bare.context, bare.flat({1, 0, 0, 3}), "test");
  bare.move({.1, .2, .3, .4});
  auto const g = bare.gradient();
  anchor.pull(bare.context, 7);
  auto const eps = 1e-5;
  for (std::int64_t i = 0; i < 4; ++i) {
    auto const w = bare.part(bare.context.weights())[i];
    auto const here = w.clone();
    w.copy_(here + eps);
    auto const up = anchor.value(bare.context, 7).item<double>();
    w.copy_(here - eps);
    auto const down = anchor.value(bare.context, 7).item<double>();
    w.copy_(here);
    CHECK(element(g, i) == doctest::Approx((up - down) / (2 * eps)).epsilon(1e-6));
  }
}

TEST_CASE("without an anchor, or with strength 0, not even the gradient is asked for") {
  Bare bare({1, 2});
  QuadraticAnchor anchor;
  anchor.pull(bare.context, 5);
  CHECK(anchor.value(bare.context, 5).item<double>() == 0);
  anchor.move(bare.context, bare.flat({1, 1}), "test");
  bare.move({3, 3});
  anchor.pull(bare.context, 0);
  CHECK(anchor.value(bare.context, 0).item<double>() == 0);
  CHECK_FALSE(bare.context.arena.packed());
}

TEST_CASE("two pulls are one to the mean weighted by importance, plus a constant") {
  Bare bare({0});
  QuadraticAnchor anchor;
  anchor.move(bare.context, bare.flat({2}), "test");
  bare.move({1});
  anchor.add(bare.context, bare.flat({3}), "test");
  auto const value = [&](double th) {
    bare.move({th});
    return anchor.value(bare.context, 2).item<double>();
  };
  CHECK(value(.6) == doctest::Approx(1.2).epsilon(1e-12));
  CHECK(value(-.4) == doctest::Approx(5 + 1.2).epsilon(1e-12));
  CHECK(value(1.6) == doctest::Approx(5 + 1.2).epsilon(1e-12));
}

TEST_CASE("many pulls have the value and the gradient of their definition") {
  std::vector<Tensor> importances, anchors;
  Bare bare(std::vector<double>(16, 0.0));
  QuadraticAnchor anchor;
  auto& c = bare.context;
  for (std::int64_t k = 0; k < 5; ++k) {
    anchors.push_back(draws({16}, 10 * k));
    importances.push_back(draws({16}, 10 * k + 1).square());
    importances.back()[k] = 0;  // also where one of them does not care
    importances.back()[7] = 0;  // and where none does
    c.weights().copy_(anchors.back());
    anchor.add(c, importances.back(), "test");
  }
  c.weights().copy_(draws({16}, 100));
  auto value = torch::zeros({}, torch::kFloat64), gradient = torch::zeros({16}, torch::kFloat64);
  for (std::size_t k = 0; k < anchors.size(); ++k) {
    auto const way = c.weights() - anchors[k];
    value += 3.0 / 2 * (importances[k] * way.square()).sum();
    gradient += 3 * importances[k] * way;
  }
  auto const g = bare.gradient();
  anchor.pull(c, 3);
  CHECK(close(anchor.value(c, 3), value, 1e-9));
  CHECK(close(g, gradient, 1e-9));
}

TEST_CASE("a step that overshoots the anchor is noticed, or clipped") {
  Bare bare({0, 0});
  auto& c = bare.context;
  c.learning_rate = 0.1;
  QuadraticAnchor calm, wild, clipped{.clip_step = true};
  calm.move(c, bare.flat({.9, .1}), "test");
  for (auto* anchor : {&wild, &clipped}) anchor->move(c, bare.flat({3, .1}), "test");
  bare.move({1, 1});
  calm.pull(c, 10);
  CHECK_FALSE(calm.overshoots);
  auto g = bare.gradient();
  wild.pull(c, 10);
  CHECK(wild.overshoots);
  CHECK(close(g, values({30, 1})));
  g = bare.gradient();
  clipped.pull(c, 10);
  CHECK_FALSE(clipped.overshoots);
  CHECK(close(g, values({10, 1})));  // a step of .1 g lands on the anchor
  CHECK(clipped.value(c, 10).item<double>() == doctest::Approx(5 * (1 + .1)));
}

TEST_CASE("an importance that is not finite is refused at the end of the experience") {
  Bare bare({0, 0});
  bare.context.index = 3;
  QuadraticAnchor anchor;
  for (double const bad : {std::nan(""), HUGE_VAL}) {
    CHECK_THROWS_WITH_AS(anchor.move(bare.context, bare.flat({1, bad}), "ewc"),
                         doctest::Contains("ewc: the importance after experience 3 is not finite"),
                         Error);
  }
  CHECK_FALSE(anchor.importance.defined());
}

TEST_CASE("norms and heads can be left out") {
  auto const importance = [](Model const& net, QuadraticAnchor anchor) {
    Context c;
    c.model = net;
    c.arena.bind(*net.module);
    anchor.move(c, torch::ones_like(c.weights()), "test");
    std::set<std::string> anchored;
    for (std::size_t i = 0; i < c.arena.layout().size(); ++i) {
      auto const part = c.arena.parameter_view(anchor.importance, i);
      CHECK(part.min().item<double>() == part.max().item<double>());
      if (part.max().item<double>() > 0) anchored.insert(c.arena.layout()[i].name);
    }
    return anchored;
  };
  using Names = std::set<std::string>;
  Model const plain = nn::Sequential(nn::Linear(2, 3), nn::BatchNorm1d(3), nn::Linear(3, 3),
                                     nn::Tanh(), nn::Linear(3, 2));
  CHECK(importance(plain, {}).size() == 8);
  CHECK(importance(plain, {.include_norm = false}) ==
        Names{"0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"});
  CHECK(importance(plain, {.include_head = false}) ==
        Names{"0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"});
  Model const headed = nn::Sequential(nn::Linear(2, 3), nn::Linear(3, 4), GrowingHead(4, 2));
  CHECK(importance(headed, {.include_head = false}) ==
        Names{"0.weight", "0.bias", "1.weight", "1.bias"});
}

// ---- what EWC and MAS have in common ----

TEST_CASE("experience 0, and any experience at strength 0, are naive bit for bit") {
  auto const first = trained(1, perceptron(), .1);
  CHECK(first.equal(trained(1, perceptron(), .1, Ewc{.strength = 1e6})));
  CHECK(first.equal(trained(1, perceptron(), .1, Mas{.strength = 1e6})));
  auto const all = trained(3, perceptron(), .1);
  CHECK(all.equal(trained(3, perceptron(), .1, Ewc{.strength = 0})));
  CHECK(all.equal(trained(3, perceptron(), .1, Mas{.strength = 0})));
}

TEST_CASE("the penalty is 0 in experience 0 and positive after one step of experience 1") {
  check_first_penalties(Ewc{.strength = 10});
  check_first_penalties(Ewc{.strength = 10, .mode = Ewc::Mode::separate});
  check_first_penalties(Mas{.strength = 10});
}

TEST_CASE("an overwhelming strength freezes what is important") {
  CHECK(frozen(Ewc{.strength = 0}) > .1);
  CHECK(frozen(Ewc{.strength = 1e12, .anchor = {.clip_step = true}}) <
        .03);  // one step's task gradient
  CHECK(frozen(Mas{.strength = 1e12, .anchor = {.clip_step = true}}) < .03);
}

TEST_CASE("listed twice with half the strength is once with the whole") {
  check_twice(Ewc{.strength = 10}, Ewc{.strength = 20});
  check_twice(Ewc{.strength = 10, .mode = Ewc::Mode::separate},
              Ewc{.strength = 20, .mode = Ewc::Mode::separate});
  check_twice(Mas{.strength = .1}, Mas{.strength = .2});
}

TEST_CASE("rows that a head gains have no importance") {
  check_gained_rows(Ewc{.strength = 1});
  check_gained_rows(Ewc{.strength = 1, .mode = Ewc::Mode::separate});
  check_gained_rows(Mas{.strength = 1});
}

TEST_CASE("heads of other tasks get no importance and are not moved") {
  check_other_heads(Ewc{});
  check_other_heads(Mas{});
}

TEST_CASE("`end` leaves buffers, gradients, modes and generators as found") {
  check_end(Ewc{});
  check_end(Ewc{.fisher = {.labels = FisherLabels::batch}});
  check_end(Mas{});
}

TEST_CASE("options have names of their own, and go round") {
  check_options(Ewc{});
  check_options(Mas{});
}

// ---- EWC ----

TEST_CASE("online EWC decays the running Fisher, and the penalty too where asked") {
  auto const run = [](Ewc ewc) {
    Learner learner{perceptron(), Sgd{.lr = 0}, ewc};  // weights stand still: every Fisher is known
    learner.fit(blobs(0), {.batch_size = 10});
    auto const f0 = learner.strategy<Ewc>().anchor.importance.clone();
    learner.fit(blobs(1), {.batch_size = 10});
    auto const f1 = fisher(learner.context().model, learner.context().arena, blobs(1).train, {});
    auto const& running = learner.strategy<Ewc>().anchor.importance;
    CHECK(close(running, ewc.decay * f0 + f1));
    CHECK(close(f0, fisher(learner.context().model, learner.context().arena, blobs(0).train, {})));
    learner.context().weights().add_(.5);  // the padding too, where the importance is 0
    auto const factor = ewc.decay_penalty ? ewc.decay : 1;
    auto const value = learner.strategy<Ewc>().penalty_value(learner.context());
    CHECK(close(value, factor * 3 * .125 * running.sum()));
  };
  run(Ewc{.strength = 3});
  run(Ewc{.strength = 3, .decay = .25});
  run(Ewc{.strength = 3, .decay = .25, .decay_penalty = true});
}

TEST_CASE(
    "separate EWC is online EWC with one past experience, and with more where nothing moved") {
  auto const separate = Ewc{.strength = 20, .mode = Ewc::Mode::separate};
  auto const online = Ewc{.strength = 20};
  CHECK(trained(2, perceptron(), .02, online).equal(trained(2, perceptron(), .02, separate)));
  CHECK_FALSE(
      close(trained(3, perceptron(), .02, online), trained(3, perceptron(), .02, separate), 1e-6));
  auto const penalty = [](Ewc ewc) {
    Learner learner{perceptron(), Sgd{.lr = 0}, ewc};
    for (std::int64_t e = 0; e < 3; ++e) learner.fit(blobs(e), {.batch_size = 10});
    learner.context().weights().add_(.3);
    return learner.strategy<Ewc>().penalty_value(learner.context());
  };
  CHECK(close(penalty(online), penalty(separate), 1e-9));
}

TEST_CASE("separate EWC pulls to every past experience, in a state of constant size") {
  Learner learner{perceptron(), Sgd{.lr = .02}, Ewc{.strength = 20, .mode = Ewc::Mode::separate}};
  auto& c = learner.context();
  std::vector<Tensor> importances, anchors;
  std::set<std::int64_t> bytes;
  for (std::int64_t e = 0; e < 4; ++e) {
    learner.fit(blobs(e), {.batch_size = 10});
    importances.push_back(fisher(c.model, c.arena, blobs(e).train, {}));
    anchors.push_back(c.weights().clone());
    bytes.insert(learner.state_bytes());
  }
  CHECK(bytes.size() == 1);
  c.weights().add_(draws({c.weights().numel()}, 50));
  auto value = torch::zeros({}, torch::kFloat64);
  for (std::size_t k = 0; k < 4; ++k) {
    value += 10 * (importances[k] * (c.weights() - anchors[k]).square()).sum();
  }
  CHECK(value.item<double>() > 1);
  CHECK(close(learner.strategy<Ewc>().penalty_value(c), value, 1e-9));
}

TEST_CASE("on data whose axes are permuted, EWC forgets less and learns less the stronger it is") {
  auto const run = [](double strength) {  // accuracy on experience 0 and 1, after both
    auto net = perceptron();
    Learner learner{net, Sgd{.lr = .05}, Ewc{.strength = strength, .anchor = {.clip_step = true}}};
    auto one = blobs(0), two = blobs(1);
    // Experience 1 says the opposite along the axis of experience 0, so it cannot be learned for
    // free.
    two = make_experience(
        -one.train.read(torch::arange(60)).stored + .5 * two.train.read(torch::arange(60)).stored,
        two.train.labels, {0, 1}, 1);
    learner.fit(one, {.epochs = 10, .batch_size = 10});
    learner.fit(two, {.epochs = 10, .batch_size = 10});
    auto const accuracy = [&](Experience const& e) {
      auto const rows = e.train.read(torch::arange(60));
      return learner.predict(rows.stored).eq(rows.y).to(torch::kFloat64).mean().item<double>();
    };
    return std::pair{accuracy(one), accuracy(two)};
  };
  auto const naive = run(0), strong = run(30), frozen = run(1e5);
  CHECK(naive.first <= strong.first);
  CHECK(strong.first <= frozen.first);
  CHECK(naive.first < frozen.first - .3);
  CHECK(naive.second >= strong.second);
  CHECK(strong.second >= frozen.second);
  CHECK(naive.second > frozen.second + .3);
}

TEST_CASE("the Fisher of a learner sees the outputs that its loss sees") {
  auto net = seeded(nn::Sequential(nn::Linear(6, 5)));
  auto const e = blobs(0);
  for (auto const active : {Active::seen, Active::current, Active::batch, Active::all}) {
    Learner learner{net, Sgd{.lr = 0}, Ewc{}, Mas{}};
    learner.fit(e, {.batch_size = 10, .active = active});
    for (auto const& omega :
         {learner.strategy<Ewc>().anchor.importance, learner.strategy<Mas>().anchor.importance}) {
      auto const rows = learner.context().arena.parameter_view(omega, 0).sum(1);
      CHECK(element(rows, 0) > 0);
      CHECK(element(rows, 1) > 0);
      CHECK((element(rows, 4) > 0) == (active == Active::all));
    }
  }
}

// ---- MAS ----

TEST_CASE("MAS adds importances up, averages them, or forgets slowly") {
  auto const omega = [](Mas mas) {
    Learner learner{perceptron(), Sgd{.lr = 0}, mas};
    for (std::int64_t e = 0; e < 3; ++e) learner.fit(blobs(e), {.batch_size = 10});
    return learner.strategy<Mas>().anchor.importance.clone();
  };
  Model const net = perceptron();
  Arena const arena(*net.module);
  std::vector<Tensor> each;
  for (std::int64_t e = 0; e < 3; ++e) each.push_back(sensitivity(net, arena, blobs(e).train, {}));
  CHECK(close(omega({}), each[0] + each[1] + each[2]));
  CHECK(close(omega({.accumulate = Mas::Accumulate::mean}), (each[0] + each[1] + each[2]) / 3));
  CHECK(close(omega({.accumulate = Mas::Accumulate::ema, .decay = .25}),
              .25 * (.25 * each[0] + .75 * each[1]) + .75 * each[2]));
}

TEST_CASE("MAS needs no labels") {
  auto const omega = [](bool shuffled) {
    Learner learner{perceptron(), Sgd{.lr = 0}, Mas{}};
    auto e = blobs(0);
    if (shuffled) e.train.labels = e.train.labels.flip(0);
    learner.fit(e, {.batch_size = 10});
    return learner.strategy<Mas>().anchor.importance.clone();
  };
  CHECK(omega(false).equal(omega(true)));
}

// EWC in a learner: whose Fisher pulls where, and what it has in common with MAS and SI.

#include <cstdint>
#include <set>
#include <utility>
#include <vector>

#include "../core/blocks.hpp"
#include "anchored.hpp"
#include "toys.hpp"

#include <torch/nn/modules/activation.h>
#include <pawl/core/learner.hpp>
#include <pawl/strategies/ewc.hpp>

#include <doctest/doctest.h>  // after LibTorch, whose own CHECK must not win

using namespace pawl;
using namespace anchored;

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

// ---- what EWC has in common with MAS and SI ----

TEST_CASE("EWC is naive bit for bit in experience 0, and in any experience at strength 0") {
  auto const first = trained(1, perceptron(), .1);
  CHECK(first.equal(trained(1, perceptron(), .1, Ewc{.strength = 1e6})));
  auto const all = trained(3, perceptron(), .1);
  CHECK(all.equal(trained(3, perceptron(), .1, Ewc{.strength = 0})));
}

TEST_CASE("the penalty of EWC is 0 in experience 0 and positive after one step of experience 1") {
  check_first_penalties(Ewc{.strength = 10});
  check_first_penalties(Ewc{.strength = 10, .mode = Ewc::Mode::separate});
}

TEST_CASE("an overwhelming strength of EWC freezes what is important") {
  CHECK(frozen(Ewc{.strength = 0}) > .1);
  CHECK(frozen(Ewc{.strength = 1e12, .anchor = {.clip_step = true}}) <
        .03);  // one step's task gradient
}

TEST_CASE("EWC listed twice with half the strength is once with the whole") {
  check_twice(Ewc{.strength = 10}, Ewc{.strength = 20});
  check_twice(Ewc{.strength = 10, .mode = Ewc::Mode::separate},
              Ewc{.strength = 20, .mode = Ewc::Mode::separate});
}

TEST_CASE("rows that a head gains have no importance to EWC") {
  check_gained_rows(Ewc{.strength = 1});
  check_gained_rows(Ewc{.strength = 1, .mode = Ewc::Mode::separate});
}

TEST_CASE("heads of other tasks get no importance from EWC and are not moved") {
  check_other_heads(Ewc{});
}

TEST_CASE("the Fisher of a learner sees the outputs that its loss sees") {
  check_active_outputs(Ewc{});
}

TEST_CASE("`end` of EWC leaves buffers, gradients, modes and generators as found") {
  check_end(Ewc{});
  check_end(Ewc{.fisher = {.labels = FisherLabels::batch}});
}

TEST_CASE("options of EWC have names of their own, and go round") { check_options(Ewc{}); }

TEST_CASE("blocks change no bit of what EWC learns") {
  Sgd const sgd{.lr = 0.05};
  blocks::compare(sgd, Ewc{.strength = 20});
  blocks::compare(sgd, Ewc{.strength = 1e6, .anchor = {.clip_step = true}});
}

TEST_CASE(
    "a head off its anchor is pulled back though no row has its task, others are left alone") {
  for (double const nudge : {0.0, 0.1}) {
    auto net = toys::headed();
    Learner learner{net, Sgd{.lr = 0.01, .weight_decay = 0.1}, Ewc{.strength = 5}};
    learner.fit(toys::blobs(0, {0, 1}, 24, 0), {.epochs = 3, .batch_size = 8});
    auto const& arena = learner.context().arena;
    std::size_t head = 0;
    while (arena.layout()[head].name.find("weight0") == std::string::npos) ++head;
    auto const weights = arena.parameters()[head].detach();
    weights.add_(nudge);
    auto const before = weights.clone();
    auto const& anchor = learner.strategy<Ewc>().anchor;
    auto const omega = arena.parameter_view(anchor.importance, head).clone();
    auto const home = arena.parameter_view(anchor.weights, head).clone();
    CHECK(omega.sum().item<double>() > 0);
    learner.fit(toys::blobs(1, {0, 1}, 8, 1), {.batch_size = 8});
    auto const gradient = 5 * omega * (before - home) + 0.1 * before;
    auto const wanted = nudge == 0 ? before : before - 0.01 * gradient;
    CHECK(toys::distance(weights, wanted) < 1e-14);
    CHECK(weights.equal(before) == (nudge == 0));
  }
}

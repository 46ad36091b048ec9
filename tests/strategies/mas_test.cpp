// MAS in a learner: how importances add up, and what it has in common with EWC and SI.

#include <cstdint>
#include <vector>

#include "../core/blocks.hpp"
#include "anchored.hpp"

#include <torch/nn/modules/activation.h>
#include <pawl/core/learner.hpp>
#include <pawl/strategies/mas.hpp>

#include <doctest/doctest.h>  // after LibTorch, whose own CHECK must not win

using namespace pawl;
using namespace anchored;

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

// ---- what MAS has in common with EWC and SI ----

TEST_CASE("MAS is naive bit for bit in experience 0, and in any experience at strength 0") {
  auto const first = trained(1, perceptron(), .1);
  CHECK(first.equal(trained(1, perceptron(), .1, Mas{.strength = 1e6})));
  auto const all = trained(3, perceptron(), .1);
  CHECK(all.equal(trained(3, perceptron(), .1, Mas{.strength = 0})));
}

TEST_CASE("the penalty of MAS is 0 in experience 0 and positive after one step of experience 1") {
  check_first_penalties(Mas{.strength = 10});
}

TEST_CASE("an overwhelming strength of MAS freezes what is important") {
  CHECK(frozen(Mas{.strength = 1e12, .anchor = {.clip_step = true}}) < .03);
}

TEST_CASE("MAS listed twice with half the strength is once with the whole") {
  check_twice(Mas{.strength = .1}, Mas{.strength = .2});
}

TEST_CASE("rows that a head gains have no importance to MAS") {
  check_gained_rows(Mas{.strength = 1});
}

TEST_CASE("heads of other tasks get no importance from MAS and are not moved") {
  check_other_heads(Mas{});
}

TEST_CASE("the sensitivity of a learner sees the outputs that its loss sees") {
  check_active_outputs(Mas{});
}

TEST_CASE("`end` of MAS leaves buffers, gradients, modes and generators as found") {
  check_end(Mas{});
}

TEST_CASE("options of MAS have names of their own, and go round") { check_options(Mas{}); }

TEST_CASE("blocks change no bit of what MAS learns") {
  blocks::compare(Sgd{.lr = 0.05}, Mas{.strength = 0.5});
}

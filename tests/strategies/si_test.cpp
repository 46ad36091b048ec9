// Synaptic intelligence in a learner: values worked out by hand, what it has in common with EWC and
// MAS, and steps that go over the weights in blocks.

#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "../core/blocks.hpp"
#include "../core/named.hpp"
#include "anchored.hpp"

#include <torch/nn/modules/activation.h>
#include <pawl/core/any_learner.hpp>
#include <pawl/heads/growing.hpp>
#include <pawl/strategies/si.hpp>

#include <doctest/doctest.h>  // after LibTorch, whose own CHECK must not win

using namespace pawl;
using namespace anchored;

namespace {

/// L = z^2 / 2 in the place of cross-entropy.
struct HalfSquare {
  Tensor loss(Context& c) { return c.logits.square().sum() / 2; }
};

/// A penalty that goes through autograd.
struct Shrink {
  double strength = 0;
  Tensor penalty(Context& c) {
    Tensor sum;
    for (auto const& p : c.arena.parameters()) {
      sum = sum.defined() ? sum + p.square().sum() : p.square().sum();
    }
    return strength * sum;
  }
};

/// SI on L = sum h_i th_i^2 / 2, full-batch SGD: every row asks for one coordinate.
Si on_quadratic(std::vector<double> const& h, double start, double lr, std::int64_t steps, Si si) {
  auto const d = static_cast<std::int64_t>(h.size());
  nn::Linear layer(nn::LinearOptions(d, 1).bias(false));
  layer->to(torch::kFloat64);
  layer->weight.detach().fill_(start);
  Learner learner{nn::Sequential(layer), Sgd{.lr = lr}, HalfSquare{}, si};
  struct Path {
    Tensor omega;
    Si* live;
    void step(Context const&) { omega = live->omega.clone(); }
  };
  Path path{.omega = {}, .live = &learner.strategy<Si>()};
  auto const x = torch::diag(values(h).sqrt());
  learner.fit(make_experience(x, torch::zeros({d}, torch::kInt64)),
              {.iterations = steps, .batch_size = d}, path);
  auto result = learner.strategy<Si>();
  result.omega = path.omega;  // `end` set it to 0
  return result;
}

}  // namespace

TEST_CASE("SI on a quadratic has the values computed by hand") {
  auto const si = on_quadratic({1}, 1, .1, 400, {});
  CHECK(element(si.omega, 0) == doctest::Approx(10.0 / 19).epsilon(1e-9));
  CHECK(element(si.anchor.importance, 0) == doctest::Approx(.478469).epsilon(1e-6));
  auto const fine = on_quadratic({1}, 1, .001, 20000, {});
  CHECK(element(fine.omega, 0) == doctest::Approx(.5).epsilon(1e-3));
}

TEST_CASE(
    "on a diagonal quadratic the path integral is the fall of the loss times 2 / (2 - lr h)") {
  std::vector<double> const h{.5, 1, 3, 7};
  for (auto const lr : {.2, .1, .05}) {
    auto const si = on_quadratic(h, 2, lr, 4000, {});
    for (std::size_t i = 0; i < h.size(); ++i) {
      auto const fall = h[i] * 4 / 2;
      CHECK(element(si.omega, static_cast<std::int64_t>(i)) ==
            doctest::Approx(fall * 2 / (2 - lr * h[i])).epsilon(1e-9));
    }
  }
}

TEST_CASE("the path integrals add up to the fall of the loss, the better the smaller the steps") {
  auto const e = blobs(0);
  auto const gap = [&](double lr) {
    auto net = perceptron();
    Learner learner{net, Sgd{.lr = lr}, Si{}};
    auto const rows = e.train.read(torch::arange(60));
    auto const loss = [&] {
      return at::cross_entropy_loss(net->forward(rows.stored), rows.y).item<double>();
    };
    struct Path {
      double sum = 0;
      Si* live;
      void step(Context const&) { sum = live->omega.sum().item<double>(); }
    };
    Path path{.live = &learner.strategy<Si>()};
    auto const start = loss();
    learner.fit(e, {.iterations = std::lround(2 / lr), .batch_size = 60}, path);
    CHECK(start - loss() > .1);
    return path.sum - (start - loss());
  };
  auto const ratio = gap(.05) / gap(.025);
  CHECK(ratio > 1.5);
  CHECK(ratio < 2.5);
}

TEST_CASE("SI importances are not negative, not all alike, and 0 where nothing moved") {
  nn::Sequential net(nn::Linear(6, 5), nn::ReLU(), nn::Linear(5, 2));
  filled(net);
  {
    torch::NoGradGuard no_grad;
    net->named_parameters()["0.bias"][2] = -1000;  // a unit that never fires
  }
  Learner learner{net, Sgd{.lr = .05}, Si{}};
  learner.fit(blobs(0), {.epochs = 3, .batch_size = 10});
  auto const& omega = learner.strategy<Si>().anchor.importance;
  CHECK(omega.min().item<double>() >= 0);
  CHECK(std::get<0>(at::_unique(omega)).numel() > 10);
  auto const layer = learner.context().arena.parameter_view(omega, 0);
  CHECK(layer[2].max().item<double>() == 0);
  CHECK(layer[0].max().item<double>() > 0);
}

TEST_CASE("SI follows the gradient of the supervised loss alone, or the total one where asked") {
  auto const e = blobs(0);
  auto const check = [&](Si::Gradient which) {
    Learner learner{perceptron(), Sgd{.lr = .1}, Shrink{.strength = 3}, Si{.gradient = which}};
    auto& c = learner.context();
    auto const w = c.weights().clone();
    auto g = c.gradient_on(e.train.read(torch::arange(60)));
    struct First {
      Tensor omega, weights;
      Si* live;
      void step(Context const& context) {
        omega = live->omega.clone();
        weights = context.weights().clone();
      }
    };
    First first{.omega = {}, .weights = {}, .live = &learner.strategy<Si>()};
    learner.fit(e, {.batch_size = 60}, first);
    auto const total = g + 6 * w;
    CHECK(close(first.weights, w - .1 * total));
    CHECK(close(first.omega, .1 * total * (which == Si::Gradient::task ? g : total)));
  };
  check(Si::Gradient::task);
  check(Si::Gradient::total);
}

TEST_CASE("the pull of SI itself does not count as work done") {
  Learner learner{perceptron(), Sgd{.lr = .01}, Si{.strength = 50}};
  auto const e = blobs(1);
  learner.fit(blobs(0), {.batch_size = 10});
  struct Follow {
    Tensor before, expected, omega;
    Si* live;
    void begin(Context const& c) {
      before = c.weights().clone();
      expected = torch::zeros_like(before);
    }
    void step(Context const& c) {
      expected -= c.task_gradient * (c.weights() - before);
      before = c.weights().clone();
      omega = live->omega.clone();
    }
  };
  Follow follow{.before = {}, .expected = {}, .omega = {}, .live = &learner.strategy<Si>()};
  learner.fit(e, {.batch_size = 10}, follow);
  CHECK(close(follow.omega, follow.expected));
}

TEST_CASE("the penalty of SI does not feel how strong another penalty is") {
  // Up to the first step of experience 1 the other one has nothing to pull at.
  auto const run = [](std::string const& strength) {
    auto learner = learner_of(perceptron(), Sgd{.lr = .01},
                              {Si{.strength = 5}, named("ewc", {{"strength", strength}})});
    Trace second;
    learner.fit(blobs(0), {.batch_size = 10});
    learner.fit(blobs(1), {.batch_size = 10}, second);
    auto& si = *learner.strategies().strategies.front().get<Si>();
    return std::pair{second.values, si.anchor.importance.clone()};
  };
  auto const [weak, weak_importance] = run("1");
  auto const [strong, strong_importance] = run("60");
  CHECK(weak.at(1) > 0);
  CHECK(weak.at(1) == strong.at(1));
  CHECK_FALSE(weak_importance.equal(strong_importance));  // later the ways part
}

TEST_CASE("SI's options: negative work, a cap, and sums over experiences") {
  auto const run = [](Si si) {
    // Another penalty works against the loss: some weights go uphill.
    Learner learner{perceptron(), Sgd{.lr = .05}, Shrink{.strength = .1}, si};
    learner.fit(blobs(0), {.batch_size = 10});
    auto const first = learner.template strategy<Si>().anchor.importance.clone();
    learner.fit(blobs(1), {.batch_size = 10});
    return std::pair{first, learner.template strategy<Si>().anchor.importance.clone()};
  };
  auto const [first, second] = run({.strength = 0});
  CHECK((second - first).min().item<double>() >= 0);
  CHECK((second - first).max().item<double>() > 0);
  auto const signed_first = run({.strength = 0, .relu = false}).first;
  CHECK(signed_first.min().item<double>() < 0);
  CHECK(signed_first.clamp_min(0).equal(first));
  auto const cap = first.max().item<double>() / 2;
  CHECK(run({.strength = 0, .max_importance = cap}).first.equal(first.clamp_max(cap)));
}

TEST_CASE("a label met on the way gives SI rows with no past") {
  auto net = filled(nn::Sequential(nn::Linear(6, 5), nn::Tanh(), GrowingHead(5, 2)));
  Learner learner{net, Sgd{.lr = .05}, Si{}};
  auto e = blobs(0);
  e.train.labels[59] = 2;  // in the last batch of the only epoch, and never announced
  struct Path {
    Si* live;
    std::vector<Tensor> omega{}, start{}, weights{};
    void step(Context const& c) {
      omega.push_back(c.arena.parameter_view(live->omega, 2).clone());
      start.push_back(c.arena.parameter_view(live->start, 2).clone());
      weights.push_back(c.arena.parameter_view(c.weights(), 2).clone());
    }
  };
  Path path{&learner.strategy<Si>()};
  learner.fit(e, {.batch_size = 10, .shuffle = false}, path);
  REQUIRE(path.omega.size() == 6);
  CHECK(path.omega[4].size(0) == 2);
  CHECK(path.omega[5].size(0) == 3);
  CHECK(path.start[5].narrow(0, 0, 2).equal(path.start[4]));
  // The new row has taken one step: omega = -g (-lr g) = lr g^2 = way^2 / lr.
  auto const way = (path.weights[5] - path.start[5])[2];
  CHECK(way.abs().max().item<double>() > 0);
  CHECK(close(path.omega[5][2], way.square() / .05));
}

TEST_CASE("labels replayed apart are supervised: path importance sees them, and not the error") {
  // g_task is the same whether the replayed rows share the forward pass or not.
  auto const run = [](std::string const& forward) {
    auto learner =
        learner_of(perceptron(), Sgd{.lr = .05}, {named("derpp", {{"forward", forward}}), Si{}});
    learner.fit(blobs(0), {.batch_size = 8});
    return learner.context().task_gradient.clone();
  };
  auto const joint = run("joint");
  CHECK(joint.norm().item<double>() > 0);
  CHECK(close(joint, run("separate")));
}

// ---- what SI has in common with EWC and MAS ----

TEST_CASE("SI is naive bit for bit in experience 0, and in any experience at strength 0") {
  auto const first = trained(1, perceptron(), .1);
  CHECK(first.equal(trained(1, perceptron(), .1, Si{.strength = 1e6})));
  auto const all = trained(3, perceptron(), .1);
  CHECK(all.equal(trained(3, perceptron(), .1, Si{.strength = 0})));
  CHECK_FALSE(all.equal(trained(3, perceptron(), .1, Si{.strength = 1})));
}

TEST_CASE("plain SGD is naive bit for bit as well") {
  auto const run = [](std::vector<AnyStrategy> const& strategies) {
    auto learner = learner_of(perceptron(), Sgd{.lr = .1}, strategies);
    learner.fit(blobs(0), {.epochs = 3, .batch_size = 10});
    learner.fit(blobs(1), {.epochs = 3, .batch_size = 10});
    return learner.context().weights().clone();
  };
  auto const ewc = named("ewc", {{"strength", "0"}}), mas = named("mas", {{"strength", "0"}});
  CHECK(run({}).equal(run({ewc, mas, Si{.strength = 0}})));
}

TEST_CASE("the order of penalties does not matter") {
  auto const run = [](std::vector<AnyStrategy> const& strategies) {
    auto learner = learner_of(perceptron(), Sgd{.lr = .02, .momentum = .5}, strategies);
    for (std::int64_t e = 0; e < 3; ++e) learner.fit(blobs(e), {.epochs = 3, .batch_size = 10});
    return learner.context().weights().clone();
  };
  auto const ewc = named("ewc", {{"strength", "10"}}), mas = named("mas", {{"strength", "0.1"}});
  CHECK(close(run({ewc, mas, Si{.strength = .5}}), run({Si{.strength = .5}, ewc, mas}), 1e-6));
}

TEST_CASE("the penalty of SI is 0 in experience 0 and positive after one step of experience 1") {
  check_first_penalties(Si{.strength = 10});
}

TEST_CASE("an overwhelming strength of SI freezes what is important") {
  CHECK(frozen(Si{.strength = 1e12, .anchor = {.clip_step = true}}) < .03);
}

TEST_CASE("SI listed twice with half the strength is once with the whole") {
  check_twice(Si{.strength = .5}, Si{.strength = 1});
}

TEST_CASE("rows that a head gains have no importance to SI") {
  check_gained_rows(Si{.strength = 1});
}

TEST_CASE("heads of other tasks get no importance from SI and are not moved") {
  check_other_heads(Si{});
}

TEST_CASE("`end` of SI leaves buffers, gradients, modes and generators as found") {
  check_end(Si{});
}

TEST_CASE("options of SI have names of their own, and go round") { check_options(Si{}); }

// ---- SI in blocks ----

TEST_CASE("blocks change no bit of what SI learns") {
  Sgd const sgd{.lr = 0.05};
  blocks::compare(sgd, Si{.strength = 1});
  blocks::compare(sgd, Si{.strength = 1, .gradient = Si::Gradient::total});
  blocks::compare(Adam{.lr = 0.002, .fused = true}, Si{.strength = 1});
  blocks::compare(AdamW{.lr = 0.002}, Si{.strength = 1});
}

TEST_CASE("the task gradient of the last step is there after training, of all weights") {
  Learner learner{blocks::network(torch::kFloat32, false), Sgd{.lr = 0.05}, Si{}};
  learner.fit(blocks::rows(0, torch::kFloat32), {.batch_size = 10});
  CHECK(learner.context().task_gradient.equal(learner.context().arena.gradient()));
}

TEST_CASE("strategies and an optimizer chosen at run time go by blocks too") {
  auto const dtype = torch::kFloat32;
  AnyLearner learner{
      Model(blocks::network(dtype, false)), AnyOptimizer(Sgd{.lr = 0.05}),
      StrategyList({AnyStrategy(blocks::InBlocks{}), AnyStrategy(Si{.strength = 1})})};
  for (std::int64_t e = 0; e < 3; ++e) learner.fit(blocks::rows(e, dtype), {.batch_size = 7});
  auto const typed =
      blocks::learned(blocks::network(dtype, false), Sgd{.lr = 0.05}, {}, Si{.strength = 1});
  CHECK(learner.context().weights().equal(typed.front()));
}

// The quadratic anchor: the pull that EWC, MAS and SI share.

#include <cmath>
#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "anchored.hpp"

#include <torch/nn/modules/activation.h>
#include <pawl/core/context.hpp>
#include <pawl/heads/growing.hpp>
#include <pawl/strategies/quadratic_anchor.hpp>

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
    context.note_learning_rate(0.01);
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
  c.note_learning_rate(0.1);
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
